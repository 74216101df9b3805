"""A sweep: many runs, what they share made once, one page and one table over all; it resumes."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from edgeprune import files, report
from edgeprune import result as results
from edgeprune.errors import EdgepruneError, RunError
from edgeprune.pipeline import Event, Listener, RunDirectory, silent
from edgeprune.result import RunState, SweepReport, SweepRow
from edgeprune.scale import engines
from edgeprune.scale.spec import SweepFile, SweepRun, load_sweep
from edgeprune.scale.tasks import SweepTask, TaskDone, plan_tasks

FILE, PAGE, TABLE, RUNS = "sweep.json", "sweep.html", "sweep.csv", "runs"
EVERY, SHARE = 5.0, 20.0  # seconds between two writes of the page while tasks end, and as a multiple of what one takes
PATIENCE = 60.0  # seconds that a run's folder may still be held, by a worker that is about to end
EngineName = Literal["auto", "ray", "order"]


@dataclass
class _State:
    """What is known so far."""

    sweep: SweepFile
    runs: Sequence[SweepRun]
    folder: Path
    engine: str
    tasks: int
    began: float
    ended: dict[str, list[TaskDone]] = field(default_factory=dict)  # by run
    done: int = 0
    next_write: float = 0.0

    def report(self) -> SweepReport:
        rows = tuple(_row(one, self.folder / RUNS / one.name, self.ended.get(one.name, ())) for one in self.runs)
        seconds = round(time.monotonic() - self.began, 1)
        return SweepReport(
            name=self.sweep.name, engine=self.engine, rows=rows, tasks=self.tasks, done=self.done, seconds=seconds
        )


def sweep(
    path: Path,
    out: Path | None = None,
    *,
    engine: EngineName = "auto",
    address: str = "",
    events: Listener = silent,
) -> SweepReport:
    """Do all runs of a sweep.

    Args:
        path: SWEEP.toml.
        out: the sweep's folder; default `sweeps/NAME`. On a cluster all nodes must see it, and the recipes, there.
        engine: "auto": Ray where it is installed.
        address: of a Ray cluster.

    Raises:
        UsageError, RecipeError, TargetError: the sweep cannot begin.
        RunError: the folder holds another sweep, or somebody else works in it; or runs failed (not: were refused).
    """
    asked, runs = load_sweep(path)
    folder = out or Path("sweeps") / asked.name
    began = time.monotonic()
    with RunDirectory(folder, "--out"):
        _own(folder, asked)
        tasks = plan_tasks(runs, folder / RUNS, asked.until)
        _free(folder / RUNS, runs)
        chosen, name = _engine(asked, engine, address, tasks, events)
        state = _State(asked, runs, folder, name, len(tasks), began)
        events(Event("line", "sweep", f"{len(runs)} runs, {len(tasks)} tasks, {name}: {folder / PAGE}"))
        try:
            for done in chosen(tasks):
                _note(state, done, events)
        finally:
            made = _write(state)
    failed = [row for row in made.rows if row.state == "failed"]
    if failed:
        raise RunError(
            f"{len(failed)} of {len(made.rows)} runs failed: {failed[0].run}: {failed[0].why}",
            f"The others are done; the same command goes on with these. The page: {folder / PAGE}",
        )
    return made


def _engine(
    asked: SweepFile, engine: EngineName, address: str, tasks: Sequence[SweepTask], events: Listener
) -> tuple[engines.Engine, str]:
    if engine == "order" or (engine == "auto" and not address and not engines.installed()):
        return engines.in_order(asked.resources, events), "one after the other"
    devices = sorted({name for task in tasks for name in task.holds})
    where = f"Ray at {address}" if address else "Ray, on this machine"
    return engines.on_ray(asked.resources, address, devices), where


def _own(folder: Path, asked: SweepFile) -> None:
    """A folder holds one sweep, which may grow and shrink; raises RunError where it is another's."""
    path = folder / FILE
    if not path.is_file():
        strange = [one.name for one in folder.iterdir() if one.name not in (".lock", RUNS)]
        if strange:
            raise RunError(f"{folder} holds {strange[0]}, and no sweep.", "Choose another --out.")
        return
    known = files.read_json(path, RunError, "Delete it, or choose another --out.")
    name = known.get("name") if isinstance(known, dict) else None
    if name != asked.name:
        raise RunError(
            f"{folder} holds the sweep '{name}', not '{asked.name}'.", "Choose another --out, or give it that name."
        )


