"""Loss curves: what each width of each group, and each removable block, costs in accuracy, measured on images.

For a group: order its units, drop all but the first k, fit the consumers again by least squares (they read exact
inputs, so that their second moments are all it takes), and take KL(dense || narrowed) on cached images from the
first touched operator on. A unit that nobody reads is gone, so silencing it at its consumers is exactly pruning it.
For a block: replace it by identity, let the layer before it take over what it added, and take the same KL. No labels
are needed.

One half of the examples fits, the other half judges, with KL softened where the network is too sure.

The curve is made monotone in the width (pooling adjacent violators); widths between measured ones are interpolated.
"""

from __future__ import annotations

import json
import logging
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from edgeprune import files
from edgeprune.engine import (
    AffineLayer,
    Gathered,
    Route,
    Session,
    Values,
    effective,
    fit,
    goal_of,
    install,
    layout,
    matrix,
    positions,
    positions_each,
    results,
    rows,
    tensor,
)
from edgeprune.engine import examples as stacks
from edgeprune.errors import GraphError, RunError
from edgeprune.graph import Block, Group, Structure, option_of
from edgeprune.search.saliency import Kind, consumers, obs_orders, orders

RIDGE = 1e-3  # of a consumer's own fit: its targets are exact functions of its inputs
POINTS = 4  # measured widths a group, besides the dense one
SAVE_EVERY = 5.0  # seconds
VERSION = 3  # of what is measured; older caches are measured again
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sensitivity:
    """Loss curves of one network; plain data that goes to JSON and back.

    Attributes:
        saliency: the order that was used.
        images: how many examples were looked at.
        orders: group -> units, the most valuable first.
        allowed: group -> widths that the runtime's grid allows, ascending, the dense one last.
        widths, losses: group -> measured widths, ascending, the dense one last, and the loss at each, not increasing:
            KL in nats, or the task's distance.
        blocks: removable block -> loss without it. Blocks that cannot be bypassed are not listed.
        seconds: what the measurement took.
        options: layer -> what it may become beside narrower ("low-rank:16") -> loss at the dense widths.
    """

    saliency: str
    images: int
    orders: Mapping[str, tuple[int, ...]]
    allowed: Mapping[str, tuple[int, ...]]
    widths: Mapping[str, tuple[int, ...]]
    losses: Mapping[str, tuple[float, ...]]
    blocks: Mapping[str, float]
    seconds: float = 0.0
    key: Mapping[str, object] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def loss(self, group: str, width: int) -> float:
        """Loss at a width, interpolated linearly; below the narrowest one measured it rises as 1 / width."""
        widths, losses = self.widths[group], self.losses[group]
        k = bisect_left(widths, width)
        if k < len(widths) and widths[k] == width:
            return losses[k]
        if k == 0:
            return losses[0] * widths[0] / max(width, 1)
        if k == len(widths):
            return 0.0
        share = (width - widths[k - 1]) / (widths[k] - widths[k - 1])
        return losses[k - 1] + share * (losses[k] - losses[k - 1])

    def keep(self, group: str, width: int) -> tuple[int, ...]:
        """The units that a width keeps, ascending."""
        return tuple(sorted(self.orders[group][:width]))

    def to_dict(self) -> dict[str, object]:
        """Plain data."""
        plain = asdict(self)
        return plain if self.options else {name: value for name, value in plain.items() if name != "options"}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Sensitivity:
        """From plain data."""
        plain = dict(data)
        for name in ("orders", "allowed", "widths", "losses"):
            plain[name] = {key: tuple(value) for key, value in plain[name].items()}
        return Sensitivity(**plain)


