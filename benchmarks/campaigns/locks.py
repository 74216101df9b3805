"""Races for the lock of a run directory: it is never held twice, and never lost for good.

    python benchmarks/campaigns/locks.py --tries 10000

Each of four processes takes and leaves the lock as often as it can; while it holds it, a file says so that no one else
may have made. Every hundredth time a process is killed while it holds the lock, which must then be free.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import trying

from edgeprune.errors import RunError
from edgeprune.pipeline.rundir import RunDirectory

PROCESSES, KILLED_EVERY = 4, 100


def hold(folder: Path, times: int, queue: Any) -> None:
    """Take the lock `times` times; report how often, how often another had it, and how often two did."""
    held = busy = twice = 0
    mark = folder / "held"
    while held < times:
        try:
            with RunDirectory(folder / "run"):
                try:
                    handle = os.open(mark, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                except FileExistsError:
                    twice += 1
                    held += 1
                    continue
                os.write(handle, str(os.getpid()).encode())
                os.close(handle)
                held += 1
                mark.unlink()
        except RunError:
            busy += 1
    queue.put((held, busy, twice))


def die_with_it(folder: Path) -> None:
    """Take the lock, and be killed while holding it."""
    while True:
        with contextlib.suppress(RunError), RunDirectory(folder / "run"):
            os.kill(os.getpid(), signal.SIGKILL)


def campaign(tries: int, seed: int = 0) -> dict[str, Any]:
    """So many acquisitions, all processes together; and a killed holder for every hundred of them."""
    book = trying.Book("locks", seed)
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as name:
        folder, queue = Path(name), context.Queue()
        holders = [
            context.Process(target=hold, args=(folder, tries // PROCESSES, queue), daemon=True)
            for _ in range(PROCESSES)
        ]
        for one in holders:
            one.start()
        killed = 0
        for _ in range(tries // KILLED_EVERY):
            victim = context.Process(target=die_with_it, args=(folder,), daemon=True)
            victim.start()
            victim.join(60)
            killed += victim.exitcode == -signal.SIGKILL
        found = [queue.get(timeout=600) for _ in holders]
        for one in holders:
            one.join()
        with RunDirectory(folder / "run"):
            pass  # free again, after all of it
    held, busy, twice = (sum(column) for column in zip(*found, strict=True))
    book.ends["held"] = held
    for _ in range(twice):
        book.fail("held twice")
    if killed < tries // KILLED_EVERY:
        book.fail(f"{tries // KILLED_EVERY - killed} never got it")
    return book.facts(acquisitions=held, refused_while_held=busy, held_twice=twice, killed_while_held=killed)


def main() -> None:
    """The command line."""
    given = trying.arguments(__doc__, "locks", 10_000).parse_args()
    facts = campaign(given.tries, given.seed)
    trying.write(facts, given.out)
    trying.ended(facts)


if __name__ == "__main__":
    main()
