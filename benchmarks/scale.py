"""What a sweep costs beside its work: scheduling a task, memory, and how both grow. The work is a stand-in.

    python benchmarks/scale.py --engine order --out benchmarks/results/scale.json
    python benchmarks/scale.py --engine ray --runs 50 --out benchmarks/results/scale.json

1,000 boards (`pi-0` to `pi-999`), each with its own target, ten tasks a board: nothing is built and no device is asked.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from pathlib import Path

from common import save

from edgeprune.scale import engines, tasks
from edgeprune.scale.spec import SweepResources, SweepRun
from edgeprune.scale.tasks import SweepTask, TaskDone, plan_tasks


def runs_of(count: int) -> list[SweepRun]:
    """Three budgets on each of `count` boards: 1 latency, 3 search, 3 recover, 3 package, and one graph for all."""
    return [
        SweepRun(
            f"net-pi-{board}-{speedup:g}x", "net.toml", "net", f"pi-{board}", f"ssh://pi-{board}", speedup, None, 0
        )
        for board in range(count)
        for speedup in (1.5, 2.0, 3.0)
    ]


def nothing(task: SweepTask, *_: object) -> TaskDone:
    """The stand-in for a task."""
    return TaskDone(task.name, "done")


def measure(count: int, engine: str) -> dict[str, float | int | str]:
    """One size: seconds to plan, seconds a task, peak memory."""
    began = time.perf_counter()
    found = plan_tasks(runs_of(count), Path("runs"), "package")
    planned = time.perf_counter() - began
    devices = sorted({name for task in found for name in task.holds})
    began = time.perf_counter()
    if engine == "ray":
        run = engines.on_ray(SweepResources(), "", devices)
    else:
        run = engines.in_order(SweepResources(), lambda event: None)
    started = time.perf_counter() - began
    began = time.perf_counter()
    done = sum(one.ending == "done" for one in run(found))
    seconds = time.perf_counter() - began
    assert done == len(found), f"{len(found) - done} tasks did not end well"
    return {
        "engine": engine,
        "devices": len(devices),
        "tasks": len(found),
        "plan_ms_a_task": round(1e3 * planned / len(found), 4),
        "start_s": round(started, 2),
        "ms_a_task": round(1e3 * seconds / len(found), 4),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=["order", "ray"], default="order")
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 300, 1000], help="Boards, one size after another.")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    tasks.device_of = lambda run: run.device.removeprefix("ssh://")  # no profile of pi-17 exists
    engines.perform = nothing
    engines._remote = nothing
    rows = [measure(count, given.engine) for count in given.runs]
    for row in rows:
        print(json.dumps(row))
    if given.out:
        known = json.loads(given.out.read_text())["rows"] if given.out.is_file() else []
        kept = [row for row in known if row["engine"] != given.engine]
        machine = {"machine": platform.machine(), "python": platform.python_version()}
        save(given.out, {**machine, "rows": [*kept, *rows]})


if __name__ == "__main__":
    main()
