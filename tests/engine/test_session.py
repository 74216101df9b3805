"""The engine on networks beyond one image in and one row of scores out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.engine import Given, ScaledError, Session, SoftenedKL, Tape, call, layers_of, positions, results, rows
from edgeprune.engine.distance import scaled_error
from edgeprune.errors import GraphError, ModelError
from edgeprune.recover.repair import repair
from edgeprune.search import Evaluator, measure
from edgeprune.search.saliency import orders


class Text(nn.Module):
    """Two inputs (int64 tokens and a bool mask, by name), two outputs (scores and a map)."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 12)
        self.conv = nn.Conv1d(12, 16, 3, padding=1)
        self.norm = nn.BatchNorm1d(16)
        self.mix = nn.Conv1d(16, 16, 3, padding=2, dilation=2)
        self.head = nn.Linear(16, 4)
        self.per_token = nn.Linear(16, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.words(tokens).transpose(1, 2) * mask[:, None, :]
        x = torch.relu(self.mix(torch.relu(self.norm(self.conv(x))))).transpose(1, 2)
        return self.head(x.mean(1)), self.per_token(x)


def text(seed: int = 0) -> Text:
    torch.manual_seed(seed)
    net = Text()
    nn.init.uniform_(net.norm.running_mean, -0.2, 0.2)
    nn.init.uniform_(net.norm.bias, 0.2, 0.8)
    return net.eval()


def tokens(count: int = 96) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(count, 10, generator=generator) < 0.8
    return {"mask": mask, "tokens": torch.randint(0, 50, (count, 10), generator=generator)}  # not the forward's order


@pytest.mark.long
def test_inputs_by_name_reach_their_arguments_and_every_output_comes_out() -> None:
    net, examples = text(), tokens()
    session = Session(net, examples)
    with torch.no_grad():
        expected = call(net, {name: item[: session.size] for name, item in examples.items()})
        found = session.outputs(session.tape, session.weights, session.tape.route(), session.batches(examples)[0])
    assert len(found) == 2 and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    assert [layer.name for layer in session.layers] == ["conv", "mix", "head", "per_token"]


def test_a_network_of_two_inputs_and_outputs_is_measured_pruned_and_repaired() -> None:
    net, examples = text(), tokens(192)
    structure = edgeprune.trace(net, {name: item[:2] for name, item in examples.items()})
    session = Session(net, {name: item[:128] for name, item in examples.items()})
    widths = {group.name: tuple(range(4, group.size + 1, 4)) for group in structure.groups}
    curves = measure(structure, session, widths)
    assert isinstance(session.distance, ScaledError) and {"conv", "mix"} <= set(curves.losses)
    assert all(list(losses) == sorted(losses, reverse=True) for losses in curves.losses.values())
    plan = structure.plan({"conv": curves.keep("conv", 8), "mix": curves.keep("mix", 12)})
    pruned = plan.apply(net)
    unseen = {name: item[128:] for name, item in examples.items()}
    with torch.no_grad():
        dense, before = call(net, unseen), call(pruned, unseen)
        repair(net, pruned, structure, plan, session.examples, session=session)
        after = call(pruned.eval(), unseen)
    far = scaled_error([dense])
    assert float(far(dense, after).mean()) < 0.5 * float(far(dense, before).mean())
    verdict = Evaluator(structure, session)(plan)
    assert 0 < verdict.loss < float(far(dense, before).mean()) and verdict.agreement is None
    assert Evaluator(structure, session)(structure.plan({})).loss == pytest.approx(0, abs=1e-9)


@pytest.mark.long
def test_the_second_output_counts() -> None:
    """A unit that only the second output reads is worth something."""
    net, examples = text(), tokens()
    with torch.no_grad():
        net.head.weight.zero_()  # the first output is constant
    structure = edgeprune.trace(net, {name: item[:2] for name, item in examples.items()})
    session = Session(net, examples)
    curves = measure(structure, session, {group.name: (4, group.size) for group in structure.groups})
    assert curves.losses["mix"][0] > 0.01


@pytest.mark.parametrize("kind", ["taylor", "fisher"])
def test_orders_by_gradient_work_without_classes(kind: str) -> None:
    net, examples = text(), tokens()
    with torch.no_grad():
        net.conv.weight[5], net.norm.weight[5], net.norm.bias[5] = 0, 0, 0
        net.conv.bias[5] = net.norm.running_mean[5]
    structure = edgeprune.trace(net, {name: item[:2] for name, item in examples.items()})
    assert orders(net, structure, examples, kind)["conv"][-1] == 5  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(6, 9, 5, stride=2, padding=2, dilation=2, groups=3), (4, 6, 21)),
        (nn.Conv2d(6, 9, (3, 1), stride=(2, 1), padding=(1, 0)), (4, 6, 9, 7)),
        (nn.Conv3d(4, 6, (1, 3, 3), padding=(0, 1, 1), dilation=(1, 1, 1), groups=2), (4, 4, 3, 6, 5)),
        (nn.Linear(6, 9), (4, 5, 6)),
    ],
)
def test_rows_times_the_matrix_are_the_results(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """The regression's view of a layer is the layer: x W + b at every position, for 1-, 2- and 3-d ones."""
    from edgeprune.engine import matrix, tensor

    net = nn.Sequential(layer).eval()
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    tape, weights = Tape.of(net, value), Session(net, value).weights
    (found,) = layers_of(tape, weights)
    with torch.no_grad():
        wanted = layer(value)
        picks = positions(found, value, 10**6, torch.Generator())
        computed = rows(found, value, picks).double() @ matrix(found, layer.weight)
        bias = layer.bias.reshape(found.groups, 1, -1)
    assert torch.allclose(computed + bias, results(found, wanted, picks).double(), atol=1e-5)
    assert torch.equal(tensor(found, matrix(found, layer.weight), layer.weight), layer.weight)


def test_everything_stays_on_the_device_of_the_network() -> None:
    """On a second device type (meta has no numbers, but refuses to meet another device)."""
    net = text().to("meta")
    value = torch.randn(8, 12, 10, device="meta")
    layer = Session(text(), tokens()).by_weight["mix.weight"]
    picks = positions(layer, value.new_empty(8, 16, 10), 7, torch.Generator())
    assert picks.device.type == "meta"
    read = rows(layer, torch.empty(8, 16, 10, device="meta"), picks)
    assert read.device.type == "meta" and read.shape == (1, 8 * 7, 3 * 16)
    with torch.no_grad():
        assert net.mix(torch.empty(8, 16, 10, device="meta")).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
@pytest.mark.device
def test_a_gpu_gives_what_the_processor_gives() -> None:
    net, examples = text(), tokens()
    structure = edgeprune.trace(net, {name: item[:2] for name, item in examples.items()})
    widths = {group.name: (8, group.size) for group in structure.groups}
    here = measure(structure, Session(net, examples), widths)
    there = measure(structure, Session(text().cuda(), examples), widths)
    for name, losses in here.losses.items():
        assert there.losses[name] == pytest.approx(losses, rel=1e-2, abs=1e-4)


def test_distances() -> None:
    scores = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    other = scores + torch.tensor([0.0, 1.0, 0.0, 0.0])
    kl = SoftenedKL()((scores,), (other,))
    direct = nn.functional.kl_div(other.log_softmax(-1), scores.log_softmax(-1), log_target=True, reduction="none")
    assert torch.allclose(kl, direct.sum(1), atol=1e-6)
    assert torch.equal(SoftenedKL(4.0)((scores,), (scores,)), torch.zeros(5))
    assert SoftenedKL()((scores,), (scores * torch.nan,)).isinf().all()
    maps, flat = torch.randn(5, 3, 6, 6), torch.ones(5, 2)
    maps[:, 1] *= 100  # a loud channel does not drown the others
    far = scaled_error([(maps, flat, flat.bool())])
    quiet, loud = maps.clone(), maps.clone()
    quiet[:, 0] += maps[:, 0].std()
    loud[:, 1] += maps[:, 1].std()
    ratio = far((maps, flat, flat.bool()), (quiet, flat, flat.bool())) / far(
        (maps, flat, flat.bool()), (loud, flat, flat.bool())
    )
    assert torch.allclose(ratio, torch.ones(5), atol=0.1)
    assert torch.allclose(Given(lambda a, b: (a[0] - b[0]).abs().sum(1))((scores,), (other,)), torch.ones(5))
    with pytest.raises(ModelError, match=r"distance returns \[\] for 5 examples"):
        Given(lambda a, b: (a[0] - b[0]).abs().sum())((scores,), (other,))


def test_what_cannot_be_compared_is_said() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) + torch.sqrt(0.5 - x.mean(1, keepdim=True))

    with pytest.raises(ModelError, match="output 0 is not finite"):
        _ = Session(Broken().eval(), torch.ones(32, 3)).distance
    with pytest.raises(ModelError, match="3, 4 examples"):
        Session(Broken().eval(), (torch.ones(3, 3), torch.ones(4, 3)))
    with pytest.raises((GraphError, ModelError)):
        _ = Session(nn.Sequential(nn.Linear(3, 2)).eval(), {"nonsense": torch.ones(4, 3)}).distance
