"""Before any training: can the budget be met at all, and where does the time go?

Measured, not predicted: the dense artifact in FP32 and INT8 and a few of the smallest networks that pruning can make
are built with the weights that are there and timed in one interleaved run. Half a minute for ResNet-56.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from edgeprune.devices import Device, Unit
from edgeprune.graph import DENSE, Configuration, Structure
from edgeprune.latency.build import ArtifactBuilder, Built
from edgeprune.latency.kernels import entries
from edgeprune.latency.rounds import Measured
from edgeprune.latency.sites import find_sites
from edgeprune.latency.table import Site
from edgeprune.latency.timing import Effort, attribute, measure_together
from edgeprune.latency.variants import options
from edgeprune.recipe import BudgetSection
from edgeprune.target import Channels

AGAIN = 4  # further measurements before a "no" that lies within what the measured ones leave open
AT_FLOOR = 1.02  # a budget nearer to a floor than this is not called reachable: nothing is left to choose there
TOLD = 0.01  # spread of latencies from which on it is said

Reach = Literal["channels", "blocks", "no"]


@dataclass(frozen=True)
class LayerTime:
    """Where the dense INT8 network's time goes.

    Attributes:
        name: the layer; "(rest)" for what belongs to no layer.
        time: in the unit, scaled so that all add up to the dense latency.
        share: of the whole.
        frozen: neither its inputs nor its outputs can be narrowed.
        why: the first reason that the structure gives, for a frozen layer.
        block: the removable block that it is in, or "".
    """

    name: str
    time: float
    share: float
    frozen: bool
    why: str
    block: str


@dataclass(frozen=True)
class Feasibility:
    """What `edgeprune TARGET plan` says. Latencies are in `unit`, as measured.

    Attributes:
        dense_fp32, dense_int8: the whole network.
        floor: the fastest network that channels alone can reach.
        floor_with_blocks: with every removable block gone as well; None when there are none.
        budget: the latency asked for.
        speedup: of the budget over dense INT8.
        max_speedup: of the fastest network measured, over dense INT8.
        reach: how the budget can be met: by channels alone, only when blocks go too, or not at all.
        message: yes or no, in one sentence; remedy: what would reach it, when something would.
        layers: where the time goes, largest first.
        frozen_share: share of the time in layers that cannot be narrowed and lie in no removable block.
        spread: half of the 95 % interval of the noisiest latency, relative; floor_spread: that of the fastest one;
            fp32_spread: that of dense FP32 over dense INT8, which are measured in turn.
        unsure: the answer is "no", and what the floor's spread leaves open could make it a "yes".
    """

    unit: Unit
    dense_fp32: float
    dense_int8: float
    floor: float
    floor_with_blocks: float | None
    budget: float
    speedup: float
    max_speedup: float
    reach: Reach
    message: str
    remedy: str
    layers: tuple[LayerTime, ...]
    frozen_share: float
    spread: float
    floor_spread: float = 0.0
    fp32_spread: float | None = None  # None: a plan of an earlier version did not keep it
    unsure: bool = False

    @property
    def possible(self) -> bool:
        """The budget can be met."""
        return self.reach != "no"


def feasibility(
    maker: ArtifactBuilder, device: Device, budget: BudgetSection, blocks: bool = True, effort: Effort | None = None
) -> Feasibility:
    """Measure and judge.

    Args:
        maker: of the network in INT8; the FP32 artifact is made from the same float graph.
        blocks: the recipe lets blocks go.

    Raises DeviceError and what building raises.
    """
    effort = effort or Effort(passes=1, rounds=20)
    structure = maker.structure
    has_blocks = bool(structure.blocks) and blocks

    def open_still(found: Sequence[Measured]) -> bool:
        dense, best = found[0].latency, _fastest(found, has_blocks)
        return not budget.fastest and _within_noise(_wanted(dense, budget) / dense, best.ratio, best.spread)

    dense, found, profile = _measured(maker, device, effort, open_still)
    unit: Unit = maker.target.protocol.unit
    latency = found[0].latency
    without, best = min(1.0, _fastest(found, False).ratio), _fastest(found, has_blocks)
    everything = min(1.0, _fastest(found, True).ratio)
    wanted = _wanted(latency, budget)
    layers = layer_times(_sites(dense, profile, latency, maker), structure, latency)
    least, any_blocks = everything if has_blocks else None, bool(structure.blocks)
    spread = max(one.spread for one in found[1:])
    reach, message, remedy = judge(
        wanted / latency, without, least, blocks, any_blocks, latency, unit, budget.fastest, best.spread
    )
    if spread > effort.max_spread and reach != "no":
        message += f" The device was busy meanwhile: these latencies are good to {100 * spread:.0f} % only."
    return Feasibility(
        unit=unit,
        dense_fp32=found[1].ratio * latency,
        dense_int8=latency,
        floor=without * latency,
        floor_with_blocks=everything * latency if any_blocks else None,
        budget=wanted,
        speedup=latency / wanted,
        max_speedup=1.0 / (everything if blocks else without),
        reach=reach,
        message=message,
        remedy=remedy,
        layers=layers,
        frozen_share=sum(layer.share for layer in layers if layer.frozen and not layer.block),
        spread=spread,
        floor_spread=best.spread,
        fp32_spread=found[1].spread,
        unsure=reach == "no" and open_still(found),
    )


def _fastest(found: Sequence[Measured], blocks: bool) -> Measured:
    """Of dense INT8, dense FP32 and the floors, the fastest floor; `blocks`: of those without blocks as well."""
    return min((one for one in found[2:] if blocks or not one.built.variant.removed), key=lambda one: one.ratio)


def _within_noise(wanted: float, floor: float, spread: float) -> bool:
    """Out of reach by the floor that was measured, but not by one that is faster by its spread."""
    return AT_FLOOR * floor * (1 - spread) < wanted <= AT_FLOOR * floor


def _measured(
    maker: ArtifactBuilder, device: Device, effort: Effort, open_still: Callable[[Sequence[Measured]], bool]
) -> tuple[Built, list[Measured], Measured]:
    """The dense INT8 network; it, its FP32 form and the floors, measured together; and its kernels.

    What is noisy is measured again, `effort.retries` times at most, and AGAIN times more while the answer is
    `open_still`.
    """
    maker_fp32 = dataclasses.replace(maker, precision="fp32", layers={})
    dense = maker.build(DENSE, "dense")
    small = floors(maker.structure, maker.target.channels)
    names = [f"floor-{index}" for index in range(len(small))]
    built = [
        dense,
        maker_fp32.build(DENSE, "dense-fp32"),
        *(maker.build(v, name) for v, name in zip(small, names, strict=True)),
    ]
    try:
        found = measure_together(device, built, maker.target.protocol, effort, profile=False)
        for tried in range(effort.retries + AGAIN):
            noisy = tried < effort.retries and max(one.spread for one in found[1:]) > effort.max_spread
            if not noisy and not open_still(found):
                break
            again = measure_together(device, built, maker.target.protocol, effort, profile=False)
            found = [old.and_again(new) for old, new in zip(found, again, strict=True)]
        profile = measure_together(device, [dense], maker.target.protocol, Effort(passes=3, rounds=2, runs=1))[0]
    finally:
        for one in built[1:]:
            (maker if one.artifact.precision == "int8" else maker_fp32).forget(one)
    return dense, found, profile


def _wanted(dense: float, budget: BudgetSection) -> float:
    """The latency asked for; where the fastest within max_drop is, the dense one's."""
    return budget.latency_ms if budget.latency_ms is not None else dense / (budget.speedup or 1.0)


