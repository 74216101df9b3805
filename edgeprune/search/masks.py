"""Learned masks: what each unit and each block is worth, learnt by gradient while the latency program masks.

Every unit of every group, and every removable block, has a gate. What the latency program threw away under the present
worths has its gate closed, all else has it open; a random part of the gates stands at a random place between. A copy
of the network is trained along, by the distance to the dense network on the user's own examples, so that what is left
takes over. The gradient at a gate that stands anywhere between is, on average, what closing that gate costs: it moves
the gate's worth. Every now and then the program picks widths and blocks anew, under a latency that falls from the
dense one to the one asked for. At the end the worths are loss curves: those of `measure`, by other means, and all
that follows (evaluated answers, correction, closure) is the same.

A unit is closed where it is read, which is exactly pruning it; a block's gate stands between its input and its result.

Sources: gates that a rule closes and that get their gradient straight through, movement pruning, Sanh et al.,
arXiv:2005.07683; gates at random places between, so that there is something to learn from where all are open, hard
concrete, Louizos et al., arXiv:1712.01312. Uniform places are taken here, as their mean gradient is the very difference
between open and closed, which the program adds up. That a projection picks what is masked and not a penalty: ADMM
pruning, Zhang et al., arXiv:1804.03294.
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

from edgeprune.engine import Examples, Session, call, trainable
from edgeprune.engine import examples as stacks
from edgeprune.errors import GraphError, ModelError
from edgeprune.graph import Block, Structure
from edgeprune.recover import checkpoint
from edgeprune.recover.source import moved
from edgeprune.search.curves import Sensitivity, key_of_network, read_cache, write_cache
from edgeprune.search.formulate import formulate
from edgeprune.search.gates import Gates, Masked
from edgeprune.search.program import Assignment, Cost
from edgeprune.search.solve import solve

RATE = 1e-3  # of Adam, for the copy that is trained along
BETWEEN = 0.15  # share of gates at a random place
NEW = 0.05  # weight of a gate's newest gradient, once it has had 1 / NEW of them
PICKS = 20  # times that the program picks
ARRIVED = 0.6  # share of the steps after which the latency is the one asked for
SAVE_EVERY = 20.0  # seconds
SOLVE_SECONDS, SOLVE_GAP = 10.0, 1e-2  # of one pick
LEAST = 8  # examples of a batch, for batch norms to go by it
VERSION = 1
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MaskSettings:
    """How masks are learnt.

    Attributes:
        steps: of a batch each.
        seed: of the gates' places.
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
        worth: what closing each gate costs, in the unit of the distance; 0 where nothing is known yet.
        seen: how many gradients each worth comes from.
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
    worth: Tensor = field(init=False)
    seen: Tensor = field(init=False)
    mask: Tensor = field(init=False)

    def __post_init__(self) -> None:
        count = self.gates.count
        self.worth, self.seen = torch.zeros(count, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
        self.mask, self.at = torch.ones(count), self.gates.slices()
        self.home = torch.full((count,), -1)  # of a gate inside a block: the block's own
        for block in self.gates.blocks:
            for name in block.inner:
                self.home[self.at[name]] = self.at[block.module].start
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
        """One step: gates closed by the program or at random places, the worths and the network moved."""
        _evaluating(self.network, stacks.count(examples))
        random = torch.Generator().manual_seed(_seed(self.settings.seed, self.step))
        between = torch.rand(len(self.mask), generator=random) < BETWEEN
        places = torch.rand(len(self.mask), generator=random)
        gates = torch.where(between, places, self.mask).to(self.session.device).requires_grad_(True)
        with torch.no_grad():
            wanted = call(self.session.model, examples)
        with torch.enable_grad():
            value = self.session.distance(wanted, masked(examples, gates)).mean()
        if not bool(value.isfinite()):
            raise ModelError(
                f"[search] masks: the distance to the dense network is not finite at step {self.step}.",
                'The network may be too sensitive to lose that much: ask for less, or use method = "joint".',
            )
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        if self.settings.rate:
            optimizer.step()
        assert gates.grad is not None
        self._learn(-gates.grad.double().cpu(), between, gates.detach().cpu())
        return float(value.detach())

    def _learn(self, cost: Tensor, between: Tensor, gates: Tensor) -> None:
        """Each worth towards the gradient of its gate, where that stood between and the block round it was whole."""
        inside = self.home >= 0
        heard = between & cost.isfinite() & (~inside | (gates[self.home.clamp_min(0)] == 1))
        self.seen += heard
        rate = torch.where(heard, (1 / self.seen.clamp_min(1)).clamp_min(NEW), 0.0)
        self.worth += rate * (cost.nan_to_num() - self.worth)

    def pick(self, done: float) -> None:
        """Let the program choose what is masked, under a latency that is on its way to the one asked for."""
        curves, sizes = self.curves({}), math.isfinite(self.settings.max_bytes)
        program = formulate(self.structure, self.cost, curves, blocks=self.settings.blocks, sizes=sizes)
        dense = program.totals(program.dense()).ms
        share = (1 - min(1.0, done / ARRIVED)) ** 3
        budget = self.budget + share * max(0.0, dense - self.budget)
        bytes_ = self.settings.max_bytes if done >= ARRIVED else math.inf
        answer = solve(program, [budget], max_bytes=bytes_, seconds=SOLVE_SECONDS, gap=SOLVE_GAP)[0]
        self._project(answer.choice, curves)

    def _project(self, choice: Assignment, curves: Sensitivity) -> None:
        self.mask = torch.ones(self.gates.count)
        for name, units in choice.widths.items():
            gone = list(curves.orders[name][units:])
            self.mask[self.at[name].start + torch.tensor(gone, dtype=torch.long)] = 0.0
        for name in choice.removed:
            self.mask[self.at[name]] = 0.0

    def curves(self, key: Mapping[str, object]) -> Sensitivity:
        """The worths as loss curves: a width loses what its closed units are worth together."""
        worth = self.worth.clone()
        for place in self.at.values():  # a gate that no step has moved is as good as its neighbours
            known = self.seen[place] > 0
            mean = worth[place][known].mean() if bool(known.any()) else worth[self.seen > 0].mean().nan_to_num()
            worth[place] = torch.where(known, worth[place], mean)
        orders, losses = dict[str, tuple[int, ...]](), dict[str, tuple[float, ...]]()
        for group in self.gates.groups:
            own = worth[self.at[group.name]]
            order = own.argsort(descending=True, stable=True)
            left = own[order].clamp_min(0).flip(0).cumsum(0).flip(0).tolist()  # what units from this rank on are worth
            orders[group.name] = tuple(order.tolist())
            losses[group.name] = tuple([*left, 0.0][count] for count in self.allowed[group.name])
        blocks = {b.module: max(0.0, float(worth[self.at[b.module]])) for b in self.gates.blocks}
        widths = {name: tuple(values) for name, values in self.allowed.items()}
        images = stacks.count(self.session.examples)
        return Sensitivity("learned", images, orders, widths, widths, losses, blocks, self.seconds, key)

    def _state(self, optimizer: torch.optim.Optimizer) -> dict[str, object]:
        own = {name: getattr(self, name) for name in ("step", "seconds", "worth", "seen", "mask")}
        return {**own, "network": self.network.state_dict(), "optimizer": optimizer.state_dict()}

    def _resume(self, state: dict[str, Any] | None, optimizer: torch.optim.Optimizer) -> None:
        if state is None:
            return
        self.network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.worth, self.seen, self.mask = (state[name].cpu() for name in ("worth", "seen", "mask"))


def _evaluating(network: nn.Module, examples: int) -> None:
    """As in evaluation, but that batch norms go by their batch where that is large enough: what is masked shifts it."""
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and examples >= LEAST:
            module.train()


def _seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, 3, step)).generate_state(1)[0])
