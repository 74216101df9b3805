"""Whole runs that are killed, run out of disk, and have their files damaged behind their back.

    python benchmarks/campaigns/runs.py kills --tries 300
    python benchmarks/campaigns/runs.py disk --tries 40
    python benchmarks/campaigns/runs.py damage --tries 200
    python benchmarks/campaigns/runs.py validations --tries 50

kills: all that a command started is killed, or the command alone, its agent, the agent's worker, or the ssh that leads
to it, at a random moment of a random stage, and the command is repeated until it ends by itself; what was trained is
never trained again, and no bundle ever lies there that does not pass `verify`. disk: a run that is whole up to a stage
lies on a file system (mounting needs root) that fills at a random moment of this stage; every refusal is the error for
a full disk, and with more room the same command goes on (tried after every third). damage: a file of a whole run is
damaged and the command repeated: it is made again, refused, or nothing that counts. validations: the same artifacts
are validated twice, neither knowing of the other, under a known load (benchmarks/load.py, each core half busy); the two
must come to the same verdict.
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
import commands
import mutate
import project
import trying
from commands import Command

from edgeprune.stage import NAMES

ENDS = (0, 7, 8, 9)  # released; or a budget, a gate or a measurement on a busy machine says no
LOST_DEVICE = 6  # what a command may also end with whose agent was killed
EPOCHS = 20  # where runs are killed: training takes about as long as the other stages, so that it is met
SLOWER = 1.5  # times an undisturbed stage, within which a kill falls
COLD, OVER_SSH = 10, 3  # every tenth command is started from nothing, every third run is over ssh
IGNORED = ("events.jsonl", ".lock", "earlier")  # not evidence of anything
START, RELEASE = "before the first stage", "release"
VICTIMS = {
    "quick": {"all": 4, "command": 2, "agent": 2, "worker": 2},
    commands.SSH: {"all": 3, "command": 2, "agent": 1, "worker": 2, "link": 2},
}
PAGE, GO_ON = 4096, 3  # bytes; after every third refusal there is room, and the command is repeated


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
    """SIGKILL at random moments of random stages of whole runs."""
    book, chance, clock = trying.Book("kills", seed), random.Random(seed), trying.Clock(minutes)
    run, lengths = folder / "runs/x", prepared(folder, epochs=EPOCHS)
    stages, whom, after = Counter[str](), Counter[str](), Counter[str]()
    killed = finished = started = by_ssh = 0
    with commands.server(folder) as has_ssh:
        while (killed < tries and clock) or run.exists():
            target = commands.SSH if has_ssh and finished % OVER_SSH == 0 else "quick"
            before = len(events(run))
            command = Command(folder, target=target, cold=started % COLD == 0)
            started, by_ssh = started + 1, by_ssh + (target == commands.SSH)
            if killed < tries and clock and not _until_a_moment(command, run, before, chance, lengths, stages):
                weights = VICTIMS[target]
                victim = chance.choices(list(weights), list(weights.values()))[0]
                stage = _now_in(run, before)
                if not command.kill(victim):  # it has none at this moment
                    victim = "all"
                    command.kill(victim)
                killed, label = killed + 1, f"kill {killed + 1} ({victim} in {stage})"
                book.ends["killed"] += 1
                stages[stage] += 1
                whom[victim] += 1
                if victim == "command" and command.left():
                    book.fail(f"{label}: its agent stays")
                if not command.wait():
                    command.kill()
                    book.fail(f"{label}: the command hangs")
                elif victim not in ("all", "command"):
                    after[f"{victim}: exit {command.code}"] += 1
                if victim in ("all", "command") or command.code == LOST_DEVICE:
                    _looked_at(command, run, book, label)
                    continue
            command.wait()
            finished += _ended(command, book, run)
            shutil.rmtree(folder / "runs")
            shutil.rmtree(folder / "cache", ignore_errors=True)
    return book.facts(
        killed=killed,
        finished=finished,
        commands=started,
        over_ssh=by_ssh,
        in_stage=dict(stages.most_common()),
        whom=dict(whom.most_common()),
        after_a_part=dict(sorted(after.items())),
        lost=len(book.wrong),
    )


def prepared(folder: Path, epochs: float = 0.2) -> dict[str, float]:
    """The project, all that its commands import, and how long each stage of an undisturbed run takes, in seconds."""
    recipe = project.make(folder) / "recipe.toml"
    text = recipe.read_text().replace("epochs = 0.2", f"epochs = {epochs}").replace("patience = 20", "patience = 0")
    recipe.write_text(text)
    commands.warm_up(folder)
    began = time.time()
    (command := Command(folder)).wait()
    ended, told = time.time(), events(folder / "runs/x")
    begins = {one["stage"]: one["time"] for one in told if one.get("event") == "begin"}
    ends = {one["stage"]: one["time"] for one in told if one.get("event") == "end"}
    if command.code not in ENDS or list(ends) != list(NAMES[:-1]):
        raise SystemExit(f"the campaign's own run: exit {command.code}: {command.said[-500:]}")
    shutil.rmtree(folder / "runs")
    shutil.rmtree(folder / "cache")
    lengths = {name: ends[name] - begins[name] for name in ends}
    return {START: begins["graph"] - began, **lengths, RELEASE: ended - ends["validate"]}


def _until_a_moment(
    command: Command, run: Path, before: int, chance: random.Random, lengths: dict[str, float], stages: Counter[str]
) -> bool:
    """Wait for a random stage of what is left, and for a part of the time that it takes; True: it ended before.

    Stages that were met less often so far are chosen more often. A busy machine takes longer than an undisturbed run.
    """
    left = [name for name in NAMES[:-1] if not (run / name / "stage.json").is_file()]
    moments = [START, *(left or [RELEASE])]
    chosen = chance.choices(moments, [(1 + stages[name]) ** -2 for name in moments])[0]
    wait = chance.uniform(0, SLOWER * lengths[chosen])
    if chosen == RELEASE:
        wait += SLOWER * lengths[START]
    elif chosen != START:
        while ("begin", chosen) not in [(one.get("event"), one.get("stage")) for one in events(run)[before:]]:
            if command.wait(0.01):
                return True
    return command.wait(wait)


def _now_in(run: Path, before: int) -> str:
    """The stage that a command is in."""
    told = [one for one in events(run)[before:] if one.get("event") in ("begin", "end")]
    if not told:
        return START if not (run / NAMES[-2] / "stage.json").is_file() else RELEASE
    if told[-1]["event"] == "begin":
        return str(told[-1]["stage"])
    return str(NAMES[NAMES.index(told[-1]["stage"]) + 1])


def _looked_at(command: Command, run: Path, book: trying.Book, label: str) -> None:
    """What a command said that did not come to its end, and what it left."""
    if "Traceback" in command.said or "internal error" in command.said:
        book.fail(f"{label}: {command.said[-300:]}")
    looked_over(run, book, label)


def _ended(command: Command, book: trying.Book, run: Path) -> int:
    """Note a command that ended by itself; 1 where that was well."""
    book.ends[f"exit {command.code}"] += 1
    if command.code not in ENDS or "Traceback" in command.said or "internal error" in command.said:
        book.fail(f"exit {command.code}: {command.said[-300:]}")
        return 0
    looked_over(run, book, f"exit {command.code}")
    return 1


def disk(folder: Path, tries: int, seed: int, minutes: float) -> dict[str, Any]:
    """A file system that is full within a stage: each stage in turn, at a random share of what it writes."""
    book, clock = trying.Book("disk", seed), trying.Clock(minutes)
    released(folder)
    kept, place = folder / "kept", folder / "runs"
    place.rename(kept)
    place.mkdir()
    stages: Counter[str] = Counter()
    number = refused = went_on = 0
    while refused < tries and clock:
        chance, stage = random.Random(f"disk {seed} {number}"), NAMES[number % len(NAMES)]
        number += 1
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m", "tmpfs", place], check=True)
        try:
            room = _up_to(kept / "x", place / "x", stage)
            used = _used(place)
            _resize(place, used + PAGE * chance.randrange(room // PAGE))
            (command := Command(folder)).wait()
            label = f"try {number - 1}, {stage}, {room} bytes"
            if command.code == 11:
                refused += 1
                stages[stage] += 1
                book.ends["full"] += 1
                if not re.search(r"disk is full|cannot be written", command.said):
                    book.fail(f"{label}: {command.said[-300:]}")
                _looked_at(command, place / "x", book, label)
                if refused % GO_ON:
                    continue
                _resize(place, 512 << 20)
                (command := Command(folder)).wait()
            went_on += _ended(command, book, place / "x")
        finally:
            subprocess.run(["umount", "-l", place], check=False)
    return book.facts(refused=refused, went_on=went_on, in_stage=dict(stages))


def _up_to(whole: Path, run: Path, stage: str) -> int:
    """A run that is whole up to a stage; the bytes that the stage writes, in whole pages and at least eight."""
    gone = [*NAMES[NAMES.index(stage) :], "result.json", "report.html", "earlier", "events.jsonl"]
    shutil.copytree(whole, run, ignore=lambda place, names: gone if Path(place) == whole else [])
    writes = [whole / name for name in (gone if stage == RELEASE else [stage])]
    paths = [path for one in writes for path in (one, *one.rglob("*")) if path.is_file()]
    return max(8 * PAGE, sum(PAGE * (1 + path.stat().st_size // PAGE) for path in paths))


def _used(place: Path) -> int:
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def _resize(place: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", place], check=True)


def released(folder: Path) -> Path:
    """The bundle of a whole run of the small project in `folder`; a busy machine is tried four times."""
    os.environ["EDGEPRUNE_TARGETS"], os.environ["EDGEPRUNE_CACHE"] = str(folder), str(folder / "cache")
    prepared(folder)
    for _ in range(4):
        (command := Command(folder)).wait()
        if not command.code:
            return next((folder / "runs/x/release").glob("*.tar"))
    raise SystemExit(f"no release on this machine: {command.said[-500:]}")


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
        (command := Command(folder)).wait()
        tried, said, label = command.code, command.said, f"try {number}, {name} {what}"
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
    (command := Command(folder, "--from", "validate")).wait()
    if command.code not in ENDS or "Traceback" in command.said:
        return f"exit {command.code}: {command.said[-200:]}"
    return {0: "release", 7: "too slow", 8: "refused", 9: "too noisy to tell"}[command.code]


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
