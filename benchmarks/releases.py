"""How often `edgeprune compare` is wrong: two real bundles, and the newer one with a planted regression.

    python benchmarks/releases.py OLD.tar NEW.tar --repeats 20 --out benchmarks/results/releases.json

Both are of one target and one task, such as two runs of one recipe with different calibration images.

Metric, per repeat: which of the two a test example's answer is called "old" is drawn by a coin, so that nothing differs
but by chance (what the two really disagree on stays); then 0, 0.5, 1 or 2 points of the test examples that the new one
has right are made wrong. Also with more examples, drawn from these. Latency, per repeat: OLD against itself, measured
for real, side by side, opened anew as `compare` does it; then as it is, or with every ratio 3 % larger. A false alarm
is a regression where none was planted; a miss is none where one was. Both at 95 % confidence and without any tolerance.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import save

from edgeprune import compare, release, validate
from edgeprune import target as targets
from edgeprune.compare import aspects, timed
from edgeprune.devices import connect, reached

POINTS, SLOWER = 0.5, 0.03


def metric(old: Any, new: Any, planted: float, random: np.random.Generator, count: int = 0) -> Any:
    """One repeat; `planted` in points; `count`: of examples, drawn from those there are."""
    assert old.answers is not None and new.answers is not None and np.array_equal(old.answers.ids, new.answers.ids)
    there = len(old.answers.ids)
    drawn = random.integers(there, size=count) if count else np.arange(there)
    ids = np.arange(len(drawn), dtype=np.uint64)
    coin = random.random(len(drawn)) < 0.5
    first = np.where(coin, new.answers.right[drawn], old.answers.right[drawn])
    second = np.where(coin, old.answers.right[drawn], new.answers.right[drawn])
    wrong = random.choice(np.flatnonzero(second), round(planted / 100 * len(second)), replace=False)
    second[wrong] = False
    scores = (aspects._rated(new), aspects._rated(old))
    mine = dataclasses.replace(new.answers, ids=ids, right=second)
    theirs = dataclasses.replace(old.answers, ids=ids, right=first)
    found, _ = validate.on_the_same(mine, theirs, scores, 0.95)
    return {"word": aspects.word(found.low, found.high, 0.0), "drop": found.drop, "low": found.low, "high": found.high}


def ratios(old: Any, repeats: int, measurements: int) -> list[list[float]]:
    """OLD against itself, `repeats` times."""
    profile = targets.load(old.profile.name)
    found = []
    with connect(profile) as device, tempfile.TemporaryDirectory():
        for number in range(repeats):
            made, _ = timed._ratios(device, reached(profile), old, old, measurements, lambda done, total: None)
            found.append(made)
            print(number + 1, [round(one, 4) for one in made], flush=True)
    return found


def latency(made: list[float], planted: float) -> Any:
    """What `compare` says of these measurements, with every ratio larger by `planted`."""
    told = timed.judged([one * (1 + planted) for one in made], (1.0, 1.0 + planted), "ms", compare.Tolerance())
    return {"word": told.word, "change": told.change, "low": told.low, "high": told.high}


def errors(rows: list[Any], wanted: bool) -> dict[str, Any]:
    """How often it was called a regression."""
    called = sum(row["word"] == "regression" for row in rows)
    unknown = sum(row["word"] == "unknown" for row in rows)
    return {
        "repeats": len(rows),
        "called": called,
        "unknown": unknown,
        "errors": len(rows) - called if wanted else called,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--measurements", type=int, nargs="+", default=[5], help="Side by side, each repeat; 0: none.")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    old, new = (release.contents(path, rerun=False) for path in (given.old, given.new))
    random = np.random.default_rng(0)
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "target": old.profile.name,
        "examples": len(old.answers.ids) if old.answers is not None else 0,
        "disagree": int((old.answers.right != new.answers.right).sum()),  # type: ignore[union-attr, operator]
        "rows": {},
    }
    told = compare.compare(given.old, given.new, rerun=False)
    found["as they are, from what is recorded"] = {one.name: one.word for one in told.aspects}
    for count in (found["examples"], 10_000, 50_000):
        for planted in (0.0, POINTS, 2 * POINTS, 4 * POINTS):
            more = count if count != found["examples"] else 0
            rows = [metric(old, new, planted, random, more) for _ in range(given.repeats)]
            found["rows"][f"metric, {planted:g} points planted, {count:,} examples"] = errors(rows, planted > 0)
    if given.out:
        save(given.out, found)
    if not given.measurements[0]:
        return
    load = [os.getloadavg()[0]]
    made = ratios(old, given.repeats, max(given.measurements))
    load.append(os.getloadavg()[0])
    for count in given.measurements:
        for planted in (0.0, SLOWER):
            rows = [latency(one[:count], planted) for one in made]
            told_of = errors(rows, planted > 0)
            reach = float(np.median([(row["high"] - row["low"]) / 2 for row in rows if row["low"] is not None]))
            found["rows"][f"latency, {planted:.0%} planted, {count} measurements"] = {**told_of, "half_interval": reach}
    found["load"], found["cpus"], found["ratios"] = load, os.cpu_count(), made
    print(json.dumps({key: value for key, value in found.items() if key != "ratios"}, indent=1))
    if given.out:
        save(given.out, found)


if __name__ == "__main__":
    main()
