"""What all campaigns share: one try in a process of its own, bounded in time and memory, and the JSON at the end.

A try is forked from a process in which everything is imported already, so that a thousand of them take minutes. What
it raises is judged as `edgeprune` would show it: an error on purpose is "refused"; what the command line calls an
internal error, a silent death, more than a gibibyte and more than thirty seconds are failures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results" / "campaigns"
SECONDS, MEMORY = 30.0, 1 << 30
HEADROOM = 4 * MEMORY  # of address space: beyond that a try is stopped rather than the machine
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"  # threads do not survive a fork: a child would wait for them for ever
BAD = ("internal", "hang", "memory", "died")


@dataclass(frozen=True)
class Tried:
    """How one try ended: "accepted", "refused", "internal", "hang", "memory" or "died"; and what was said."""

    end: str
    words: str = ""
    code: int = 0
    seconds: float = 0.0
    grown: int = 0  # bytes of memory at most, beyond what was there before


def isolated(work: Callable[[], Any], seconds: float = SECONDS, memory: int = MEMORY) -> Tried:
    """Do `work` in a child; what it returns is the words of "accepted"."""
    reading, writing = os.pipe()
    began, child = time.monotonic(), os.fork()
    if not child:
        os.close(reading)
        _child(work, writing)
    os.close(writing)
    try:
        data = _until_closed(reading, began + seconds)
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)  # it has said all it will, or has had its time
        os.waitpid(child, 0)
    spent = round(time.monotonic() - began, 3)
    if data is None:
        return Tried("hang", f"more than {seconds:g} s", seconds=spent)
    if not data:
        return Tried("died", "without a word", seconds=spent)
    found = json.loads(data)
    end = "memory" if found["grown"] > memory else found["end"]
    return Tried(end, found["words"], found["code"], spent, found["grown"])


def _until_closed(reading: int, end: float) -> bytes | None:
    data = b""
    while (left := end - time.monotonic()) > 0:
        if select.select([reading], [], [], left)[0]:
            piece = os.read(reading, 1 << 16)
            if not piece:
                return data
            data += piece
    return None


def _child(work: Callable[[], Any], writing: int) -> None:
    from edgeprune.cli.failures import as_edgeprune_error

    found: dict[str, Any] = {"end": "died", "words": "", "code": 0, "grown": 0}
    before = _resident()
    try:
        with Path(os.devnull).open("r+") as nowhere:
            for stream in (0, 1, 2):
                os.dup2(nowhere.fileno(), stream)
        limit = _address_space() + HEADROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        random.seed(0)
        try:
            found |= {"end": "accepted", "words": str(work() or "")[:300]}
        except BaseException as error:
            known = as_edgeprune_error(error)
            if isinstance(error, MemoryError):
                found |= {"end": "memory", "words": repr(error)}
            elif known is not None and not isinstance(error, SystemExit):
                found |= {"end": "refused", "words": f"{type(known).__name__}: {known.message}"[:600]}
                found["code"] = known.exit_code
            else:
                where = traceback.extract_tb(error.__traceback__)[-1]
                ours = [one for one in traceback.extract_tb(error.__traceback__) if "/edgeprune/" in one.filename]
                last = ours[-1] if ours else where
                place = f"{Path(last.filename).name}:{last.lineno}"
                found |= {"end": "internal", "words": f"{place}: {type(error).__name__}: {error}"[:600]}
        found["grown"] = max(0, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        os.write(writing, json.dumps(found).encode("utf-8", "replace"))
    finally:
        os._exit(0)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def one_thread() -> None:
    """Before anything is computed in the process that tries are forked from."""
    import torch

    import edgeprune.cli.failures  # noqa: F401 - for all children

    torch.set_num_threads(1)


class Book:
    """The counts of a campaign, and the first of everything that went wrong."""

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.seed = name, seed
        self.ends: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.slowest, self.most, self._began = 0.0, 0, time.monotonic()

    def note(self, label: str, tried: Tried) -> None:
        """One try; a failure is kept with its label, which makes it repeatable."""
        self.ends[tried.end] += 1
        self.slowest, self.most = max(self.slowest, tried.seconds), max(self.most, tried.grown)
        if tried.end in BAD:
            self.fail(f"{label}: {tried.end}: {tried.words}")

    def fail(self, words: str) -> None:
        """Something that must not be."""
        self.wrong.append(words)

    def facts(self, **more: Any) -> dict[str, Any]:
        """What is written down."""
        return {
            "campaign": self.name,
            "seed": self.seed,
            "tries": sum(self.ends.values()),
            "ends": dict(sorted(self.ends.items())),
            "failures": len(self.wrong),
            "wrong": self.wrong[:50],
            "slowest_s": round(self.slowest, 2),
            "most_mib": round(self.most / (1 << 20), 1),
            "took_s": round(time.monotonic() - self._began, 1),
            **more,
        }


def write(facts: dict[str, Any], out: Path | None) -> None:
    """The JSON of a campaign, with what it ran on; and on standard output."""
    from edgeprune._version import __version__

    machine = {"python": platform.python_version(), "system": platform.platform(terse=True), "cpus": os.cpu_count()}
    text = json.dumps({**facts, "edgeprune": __version__, "on": machine}, indent=1)
    print(text)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n")


class Clock:
    """Is there time for another try? What was not tried is not counted."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes

    def __bool__(self) -> bool:
        return time.monotonic() < self._end


def arguments(text: str | None, name: str, tries: int) -> argparse.ArgumentParser:
    """--tries, --seed, --minutes and --out, which all campaigns have."""
    parser = argparse.ArgumentParser(description=(text or "").splitlines()[0])
    parser.add_argument("--tries", type=int, default=tries)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0, help="then no further try begins")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json")
    return parser


def ended(facts: dict[str, Any]) -> None:
    """Exit with 1 where something went wrong."""
    sys.exit(1 if facts["failures"] else 0)
