"""A plan's narrowed weights on a tape compute what the pruned network computes, whatever sizes its graph holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import edgeprune
from edgeprune.engine import Session
from edgeprune.recover import repair, same_steps
from edgeprune.search import Evaluator
from edgeprune.search.evaluator import narrowed


class Between(nn.Module):
    """Two layers and something of 16 features between them."""

    def __init__(self, first: nn.Module, middle: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = first, middle, last

    def forward(self, x: Tensor) -> Tensor:
        found = self.first(x)
        found = found[0] if isinstance(found, tuple) else found
        return self.last(torch.tanh(self.middle(found)))


def lines(middle: nn.Module) -> nn.Module:
    return Between(nn.Linear(6, 16), middle, nn.Linear(16, 3))


def maps(middle: nn.Module) -> nn.Module:
    return Between(nn.Conv2d(3, 16, 3), middle, nn.Conv2d(16, 3, 3))


def sequences(first: nn.Module) -> nn.Module:
    return Between(first, nn.Identity(), nn.Linear(16, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer norm": (lambda: lines(nn.LayerNorm(16)), (6,)),
    "root mean square": (lambda: lines(nn.RMSNorm(16)), (6,)),
    "group norm": (lambda: maps(nn.GroupNorm(4, 16)), (3, 8, 8)),
    "LSTM": (lambda: sequences(nn.LSTM(6, 16, batch_first=True)), (5, 6)),
    "GRU": (lambda: sequences(nn.GRU(6, 16, num_layers=2, batch_first=True)), (5, 6)),
    "a step of a GRU": (lambda: sequences(nn.GRUCell(6, 16)), (6,)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_narrowed_weights_compute_what_the_pruned_network_does(name: str) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    network = make().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    examples = torch.randn(128, *shape, generator=torch.Generator().manual_seed(1))
    structure, session = edgeprune.trace(network, examples[:2]), Session(network, examples)
    plan = structure.uniform(0.5, multiple=2)
    pruned = plan.apply(network)
    tape, weights = same_steps(session, structure, plan), narrowed(session.weights, plan)
    with torch.no_grad():
        found = [session.outputs(tape, weights, tape.route(), batch)[0] for batch in session.batches(examples)]
        assert plan.kept and torch.allclose(torch.cat(found), pruned(examples), atol=1e-5)
        before = float((pruned(examples) - network(examples)).square().mean())
        repair(network, pruned, structure, plan, examples, session=session)
        assert float((pruned(examples) - network(examples)).square().mean()) < before
    assert 0 < Evaluator(structure, session)(plan).loss < torch.inf
