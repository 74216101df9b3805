"""Whole runs that are killed, run out of disk, and have their files damaged behind their back.

    python benchmarks/campaigns/runs.py kills --tries 300
    python benchmarks/campaigns/runs.py disk --tries 40
    python benchmarks/campaigns/runs.py damage --tries 200
    python benchmarks/campaigns/runs.py validations --tries 50

kills: the command is killed at random moments and repeated until it ends by itself; what was trained is never trained
again, and no bundle ever lies there that does not pass `verify`. disk: the run directory is on a file system of a few
kilobytes which grows a step after each refusal (mounting needs root); every refusal is the error for a full disk.
damage: a file of a whole run is damaged and the command repeated: it is made again, refused, or nothing that counts.
validations: the same artifacts are validated twice, neither knowing of the other, under a known load
(benchmarks/load.py, each core half busy); the two must come to the same verdict.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import mutate
import project
import trying

ENDS = (0, 7, 8, 9)  # released; or a budget, a gate or a measurement on a busy machine says no
LONGEST = 600.0  # seconds for one command
EPOCHS = 20  # where runs are killed: training takes about as long as the other stages, so that it is met
IGNORED = ("events.jsonl", ".lock", "earlier")  # not evidence of anything


def command(folder: Path, *more: str) -> subprocess.Popen[str]:
    """`edgeprune quick run recipe.toml`, in a process group of its own."""
    environment = {**os.environ, "EDGEPRUNE_TARGETS": str(folder), "EDGEPRUNE_CACHE": str(folder / "cache")}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    return subprocess.Popen(
        [sys.executable, "-m", "edgeprune", "quick", "run", "recipe.toml", "--run-dir", "runs/x", *more],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def stop(process: subprocess.Popen[str]) -> None:
    """Kill it and all that it started, as a power button does."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def events(run: Path) -> list[dict[str, Any]]:
    """What events.jsonl holds; a line that was cut off does not count."""
    found = []
    path = run / "events.jsonl"
    for line in path.read_text("utf-8", "replace").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def trained_again(run: Path) -> int:
    """How often `recover` was begun after it had ended."""
    ended = again = 0
    for one in events(run):
        if one.get("stage") == "recover":
            again += one["event"] == "begin" and bool(ended)
            ended |= one["event"] == "end"
    return again


def false_bundles(run: Path) -> list[str]:
    """Bundles under their final name that do not pass `verify`."""
    from edgeprune import release
    from edgeprune.errors import EdgepruneError

    wrong = []
    for path in (run / "release").glob("*.tar"):
        if path.name.startswith("."):
            continue
        try:
            release.verify(path, rerun=False)
        except EdgepruneError as error:
            wrong.append(f"{path.name}: {error.message}")
    return wrong


def looked_over(run: Path, book: trying.Book, label: str) -> None:
    for wrong in false_bundles(run):
        book.fail(f"{label}: {wrong}")
    if trained_again(run):
        book.fail(f"{label}: trained again")


def kills(folder: Path, tries: int, seed: int, minutes: float) -> dict[str, Any]:
    """SIGKILL at random moments of whole runs."""
    book, chance, clock = trying.Book("kills", seed), random.Random(seed), trying.Clock(minutes)
    recipe = project.make(folder) / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("epochs = 0.2", f"epochs = {EPOCHS}"))
    run, killed, finished = folder / "runs/x", 0, 0
    stages: Counter[str] = Counter()
    while killed < tries and clock:
        process = command(folder)
        wait = chance.choice((chance.uniform(0.2, 8), chance.expovariate(1 / 25)))
        try:
            said, _ = process.communicate(timeout=wait if killed < tries else LONGEST)
        except subprocess.TimeoutExpired:
            stop(process)
            killed += 1
            book.ends["killed"] += 1
            began = [one["stage"] for one in events(run) if one.get("event") == "begin"]
            stages[began[-1] if began else "before the first stage"] += 1
            looked_over(run, book, f"kill {killed} after {wait:.1f} s")
            continue
        finished += _ended(process.returncode, said, book, run)
        shutil.rmtree(folder / "runs")
    if run.exists():
        said, _ = (process := command(folder)).communicate(timeout=LONGEST)
        finished += _ended(process.returncode, said, book, run)
    return book.facts(killed=killed, finished=finished, in_stage=dict(stages), lost=len(book.wrong))


