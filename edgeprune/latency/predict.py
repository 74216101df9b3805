"""From a table to the latency of any narrowed network: what the search asks.

T(network) = beta + sum over its kernels of alpha[class] * surface[family](c_in, c_out)

Every kernel that depends on the network's choices belongs to one layer (its own kernel and those that follow it), so
`kernel(layer, c_in, c_out)` sums up to the whole: for any widths and removed blocks,
`predict` = `beta` + sum of `kernel` over the layers left + sum of `block_overhead` over the blocks left.
All values are in the table's unit (milliseconds, or instructions on an emulated board), end to end calibrated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeprune.errors import GraphError, MeasurementError, did_you_mean
from edgeprune.graph import DENSE, Configuration, Structure, option_of, sliced, width
from edgeprune.latency.fit import Array, Calibration, Cells, calibrate, fit_surface
from edgeprune.latency.kernels import Family
from edgeprune.latency.sites import alive, channels, of_outputs
from edgeprune.latency.table import NetworkRuns, Site, Table

DOUBTFUL = 0.06  # half of a run's interval, relative, beyond which it counts in proportion


class PlanLike(Protocol):
    """What `predict` needs of a plan."""

    @property
    def configuration(self) -> Configuration: ...


class Predictor:
    """Predicts one network's latency from a table that has its sites.

    Raises MeasurementError when the table has never seen the network.
    """

    def __init__(self, table: Table, structure: Structure, network: str) -> None:
        """`network` is the record's name in the table (`sample.network_id`)."""
        if network not in table.networks:
            raise MeasurementError(
                "the latency table does not know this network.", "Profile it: edgeprune TARGET profile RECIPE."
            )
        self.record: NetworkRuns = table.networks[network]
        self.unit = table.unit
        self._layers = {layer.name: layer for layer in structure.layers}
        self._structure = structure
        every = (*self.record.sites, *self.record.optional)
        self._surfaces = {family: fit_surface(cells) for family, cells in _cells(table, every).items()}
        self._own: dict[str, list[Site]] = {}
        for site in self.record.sites:
            self._own.setdefault(site.layer, []).append(site)
        self._parts: dict[tuple[str, str], list[Site]] = {}
        for site in self.record.optional:
            self._parts.setdefault((site.layer, site.option), []).append(site)
        self._memo: dict[tuple[Family, int, int], float] = {}
        self._prefill()
        self.calibration = self._calibrate()
        fixed = [site for site in self._own.get("", []) if not site.block]
        self._beta = self.calibration.beta + sum(self._scaled(site, site.c_in, site.c_out) for site in fixed)

    @property
    def beta(self) -> float:
        """What no choice of widths and blocks changes."""
        return self._beta

    @property
    def dense(self) -> float:
        """Measured latency of the dense artifact, the anchor."""
        return self.record.dense

    def kernel(self, layer: str, c_in: int, c_out: int, option: str = "") -> float:
        """What one layer costs with these channels: its own kernel, and the additions and pools that follow it."""
        return float(self.matrix(layer, (c_in,), (c_out,), option)[0, 0])

    def offers(self, layer: str, option: str) -> bool:
        """Does the table know the kernels of this layer under this option ("low-rank:16")?"""
        return (layer, option.partition(":")[0]) in self._parts

    def matrix(self, layer: str, c_ins: Sequence[int], c_outs: Sequence[int], option: str = "") -> Array:
        """`kernel` for all pairs: [len(c_ins), len(c_outs)]. A depthwise layer takes its channels from `c_outs`."""
        if layer not in self._layers:
            raise GraphError(f"There is no layer '{layer}' in this network.", did_you_mean(layer, self._layers))
        ins, outs = np.meshgrid(np.asarray(c_ins, np.float64), np.asarray(c_outs, np.float64), indexing="ij")
        total: Array = np.zeros_like(ins)
        described = self._layers[layer]
        for site in self._own.get(layer, []):
            alpha = self._alpha(site.family)
            if option and site.side == "both":
                pairs = np.stack([ins, np.round(outs * of_outputs(site, described))], -1).reshape(-1, 2)
                times = [sum(self._scaled(*part) for part in self._under(option, site, *pair)) for pair in pairs]
                total = total + np.array(times).reshape(ins.shape)
            elif site.side == "both":
                made = np.round(outs * of_outputs(site, described))
                total = total + alpha * self._surfaces[site.family](ins if site.family.paired else made, made)
            else:
                axis, now = (described.outputs, outs) if site.side == "out" else (described.inputs, ins)
                share = now / width(axis, {})
                total = total + alpha * self._surfaces[site.family](
                    np.maximum(np.round(site.c_in * share), 1), np.maximum(np.round(site.c_out * share), 1)
                )
        return total

    def block_overhead(self, module: str) -> float:
        """What vanishes with a block beyond the `kernel` of its layers."""
        return sum(self._scaled(site, site.c_in, site.c_out) for site in self._own.get("", []) if site.block == module)

    def predict(self, network: Configuration | PlanLike | Mapping[str, int]) -> float:
        """Latency of a variant, a plan, or widths by group."""
        variant = as_configuration(network)
        sums = self._sums(variant)
        return self.calibration.beta + sum(
            self.calibration.alpha.get(name, 1.0) * value for name, value in sums.items()
        )

    def layers(self, network: Configuration | PlanLike | Mapping[str, int] = DENSE) -> dict[str, float]:
        """Layer -> its `kernel` in this network, in graph order; layers of removed blocks are left out."""
        variant = as_configuration(network)
        result: dict[str, float] = {}
        for site, c_in, c_out in self._kernels(variant):
            if site.layer:
                result[site.layer] = result.get(site.layer, 0.0) + self._scaled(site, c_in, c_out)
        return result

    def unmeasured(self, network: Configuration | PlanLike | Mapping[str, int]) -> list[Site]:
        """The sites whose cell in this network was never measured: what a lazy table still has to fill."""
        variant = as_configuration(network)
        found = []
        for site, c_in, c_out in self._kernels(variant):
            if self._surfaces[site.family].distance(c_in, c_out) > 1e-9:
                found.append(site)
        return found

    def _kernels(self, network: Configuration) -> Iterator[tuple[Site, int, int]]:
        """The network's kernels with their channels, those of options in place of their layers' own."""
        gone = [block for block in self._structure.blocks if block.module in network.removed]
        for site in alive(self.record.sites, network.removed):
            c_in, c_out = channels(site, self._layers, network.widths)
            if site.side == "both" and site.family.paired:
                c_in = max(1, c_in - sliced(gone, site.layer, network.widths))
            option = network.options.get(site.layer, "") if site.side == "both" else ""
            yield from self._under(option, site, c_in, c_out) if option else ((site, c_in, c_out),)

    def _under(self, text: str, site: Site, c_in: float, c_out: float) -> list[tuple[Site, int, int]]:
        """The kernels in place of a layer's own, with their channels."""
        option, setting = option_of(text)
        if not self.offers(site.layer, text):
            raise MeasurementError(
                f"the latency table has no kernels of {option.name} for layer '{site.layer}'.",
                "Measure some: [search] options in the recipe, then profile again.",
            )
        made = option.parts(int(c_in), int(c_out), setting)
        own = self._parts[site.layer, option.name]
        return [(one, *made[one.node.removeprefix(f"{site.layer}.")]) for one in own]

    def _alpha(self, family: Family) -> float:
        return self.calibration.alpha.get(family.cls, 1.0)

    def _scaled(self, site: Site, c_in: int, c_out: int) -> float:
        return self._alpha(site.family) * self._time(site.family, c_in, c_out)

    def _time(self, family: Family, c_in: int, c_out: int) -> float:
        key = (family, c_in, c_out)
        if key not in self._memo:
            self._memo[key] = float(self._surfaces[family](np.array([c_in]), np.array([c_out]))[0])
        return self._memo[key]

    def _prefill(self) -> None:
        """All cells that the recorded runs use, a family at a time: far faster than one by one."""
        wanted: dict[Family, set[tuple[int, int]]] = {}
        for run in self.record.runs:
            for site in self.record.sites:
                wanted.setdefault(site.family, set()).add(channels(site, self._layers, run.widths))
        for family, pairs in wanted.items():
            points = np.array(sorted(pairs), np.float64)
            for (c_in, c_out), value in zip(
                sorted(pairs), self._surfaces[family](points[:, 0], points[:, 1]), strict=True
            ):
                self._memo[family, c_in, c_out] = float(value)

    def _sums(self, variant: Configuration) -> dict[str, float]:
        """Kernel class -> sum of uncalibrated kernel times."""
        sums: dict[str, float] = {}
        for site, c_in, c_out in self._kernels(variant):
            time = self._time(site.family, c_in, c_out)
            sums[site.family.cls] = sums.get(site.family.cls, 0.0) + time
        return sums

    def _calibrate(self) -> Calibration:
        runs = self.record.runs
        sums = [self._sums(run.configuration) for run in runs]
        weight = [_weight(run.spread) for run in runs]
        middle = float(np.median(weight)) if weight else 1.0
        if not runs:
            total = sum(self._sums(DENSE).values())
            classes = dict.fromkeys(self._sums(DENSE), min(1.0, self.dense / total))
            return Calibration(classes, max(0.0, self.dense - total), 0, float("nan"))
        return calibrate(sums, [run.ratio * self.dense for run in runs], [value / middle for value in weight])