def measure(
    structure: Structure,
    session: Session,
    widths: Mapping[str, Sequence[int]],
    *,
    saliency: Kind = "obs",
    blocks: bool = True,
    labels: Tensor | None = None,
    options: Mapping[str, Sequence[str]] | None = None,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivity:
    """Measure every curve in two passes over the network.

    Args:
        session: the dense network with its examples; 256 to 512 of them.
        widths: group -> allowed widths (`latency.options`); at most `POINTS` of each are measured.
        labels: of the session's examples; only taylor and fisher use them.
        options: layer -> what it may become beside narrower (`Structure.options`); each choice is measured.
        cache: a JSON file that the finished curves stay in, and that is taken instead when it was made for the same
            structure, order, examples and seed. Unfinished ones stay beside it, so that a killed run goes on.
        progress: called with (candidates done, candidates in all).

    Raises:
        GraphError: the network cannot be followed on the tape.
        RunError: the cache cannot be written.
    """
    count = stacks.count(session.examples)
    key = {
        **key_of_network(structure, session, widths),
        "saliency": saliency,
        "blocks": blocks,
        **({"options": {name: list(texts) for name, texts in options.items()}} if options else {}),
    }
    known = read_cache(cache, key)
    if known is not None and "orders" in known:
        return Sensitivity.from_dict(known)
    start, options = time.perf_counter(), options or {}
    with torch.no_grad():
        work = _Measurement(structure, session, saliency, labels)
        points = {group.name: spread(widths[group.name]) for group in structure.groups}
        todo = work.candidates(points, structure.blocks if blocks else (), options)
        partial = Partial(cache, key, known)
        values = work.measure(todo, partial, progress)
    losses = {name: isotonic([*(values[f"{name}={w}"] for w in ws[:-1]), 0.0]) for name, ws in points.items()}
    removals = {b.module: values[b.module] for b in structure.blocks if b.module in values}
    allowed = {name: tuple(values) for name, values in widths.items()}
    seconds = time.perf_counter() - start
    result = Sensitivity(
        saliency, count, work.orders, allowed, points, losses, removals, seconds, key, _ways(values, options)
    )
    write_cache(cache, result.to_dict())
    return result


def _ways(values: Mapping[str, float], options: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """Layer -> choice beside its widths -> loss."""
    return {
        name: {text: max(values[f"{name} {text}"], 0.0) for text in texts if f"{name} {text}" in values}
        for name, texts in options.items()
    }


def spread(allowed: Sequence[int]) -> tuple[int, ...]:
    """At most POINTS of the allowed widths, the narrowest and (besides them) the dense one among them."""
    inner = list(allowed[:-1])
    if len(inner) > POINTS:
        inner = sorted({inner[round(k * (len(inner) - 1) / (POINTS - 1))] for k in range(POINTS)})
    return (*inner, allowed[-1])


def isotonic(losses: Sequence[float]) -> tuple[float, ...]:
    """The nearest sequence that does not increase (pool adjacent violators), never negative."""
    given = [max(value, 0.0) for value in losses]
    pooled = [float(value) for value in isotonic_regression(given, increasing=False).x] if given else []
    if pooled and losses[-1] == 0.0:  # the dense network is exact whatever its neighbours say
        pooled[-1] = 0.0
    return tuple(pooled)


@dataclass(frozen=True, eq=False)
class Candidate:
    """One changed network: from step `start` on it takes `make()`'s tensors and this route."""

    name: str
    start: int
    route: Route
    make: Callable[[Sequence[Values]], dict[str, Tensor]]


class _Measurement:
    """Partial runs of changed networks."""

    def __init__(self, structure: Structure, session: Session, saliency: Kind, labels: Tensor | None) -> None:
        self.structure, self.session = structure, session
        self.tape, self.weights, self.by_weight = session.tape, session.weights, session.by_weight
        if saliency == "obs":
            self.orders = obs_orders(structure, session.layers, self.weights, session.moments)
        else:
            self.orders = orders(session.model, structure, session.examples, saliency, labels=labels, seed=session.seed)
        self.nested: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # of one group's consumers
        self.nested_of = ""

    def candidates(
        self, points: Mapping[str, Sequence[int]], blocks: Sequence[Block], options: Mapping[str, Sequence[str]]
    ) -> list[Candidate]:
        found = []
        for layer in self.session.layers:
            found += [self._under(layer, text) for text in options.get(layer.name, ())]
        for group in self.structure.groups:
            found += [self._narrowed(group, width) for width in points[group.name][:-1]]
        for block in blocks:
            try:
                found.append(self._without(block))
            except GraphError as error:
                log.warning("Block %s is not offered for removal: %s", block.module, error.message)
        return sorted(found, key=lambda item: item.start)

    def _narrowed(self, group: Group, width: int) -> Candidate:
        gone = torch.tensor(sorted(self.orders[group.name][width:]), device=self.session.device)
        uses = consumers(group, self.by_weight, self.weights)
        names = {member.parameter for member in group.members if member.role == "input"}
        start = min(k for k, step in enumerate(self.tape.steps) if names & set(step.names))

        def make(_: Sequence[Values]) -> dict[str, Tensor]:
            new: dict[str, Tensor] = {}
            for layer, index in uses:
                new.update(self._silenced(group.name, width, layer, index))
            for member in group.members:
                if member.role == "input" and member.parameter not in new:
                    spots = torch.as_tensor(member.indices, device=gone.device)[gone].reshape(-1)
                    new[member.parameter] = layout(self.weights[member.parameter].index_fill(member.axis, spots, 0.0))
            return new

        return Candidate(f"{group.name}={width}", start, self.tape.route(), make)

    def _silenced(self, group: str, width: int, layer: AffineLayer, index: Tensor) -> dict[str, Tensor]:
        """The consumer's best weights on what is left; dead inputs get zeros.

        Rows are arranged by value, so that one Cholesky factor serves every width: its leading block is theirs.
        """
        data, old = self.session.moments[layer.name], self.weights[layer.weight]
        intercept = layer.norm is not None or bool(layer.bias)
        flat = matrix(layer, old)
        if self.nested_of != group:
            self.nested_of, self.nested = group, {}
        if layer.name not in self.nested:
            xx = data.xx if intercept else data.xx + data.mean[:, :, None] * data.mean[:, None, :]
            ordered = index[torch.tensor(self.orders[group], device=index.device)].reshape(-1)
            others = torch.ones(flat.shape[1], dtype=torch.bool, device=flat.device)
            others[ordered] = False
            rank = torch.cat([others.nonzero()[:, 0], ordered])
            sorted_xx = xx[:, rank][:, :, rank]
            scale = RIDGE * xx.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
            damped = sorted_xx + scale[:, None, None] * torch.eye(len(rank), dtype=xx.dtype, device=xx.device)
            self.nested[layer.name] = (rank, sorted_xx, torch.linalg.cholesky(damped))
        rank, sorted_xx, factor = self.nested[layer.name]
        count = len(rank) - (len(index) - width) * index.shape[1]
        live, dead = rank[:count], rank[count:]
        gain = torch.cholesky_solve(sorted_xx[:, :count, count:] @ flat[:, dead], factor[:, :count, :count])
        new = torch.zeros_like(flat)
        new[:, live] = flat[:, live] + gain
        return self._changed(layer, new)

    def _under(self, layer: AffineLayer, text: str) -> Candidate:
        """The layer with the nearest weight that it can hold under an option."""
        data = self.session.moments[layer.name]
        option, setting = option_of(text)

        def make(_: Sequence[Values]) -> dict[str, Tensor]:
            intercept = layer.norm is not None or bool(layer.bias)
            xx = data.xx if intercept else data.xx + data.mean[:, :, None] * data.mean[:, None, :]
            own = self.weights[layer.weight]
            return self._changed(layer, option.project(matrix(layer, own), xx, own.shape, setting))

        return Candidate(f"{layer.name} {text}", layer.step, self.tape.route(), make)

    def _changed(self, layer: AffineLayer, new: Tensor) -> dict[str, Tensor]:
        """The tensors of a layer with this weight in place of its own, the mean of its outputs kept."""
        data, old = self.session.moments[layer.name], self.weights[layer.weight]
        shift = ((data.mean[:, None, :] @ (new - matrix(layer, old)))[:, 0]).reshape(-1)
        changed = {layer.weight: layout(tensor(layer, new, old))}
        if layer.norm is not None:
            mean = self.weights[layer.norm.mean]
            changed[layer.norm.mean] = mean + shift.to(mean.dtype)
        elif layer.bias:
            changed[layer.bias] = self.weights[layer.bias] - shift.to(old.dtype)
        return changed

    def _without(self, block: Block) -> Candidate:
        route, session = self.tape.route([block]), self.session
        first = min(k for k, s in enumerate(self.tape.steps) if block.holds(s.module))
        full = self.tape.route()
        heirs = [
            layer
            for layer in session.layers
            if layer.step in route.last
            and goal_of(self.tape, route, layer).dense != goal_of(self.tape, full, layer).dense
        ]
        if not heirs:
            return Candidate(block.module, first, route, lambda _: {})
        heir = heirs[-1]
        goal = goal_of(self.tape, route, heir)

        def make(states: Sequence[Values]) -> dict[str, Tensor]:
            generator = torch.Generator().manual_seed(session.seed)
            count = sum(len(batch[0]) for batch in session.fit)
            each = positions_each(heir, self.weights, count)
            data: Gathered | None = None
            for values in states:
                ahead = dict(values)
                self.tape.run(ahead, full, self.weights, heir.step, goal.dense + 1, keep={goal.dense, goal.minus})
                picks = positions(heir, values[heir.source], each, generator)
                wanted = results(heir, ahead[goal.dense], picks)
                if goal.minus >= 0:
                    wanted = wanted - results(heir, ahead[goal.minus], picks)
                data = data or Gathered(count * len(picks), int(self.weights[heir.weight][0].numel()))
                data.add(rows(heir, values[heir.source], picks), wanted)
            assert data is not None
            intercept = heir.norm is not None or bool(heir.bias)
            return install(heir, fit(data.parts, effective(heir, self.weights), intercept), self.weights)

        return Candidate(block.module, heir.step, route, make)

    def measure(
        self, todo: Sequence[Candidate], partial: Partial, progress: Callable[[int, int], None] | None
    ) -> dict[str, float]:
        fitting = [self.tape.begin(batch) for batch in self.session.fit]
        judging = [self.tape.begin(batch) for batch in self.session.judge]
        full, at = self.tape.route(), 0
        for k, item in enumerate(todo):
            if item.name not in partial.values:
                for values in (*fitting, *judging):
                    self.tape.run(values, full, self.weights, at, item.start)
                at = item.start
                weights = {**self.weights, **item.make(fitting)}
                partial.add(item.name, self._loss(judging, item, weights))
            if progress is not None:
                progress(k + 1, len(todo))
        return partial.values

    def _loss(self, states: Sequence[Values], item: Candidate, weights: Mapping[str, Tensor]) -> float:
        total = 0.0
        for values, dense in zip(states, self.session.dense, strict=True):
            own = dict(values)
            self.tape.run(own, item.route, weights, item.start)
            total += float(self.session.distance(dense, self.tape.results(own, weights)).sum())
        return total / self.session.judged


class Partial:
    """Finished values, saved now and then beside the cache."""

    def __init__(self, cache: Path | None, key: Mapping[str, object], known: Mapping[str, object] | None) -> None:
        self.cache, self.key = cache, key
        partial = known.get("partial") if known else None
        self.values: dict[str, float] = dict(partial) if isinstance(partial, Mapping) else {}
        self._saved = time.perf_counter()

    def add(self, name: str, value: float) -> None:
        """Note a value; write the file every few seconds."""
        self.values[name] = min(value, 1e6)
        if self.cache is not None and time.perf_counter() - self._saved > SAVE_EVERY:
            write_cache(self.cache, {"key": self.key, "partial": self.values})
            self._saved = time.perf_counter()


def key_of_network(structure: Structure, session: Session, widths: Mapping[str, Sequence[int]]) -> dict[str, object]:
    """What curves of any kind hold for."""
    return {
        "version": VERSION,
        "structure": structure.fingerprint,
        "weights": _checksum(session),
        "images": stacks.count(session.examples),
        "seed": session.seed,
        "distance": session.distance.title,
        "widths": {name: list(values) for name, values in widths.items()},
    }


def _checksum(session: Session) -> str:
    """Enough to notice other weights or other examples."""
    total = sum(float(value.double().sum()) for value in session.model.state_dict().values())
    means = " ".join(f"{float(part.double().mean()):.9e}" for part in stacks.parts(session.examples))
    return f"{total:.9e} {means}"


def read_cache(path: Path | None, key: Mapping[str, object]) -> dict[str, object] | None:
    """What a file holds of the same key; None where there is nothing."""
    if path is None or not path.is_file():
        return None
    try:
        data = files.read_json(path, RunError)
    except RunError:
        return None
    same = isinstance(data, dict) and json.dumps(data.get("key"), sort_keys=True) == json.dumps(key, sort_keys=True)
    return data if same else None


def write_cache(path: Path | None, data: Mapping[str, object]) -> None:
    """Write the file, whole or not at all; raises RunError."""
    if path is None:
        return
    try:
        files.write_json(path, data, indent=None)
    except OSError as error:
        raise RunError(f"{path}: the loss curves cannot be written: {error.strerror}.") from error
