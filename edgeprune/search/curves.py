"""Loss curves: what each width of each group, and each removable block, costs in accuracy, measured on images.

For a group: order its units, drop all but the first k, fit the consumers again by least squares (they read exact
inputs, so that their second moments are all it takes), and take KL(dense || narrowed) on cached images from the
first touched operator on. A unit that nobody reads is gone, so silencing it at its consumers is exactly pruning it.
For a block: replace it by identity, let the layer before it take over what it added, and take the same KL. No labels
are needed.

One half of the images fits, the other half judges, with KL softened where the network is too sure (`temperature`).

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
from torch import Tensor, nn

from edgeprune.errors import GraphError, RunError
from edgeprune.graph.structure import Group, Structure
from edgeprune.recover.leastsquares import Gathered, effective, fit, install
from edgeprune.recover.saliency import Inputs, Kind, consumers, input_moments, obs_orders, orders
from edgeprune.recover.tape import Route, Tape, Values, batch_size, batches, layout, weights_of
from edgeprune.recover.units import Unit, matrix, positions, results, rows, target, tensor, units

RIDGE = 1e-3  # of a consumer's own fit: its targets are exact functions of its inputs
POINTS = 4  # measured widths a group, besides the dense one
SAVE_EVERY = 5.0  # seconds
SURE = 0.75
VERSION = 2  # of what is measured; older caches are measured again
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Curves:
    """Loss curves of one network; plain data that goes to JSON and back.

    Attributes:
        saliency: the order that was used.
        images: how many were looked at.
        orders: group -> units, the most valuable first.
        allowed: group -> widths that the runtime's grid allows, ascending, the dense one last.
        widths, losses: group -> measured widths, ascending, the dense one last, and KL in nats at each, not increasing.
        blocks: removable block -> KL in nats without it. Blocks that cannot be bypassed are not listed.
        seconds: what the measurement took.
    """

    saliency: str
    images: int
    orders: Mapping[str, tuple[int, ...]]
    allowed: Mapping[str, tuple[int, ...]]
    widths: Mapping[str, tuple[int, ...]]
    losses: Mapping[str, tuple[float, ...]]
    blocks: Mapping[str, float]
    seconds: float = 0.0
    key: Mapping[str, Any] = field(default_factory=dict)

    def loss(self, group: str, width: int) -> float:
        """KL at a width, interpolated linearly; below the narrowest one measured it rises as 1 / width."""
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

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Curves:
        """From plain data."""
        plain = dict(data)
        for name in ("orders", "allowed", "widths", "losses"):
            plain[name] = {key: tuple(value) for key, value in plain[name].items()}
        return Curves(**plain)


def measure(
    model: nn.Module,
    structure: Structure,
    images: Tensor,
    widths: Mapping[str, Sequence[int]],
    *,
    saliency: Kind = "obs",
    blocks: bool = True,
    labels: Tensor | None = None,
    seed: int = 0,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Curves:
    """Measure every curve in two passes over the network.

    Args:
        images: [N, ...] as the network takes them; 256 to 512.
        widths: group -> allowed widths (`latency.options`); at most `POINTS` of each are measured.
        labels: only taylor and fisher use them.
        cache: a JSON file that the finished curves stay in, and that is taken instead when it was made for the same
            structure, order, images and seed. Unfinished ones stay beside it, so that a killed run goes on.
        progress: called with (candidates done, candidates in all).

    Raises:
        CaptureError, GraphError: the network cannot be followed on a tape.
        RunError: the cache cannot be written.
    """
    key = {
        "version": VERSION,
        "structure": structure.fingerprint,
        "weights": _checksum(model, images),
        "saliency": saliency,
        "images": len(images),
        "blocks": blocks,
        "seed": seed,
        "widths": {name: list(values) for name, values in widths.items()},
    }
    known = _read(cache, key)
    if known is not None and "orders" in known:
        return Curves.from_dict(known)
    start = time.perf_counter()
    with torch.no_grad():
        session = _Session(model, structure, images, saliency, labels, seed)
        points = {group.name: spread(widths[group.name]) for group in structure.groups}
        todo = session.candidates(points, structure.blocks if blocks else ())
        partial = Partial(cache, key, known)
        values = session.measure(todo, partial, progress)
    losses = {name: isotonic([*(values[f"{name}={w}"] for w in ws[:-1]), 0.0]) for name, ws in points.items()}
    removals = {b.module: values[b.module] for b in structure.blocks if b.module in values}
    allowed = {name: tuple(values) for name, values in widths.items()}
    seconds = time.perf_counter() - start
    result = Curves(saliency, len(images), session.orders, allowed, points, losses, removals, seconds, key)
    _write(cache, result.to_dict())
    return result


def spread(allowed: Sequence[int]) -> tuple[int, ...]:
    """At most POINTS of the allowed widths, the narrowest and (besides them) the dense one among them."""
    inner = list(allowed[:-1])
    if len(inner) > POINTS:
        inner = sorted({inner[round(k * (len(inner) - 1) / (POINTS - 1))] for k in range(POINTS)})
    return (*inner, allowed[-1])


def isotonic(losses: Sequence[float]) -> tuple[float, ...]:
    """The nearest sequence that does not increase (pool adjacent violators), never negative."""
    blocks: list[list[float]] = []
    for value in losses:
        blocks.append([max(value, 0.0), 1.0])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            last = blocks.pop()
            total = blocks[-1][1] + last[1]
            blocks[-1] = [(blocks[-1][0] * blocks[-1][1] + last[0] * last[1]) / total, total]
    pooled = [value for value, count in blocks for _ in range(int(count))]
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


class _Session:
    """The dense network, its second moments, and partial runs of changed ones."""

    def __init__(
        self, model: nn.Module, structure: Structure, images: Tensor, saliency: Kind, labels: Tensor | None, seed: int
    ) -> None:
        size = batch_size(images)
        self.structure, self.seed = structure, seed
        self.tape, self.weights = Tape.of(model, images[:size]), weights_of(model)
        every = batches(images, size)
        half = max(1, len(every) // 2)
        self.fit, self.judge = every[:half], every[half:] or every  # what repairs must not judge
        self.units = units(self.tape, self.weights)
        self.by_weight = {unit.weight: unit for unit in self.units}
        self.data: dict[str, Inputs] = input_moments(self.tape, self.units, self.weights, self.fit, seed=seed)
        if saliency == "obs":
            self.orders = obs_orders(structure, self.units, self.weights, self.data)
        else:
            self.orders = orders(model, structure, images, saliency, labels=labels, seed=seed)
        self.dense = [self._logits(batch) for batch in self.judge]
        self.heat = temperature(self.dense)
        self.nested: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # of one group's consumers
        self.nested_of = ""

    def _logits(self, batch: Tensor) -> Tensor:
        values: Values = {0: batch}
        self.tape.run(values, self.tape.route(), self.weights)
        return self.tape.logits(values).float()

    def candidates(self, points: Mapping[str, Sequence[int]], blocks: Sequence[Any]) -> list[Candidate]:
        found = []
        for group in self.structure.groups:
            found += [self._narrowed(group, width) for width in points[group.name][:-1]]
        for block in blocks:
            try:
                found.append(self._without(block.module))
            except GraphError as error:
                log.warning("Block %s is not offered for removal: %s", block.module, error.message)
        return sorted(found, key=lambda item: item.start)

    def _narrowed(self, group: Group, width: int) -> Candidate:
        gone = torch.tensor(sorted(self.orders[group.name][width:]))
        uses = consumers(group, self.by_weight, self.weights)
        names = {member.parameter for member in group.members if member.role == "input"}
        start = min(k for k, step in enumerate(self.tape.steps) if names & set(step.names))

        def make(_: Sequence[Values]) -> dict[str, Tensor]:
            new: dict[str, Tensor] = {}
            for unit, index in uses:
                new.update(self._silenced(group.name, width, unit, index))
            for member in group.members:
                if member.role == "input" and member.parameter not in new:
                    spots = torch.as_tensor(member.indices)[gone].reshape(-1)
                    new[member.parameter] = layout(self.weights[member.parameter].index_fill(member.axis, spots, 0.0))
            return new

        return Candidate(f"{group.name}={width}", start, self.tape.route(), make)

    def _silenced(self, group: str, width: int, unit: Unit, index: Tensor) -> dict[str, Tensor]:
        """The consumer's best weights on what is left; dead inputs get zeros.

        Rows are arranged by value, so that one Cholesky factor serves every width: its leading block is theirs.
        """
        data, old = self.data[unit.name], self.weights[unit.weight]
        intercept = unit.norm is not None or bool(unit.bias)
        flat = matrix(unit, old)
        if self.nested_of != group:
            self.nested_of, self.nested = group, {}
        if unit.name not in self.nested:
            xx = data.xx if intercept else data.xx + data.mean[:, :, None] * data.mean[:, None, :]
            ordered = index[torch.tensor(self.orders[group])].reshape(-1)
            others = torch.ones(flat.shape[1], dtype=torch.bool)
            others[ordered] = False
            rank = torch.cat([others.nonzero()[:, 0], ordered])
            sorted_xx = xx[:, rank][:, :, rank]
            scale = RIDGE * xx.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
            damped = sorted_xx + scale[:, None, None] * torch.eye(len(rank), dtype=xx.dtype)
            self.nested[unit.name] = (rank, sorted_xx, torch.linalg.cholesky(damped))
        rank, sorted_xx, factor = self.nested[unit.name]
        count = len(rank) - (len(index) - width) * index.shape[1]
        live, dead = rank[:count], rank[count:]
        gain = torch.cholesky_solve(sorted_xx[:, :count, count:] @ flat[:, dead], factor[:, :count, :count])
        new = torch.zeros_like(flat)
        new[:, live] = flat[:, live] + gain
        shift = ((data.mean[:, None, :] @ (new - flat))[:, 0]).reshape(-1)
        changed = {unit.weight: layout(tensor(unit, new, old))}
        if unit.norm is not None:
            mean = self.weights[unit.norm.mean]
            changed[unit.norm.mean] = mean + shift.to(mean.dtype)
        elif unit.bias:
            changed[unit.bias] = self.weights[unit.bias] - shift.to(old.dtype)
        return changed

    def _without(self, block: str) -> Candidate:
        route = self.tape.route([block])
        first = min(k for k, s in enumerate(self.tape.steps) if s.module == block or s.module.startswith(block + "."))
        full = self.tape.route()
        heirs = [
            unit
            for unit in self.units
            if unit.step in route.last and target(self.tape, route, unit).dense != target(self.tape, full, unit).dense
        ]
        if not heirs:
            return Candidate(block, first, route, lambda _: {})
        heir = heirs[-1]
        goal = target(self.tape, route, heir)

        def make(states: Sequence[Values]) -> dict[str, Tensor]:
            generator, images = torch.Generator().manual_seed(self.seed), sum(len(batch) for batch in self.fit)
            unknowns = int(self.weights[heir.weight][0].numel())
            count = -(-min(max(24 * unknowns, 8192), 32768) // images)
            data: Gathered | None = None
            for values in states:
                ahead = dict(values)
                self.tape.run(ahead, full, self.weights, heir.step, goal.dense + 1, keep={goal.dense, goal.minus})
                picks = positions(heir, values[heir.source], count, generator)
                wanted = results(heir, ahead[goal.dense], picks)
                if goal.minus >= 0:
                    wanted = wanted - results(heir, ahead[goal.minus], picks)
                data = data or Gathered(images * len(picks), unknowns)
                data.add(rows(heir, values[heir.source], picks), wanted)
            assert data is not None
            intercept = heir.norm is not None or bool(heir.bias)
            return install(heir, fit(data.parts, effective(heir, self.weights), intercept), self.weights)

        return Candidate(block, heir.step, route, make)

    def measure(
        self, todo: Sequence[Candidate], partial: Partial, progress: Callable[[int, int], None] | None
    ) -> dict[str, float]:
        fitting: list[Values] = [{0: batch} for batch in self.fit]
        judging: list[Values] = [{0: batch} for batch in self.judge]
        full, at = self.tape.route(), 1
        for k, item in enumerate(todo):
            if item.name not in partial.values:
                for values in (*fitting, *judging):
                    self.tape.run(values, full, self.weights, at, item.start)
                at = item.start
                weights = {**self.weights, **item.make(fitting)}
                partial.add(item.name, self._kl(judging, item, weights))
            if progress is not None:
                progress(k + 1, len(todo))
        return partial.values

    def _kl(self, states: Sequence[Values], item: Candidate, weights: Mapping[str, Tensor]) -> float:
        total = 0.0
        for values, dense in zip(states, self.dense, strict=True):
            own = dict(values)
            self.tape.run(own, item.route, weights, item.start)
            total += kl(dense, self.tape.logits(own), self.heat)
        return total / sum(len(batch) for batch in self.judge)


def temperature(dense: Sequence[Tensor]) -> float:
    """The least temperature (1 or more) at which the dense network's top probability averages at most `SURE`.

    On images that it was trained on a network is nearly certain, KL is blind, and repairs that it learnt by heart look
    good: measured on ResNet-56, KL on training images was half of that on test images; softened, the two agree.
    """
    logits = torch.cat([part.reshape(-1, part.shape[-1]) for part in dense])
    low, high = 1.0, 64.0
    if float(torch.softmax(logits, -1).amax(-1).mean()) <= SURE:
        return 1.0
    for _ in range(20):
        middle = (low + high) / 2
        sure = float(torch.softmax(logits / middle, -1).amax(-1).mean()) > SURE
        low, high = (middle, high) if sure else (low, middle)
    return high


def kl(dense: Tensor, logits: Tensor, heat: float = 1.0) -> float:
    """Sum over images of heat^2 KL(dense || other) in nats, softened by `heat` (Hinton et al., arXiv 1503.02531)."""
    one, two = torch.log_softmax(dense / heat, -1), torch.log_softmax(logits.float() / heat, -1)
    value = float((one.exp() * (one - two)).sum()) * heat**2
    return max(value, 0.0) if value == value else float("inf")  # NaN counts as the worst


class Partial:
    """Finished values, saved now and then beside the cache."""

    def __init__(self, cache: Path | None, key: Mapping[str, Any], known: Mapping[str, Any] | None) -> None:
        self.cache, self.key = cache, key
        self.values: dict[str, float] = dict(known.get("partial", {})) if known else {}
        self._saved = time.perf_counter()

    def add(self, name: str, value: float) -> None:
        """Note a value; write the file every few seconds."""
        self.values[name] = min(value, 1e6)
        if self.cache is not None and time.perf_counter() - self._saved > SAVE_EVERY:
            _write(self.cache, {"key": self.key, "partial": self.values})
            self._saved = time.perf_counter()


def _checksum(model: nn.Module, images: Tensor) -> str:
    """Enough to notice other weights or other images."""
    total = sum(float(value.double().sum()) for value in model.state_dict().values())
    return f"{total:.9e} {float(images.double().mean()):.9e}"


def _read(path: Path | None, key: Mapping[str, Any]) -> dict[str, Any] | None:
    if path is None or not path.is_file():
        return None
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if data.get("key") == json.loads(json.dumps(key)) else None


def _write(path: Path | None, data: Mapping[str, Any]) -> None:
    if path is None:
        return
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(json.dumps(data), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"{path}: the loss curves cannot be written: {error.strerror}.") from error
