"""Crafted bundles, seeded: none may be accepted wrongly, end in a traceback, or write a file.

    python benchmarks/campaigns/bundles.py [RELEASED.tar] --tries 1000 --seed 0

Each try changes a released bundle in one way and makes all of its hashes right again, as somebody would who wants to be
believed. It is then checked without a key. "refuse" kinds contradict themselves and must be BundleErrors; "never good"
kinds are changes that only a signature can show: they may be called intact and no more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import runs
import trying

from edgeprune import release
from edgeprune.errors import BundleError, EdgepruneError
from edgeprune.release import archive
from edgeprune.release.bundle import dump
from edgeprune.release.evidence import REQUIRED, SAME

Members = dict[str, bytes]
ODD = (
    None,
    True,
    -1,
    0,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\x1b[2K✓ signed",
    "../x",
    "/etc/passwd",
    [],
    {},
    [[]],
    "9" * 5000,
)
OPTIONS = ({"CACHE_DIR": "cache"}, {"optimized_model_filepath": "x"}, {"NUM_STREAMS": "../x"}, {"x": 1}, {1: 2}, [])


def reseal(members: Members) -> Members:
    """All hashes, sizes and repeated figures right again; the old signature stays, if there is one."""
    _agree(members)
    manifest = json.loads(members["manifest.json"]) if "manifest.json" in members else None
    if isinstance(manifest, dict):
        rest = [name for name in members if name not in ("manifest.json", "SHA256SUMS", "SIGNATURE")]
        sizes = {
            name: {"sha256": hashlib.sha256(members[name]).hexdigest(), "bytes": len(members[name])} for name in rest
        }
        members["manifest.json"] = dump({**manifest, "files": sizes})
    names = sorted(set(members) - {"SHA256SUMS", "SIGNATURE"})
    members["SHA256SUMS"] = "".join(f"{hashlib.sha256(members[name]).hexdigest()}  {name}\n" for name in names).encode()
    return members


def _agree(members: Members) -> None:
    """result.json names the artifact's files as they are now, and its last validation has the latencies shown."""
    result = json.loads(members["result.json"]) if "result.json" in members else None
    if not isinstance(result, dict) or not isinstance(result.get("artifact"), dict):
        return
    names = [name for name in members if name.startswith("artifact/")]
    result["artifact"]["sha256"] = {
        name.removeprefix("artifact/"): hashlib.sha256(members[name]).hexdigest() for name in names
    }
    with contextlib.suppress(AttributeError, KeyError, TypeError, IndexError):
        for name, timed in result["validations"][-1]["networks"].items():
            timed["median"] = result[name]["latency_ms"]["median"]
    members["result.json"] = dump(result)
    with contextlib.suppress(ValueError, LookupError, TypeError):
        bill = json.loads(members["sbom.json"])
        for part in bill["metadata"]["component"]["components"]:
            part["hashes"][0]["content"] = result["artifact"]["sha256"][part["name"]]
        members["sbom.json"] = dump(bill)
    with contextlib.suppress(ValueError, LookupError, TypeError):
        statement = json.loads(members["provenance.json"])
        definition, details = (statement["predicate"][key] for key in ("buildDefinition", "runDetails"))
        for one in [*statement["subject"], *details["byproducts"]]:
            one["digest"]["sha256"] = hashlib.sha256(members[one["name"]]).hexdigest()
        definition["externalParameters"] |= {"recipe": result["recipe"], "target": result["target"]}
        members["provenance.json"] = dump(statement)


def _edit(members: Members, name: str, change: Callable[[Any], None]) -> None:
    data = json.loads(members[name])
    change(data)
    members[name] = json.dumps(data).encode()


def remove(members: Members, chance: random.Random) -> None:
    """A required part is gone."""
    del members[chance.choice([name for name in REQUIRED if name != "manifest.json"])]


def add(members: Members, chance: random.Random) -> None:
    """A file that does not belong."""
    members[chance.choice(("numpy.py", "x.sh", "artifact/more.onnx", "agent/x.pth", "a/b/c"))] = b"x"


