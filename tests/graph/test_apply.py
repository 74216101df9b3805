"""What `apply` promises: exact index_select, ties, types, flags and hooks kept; the given model untouched."""

from __future__ import annotations

import copy
import io

import graph_nets as nets
import numpy as np
import pytest
import torch
from torch import nn

import edgeprune


class Odd(nn.Module):
    """A tie, an alias, a non-persistent buffer, a frozen parameter, half precision, a hook, a plain attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 10), nn.Linear(10, 10)
        self.tied = nn.Linear(10, 10)
        self.tied.weight = self.b.weight
        self.register_buffer("scale", torch.rand(10), persistent=False)
        self.register_buffer("again", self.scale)
        self.register_buffer("shift", torch.rand(10).to(torch.bfloat16))
        self.a.bias.requires_grad_(False)
        self.o = nn.Linear(10, 3)
        self.note = "kept"
        self.dropout = nn.Dropout(0.1)
        self.cache: dict[str, torch.Tensor] = {}

    def train(self, mode: bool = True) -> Odd:
        self.cache = {}
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        double = self.cache.setdefault("double", self.scale.detach() * 2)
        y = torch.relu(self.a(x)) * double + self.again + self.shift.to(x.dtype)
        y = self.tied(torch.relu(self.b(y)))
        return self.o(self.dropout(y))


def test_the_promises() -> None:
    torch.manual_seed(0)
    model = Odd()
    model.train()
    model.dropout.eval()
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(dict(model.named_parameters())), copy.deepcopy(dict(model.named_buffers()))
    attributes = model.a.out_features, model.training
    x = torch.randn(4, 6)
    model(x)  # fills the cache, at full width
    structure = edgeprune.trace(model, x)
    plan = structure.uniform(0.4)
    pruned = plan.apply(model)
    assert (model.a.out_features, model.training) == attributes
    for name, value in model.named_parameters():
        assert torch.equal(value, before[0][name])
    for name, value in model.named_buffers():
        assert torch.equal(value, before[1][name])
    calls.clear()  # tracing runs the hooks of its own copy

    new = {
        **dict(pruned.named_parameters(remove_duplicate=False)),
        **dict(pruned.named_buffers(remove_duplicate=False)),
    }
    old = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    assert new.keys() == old.keys()
    for name, value in old.items():
        want = value.detach()
        for cut in plan.cuts:
            if cut.parameter == name:
                want = want.index_select(cut.axis, torch.tensor(cut.kept))
        assert torch.equal(new[name], want), name
        assert new[name].dtype == value.dtype and new[name].requires_grad == value.requires_grad, name
        assert new[name].untyped_storage().data_ptr() != value.untyped_storage().data_ptr(), name
    assert pruned.tied.weight is pruned.b.weight and pruned.scale is pruned.again
    assert type(pruned) is Odd and pruned.note == "kept"
    assert pruned.training and not pruned.dropout.training
    assert pruned.a.out_features == pruned.b.in_features == new["a.weight"].shape[0]
    pruned(x)
    assert calls == [1]
    assert structure.prove(model, plan).passed

    twin = plan.apply(Odd())
    twin.load_state_dict(pruned.state_dict(), strict=True)
    other = copy.deepcopy(pruned)
    assert other.tied.weight is other.b.weight
    assert torch.equal(other.eval()(x), pruned.eval()(x))


def test_removed_blocks_keep_their_call() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.g = nn.Linear(6, 12), nn.Linear(12, 6)

        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None, *, scale: float = 1.0) -> torch.Tensor:
            return x + self.g(torch.relu(self.f(x))) * scale

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.e, self.o = nn.Linear(4, 6), nn.Linear(6, 2)
            self.blocks = nn.ModuleList([Block(), Block(), Block()])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.e(x)
            x = self.blocks[0](x, None, scale=0.5)
            x = self.blocks[1](mask=None, x=x)
            return self.o(self.blocks[2](x))

    model = Net()
    structure = edgeprune.trace(model, torch.randn(2, 4))
    assert [b.module for b in structure.blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    assert structure.blocks[0].group == "e" and structure.blocks[0].inner == ("blocks.0.f",)
    plan = structure.plan({"e": [0, 2, 5], "blocks.2.f": range(5)}, ["blocks.0", "blocks.1"])
    assert structure.prove(model, plan).passed
    assert not any(c.parameter.startswith(("blocks.0", "blocks.1")) for c in plan.cuts)
    copy.deepcopy(plan.apply(model))(torch.randn(2, 4))


def test_uniform_goes_to_the_nearest_legal_width() -> None:
    layers = {"a": nn.Conv2d(3, 50, 1), "b": nn.Conv2d(50, 5, 1), "o": nn.Conv2d(5, 2, 1)}
    model = nets.Call(lambda m, x: m.o(torch.relu(m.b(torch.relu(m.a(x))))), **layers)
    structure = edgeprune.trace(model, torch.randn(1, 3, 4, 4))
    for multiple, want in ((1, (35, 4)), (8, (32, 5)), (10, (40, 5))):
        plan = structure.uniform(0.3, multiple)
        assert (len(plan.kept.get("a", range(50))), len(plan.kept.get("b", range(5)))) == want, multiple
    strongest = np.argsort(-model.a.weight.detach().abs().sum((1, 2, 3)).numpy())[:35]
    assert structure.uniform(0.3).kept["a"] == tuple(sorted(strongest.tolist()))
    assert structure.uniform(0.0).kept == {} and structure.uniform(0.999).kept["b"].__len__() == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_pruned_module_exports_to_onnx() -> None:
    import onnxruntime

    model, x = nets.attention_fused()
    structure = edgeprune.trace(model, x)
    pruned = structure.uniform(0.4).apply(model).eval()
    buffer = io.BytesIO()
    torch.onnx.export(pruned, (x,), dynamo=True, verbose=False).save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(got, pruned(x).detach().numpy(), atol=1e-5)


class Reader(nn.Module):
    """torch's own encoder, which reads its first layer's settings, and its weights on its fast path."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.tokens, self.encoder = nn.Embedding(20, 16), nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 3)

    def forward(self, ids, mask):
        seen = self.encoder(self.tokens(ids), src_key_padding_mask=mask == 0)
        return self.head((seen * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_the_terms_of_torch_s_own_encoder_may_go():
    net = Reader().eval()
    ids, mask = torch.randint(20, (2, 6), generator=torch.Generator().manual_seed(1)), torch.ones(2, 6)
    mask[0, 4:] = 0
    structure = edgeprune.trace(net, (ids, mask))
    names = [f"encoder.layers.{i}.{name}" for i in range(2) for name in ("self_attn", "linear2")]
    assert [block.module for block in structure.blocks] == names
    for name in names:
        one = structure.plan({}, removed=[name])
        assert structure.prove(net, one).passed
        with torch.no_grad():
            one.apply(net)(ids, mask)
    plan = structure.plan({}, removed=names[:2])
    assert structure.prove(net, plan).passed
    small = plan.apply(net)
    with torch.no_grad():
        first = net.encoder.layers[0]
        hidden = net.encoder.layers[1](first.norm2(first.norm1(net.tokens(ids))), src_key_padding_mask=mask == 0)
        wanted = net.head((hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True))
        torch.testing.assert_close(small(ids, mask), wanted)
    assert net.encoder.use_nested_tensor and not small.encoder.use_nested_tensor
