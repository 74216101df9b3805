"""Learned masks: what each unit and each block is worth, learnt by gradient while the latency program masks.

Every unit of every group, and every removable block, has a gate, open at first. What the latency program threw away
under the present worths is closed, all else is open. A copy of the network is trained along, by the distance to the
dense network on the user's own examples, so that what is left takes over. What closing gates costs is told to second
order by their Fisher information, within a group by all of its matrix, so that of two units that say the same one is
worth nothing; of a closed gate that counts as far as its gradient, straight through, says that it is missed. Every now
and then the program picks widths and blocks anew, under a latency that falls from the dense one to the one asked for:
what turns out to be missed comes back, what others took over stays away. At the end the costs are loss curves: those
of `measure`, by other means, and all that follows (evaluated answers, correction, closure) is the same.

Sources: a mask that a rule sets in the forward pass and that gets its gradient straight through, movement pruning,
Sanh et al., arXiv:2005.07683; Fisher information of mask variables under a latency constraint, Kwon et al.,
arXiv:2204.09656; one unit after the other while the rest makes up for it, OBS, Hassibi and Stork, 1993; that a
projection picks what is masked and not a penalty, ADMM pruning, Zhang et al., arXiv:1804.03294.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.engine import (
    Distance,
    Examples,
    Outputs,
    ScaledError,
    Session,
    SoftenedKL,
    call,
    scaled_error,
    trainable,
)
from edgeprune.engine import examples as stacks
from edgeprune.errors import GraphError, ModelError
from edgeprune.graph import Block, Structure
from edgeprune.recover import checkpoint, moved
from edgeprune.search.curves import Sensitivity, key_of_network, read_cache, write_cache
from edgeprune.search.formulate import formulate
from edgeprune.search.gates import Gates, Masked
from edgeprune.search.program import Assignment, Cost
from edgeprune.search.solve import solve

RATE = 1e-3  # of Adam, for the copy that is trained along
NEW, SLOW = 0.05, 0.005  # weight of the newest gradient, and of its products, once there are 1 / NEW of them
RIDGE = 1e-4  # of the mean information, where a matrix is inverted
PICKS = 20  # times that the program picks
ARRIVED = 0.6  # share of the steps after which the latency is the one asked for
TINY = 1e-9  # of a distance
SAVE_EVERY = 20.0  # seconds
SOLVE_SECONDS, SOLVE_GAP = 10.0, 1e-2  # of one pick
LEAST = 8  # examples of a batch, for batch norms to go by it
LEARNT = ("fisher", "gradient", "seen", "since", "mask")
VERSION = 1
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskSettings:
    """How masks are learnt.

    Attributes:
        steps: of a batch each.
        seed: of what is drawn for the Fisher information.
        rate: of Adam, for the copy of the network that is trained along; 0: it stays as it is.
        blocks: may blocks go?
        max_bytes: of the INT8 weights.
    """

    steps: int = 400
    seed: int = 0
    rate: float = RATE
    blocks: bool = True
    max_bytes: float = math.inf


def learn(
    structure: Structure,
    session: Session,
    cost: Cost,
    budget: float,
    allowed: Mapping[str, Sequence[int]],
    batches: Callable[[int], Examples],
    settings: MaskSettings,
    *,
    folder: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Sensitivity:
    """Worths of units and blocks as loss curves, learnt under the latency `budget`.

    Args:
        session: the dense network, and the distance to it.
        cost, budget: as for `find`: the latency predictor, and milliseconds.
        allowed: group -> widths that the runtime's grid allows.
        batches: step -> examples to learn from, the same for the same step.
        folder: holds curves.json, which is taken where it was made from the same, and the state of an interrupted
            learning, which goes on from there to the same worths.
        progress: called with (steps done, steps in all, a few words).

    Raises:
        BudgetError: the budget lies under the floor of the table.
        ModelError: there is nothing to mask, or the distance to the dense network is not finite.
        RunError: a file cannot be written.
    """
    blocks = removable(structure, session) if settings.blocks else ()
    if not structure.groups and not blocks:
        raise ModelError(
            "the network has no units and no blocks that may go: there is nothing to learn a mask for.",
            "`edgeprune TARGET plan` says what keeps it whole.",
        )
    key = {
        **key_of_network(structure, session, allowed),
        "saliency": "learned",
        "masks": VERSION,
        "budget": budget,
        "settings": [settings.steps, settings.seed, settings.rate, settings.blocks, str(settings.max_bytes)],
    }
    cache = None if folder is None else folder / "curves.json"
    known = read_cache(cache, key)
    if known is not None and "orders" in known:
        return Sensitivity.from_dict(known)
    work = _Learning(structure, session, cost, budget, allowed, settings, Gates(tuple(structure.groups), blocks))
    work.choice(budget, settings.max_bytes)  # what cannot be is said before the first step
    work.go(batches, folder, json.dumps(key), progress)
    found = work.curves(key)
    write_cache(cache, found.to_dict())
    if folder is not None:
        checkpoint.forget(folder)
    return found


def removable(structure: Structure, session: Session) -> tuple[Block, ...]:
    """The blocks that the tape can bypass, as the curves know them."""
    found = []
    for block in structure.blocks:
        try:
            session.tape.route([block])
        except GraphError as error:
            log.warning("Block %s is not offered for removal: %s", block.module, error.message)
        else:
            found.append(block)
    return tuple(found)


@dataclass(eq=False)
class _Learning:
    """One learning under way; arguments as `learn` has them.

    Attributes:
        fisher: the information of each gate, in the unit of `_likelihood`.
        matrices: group -> the same between each two of its units.
        gradient: of the distance, at each gate.
        scale: what a unit of that is in the unit of the distance.
        scaled: how many steps that comes from.
        seen, since: how often each gate could be heard (not while the block round it is gone), in all and since it was
            last opened or closed.
        mask: 1 where the program left a gate open.
    """

    structure: Structure
    session: Session
    cost: Cost
    budget: float
    allowed: Mapping[str, Sequence[int]]
    settings: MaskSettings
    gates: Gates
    seconds: float = 0.0
    step: int = 0
    scale: float = 1.0
    scaled: int = 0
    matrices: dict[str, Tensor] = field(default_factory=dict)
    fisher: Tensor = field(init=False)
    gradient: Tensor = field(init=False)
    seen: Tensor = field(init=False)
    since: Tensor = field(init=False)
    mask: Tensor = field(init=False)

    def __post_init__(self) -> None:
        count = self.gates.count
        zeros = [torch.zeros(count, dtype=torch.float64) for _ in range(4)]
        self.fisher, self.gradient, self.seen, self.since = zeros
        small = [group for group in self.gates.groups if group.size <= self.settings.steps]
        self.matrices = {group.name: torch.zeros(group.size, group.size, dtype=torch.float64) for group in small}
        self.mask, self.units, self.places = torch.ones(count), self.gates.units(), self.gates.places()
        self.home = torch.full((count,), -1)  # of a gate inside a block: the block's own
        for block in self.gates.blocks:
            for name in block.inner:
                self.home[self.units[name]] = self.places[block.module]
        self.network = copy.deepcopy(self.session.model)

    def go(
        self,
        batches: Callable[[int], Examples],
        folder: Path | None,
        key: str,
        progress: Callable[[int, int, str], None] | None,
    ) -> None:
        """All steps, from where an interrupted learning was."""
        network, total = self.network, self.settings.steps
        with trainable(network):
            trained = [p for p in network.parameters() if p.is_floating_point()]
            optimizer = torch.optim.Adam(trained, lr=self.settings.rate or RATE)
            if folder is not None:
                self._resume(checkpoint.load(folder, key, self.session.device), optimizer)
            masked, began, saved = Masked(network, self.gates), time.monotonic() - self.seconds, time.monotonic()
            every = max(1, total // PICKS)
            while self.step < total:
                if self.step and self.step % every == 0:
                    self.pick(self.step / total)
                value = self._one(masked, moved(batches(self.step), self.session.device), optimizer)
                self.step, self.seconds = self.step + 1, time.monotonic() - began
                if progress is not None:
                    progress(self.step, total, f"masks, {self.session.distance.title} {value:.3f}")
                if folder is not None and time.monotonic() - saved > SAVE_EVERY:
                    checkpoint.save(folder, key, self._state(optimizer))
                    saved = time.monotonic()

    def _one(self, masked: Masked, examples: Examples, optimizer: torch.optim.Optimizer) -> float:
        """One step: the worths and the network moved."""
        _evaluating(self.network, stacks.count(examples))
        gates = self.mask.to(self.session.device).requires_grad_(True)
        with torch.no_grad():
            wanted = call(self.session.model, examples)
        with torch.enable_grad():
            outputs = masked(examples, gates)
            value = self.session.distance(wanted, outputs).mean()
            drawn, near = _likelihood(self.session.distance, wanted, outputs, _seed(self.settings.seed, self.step))
        if not bool(value.isfinite()):
            raise ModelError(
                f"[search] masks: the distance to the dense network is not finite at step {self.step}.",
                'The network may be too sensitive to lose that much: ask for less, or use method = "joint".',
            )
        (slope,) = torch.autograd.grad(drawn, gates, retain_graph=True)
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        if self.settings.rate:
            optimizer.step()
        if near > TINY:
            self.scaled += 1
            self.scale += max(NEW, 1 / self.scaled) * (float(value.detach()) / near - self.scale)
        assert gates.grad is not None
        self._learn(gates.grad.double().cpu(), slope.double().cpu() / stacks.count(examples) ** 0.5)
        return float(value.detach())

    def _learn(self, gradient: Tensor, slope: Tensor) -> None:
        """Every mean towards its newest value; a gate whose block is gone is not heard."""
        whole = self.mask[self.home.clamp_min(0)] == 1
        heard = (whole | (self.home < 0)) & gradient.isfinite() & slope.isfinite()
        gradient, slope = gradient.nan_to_num(), slope.nan_to_num()
        self.seen += heard
        self.since += heard
        slowly = torch.where(heard, (1 / self.seen.clamp_min(1)).clamp_min(SLOW), 0.0)
        self.fisher += slowly * (slope.square() - self.fisher)
        self.gradient += torch.where(heard, (1 / self.since.clamp_min(1)).clamp_min(NEW), 0.0) * (
            gradient - self.gradient
        )
        for name, matrix in self.matrices.items():
            own = slope[self.units[name]]
            matrix += slowly[self.units[name]].min() * (own[:, None] * own[None, :] - matrix)

    def missed(self) -> Tensor:
        """0 to 1 for each gate: an open one is there; what a closed one would win, of what it was worth."""
        share = (-self.gradient / (self.scale * self.fisher).clamp_min(TINY)).clamp(0.0, 1.0)
        return torch.where(self.mask == 1, 1.0, share)

    def pick(self, done: float) -> None:
        """Let the program choose what is masked, under a latency that is on its way to the one asked for."""
        share = (1 - min(1.0, done / ARRIVED)) ** 3
        self._project(*self.choice(self.budget, self.settings.max_bytes if done >= ARRIVED else math.inf, share))

    def choice(self, budget: float, max_bytes: float, share: float = 0.0) -> tuple[Assignment, Sensitivity]:
        """What the program picks under `budget`, or a share of the way from it back to the dense latency; the curves.

        Raises BudgetError.
        """
        curves, sizes = self.curves({}), math.isfinite(self.settings.max_bytes)
        program = formulate(self.structure, self.cost, curves, blocks=self.settings.blocks, sizes=sizes)
        dense = program.totals(program.dense()).ms
        budget += share * max(0.0, dense - budget)
        answer = solve(program, [budget], max_bytes=max_bytes, seconds=SOLVE_SECONDS, gap=SOLVE_GAP)[0]
        return answer.choice, curves

    def _project(self, choice: Assignment, curves: Sensitivity) -> None:
        before, self.mask = self.mask, torch.ones(self.gates.count)
        for name, units in choice.widths.items():
            gone = list(curves.orders[name][units:])
            self.mask[self.units[name].start + torch.tensor(gone, dtype=torch.long)] = 0.0
        for name in choice.removed:
            self.mask[self.places[name]] = 0.0
        turned = before != self.mask
        self.gradient[turned] = self.since[turned] = 0.0

    def curves(self, key: Mapping[str, object]) -> Sensitivity:
        """What closing costs, as loss curves; the units of a group go one after the other."""
        missed, orders, losses = self.missed(), dict[str, tuple[int, ...]](), dict[str, tuple[float, ...]]()
        for group in self.gates.groups:
            place = self.units[group.name]
            matrix = self.matrices.get(group.name, torch.diag(self.fisher[place]))
            order, costs = in_turn(_shrunk(matrix, float(self.seen[place].max())), missed[place])
            orders[group.name] = order
            losses[group.name] = tuple(self.scale * costs[count] for count in self.allowed[group.name])
        worth = 0.5 * self.scale * self.fisher * missed
        blocks = {b.module: float(worth[self.places[b.module]]) for b in self.gates.blocks}
        widths = {name: tuple(values) for name, values in self.allowed.items()}
        images = stacks.count(self.session.examples)
        return Sensitivity("learned", images, orders, widths, widths, losses, blocks, self.seconds, key)

    def _state(self, optimizer: torch.optim.Optimizer) -> dict[str, object]:
        own = {name: getattr(self, name) for name in ("step", "seconds", "scale", "scaled", "matrices", *LEARNT)}
        return {**own, "network": self.network.state_dict(), "optimizer": optimizer.state_dict()}

    def _resume(self, state: Mapping[Any, Any] | None, optimizer: torch.optim.Optimizer) -> None:
        if state is None:
            return
        self.network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        for name in ("step", "seconds", "scale", "scaled"):
            setattr(self, name, state[name])
        for name in LEARNT:
            setattr(self, name, state[name].cpu())
        self.matrices = {name: matrix.cpu() for name, matrix in state["matrices"].items()}


def in_turn(matrix: Tensor, missed: Tensor) -> tuple[tuple[int, ...], list[float]]:
    """The units in order of value, the most valuable first, and what is lost where so many of them are left (0 to all).

    One unit goes after the other, always the cheapest, while the gates of the others make up for it.

    Args:
        matrix: [n, n] Fisher information, of full rank. missed: [n] shares that a unit's own counts by.
    """
    share = missed.clamp_min(TINY).sqrt()
    matrix = matrix * share[:, None] * share[None, :]
    scale = matrix.diagonal().mean().clamp_min(1e-30)
    inverse = torch.linalg.inv(matrix / scale + RIDGE * torch.eye(len(matrix), dtype=matrix.dtype))
    alive, gone, costs, lost = torch.ones(len(matrix), dtype=torch.bool), list[int](), [0.0], 0.0
    for _ in range(len(matrix)):
        cost = torch.where(alive, 0.5 / inverse.diagonal().clamp_min(1e-30), torch.inf)
        worst = int(cost.argmin())
        lost += float(scale * cost[worst])
        gone.append(worst)
        costs.append(lost)
        alive[worst] = False
        column = inverse[:, worst].clone()
        inverse -= column[:, None] * column[None, :] / column[worst]
    return tuple(reversed(gone)), list(reversed(costs))


def _shrunk(matrix: Tensor, steps: float) -> Tensor:
    """A matrix that is the mean of so many products: towards its diagonal the more, the fewer there were."""
    share = min(1.0, len(matrix) / max(1.0, steps)) ** 2
    return (1 - share) * matrix + share * torch.diag(matrix.diagonal())


def _likelihood(distance: Distance, wanted: Outputs, outputs: Outputs, seed: int) -> tuple[Tensor, float]:
    """A draw whose squared gradient is, on average, the Fisher information of the outputs, summed over examples, and
    the mean distance in the unit of that information.

    Classes are drawn from the network's own softened scores; other outputs are Gaussian about the dense network's.
    """
    random = torch.Generator().manual_seed(seed)
    if isinstance(distance, SoftenedKL):
        logs = torch.log_softmax(outputs[0].flatten(0, -2).double() / distance.temperature, -1)
        drawn = torch.multinomial(logs.detach().exp().cpu(), 1, generator=random).to(logs.device)
        return distance.temperature * logs.gather(1, drawn).sum(), float(distance(wanted, outputs).detach().mean())
    error = distance if isinstance(distance, ScaledError) else scaled_error([wanted])
    total, known = outputs[0].new_zeros(()), sum(variance is not None for variance in error.variances)
    for item, variance in zip(outputs, error.variances, strict=True):
        if variance is not None:
            spread = (2 / (item[0].numel() * known * variance)).sqrt()
            total = total + (item * spread * torch.randn(item.shape, generator=random).to(item)).sum()
    return total, float(error(wanted, outputs).detach().mean())


def _evaluating(network: nn.Module, examples: int) -> None:
    """As in evaluation, but that batch norms go by their batch where that is large enough: what is masked shifts it."""
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and examples >= LEAST:
            module.train()


def _seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, 3, step)).generate_state(1)[0])