def _ended(code: int, said: str, book: trying.Book, run: Path) -> int:
    """Note a command that ended by itself; 1 where that was well."""
    book.ends[f"exit {code}"] += 1
    if code not in ENDS or "Traceback" in said or "internal error" in said:
        book.fail(f"exit {code}: {said[-300:]}")
        return 0
    looked_over(run, book, f"exit {code}")
    return 1


def disk(folder: Path, tries: int, seed: int, minutes: float) -> dict[str, Any]:
    """A file system that is full, a step later each time."""
    book, chance, clock = trying.Book("disk", seed), random.Random(seed), trying.Clock(minutes)
    project.make(folder)
    place, size, refused = folder / "runs", 16, 0
    place.mkdir()
    stages: Counter[str] = Counter()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", place], check=True)
    try:
        code = 11
        while refused < tries and code == 11 and clock:
            process = command(folder)
            said, _ = process.communicate(timeout=LONGEST)
            code = process.returncode
            if code != 11:
                break
            refused += 1
            book.ends["full"] += 1
            began = [one["stage"] for one in events(place / "x") if one.get("event") == "begin"]
            stages[began[-1] if began else "before the first stage"] += 1
            if not re.search(r"disk is full|cannot be written", said) or "Traceback" in said:
                book.fail(f"{size} KiB: {said[-300:]}")
            looked_over(place / "x", book, f"{size} KiB")
            size += chance.choice((4, 16, 64, 200))
            subprocess.run(["mount", "-o", f"remount,size={size}k", place], check=True)
        subprocess.run(["mount", "-o", "remount,size=512m", place], check=True)
        if code == 11:
            said, _ = (process := command(folder)).communicate(timeout=LONGEST)
            code = process.returncode
        _ended(code, said, book, place / "x")
    finally:
        subprocess.run(["umount", "-l", place], check=False)
    return book.facts(refused=refused, in_stage=dict(stages), last_kib=size)


def released(folder: Path) -> Path:
    """The bundle of a whole run of the small project in `folder`; a busy machine is tried four times."""
    project.make(folder)
    os.environ["EDGEPRUNE_TARGETS"], os.environ["EDGEPRUNE_CACHE"] = str(folder), str(folder / "cache")
    said = ""
    for _ in range(4):
        said, _ = (process := command(folder)).communicate(timeout=LONGEST)
        if not process.returncode:
            return next((folder / "runs/x/release").glob("*.tar"))
    raise SystemExit(f"no release on this machine: {said[-500:]}")


def damage(folder: Path, tries: int, seed: int, minutes: float) -> dict[str, Any]:
    """One file of a whole, released run is damaged, and the command is repeated."""
    book, clock = trying.Book("damage", seed), trying.Clock(minutes)
    released(folder)
    run, kept = folder / "runs/x", folder / "kept"
    shutil.copytree(run, kept)
    paths = sorted(path.relative_to(run) for path in run.rglob("*") if path.is_file())
    paths = [path for path in paths if path.parts[0] not in IGNORED]
    outcomes: dict[str, str] = {}
    for number in range(tries):
        if not clock:
            break
        chance = random.Random(f"damage {seed} {number}")
        shutil.rmtree(run)
        shutil.copytree(kept, run)
        name = paths[number % len(paths)] if number < len(paths) else chance.choice(paths)
        what = _harm(run, name, paths, chance)
        said, _ = (process := command(folder)).communicate(timeout=LONGEST)
        tried, label = process.returncode, f"try {number}, {name} {what}"
        end = "healed" if not tried else f"exit {tried}"
        book.ends[end] += 1
        outcomes[f"{name} {what}"] = end
        if tried not in (*ENDS, 11) or "Traceback" in said or "internal error" in said:
            book.fail(f"{label}: exit {tried}: {said[-300:]}")
        for wrong in false_bundles(run):  # training again is one way to heal
            book.fail(f"{label}: {wrong}")
        if not tried and not _mended(run / name, kept / name):
            book.fail(f"{label}: accepted")
    return book.facts(files=len(paths), outcomes=outcomes)