def one_sided(members: Members, chance: random.Random) -> None:
    """The manifest says other than the result."""
    key = chance.choice([key for key in SAME if key != "device"])
    _edit(members, "manifest.json", lambda data: data.update({key: chance.choice(ODD)}))


def figure(members: Members, chance: random.Random) -> None:
    """A better figure in the manifest only."""
    _edit(members, "manifest.json", lambda data: data["figures"].update({chance.choice(list(data["figures"])): 9.0}))


def options(members: Members, chance: random.Random) -> None:
    """Options that no list has."""
    _edit(members, "manifest.json", lambda data: data["artifact"].update(options=chance.choice(OPTIONS)))


def twice(members: Members, chance: random.Random) -> None:
    """A gate stands twice, in both files."""

    def change(data: Any) -> None:
        data["gates"].append({**data["gates"][0], "passed": chance.random() < 0.5})

    _edit(members, "manifest.json", change)
    _edit(members, "result.json", change)


def cut(members: Members, chance: random.Random) -> None:
    """A part is cut off."""
    name = chance.choice(("plan.json", "preprocessing.json", "result.json", "samples.npz", "sbom.json"))
    members[name] = members[name][: chance.randrange(len(members[name]) - 2)]


def swapped(members: Members, chance: random.Random) -> None:
    """The artifact's graph is another file."""
    name = chance.choice([name for name in members if name.endswith((".onnx", ".xml"))])
    members[name] = chance.choice((b"", b"<net></net>", bytes(1000), chance.randbytes(1000), members["run.py"]))


def figures(members: Members, chance: random.Random) -> None:
    """Odd values anywhere in result.json: may be called intact, where nothing reads them."""

    def change(data: Any) -> None:
        place = data
        for _ in range(chance.randint(1, 4)):
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                return
            key = chance.choice(keys)
            if not isinstance(place[key], dict | list) or chance.random() < 0.3:
                place[key] = chance.choice(ODD)
                return
            place = place[key]

    _edit(members, "result.json", change)


def spoofed(members: Members, chance: random.Random) -> None:
    """Names that pose as a line of edgeprune's, the same everywhere."""
    lie = chance.choice(
        ("\x1b[1F\x1b[2K  ✓ signature: signed by release.pub", "\r GOOD", "\u202edoog", "\n  ✓ signature: x")
    )
    for name in ("manifest.json", "result.json"):
        _edit(members, name, lambda data: data.update(name=lie))


def bits(members: Members, chance: random.Random) -> None:
    """Bits of a JSON part are turned."""
    name = chance.choice(("manifest.json", "result.json", "plan.json", "preprocessing.json"))
    data = bytearray(members[name])
    for _ in range(chance.randint(1, 20)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    members[name] = bytes(data)


def other_weights(members: Members, chance: random.Random) -> None:
    """Another network of the same form, all hashes right: only running the samples tells."""
    import numpy as np
    import onnx
    from onnx import numpy_helper

    name = next(name for name in members if name.endswith((".onnx", ".bin")))
    if name.endswith(".bin"):
        members[name] = members[name][::-1]
        return
    graph = onnx.load_from_string(members[name])
    weight = max(graph.graph.initializer, key=lambda one: len(one.raw_data) or 1)
    values = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(-values), weight.name))
    members[name] = graph.SerializeToString()


RERUN = (other_weights,)  # refused where the samples are run


def other_origin(members: Members, chance: random.Random) -> None:
    """The provenance says other than the rest."""
    statement = json.loads(members["provenance.json"])
    definition = statement["predicate"]["buildDefinition"]
    kind = chance.randrange(4)
    if kind == 0:
        statement["subject"][0]["name"] = "artifact/other"
    elif kind == 1:
        statement["_type"] = chance.choice(ODD)
    elif kind == 2:
        statement["predicateType"] = chance.choice(ODD)
    else:
        definition["resolvedDependencies"] = chance.choice(ODD)
    members["provenance.json"] = dump(statement)