def _weight(spread: float) -> float:
    """Of a run in the fit: rises with what is known of it, and falls fast where that is little."""
    return float(1.0 / max(spread, 0.01) ** 0.5 / max(1.0, spread / DOUBTFUL))


def as_configuration(network: Configuration | PlanLike | Mapping[str, int] | Any) -> Configuration:
    """A plan or widths by group in a few words."""
    if isinstance(network, Configuration):
        return network
    if isinstance(network, Mapping):
        return Configuration(network)
    found: Configuration = network.configuration
    return found


def _cells(table: Table, sites: Sequence[Site]) -> dict[Family, Cells]:
    wanted = {site.family.id: site.family for site in sites}
    rows: dict[str, list[tuple[float, float, float, float]]] = {}
    for (name, c_in, c_out), cell in table.cells.items():
        if name in wanted:
            rows.setdefault(name, []).append((c_in, c_out, cell.median, cell.noise))
    for site in sites:
        found = rows.setdefault(site.family.id, [])
        if not found:
            found.append((site.c_in, site.c_out, site.time, 0.1))
    return {wanted[name]: Cells(*(_column(lines, i) for i in range(4))) for name, lines in rows.items()}


def _column(rows: list[tuple[float, float, float, float]], index: int) -> NDArray[np.float64]:
    return np.array([row[index] for row in rows], np.float64)
