"""Power cuts while a run directory is written: whatever is found afterwards is whole, or is made again.

    python benchmarks/campaigns/power.py --tries 200

The stand-in for a file system is the one of tests/pipeline/test_powercut.py: it keeps what was brought to the disk and
loses the rest, in the two ways that real ones do.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(Path(__file__).resolve().parent), str(ROOT / "tests" / "pipeline")]
import trying  # noqa: E402
from test_powercut import STAGES, cut_at, go  # noqa: E402

from edgeprune.pipeline.rundir import RunDirectory  # noqa: E402

MOMENTS = 130  # changes of the disk in one run of the stand-in stages


def cut(calls: int, ahead: bool, folder: Path) -> tuple[str, str]:
    """Cut at the `calls`-th change; how it ended, and what was wrong."""
    before, after = folder / "before", folder / "after"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        with pytest.MonkeyPatch.context() as inner:
            disk, was_cut = cut_at(calls, before, inner)
        disk.after(after, ahead)
        with RunDirectory(after) as run:
            whole = [name for name in STAGES if run.is_whole(name, "2")]
        wrong = [name for name in whole if (after / name / "a.json").read_text() != f"{name} 2"]
        made = go(after, "2")
        wrong += [name for name in STAGES if (after / name / "deep/b.bin").read_text() != f"{name} 2" * 100]
        again = go(after, "2")
    shutil.rmtree(before)
    shutil.rmtree(after)
    told = f"not whole: {wrong}" if wrong else f"made again: {again}" if again else ""
    return ("whole" if not made else "made again") if was_cut else "not cut", told


def campaign(tries: int, seed: int = 0, minutes: float = 60.0) -> dict[str, Any]:
    """Cuts at seeded moments, of both kinds of file system."""
    book, chance = trying.Book("power", seed), random.Random(seed)
    clock = trying.Clock(minutes)
    with tempfile.TemporaryDirectory() as name:
        for number in range(tries):
            if not clock:
                break
            calls, ahead = chance.randrange(MOMENTS), bool(number % 2)
            end, wrong = cut(calls, ahead, Path(name))
            book.ends[end] += 1
            if wrong:
                book.fail(f"cut at change {calls}, names {'ahead' if ahead else 'as synced'}: {wrong}")
    return book.facts()


def main() -> None:
    """The command line."""
    given = trying.arguments(__doc__, "power", 200).parse_args()
    facts = campaign(given.tries, given.seed, given.minutes)
    trying.write(facts, given.out)
    trying.ended(facts)


if __name__ == "__main__":
    main()