def rejudged(found: Feasibility, structure: Structure, budget: BudgetSection, blocks: bool = True) -> Feasibility:
    """What was measured, held against another budget; nothing is measured again."""
    dense, any_blocks = found.dense_int8, bool(structure.blocks)
    wanted, floor = _wanted(dense, budget), found.floor / dense
    least = found.floor_with_blocks / dense if found.floor_with_blocks is not None and any_blocks and blocks else None
    reach, message, remedy = judge(
        wanted / dense, floor, least, blocks, any_blocks, dense, found.unit, budget.fastest, found.floor_spread
    )
    unsure = (
        reach == "no"
        and not budget.fastest
        and _within_noise(wanted / dense, min(floor, least or 1.0), found.floor_spread)
    )
    return dataclasses.replace(
        found, budget=wanted, speedup=dense / wanted, reach=reach, message=message, remedy=remedy, unsure=unsure
    )


def floors(structure: Structure, channels: Channels) -> list[Configuration]:
    """Small networks, one of which should be the fastest.

    The narrowest is not always that: some runtimes are slower at 8 channels than at 16. So three widths are tried, each
    with all blocks and with none.
    """
    allowed = options(structure, channels)
    found = []
    for least in (channels.minimum, channels.step, 2 * channels.step):
        widths = {name: next((u for u in units if u >= least), units[-1]) for name, units in allowed.items()}
        found.append(Configuration(widths))
        if structure.blocks:
            found.append(Configuration(widths, tuple(block.module for block in structure.blocks)))
    return list({repr(variant): variant for variant in found}.values())


