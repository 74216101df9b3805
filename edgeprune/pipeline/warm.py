"""What a run takes over from its neighbours: whole stages, loss curves, and where a search at another budget ended.

Nothing of it is trusted by its place: a stage is taken where its key, its files and its inputs are the same, curves
where their own key is, a plan's measurements where all that they depend on but the budget is. A neighbour's table and
factors only start a search; what it answers is measured like any other answer.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec

from edgeprune.errors import EdgepruneError, RunError, TargetError
from edgeprune.latency import Feasibility, Table, TableStore, rejudged, same_grade
from edgeprune.pipeline.bench import Bench
from edgeprune.pipeline.events import Voice
from edgeprune.pipeline.facts import StageKeys
from edgeprune.pipeline.rundir import SEAL, RunDirectory, holds, key_of, read_json, write_json
from edgeprune.pipeline.subject import Subject

CURVES, FEASIBLE = "curves.json", "feasibility.json"
LIKE = "like.json"  # the key of the plan, less the budget: what was measured holds for every budget
TABLES = "EDGEPRUNE_TABLES"  # a place where a fleet keeps its tables, see latency/store.py


def plan(
    subject: Subject,
    voice: Voice,
    shared: Sequence[Path],
    keys: StageKeys,
    folder: Path,
    blocks: bool,
    floats: Iterable[str],
) -> bool:
    """Take over a plan that was measured for another budget: only the verdict on this one is made anew.

    Args:
        floats: the layers that stay in float here; a plan with others is not taken.

    Returns:
        whether it could be. In any case `folder` then says to what its measurements belong.
    """
    like = key_of(keys.without("plan", "speed"), sorted(floats))
    write_json(folder / LIKE, {"key": like})
    for other in shared:
        there, part = other / "plan", folder / "other"
        try:
            if read_json(there / LIKE).get("key") != like or not holds(there):
                continue
            shutil.copytree(there, part)
            if not holds(part):
                continue
            found = msgspec.convert(read_json(part / FEASIBLE), Feasibility)
            again = rejudged(found, subject.structure, subject.recipe.budget, blocks)
            if again.unsure:  # measured again, rather
                continue
            for path in part.iterdir():
                if path.name not in (SEAL, LIKE, FEASIBLE):
                    shutil.move(path, folder / path.name)
        except (OSError, RunError, AttributeError, msgspec.ValidationError):
            continue
        finally:
            shutil.rmtree(part, ignore_errors=True)
        write_json(folder / FEASIBLE, {**asdict(again), "possible": again.possible})
        voice.say("plan", f"measured in {other}; only the verdict on this budget is new")
        return True
    return False


def curves(shared: Sequence[Path], folder: Path) -> None:
    """Loss curves that another run has measured lie in `folder`, for `search.measure` to check and to use."""
    for other in shared:
        found = other / "search" / CURVES
        if not (folder / CURVES).exists() and found.is_file():
            with contextlib.suppress(OSError):
                shutil.copyfile(found, folder / CURVES)


def fleet(bench: Bench, run: RunDirectory, voice: Voice, network: str) -> Table:
    """The table that the run starts to measure from: the fleet's of this very device, or an empty one.

    Raises:
        UsageError, MissingDependency, RunError: EDGEPRUNE_TABLES names a place that cannot be used.
    """
    fingerprint, unit = bench.probe.fingerprint, bench.target.protocol.unit
    place = os.environ.get(TABLES, "")
    found = TableStore.open(place).find(fingerprint, unit) if place else None
    if found is None:
        return Table(fingerprint, unit)
    try:
        same_grade(found, network, _dense(run), place)
    except TargetError as cause:
        voice.say("latency", f"{cause.message} It is not used: this device is measured by itself.")
        return Table(fingerprint, unit)
    runs = len(found.networks[network].runs) if network in found.networks else 0
    voice.say("latency", f"{place} knows this device: {len(found.cells)} cells, {runs} networks cut from this one")
    return found


def tell_fleet(voice: Voice, stage: str, table: Table) -> None:
    """Add what was measured to EDGEPRUNE_TABLES; where that cannot be, the run goes on and says so."""
    place = os.environ.get(TABLES, "")
    if not place:
        return
    try:
        store = TableStore.open(place)
        there = store.find(table.fingerprint, table.unit)
        if there is not None:
            for network in table.networks:
                same_grade(there, network, table.networks[network].dense, place)
        store.put(table)
    except EdgepruneError as cause:
        voice.say(stage, f"not added to {place}: {cause.message}")


def _dense(run: RunDirectory) -> float:
    """The dense INT8 artifact's latency as the plan measured it."""
    return float(read_json(run.folder("plan") / FEASIBLE)["dense_int8"])


def start(bench: Bench, run: RunDirectory, neighbour: Path | None, name: str) -> tuple[Table, Mapping[str, float]]:
    """The latency table and the factors that a search starts from: with what the neighbour has learnt, if there is one.

    Raises:
        TargetError, RunError: the run's own table is of another device, or damaged.
    """
    fingerprint, unit = bench.probe.fingerprint, bench.target.protocol.unit
    table = Table.load(run.folder("latency") / name, fingerprint, unit)
    if neighbour is None:
        return table, {}
    try:
        learnt = Table.load(neighbour / "search" / name, fingerprint, unit)
        rounds = read_json(neighbour / "search" / "search.json")["rounds"]
        best = min(rounds, key=lambda one: float(one["loss"]))
        more = learnt.cells.keys() >= table.cells.keys() and learnt.networks.keys() >= table.networks.keys()
        return learnt if more else table.merge(learnt), {
            str(key): float(value) for key, value in best["factors"].items()
        }
    except (EdgepruneError, KeyError, TypeError, ValueError):
        return table, {}  # a neighbour that found nothing, or has no table
