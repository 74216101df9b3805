"""`edgeprune TARGET profile`: build a network's table on the device, and say how good it is on unseen networks.

First random variants are measured into the table, then others that it has not seen: those are predicted before they
are measured. The error is that of the prediction made before, so it is honest; afterwards they join the table too.
Where the device turns out to have a faster pace than the table was measured at, all of it is done once more.
Measurements that surprise are taken twice more, seen and unseen ones alike, and the median of three counts.
A model that knows only multiply-accumulates is fitted to the same runs, as the yardstick.

While the table predicts worse than was asked, or clearly worse than that yardstick, and there is patience, more
networks are measured; each of them is predicted first. What is still wrong then is said, and closure has to carry it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeprune.devices import Device
from edgeprune.graph import DENSE, Configuration, Structure
from edgeprune.latency.build import ArtifactBuilder
from edgeprune.latency.fit import Array
from edgeprune.latency.noise import Patience
from edgeprune.latency.predict import Predictor
from edgeprune.latency.rounds import SLOWER, Pace
from edgeprune.latency.sample import Progress, extend, settle
from edgeprune.latency.table import Run, Table
from edgeprune.latency.timing import QUICK, Effort
from edgeprune.latency.variants import draw

log = logging.getLogger(__name__)

QUICK_NETWORKS = (16, 4)  # measured into the cheap table, and as a test of it
MORE = 4  # times that the table is extended because it predicts badly
CLEARLY, NEGLIGIBLE = 1.25, 0.03  # worse than counting MACs: by this factor, and where the error is larger than this
SURPRISE = 0.05  # relative; a measurement further from its prediction is taken again


@dataclass(frozen=True)
class Errors:
    """Relative errors |predicted / measured - 1| over networks.

    Attributes:
        median, p90, worst: of the absolute error; bias: median of the signed one.
    """

    median: float
    p90: float
    worst: float
    bias: float
    count: int


@dataclass(frozen=True, eq=False)
class Profile:
    """A table that is ready to predict, and the account of how it was made.

    Attributes:
        errors: on the unseen networks; by_macs: of the model that knows only MACs, on the same networks.
        predicted, measured: of the unseen networks, latency over the dense one's.
        good: it predicts as well as was asked, and no worse than counting MACs; verdict: that in one sentence.
        spread: median over networks of half the 95 % interval of what was measured.
        seconds, networks, cells: what it cost, and the number of cells that the table has of this network's families.
    """

    table: Table
    predictor: Predictor
    errors: Errors
    by_macs: Errors
    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    predicted_by_macs: tuple[float, ...]
    good: bool
    verdict: str
    spread: float
    seconds: float
    networks: int
    cells: int


def profile(
    table: Table,
    device: Device,
    maker: ArtifactBuilder,
    count: int = 40,
    unseen: int = 10,
    effort: Effort | None = None,
    blocks: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
    keep: Callable[[Table], None] | None = None,
    max_error: float = 0.08,
    patience: Patience | None = None,
) -> Profile:
    """Measure `count` random variants, then test on `unseen` others.

    Args:
        max_error: wanted of the median error on networks that the table has not seen, relative.
        patience: how much longer than on a quiet device it may take.

    Raises DeviceError for the device's own trouble. A noisy device gives a table that knows less, and says so.
    """
    began, patience = time.monotonic(), patience or Patience()
    structure, steps = maker.structure, maker.target.channels
    known = {run.key for run in table.networks[maker.network].runs} if maker.network in table.networks else set()
    total, pace = count + unseen, Pace()

    def shift(by: int) -> Progress | None:
        return (lambda done, _, what: progress(done + by, total, what)) if progress else None

    some, others = (draw(structure, steps, n, seed + i, blocks) for i, n in enumerate((count, unseen)))
    for attempt in range(2):
        table = extend(table, device, maker, some, effort, shift(0), keep, pace, patience)
        predictor = Predictor(table, structure, maker.network)
        table = settle(table, device, maker, surprising(predictor, table, maker), effort, pace)
        tested = _test(table, device, maker, others, effort, shift(count), keep, pace, patience)
        if attempt or not tested.faster:
            break
        log.info("the device has a faster pace than the one that the table was measured at: once more")
        table = without(table, maker, some)
    for more in range(1, MORE + 1):
        if not tested.complaint(max_error) or not patience.left:
            break
        patience.tell(device, f"{tested.complaint(max_error)}: {unseen} networks more")
        with patience.again():
            others = draw(structure, steps, unseen, seed + 1 + more, blocks)
            tested = _test(tested.table, device, maker, others, effort, None, keep, pace, patience)
    return _account(tested, maker, max_error, known, time.monotonic() - began)


def _account(
    tested: _Tested, maker: ArtifactBuilder, max_error: float, known: Collection[str], seconds: float
) -> Profile:
    """The table with how good it is, and what it cost; `known`: the runs that it had before."""
    full, runs = tested.table, tested.table.networks[maker.network].runs
    after = Predictor(full, maker.structure, maker.network)
    complaint = tested.complaint(max_error)
    verdict = (
        f"{complaint}. Closure measures every network that it takes, and goes on for longer."
        if complaint
        else f"the table predicts unseen networks to {100 * tested.errors.median:.1f} % "
        f"(median; asked: {100 * max_error:.0f} %)."
    )
    return Profile(
        table=full,
        predictor=after,
        errors=tested.errors,
        by_macs=tested.by_macs,
        predicted=tuple(tested.predicted.tolist()),
        measured=tuple(tested.measured.tolist()),
        predicted_by_macs=tuple(tested.predicted_by_macs.tolist()),
        good=not complaint,
        verdict=verdict,
        spread=float(np.median([run.spread for run in runs])),
        seconds=seconds,
        networks=len([run for run in runs if run.key not in known]),
        cells=len({key for key in full.cells if key[0] in {s.family.id for s in after.record.sites}}),
    )


@dataclass(frozen=True, eq=False)
class _Tested:
    """Networks that were predicted, then measured; latencies over the dense one's.

    Attributes:
        table: with them in it.
        faster: the device showed a faster pace than the one before.
    """

    table: Table
    predicted: Array
    measured: Array
    predicted_by_macs: Array
    faster: bool

    @property
    def errors(self) -> Errors:
        return errors(self.predicted, self.measured)

    @property
    def by_macs(self) -> Errors:
        return errors(self.predicted_by_macs, self.measured)

    def complaint(self, max_error: float) -> str:
        """What is wrong with the table, in words; "" when nothing is."""
        ours, macs = self.errors.median, self.by_macs.median
        if not self.errors.count:
            return ""  # every network that can be drawn is in the table
        errs = f"the table errs by {100 * ours:.1f} % on unseen networks (median)"
        if ours > max_error:
            return f"{errs}, more than the {100 * max_error:.0f} % asked for"
        if ours > CLEARLY * macs and ours > NEGLIGIBLE:
            return f"{errs}, counting MACs by {100 * macs:.1f} % only"
        return ""


def _test(
    table: Table,
    device: Device,
    maker: ArtifactBuilder,
    others: Sequence[Configuration],
    effort: Effort | None,
    progress: Progress | None,
    keep: Callable[[Table], None] | None,
    pace: Pace,
    patience: Patience,
) -> _Tested:
    """Predict networks that the table has not seen, measure them, and put them into it."""
    predictor = Predictor(table, maker.structure, maker.network)
    seen, before = {run.key for run in table.networks[maker.network].runs}, pace.fastest
    full = extend(table, device, maker, others, effort, progress, keep, pace, patience)
    full = settle(full, device, maker, surprising(predictor, full, maker, seen), effort, pace)
    new = [run for run in full.networks[maker.network].runs if run.key not in seen]
    return _Tested(
        table=full,
        predicted=np.array([predictor.predict(run.configuration) / predictor.dense for run in new]),
        measured=np.array([run.ratio for run in new]),
        predicted_by_macs=macs_model(maker.structure, table.networks[maker.network].runs, new),
        faster=pace.fastest * SLOWER <= before,
    )


def quick(
    table: Table,
    device: Device,
    maker: ArtifactBuilder,
    blocks: bool = True,
    progress: Progress | None = None,
    keep: Callable[[Table], None] | None = None,
    max_error: float = 0.08,
    patience: Patience | None = None,
) -> Profile:
    """The cheap table: enough for closure to finish the work, in under a minute for ResNet-56 on two quiet cores."""
    return profile(
        table,
        device,
        maker,
        *QUICK_NETWORKS,
        QUICK,
        blocks,
        progress=progress,
        keep=keep,
        max_error=max_error,
        patience=patience,
    )


def without(table: Table, maker: ArtifactBuilder, variants: Sequence[Configuration]) -> Table:
    """The table without the runs of these variants; their cells stay, and so does the dense run."""
    record = table.networks[maker.network]
    gone = {one.key for one in variants if one != DENSE}
    runs = tuple(run for run in record.runs if run.key not in gone)
    return table.with_network(maker.network, replace(record, runs=runs))


def surprising(
    predictor: Predictor, table: Table, maker: ArtifactBuilder, known: Collection[str] = ()
) -> list[Configuration]:
    """Networks whose measurement differs most from the prediction, at most a quarter of those that are not `known`."""
    runs = [run for run in table.networks[maker.network].runs if run.key not in known and run.configuration != DENSE]
    errors = {run.key: abs(predictor.predict(run.configuration) / predictor.dense / run.ratio - 1) for run in runs}
    runs.sort(key=lambda run: -errors[run.key])
    return [run.configuration for run in runs[: -(-len(runs) // 4)] if errors[run.key] > SURPRISE]


def errors(predicted: Array, measured: Array) -> Errors:
    """Summary of relative errors; NaN where there is no network."""
    if not len(measured):
        return Errors(float("nan"), float("nan"), float("nan"), float("nan"), 0)
    signed = predicted / measured - 1
    size = np.abs(signed)
    return Errors(
        float(np.median(size)), float(np.quantile(size, 0.9)), float(size.max()), float(np.median(signed)), len(size)
    )


def macs(structure: Structure, network: Configuration) -> float:
    """Multiply-accumulates of one example."""
    gone = {layer for block in structure.blocks if block.module in network.removed for layer in block.layers}
    return float(sum(layer.macs_at(network.widths) for layer in structure.layers if layer.name not in gone))


def macs_model(structure: Structure, runs: Sequence[Run], new: Sequence[Run]) -> Array:
    """Latency as an affine function of MACs, least squares of relative errors on `runs`, predicted for `new`."""
    x = np.array([[1.0, macs(structure, run.configuration)] for run in runs])
    y = np.array([run.ratio for run in runs])
    scale = x.max(axis=0)
    solution, *_ = np.linalg.lstsq(x / scale / y[:, None], np.ones_like(y), rcond=None)
    result: Array = (
        np.array([[1.0, macs(structure, run.configuration)] for run in new]).reshape(-1, 2) / scale @ solution
    )
    return result