def judge(
    wanted: float,
    floor: float,
    floor_blocks: float | None,
    blocks: bool,
    any_blocks: bool,
    dense: float,
    unit: Unit,
    fastest: bool = False,
    spread: float = 0.0,
) -> tuple[Reach, str, str]:
    """How a budget can be met; latencies as fractions of the dense one, `dense` in the unit.

    A budget within 2 % of a floor is not called reachable: at the floor nothing is left to choose. A "no" that the
    spread of the floor's latency leaves open says so.

    Args:
        fastest: there is no latency to meet; the fastest network within max_drop is looked for.
        spread: half of the floor's 95 % interval, relative.
    """
    if fastest:
        best = min(floor, floor_blocks or 1.0)
        if best * AT_FLOOR >= 1:
            return "no", f"No: the smallest network measured is no faster than dense INT8, {dense:.4g} {unit}.", ""
        span = f"from dense INT8's {dense:.4g} {unit} down to {best * dense:.4g} {unit} ({1 / best:.2f}x)"
        return "channels", f"The fastest network within max_drop is looked for, {span}.", ""
    asked = f"{wanted * dense:.4g} {unit} ({1 / wanted:.2f}x over dense INT8)"
    if wanted >= 1:
        return "channels", f"Yes: the dense INT8 artifact already takes {dense:.4g} {unit}; the budget is {asked}.", ""
    if wanted > floor * AT_FLOOR:
        return "channels", f"Yes: {asked}. Channels alone reach {floor * dense:.4g} {unit} ({1 / floor:.2f}x).", ""
    if floor_blocks is not None and wanted > floor_blocks * AT_FLOOR:
        return (
            "blocks",
            f"Yes, when blocks go: {asked}. Channels alone stop at {floor * dense:.4g} {unit} ({1 / floor:.2f}x).",
            f"Removing residual blocks as well reaches {floor_blocks * dense:.4g} {unit} ({1 / floor_blocks:.2f}x).",
        )
    best = floor if floor_blocks is None else min(floor, floor_blocks)
    reached = best * AT_FLOOR
    remedy = f"Ask for at most {1 / reached:.2f}x (latency of {reached * dense:.4g} {unit})"
    if any_blocks and not blocks:
        remedy += ", or let whole blocks go: [search] blocks = true"
    good = f", good to {100 * spread:.2g} %" if spread >= TOLD else ""
    message = f"No: {asked}. The smallest network measured takes {best * dense:.4g} {unit} ({1 / best:.2f}x{good})."
    if _within_noise(wanted, best, spread):
        message += " That noise leaves the answer open."
        remedy = f"Plan again on a quieter device. {remedy}"
    return "no", message, remedy + "."


def layer_times(sites: Sequence[Site], structure: Structure, latency: float) -> tuple[LayerTime, ...]:
    """Kernel times by layer, scaled so that they add up to `latency`, largest first."""
    total = sum(site.time for site in sites) or 1.0
    by_layer: dict[str, float] = {}
    block: dict[str, str] = {}
    for site in sites:
        name = site.layer or site.node or "(rest)"
        by_layer[name] = by_layer.get(name, 0.0) + site.time
        block[name] = site.block
    free = {la.name: any(s.group is not None for s in (*la.inputs, *la.outputs)) for la in structure.layers}
    why = {name: item.why for item in reversed(structure.frozen) for name in item.layers}
    result = [
        LayerTime(
            name,
            time / total * latency,
            time / total,
            not free.get(name, False),
            "" if free.get(name) else why.get(name, ""),
            block[name],
        )
        for name, time in by_layer.items()
    ]
    return tuple(sorted(result, key=lambda layer: -layer.time))


def _sites(dense: Built, profile: Measured, latency: float, maker: ArtifactBuilder) -> tuple[Site, ...]:
    threads = maker.target.execution.threads
    raw = entries(profile.kernels, dense.network, dense.precision, maker.target.runtime, threads)
    return find_sites(attribute(raw, latency, 0.0), dense.network, maker.structure)