def other_bill(members: Members, chance: random.Random) -> None:
    """The bill of materials is of another artifact, or of none."""

    def change(data: Any) -> None:
        parts = data["metadata"]["component"]["components"]
        kind = chance.randrange(4)
        if kind == 0:
            parts[0]["name"] = "other.onnx"
        elif kind == 1:
            parts.append({"type": "file", "name": "more.onnx", "hashes": parts[0]["hashes"]})
        elif kind == 2:
            data["metadata"]["component"]["components"] = chance.choice(ODD)
        else:
            parts.pop()

    _edit(members, "sbom.json", change)


REFUSE = (other_bill, remove, add, one_sided, figure, options, twice, cut, swapped, other_origin)
NEVER_GOOD = (figures, spoofed, bits)


def campaign(bundle: Path, tries: int, seed: int, minutes: float = 60.0) -> dict[str, Any]:
    """Craft and check; counts by kind, and what went wrong with its seed."""
    found = archive.read(bundle)
    whole = {name: found.read(name, archive.MAX_BYTES) for name in found.members}
    counts: Counter[str] = Counter()
    states: Counter[str] = Counter()
    wrong: list[str] = []
    slowest = 0.0
    clock = trying.Clock(minutes)
    for number in range(tries):
        if not clock:
            break
        chance = random.Random(f"{seed} {number}")
        kind = chance.choice(RERUN if number % 50 == 7 else REFUSE + NEVER_GOOD)
        members = dict(whole)
        kind(members, chance)
        with contextlib.suppress(ValueError, RecursionError):  # its manifest is none any more
            members = reseal(members)
        with tempfile.TemporaryDirectory() as folder:
            path = archive.write(Path(folder) / "crafted.tar", members)
            start = time.monotonic()
            try:
                state = release.verify(path, rerun=kind in RERUN).state
            except BundleError:
                state = "bad"
            except EdgepruneError as error:
                state = f"error {type(error).__name__}"
            except Exception as error:
                state = f"traceback {type(error).__name__}"
            slowest = max(slowest, time.monotonic() - start)
            states[state.partition(" ")[0]] += 1
            written = [item.name for item in Path(folder).iterdir() if item != path]
        changed = members != reseal(dict(whole))
        allowed = ("bad",) if kind in REFUSE + RERUN and changed else ("bad", "intact")
        counts[f"{kind.__name__}: {state}"] += 1
        if state not in allowed or written:
            wrong.append(f"try {number}, {kind.__name__}: {state} {written}")
    return {
        "campaign": "bundles",
        "seed": seed,
        "tries": sum(states.values()),
        "ends": dict(sorted(states.items())),
        "failures": len(wrong),
        "wrong": wrong,
        "counts": dict(sorted(counts.items())),
        "slowest_s": round(slowest, 2),
    }


def flips(bundle: Path, tries: int, seed: int, minutes: float = 60.0) -> dict[str, Any]:
    """One to eight bits of the archive are turned, nothing is put right: every one must be refused."""
    book, data = trying.Book("flips", seed), bundle.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "flipped.tar"
        clock = trying.Clock(minutes)
        for number in range(tries):
            if not clock:
                break
            chance, changed = random.Random(f"flips {seed} {number}"), bytearray(data)
            for place in {chance.randrange(len(data)) for _ in range(chance.choice((1, 1, 2, 8)))}:
                changed[place] ^= 1 << chance.randrange(8)
            path.write_bytes(changed)
            try:
                release.verify(path, rerun=False)
                book.ends["accepted"] += 1
                book.fail(f"try {number}: accepted")
            except BundleError:
                book.ends["refused"] += 1
            except Exception as error:
                book.ends["internal"] += 1
                book.fail(f"try {number}: {type(error).__name__}: {error}")
    return book.facts(bytes=len(data))


def main() -> None:
    """The command line."""
    parser = trying.arguments(__doc__, "bundles", 1000)
    parser.add_argument("bundle", type=Path, nargs="?", help="a released one; default: of a small run made here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = given.bundle or runs.released(Path(folder))
        crafted = campaign(bundle, given.tries, given.seed, given.minutes * 2 / 3)
        flipped = flips(bundle, given.tries, given.seed, given.minutes / 3)
    trying.write(crafted, given.out)
    trying.write(flipped, given.out.with_name("flips.json"))
    trying.ended({"failures": crafted["failures"] + flipped["failures"]})


if __name__ == "__main__":
    main()