def _harm(run: Path, name: Path, paths: list[Path], chance: random.Random) -> str:
    """Damage one file; what was done to it."""
    path, kind = run / name, chance.choice(("bytes", "cut", "gone", "empty", "another"))
    data = path.read_bytes()
    if kind == "gone":
        path.unlink()
    elif kind == "another":
        path.write_bytes((run / chance.choice([one for one in paths if one != name])).read_bytes())
    else:
        made = {"bytes": mutate.bytes_of(data, chance), "cut": data[: len(data) // 2], "empty": b""}
        path.write_bytes(made[kind])
    return kind


def _mended(path: Path, was: Path) -> bool:
    """Is the file as it was, or made again? A stage's file is then what its seal says, and verify has seen the rest."""
    from edgeprune import files

    if not path.is_file():
        return False
    if path.read_bytes() == was.read_bytes() or path.name in ("result.json", "report.html", "stage.json"):
        return True
    for folder in path.parents:
        if (folder / "stage.json").is_file():
            held = json.loads((folder / "stage.json").read_text())["files"]
            return bool(held[path.relative_to(folder).as_posix()]["sha256"] == files.sha256(path))
    return path.suffix == ".tar" or path.name == "recipe.lock.toml"


def validations(folder: Path, tries: int, seed: int, minutes: float) -> dict[str, Any]:
    """Two validations of the same artifacts on a machine that is kept busy: do they come to the same verdict?"""
    book, clock = trying.Book("validations", seed), trying.Clock(minutes)
    released(folder)
    run, kept = folder / "runs/x", folder / "kept"
    result = json.loads((run / "result.json").read_text())
    measured = float(result["speedup_vs_dense_int8"])
    shutil.copytree(run, kept)
    pairs: Counter[str] = Counter()
    load = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve().parents[1] / "load.py"), "--seconds", "86400", "--share", "0.5"],
        start_new_session=True,
    )
    try:
        for number in range(tries):
            if not clock:
                break
            ends = [_validated(folder, run, kept) for _ in range(2)]
            pairs[" and ".join(sorted(ends))] += 1
            book.ends["agree" if ends[0] == ends[1] else "differ"] += 1
            if ends[0] != ends[1]:
                book.fail(f"pair {number}: {' and '.join(ends)}")
    finally:
        os.killpg(load.pid, signal.SIGKILL)
        load.wait()
    return book.facts(verdicts=dict(sorted(pairs.items())), speedup_asked=1.05, speedup_of_the_first=round(measured, 2))


def _validated(folder: Path, run: Path, kept: Path) -> str:
    """The verdict of one validation that knows of no other."""
    shutil.rmtree(run)
    shutil.copytree(kept, run)
    (run / "validations.json").unlink()
    said, _ = (process := command(folder, "--from", "validate")).communicate(timeout=LONGEST)
    if process.returncode not in ENDS or "Traceback" in said:
        return f"exit {process.returncode}: {said[-200:]}"
    return {0: "release", 7: "too slow", 8: "refused", 9: "too noisy to tell"}[process.returncode]


CAMPAIGNS = {"kills": kills, "disk": disk, "damage": damage, "validations": validations}


def main() -> None:
    """The command line."""
    parser = trying.arguments(__doc__, "runs", 40)
    parser.add_argument("what", choices=sorted(CAMPAIGNS))
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix=f"campaign-{given.what}-"))
    began = time.monotonic()
    try:
        facts = CAMPAIGNS[given.what](folder, given.tries, given.seed, given.minutes)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    facts["took_s"] = round(time.monotonic() - began, 1)
    trying.write(facts, given.out.with_name(f"{given.what}.json"))
    trying.ended(facts)


if __name__ == "__main__":
    main()
