"""One capture serves: the tape of another batch is the one that a capture of that batch would give."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

import edgeprune
from edgeprune.engine import Session, Tape, weights_of
from edgeprune.engine.rebatch import rebatched
from edgeprune.graph import capture_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "graph"))
import graph_nets


class Tokens(nn.Module):
    """A class token for each example, heads by views, and a flatten: all that writes a batch into sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 2, 2), nn.Parameter(torch.randn(1, 1, 8))
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(count, -1, -1), y], 1)
        q, k, v = self.qkv(y).reshape(count, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v) + torch.zeros(count, 2, 5, 4)
        return self.head(y.transpose(1, 2).reshape(count, -1))


class SequenceFirst(nn.Module):
    """The batch lies on the second axis; heads are folded into it."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        count, length, _ = x.shape
        y = self.one(x.transpose(0, 1)).view(length, count * 2, 4).transpose(0, 1)
        y = (y @ y.transpose(1, 2)).softmax(-1) @ y
        return self.two(y.transpose(0, 1).reshape(length, count, 8)).transpose(0, 1)


class Attention(nn.Module):
    """torch's own layer merges the batch with heads and with tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.MultiheadAttention(12, 4, batch_first=True), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.layer(x, x, x)[0])


class Recurrent(nn.Module):
    """Its first state is made of a batch on the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.transpose(0, 1))[0].transpose(0, 1)


class Mean(nn.Module):
    """The batch is a number of its arithmetic, which no rule finds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * x.shape[0]


def steps_of(tape: Tape) -> list[tuple[Any, ...]]:
    plain = [(step.op, tree_map(repr, step.args), tree_map(repr, step.kwargs), step.module) for step in tape.steps]
    return [*plain, (tape.batch, tape.first)]


@pytest.mark.parametrize("before", [1, 2])
@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (Tokens, (3, 4, 4)),
        (SequenceFirst, (5, 6)),
        (graph_nets.window_partition, None),
    ],
)
def test_sizes_follow_the_batch(net: Any, shape: tuple[int, ...] | None, before: int) -> None:
    torch.manual_seed(0)
    model, value = net() if shape is None else (net(), torch.randn(1, *shape))
    model.eval()
    example, batch = torch.randn(before, *value.shape[1:]), torch.randn(6, *value.shape[1:])
    found = rebatched(capture_model(model, ((example,), {})), model, batch, weights_of(model))
    assert found is not None and steps_of(found) == steps_of(Tape.of(model, batch))


@pytest.mark.long
@pytest.mark.parametrize(("net", "shape"), [(Mean, (4,)), (Recurrent, (5, 4)), (Attention, (5, 12))])
def test_what_mixes_its_batch_in_is_captured_anew(net: type[nn.Module], shape: tuple[int, ...]) -> None:
    model, batch = net().eval(), torch.randn(6, *shape)
    capture = capture_model(model, ((batch[:1],), {}))
    assert rebatched(capture, model, batch, weights_of(model)) is None
    session = Session(model, torch.randn(12, *batch.shape[1:]), capture=capture)
    values = session.outputs(session.tape, session.weights, session.tape.route(), session.judge[0])
    assert torch.allclose(values[0], model(session.judge[0][0]), atol=1e-6)


@pytest.mark.long
def test_a_trace_hands_its_capture_on_where_it_walked_the_network_itself() -> None:
    assert edgeprune.trace(Tokens().eval(), torch.randn(1, 3, 4, 4)).capture is not None
    model, example = graph_nets.torch_attention()
    assert edgeprune.trace(model.eval(), example).capture is None, "its attention was made free"
