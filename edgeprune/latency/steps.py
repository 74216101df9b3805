"""Step probing: at which channel counts do this runtime's kernels get slower, inside a network?

One layer of each kernel class is swept through consecutive widths, all classes in the same sampled networks, so that
the plateaus are those of the deployed kernels: isolated kernels mislead. What is measured joins the table. A profile's
`[channels] step` is confirmed this way, and found for a runtime whose steps nobody has written down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeprune.devices.types import Device
from edgeprune.errors import GraphError
from edgeprune.graph.structure import Structure, width
from edgeprune.latency.build import Maker
from edgeprune.latency.fit import Array
from edgeprune.latency.sample import Progress, extend
from edgeprune.latency.sites import channels
from edgeprune.latency.table import Site, Table
from edgeprune.latency.timing import Effort
from edgeprune.latency.variants import Variant

CANDIDATES = (1, 2, 4, 8, 16, 32)
CLEARLY = 0.8  # a step must leave less than this share of the squared error of no step


@dataclass(frozen=True)
class Sweep:
    """One layer's kernel over consecutive output widths.

    Attributes:
        cls: kernel class.
        layer, group: what was swept; widths: in channels; times: in the table's unit.
        step: channels in a block, 1 when the time grows smoothly.
    """

    cls: str
    layer: str
    group: str
    widths: tuple[int, ...]
    times: tuple[float, ...]
    step: int


def probe_steps(
    table: Table,
    device: Device,
    maker: Maker,
    span: int = 32,
    effort: Effort | None = None,
    progress: Progress | None = None,
    keep: Callable[[Table], None] | None = None,
) -> tuple[Table, tuple[Sweep, ...]]:
    """Sweep the slowest prunable layer of each kernel class through its top `span` widths.

    Raises GraphError when nothing can be swept, MeasurementError and DeviceError as sampling does.
    """
    if maker.network not in table.networks:
        table = extend(table, device, maker, (), effort, keep=keep)
    chosen = swept(table.networks[maker.network].sites, maker.structure)
    if not chosen:
        raise GraphError("no layer of this network can be narrowed, so its steps cannot be probed.")
    sizes = {group: maker.structure.group(group).size for _, group in chosen}
    variants = [Variant({group: max(1, size - down) for group, size in sizes.items()}) for down in range(1, span + 1)]
    table = extend(table, device, maker, variants, effort, progress, keep)
    layers = {layer.name: layer for layer in maker.structure.layers}
    found = []
    for site, group in chosen:
        points: dict[int, float] = {}
        for variant in (Variant({}), *variants):
            c_in, c_out = channels(site, layers, variant.widths)
            cell = table.cells.get((site.family.id, c_in, c_out))
            if cell is not None:
                points[c_out] = cell.median
        widths = tuple(sorted(points))
        times = tuple(points[w] for w in widths)
        found.append(Sweep(site.family.cls, site.layer, group, widths, times, find_step(widths, times)))
    return table, tuple(found)


def swept(sites: tuple[Site, ...], structure: Structure) -> list[tuple[Site, str]]:
    """For each class of layers, its slowest whose output is one group that no other chosen layer shares."""
    layers = {layer.name: layer for layer in structure.layers}
    best: dict[str, tuple[Site, str]] = {}
    taken: set[str] = set()
    for site in sorted(sites, key=lambda site: -site.time):
        layer = layers.get(site.layer)
        if layer is None or site.side != "both" or site.family.cls in best or len(layer.outputs) != 1:
            continue
        group = layer.outputs[0].group
        reads = {segment.group for segment in layer.inputs}
        free = group is not None and group not in taken and (not site.family.paired or not reads & {group, *taken})
        if free and group is not None and width(layer.outputs, {}) > 2:
            best[site.family.cls] = (site, group)
            taken.add(group)
    return list(best.values())


def find_step(widths: tuple[int, ...], times: tuple[float, ...]) -> int:
    """The block size whose rounded-up widths explain the times best as an affine function; 1 when none clearly does."""
    if len(widths) < 4:
        return 1
    w, t = np.array(widths, np.float64), np.array(times, np.float64)
    errors = {step: _error(np.ceil(w / step) * step, t) for step in CANDIDATES if step <= np.ptp(w)}
    best = min(errors, key=lambda step: errors[step])
    return best if errors[best] < CLEARLY * errors[1] else 1


def _error(x: Array, t: Array) -> float:
    rows = np.column_stack([np.ones_like(x), x])
    solution, *_ = np.linalg.lstsq(rows, t, rcond=None)
    return float(np.sum((rows @ solution - t) ** 2))