def _free(folder: Path, runs: Sequence[SweepRun]) -> None:
    """Wait for workers of a killed sweep that are still ending; raises RunError where a run is held for longer."""
    end = time.monotonic() + PATIENCE
    for run in runs:
        while (folder / run.name).is_dir():
            try:
                with RunDirectory(folder / run.name, "--out"):
                    break
            except RunError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.5)


def _note(state: _State, done: TaskDone, events: Listener) -> None:
    """Say that a task ended; the page is written every few seconds, less often where writing it takes long."""
    state.ended.setdefault(done.name.rpartition(":")[0], []).append(done)
    state.done += 1
    why = f": {done.why}" if done.why else ""
    events(
        Event("line", "sweep", f"{state.done}/{state.tasks}  {done.name} {done.ending} in {done.seconds:.1f} s{why}")
    )
    events(Event("progress", "sweep", done.name, state.done, state.tasks))
    now = time.monotonic()
    if now > state.next_write:
        _write(state)
        state.next_write = time.monotonic() + max(EVERY, SHARE * (time.monotonic() - now))


def _write(state: _State) -> SweepReport:
    """sweep.json, sweep.csv and the page."""
    made = state.report()
    files.write_json(state.folder / FILE, msgspec.to_builtins(made))
    files.write_text(state.folder / TABLE, as_csv(made.rows))
    report.write_sweep(made, state.folder / PAGE)
    return made


def as_csv(rows: Iterable[SweepRow]) -> str:
    """One line a run; a field that a spreadsheet would compute is made text."""
    names = [item.name for item in msgspec.structs.fields(SweepRow)]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([_cell(getattr(row, name)) for name in names])
    return stream.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, tuple):
        return " ".join(value)
    if isinstance(value, str):
        text = " ".join(value.split())
        return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
    return "" if value is None else value


def _row(run: SweepRun, folder: Path, ended: Sequence[TaskDone]) -> SweepRow:
    """A run as its folder has it, and as its tasks ended in this call."""
    made, taken, seconds = _history(folder)
    bad = next((one for one in ended if one.ending != "done"), None)
    row = SweepRow(
        run=run.name, recipe=run.recipe_name, target=run.target, budget=run.budget, seed=run.seed, folder=str(folder),
        made=made, taken=taken, seconds=seconds,
    )  # fmt: skip
    row = msgspec.structs.replace(row, **_figures(folder))
    if bad is not None and bad.ending in ("impossible", "failed", "skipped"):
        state: RunState = "impossible" if bad.ending == "impossible" else "failed"
        return msgspec.structs.replace(row, state=state, why=bad.why)
    if bad is not None:
        return msgspec.structs.replace(row, state="refused", why=bad.why) if row.state != "unverified" else row
    return row


def _history(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...], float]:
    """Stages made here and taken over, and the seconds that making them took, of all calls."""
    made: list[str] = []
    taken: list[str] = []
    seconds = 0.0
    if (folder / "events.jsonl").is_file():
        for line in (folder / "events.jsonl").read_text("utf-8", "replace").splitlines():
            try:
                event = files.parse_json(line, RunError, "events.jsonl")
            except RunError:
                continue  # the last line of a process that was killed
            if event.get("event") == "end":
                made.append(str(event.get("stage")))
                seconds += float(event.get("seconds") or 0.0)
            elif event.get("event") == "adopted":
                taken.append(str(event.get("stage")))
    return tuple(made), tuple(taken), round(seconds, 1)


def _figures(folder: Path) -> dict[str, object]:
    """What result.json, or else the search, says; nothing where there is neither, or one that cannot be read."""
    try:
        if (folder / "result.json").is_file():
            return _released(folder, files.read_json(folder / "result.json", RunError))
        if (folder / "search" / "search.json").is_file():
            found = files.read_json(folder / "search" / "search.json", RunError)
            return {"state": "searched", "speedup": 1 / float(found["measured_ratio"])}
    except (EdgepruneError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return {}
    return {}


def _released(folder: Path, data: Any) -> dict[str, object]:
    found = results.read(data)
    network = found.network("pruned_int8")
    rated = network.rated
    bundles = sorted((folder / "release").glob("*.tar"))
    compared = found.comparison
    return {
        "state": found.verdict or "searched",
        "metric": rated.title if rated else "",
        "score": rated.value if rated else None,
        "drop": compared.drop if compared else None,
        "drop_high": compared.high if compared else None,
        "unit": found.unit,
        "latency": network.latency(found.unit).median,
        "speedup": found.speedup_vs_dense_int8,
        "bytes": network.bytes,
        "bundle": str(bundles[0]) if bundles else "",
    }
