"""Blocks whose sum stands in a module's own forward: found, proven, on the tape, in plans, in ONNX."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import edgeprune
from edgeprune.engine import Session, Tape
from edgeprune.engine.session import weights_of
from edgeprune.errors import PlanError
from edgeprune.graph import Configuration, Plan, Structure
from edgeprune.graph.tracer import _fingerprint
from edgeprune.latency.going import calls_of, going
from edgeprune.latency.network import read_network
from edgeprune.latency.sites import homes
from edgeprune.latency.slicing import narrow
from edgeprune.model import export_onnx
from edgeprune.search import measure

TOKENS = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))


class PreNorm(nn.Module):
    """A vision transformer's layer; torch's own attention, which returns a tuple; a layer scale on the second term."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.scale = nn.Parameter(torch.full((8,), 0.7))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        y, _ = self.attn(y, y, y, need_weights=False)
        x = x + y
        return x + self.scale * self.mlp(self.ln_2(x))


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        q, k, v = (f(x).unflatten(-1, (-1, 4)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), None


class Output(nn.Module):
    """norm(x + dense(y)): the residual is the second argument."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(width, 8), nn.LayerNorm(8)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return self.norm(self.dense(y) + x)


class PostNorm(nn.Module):
    """BERT's layer."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.attended = SelfAttention(), Output(8)
        self.intermediate, self.output = nn.Linear(8, 12), Output(12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attended(self.attention(x)[0], x)
        return self.output(F.gelu(self.intermediate(x)), x)


class Windows(nn.Module):
    """Swin's layer: the parent shifts and cuts windows round the attention; the term comes first in the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn, self.mlp = nn.LayerNorm(8), SelfAttention(), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x).roll(1, 1).reshape(-1, 3, x.shape[-1])
        x = self.attn(y)[0].reshape(x.shape).roll(-1, 1) + x
        return x + torch.tanh(self.mlp(x))


class Shared(nn.Module):
    """Attention and MLP side by side behind one norm, as in ViT-22B."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(8), SelfAttention()
        self.up, self.down, self.last = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + (self.attn(y)[0] + self.down(F.gelu(self.up(y))))
        return x + self.last(x)


class Net(nn.Module):
    def __init__(self, layer: type[nn.Module]) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 8), nn.Linear(8, 5)
        self.layers = nn.ModuleList([layer() for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


BLOCKS = {
    PreNorm: {"attn": "attn.out_proj", "mlp": "mlp.2"},
    PostNorm: {"attended.dense": "attended.dense", "output.dense": "output.dense"},
    Windows: {"attn": "attn.v", "mlp": "mlp"},
}


def _net(layer: type[nn.Module]) -> Net:
    torch.manual_seed(1)
    return Net(layer).eval()


def _without(net: Net, last: list[str]) -> Net:
    """The network with zeros in the layers that end these terms: what a removed term means, without edgeprune."""
    other = copy.deepcopy(net)
    for name in last:
        layer = other.get_submodule(name)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return other


def _inputs() -> list[Tensor]:
    return [torch.randn(n, 6, 8, generator=torch.Generator().manual_seed(n)) for n in (2, 3, 5)]


@pytest.mark.slow
@pytest.mark.parametrize("layer", BLOCKS)
def test_each_term_goes_alone_and_with_all_others_and_with_widths(layer: type[nn.Module], tmp_path: Path) -> None:
    net, ends = _net(layer), BLOCKS[layer]
    structure = edgeprune.trace(net, TOKENS)
    names = [block.module for block in structure.blocks]
    assert names == [f"layers.{i}.{name}" for i in range(2) for name in ends]
    uniform = structure.uniform(0.5)
    for gone in (*([name] for name in names), names):
        plan = structure.plan({}, gone)
        proof = structure.prove(net, plan)
        assert proof.passed and not proof.vacuous, proof.detail
        both = structure.plan(uniform.kept, gone)
        assert structure.prove(net, both).passed
        pruned = plan.apply(net)
        expected = _without(net, [f"{n[:8]}.{ends[n[9:]]}" for n in gone])
        for x in _inputs():
            assert torch.allclose(pruned(x), expected(x), atol=1e-5)
        block = structure.blocks[names.index(gone[0])]
        assert not any(block.holds(name) for name, _ in pruned.named_parameters())
        plan.save(tmp_path / "plan.json")
        assert Plan.load(tmp_path / "plan.json") == plan and '"version": 3' in (tmp_path / "plan.json").read_text()
    assert all(block.layers for block in structure.blocks)
    assert len(structure.gone(structure.plan({}, names))) == len(names)


@pytest.mark.slow
@pytest.mark.parametrize("layer", BLOCKS)
def test_onnx_has_no_trace_of_a_removed_term_and_is_sliced_to_the_same(layer: type[nn.Module], tmp_path: Path) -> None:
    net, x = _net(layer), TOKENS
    structure = edgeprune.trace(net, x)
    dense = export_onnx(net, x, tmp_path / "dense.onnx")
    names = [block.module for block in structure.blocks]
    for gone in (names[:1], names[1:2], names):
        pruned = structure.plan({}, gone).apply(net)
        made = export_onnx(pruned, x, tmp_path / "pruned.onnx")
        sliced = narrow(dense, structure, Configuration({}, tuple(gone)))
        assert sliced is not None
        assert sorted(n.op_type for n in made.graph.node) == sorted(n.op_type for n in sliced.graph.node)
        for graph in (made, sliced):
            assert np.allclose(_run(graph, x), pruned(x).detach().numpy(), atol=1e-5)
        assert len(made.graph.node) < len(dense.graph.node)
    assert narrow(dense, structure, Configuration({g.name: g.size // 2 for g in structure.groups}, tuple(names)))


def _run(graph: onnx.ModelProto, x: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"input": x.numpy()})[0]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("layer", BLOCKS)
def test_the_tables_know_every_node_of_a_term(layer: type[nn.Module], tmp_path: Path) -> None:
    net = _net(layer)
    structure = edgeprune.trace(net, TOKENS)
    dense = export_onnx(net, TOKENS, tmp_path / "dense.onnx")
    home = homes(read_network(dense), structure.blocks)
    for block in structure.blocks:
        gone = going(calls_of(dense.graph), block)
        assert gone is not None and {node for node, name in home.items() if name == block.module} == gone.nodes


@pytest.mark.parametrize("layer", BLOCKS)
def test_the_tape_and_the_curves_go_round_a_term(layer: type[nn.Module]) -> None:
    net = _net(layer)
    examples = torch.randn(32, 6, 8, generator=torch.Generator().manual_seed(3))
    structure = edgeprune.trace(net, examples[:1])
    plan = structure.plan({}, [block.module for block in structure.blocks])
    tape = Tape.of(net, examples)
    values = tape.begin((examples,))
    with torch.no_grad():
        tape.run(values, tape.route(structure.gone(plan)), weights_of(net))
    assert torch.allclose(tape.results(values, {})[0], plan.apply(net)(examples), atol=1e-5)
    session = Session(net, examples, capture=structure.capture)
    curves = measure(structure, session, {g.name: (g.size,) for g in structure.groups})
    assert set(curves.blocks) == {block.module for block in structure.blocks}
    assert all(math.isfinite(loss) and loss > 0 for loss in curves.blocks.values())


def test_terms_of_one_sum_go_together() -> None:
    net = _net(Shared)
    structure = edgeprune.trace(net, TOKENS)
    assert [block.module for block in structure.blocks] == [
        "layers.0.down",
        "layers.0.last",
        "layers.1.down",
        "layers.1.last",
    ]
    assert structure.blocks[0].layers == tuple(f"layers.0.{n}" for n in ("attn.q", "attn.k", "attn.v", "up", "down"))
    assert structure.prove(net, structure.plan({}, ["layers.1.down"])).passed


class Feature(nn.Module):
    """Sums that are none of x and a function of x, and ones whose term cannot be made zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x) + self.b(x[:, :1].expand_as(x))  # two branches
        z = y + torch.sigmoid(self.c(y))  # one half where c is zero
        return self.head((z + self.d(z.flatten(0, 1)).reshape(2, 6, 8)).mean(1))  # a size that is written down


def test_other_sums_are_no_blocks() -> None:
    structure = edgeprune.trace(Feature().eval(), TOKENS)
    assert [block.module for block in structure.blocks] == ["d"]


def test_a_table_of_the_same_network_with_other_blocks_is_of_another_network() -> None:
    structure = edgeprune.trace(_net(PreNorm), TOKENS)
    groups, layers, walk = structure.groups, structure.layers, structure.analysis.walk
    known = tuple(replace(block, kind="module") for block in structure.blocks)
    assert structure.fingerprint == _fingerprint(walk, groups, layers, structure.blocks)
    assert structure.fingerprint != _fingerprint(walk, groups, layers, known) == _fingerprint(walk, groups, layers, ())


def test_a_stand_in_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    net = _net(PreNorm)
    structure: Structure = edgeprune.trace(net, TOKENS)
    plan = structure.plan({}, ["layers.0.attn"])
    damaged = tmp_path / "plan.json"
    plan.save(damaged)
    whole = damaged.read_text()
    for text in ("magic", "nothing/0000000", "nothing/99999999999", "nothing/-1", "nothing/²"):
        damaged.write_text(whole.replace("nothing/2", text))
        with pytest.raises(PlanError, match=f"'{text}'"):
            Plan.load(damaged).apply(net)
