"""Run this bundle's network on the device it was made for; needs numpy and the runtime (requirements.txt).

    python3 run.py                  run the samples that travel along, compare, and time one inference
    python3 run.py FILE [FILE...]   do the task: pictures (.npy: uint8 [H, W, C]; other formats need Pillow), sounds
                                    (.wav), texts (with tokenizers), or arrays as the network takes them (.npy, .npz)
    python3 run.py --optimised ...  the same with the graph as the device's runtime optimised it ahead
    python3 run.py --check [FILE...]  is the runtime, the clock and what the network is given still what it was? FILEs
                                    are what it was given lately, of which 20 or more tell drift
    python3 run.py --identity KEY ... an encrypted artifact is opened with this device's key (age), in memory alone

Python 3.8 and up. Exit code 0: the samples come out as they did when the bundle was made; 1: they do not; 3: --check
found something odd.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import platform
import re
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
AGREEMENT = 0.9  # of the samples' best classes; INT8 kernels of another CPU may round a near tie the other way
MAX_JSON = 16 << 20  # bytes of one JSON file
MAX_SAMPLES = 256 << 20  # bytes of all samples, unpacked
FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")  # no folder, no way out of the bundle
ERROR = 0.1  # largest mean error of an output, as a share of its full scale


def read(name: str) -> Any:
    """A JSON file of the bundle; None when it does not travel along."""
    path = HERE / name
    if path.is_file() and path.stat().st_size > MAX_JSON:
        sys.exit(f"{name} is larger than {MAX_JSON:,} bytes: not as edgeprune makes it.")
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def open_model(manifest: dict[str, Any], ahead: bool = False, identity: str = "") -> Any:
    """Open the artifact as it was measured: same options, same number of threads; `ahead`: the optimised graph."""
    sys.path.insert(0, str(HERE))
    artifact = manifest["artifact"]
    runner = importlib.import_module("agent.run_" + artifact["runtime"])
    chosen = flavour(artifact, runner.version()) if artifact.get("flavours") else artifact
    if ahead:
        chosen = optimised(artifact, runner.version())
    odd = [name for name in chosen["files"] if not FILE.fullmatch(name)]
    if odd:
        sys.exit("manifest.json names a file that cannot be in a bundle: " + ascii(odd[0]))
    files = {name: str(HERE / "artifact" / name) for name in chosen["files"]}
    if (HERE / "encrypted.json").is_file():
        files = {name: decrypted(name, manifest, identity) for name in files}
    return runner.Model(files, chosen["options"], artifact["threads"], home())


def decrypted(name: str, manifest: dict[str, Any], identity: str) -> str:
    """A file of the artifact in memory that no folder shows, as the path of its handle; needs pyrage."""
    if not identity:
        sys.exit("This artifact is encrypted: python3 run.py --identity KEY, the file of this device's key.")
    try:
        import pyrage
    except ImportError:
        sys.exit("This artifact is encrypted: python3 -m pip install pyrage (Python 3.10 and up).")
    try:
        lines = Path(identity).read_text(encoding="utf-8").split()
        keys = [pyrage.x25519.Identity.from_str(word) for word in lines if word.startswith("AGE-SECRET-KEY-")]
        data = pyrage.decrypt((HERE / "artifact" / (name + ".age")).read_bytes(), keys)
    except (OSError, ValueError, pyrage.IdentityError, pyrage.DecryptError) as cause:
        sys.exit(f"{name} cannot be decrypted with {identity}: {cause}.")
    if hashlib.sha256(data).hexdigest() != manifest["files"]["artifact/" + name]["sha256"]:
        sys.exit(f"{name} is not the file that the manifest names.")
    handle = os.memfd_create(name)
    with os.fdopen(handle, "wb", closefd=False) as memory:
        memory.write(data)
    return f"/proc/self/fd/{handle}"


def flavour(artifact: dict[str, Any], version: str) -> dict[str, Any]:
    """What this version of the runtime opens: the artifact itself, or the flavour that is made for newer ones."""
    for entry in artifact["flavours"]:
        if entry["since"] and int(version.split(".")[0]) >= int(entry["since"]):
            return dict(entry)
    return artifact


def optimised(artifact: dict[str, Any], version: str) -> dict[str, Any]:
    """The graph that was optimised ahead; it belongs to one version of the runtime and one kind of CPU."""
    found = artifact.get("optimised") or {"missing": "this runtime's artifact is one file."}
    if "missing" in found:
        sys.exit("There is no optimised graph in this bundle: " + found["missing"])
    made = found["made_on"]
    if (version, platform.machine()) != (made["runtime_version"], made["machine"]):
        sys.exit(
            f"The optimised graph is for {made['runtime']} {made['runtime_version']} on {made['machine']}; here is "
            f"{version} on {platform.machine()}. Run it without --optimised."
        )
    return {"files": [found["file"]], "options": found["options"]}


def home() -> str:
    """Where the runtime keeps what it builds here (TensorRT's engine takes minutes): beside this file, if it may."""
    path = HERE / "built-here"
    try:
        path.mkdir(exist_ok=True)
    except OSError:
        path = Path(tempfile.mkdtemp(prefix="edgeprune-"))
    (path / "engines").mkdir(exist_ok=True)
    return str(path)


def infer(model: Any, inputs: list[Any]) -> list[Any]:
    """All examples (one array [N, ...] an input) through the model, a batch at a time; the last is filled and cut."""
    size, parts = model.shape[0], []
    for start in range(0, len(inputs[0]), size):
        batch = [column[start : start + size].astype(dtype) for column, dtype in zip(inputs, model.dtypes)]  # noqa: B905
        short = size - len(batch[0])
        if short:
            batch = [np.concatenate([column, np.repeat(column[-1:], short, axis=0)]) for column in batch]
        batch = [np.ascontiguousarray(column) for column in batch]
        outputs = model.run(batch[0] if len(batch) == 1 else batch)
        parts.append([np.asarray(output)[: size - short] for output in outputs])
    return [np.concatenate(column) for column in zip(*parts)]  # noqa: B905 - Python 3.8 has no strict=


def ordered(outputs: Any) -> list[str]:
    """Names by their numbers: output, output_1, ..., output_10; input likewise."""
    return sorted(outputs, key=lambda name: int(name.partition("_")[2] or 0))


def compare(found: Any, expected: Any) -> Any:
    """(share of equal best classes, or None where the output is no list of scores; mean error / full scale).

    Whole numbers are classes: the error is the share of others.
    """
    if expected.dtype.kind in "iu":
        same = float(np.mean(found == expected))
        return same if expected.ndim == 1 else None, 1 - same
    wanted = expected.astype(np.float64)
    scale = float(np.max(np.abs(wanted))) or 1.0
    error = float(np.mean(np.abs(found.astype(np.float64) - wanted))) / scale
    if not np.all(np.isfinite(found)):
        error = float("inf")
    scores = expected.ndim == 2 and expected.shape[1] > 1
    agreement = float(np.mean(found.argmax(1) == expected.argmax(1))) if scores else None
    return agreement, error


def check_samples(model: Any, classifies: bool) -> bool:
    """Run the samples and say how close they come; the best class counts where the task is to find it."""
    with zipfile.ZipFile(str(HERE / "samples.npz")) as packed:
        if sum(entry.file_size for entry in packed.infolist()) > MAX_SAMPLES:
            sys.exit(f"samples.npz unpacks to more than {MAX_SAMPLES:,} bytes: not as edgeprune makes it.")
    with np.load(str(HERE / "samples.npz"), allow_pickle=False) as stored:
        samples = {name: stored[name] for name in stored.files}
    inputs = [samples.pop(name) for name in ordered([name for name in samples if name.startswith("input")])]
    names, outputs = ordered(samples), infer(model, inputs)
    good = 0 < len(names) == len(outputs)
    for found, name in zip(outputs, names):  # noqa: B905
        agreement, error = compare(found, samples[name])
        agreement = agreement if classifies else None
        good = good and error <= ERROR and (agreement is None or agreement >= AGREEMENT)
        same = "" if agreement is None else f"the same class on {100 * agreement:.0f} % of them, "
        print(f"{len(inputs[0])} samples, {name}: {same}mean error {100 * error:.2f} % of full scale")
    return bool(good)


def latency(model: Any, seconds: float = 1.0) -> float:
    """Median time of one inference in milliseconds."""
    step = model.step()
    end = time.perf_counter() + seconds / 4
    while time.perf_counter() < end:
        step()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 10:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def check(model: Any, manifest: Any, paths: list[str]) -> bool:
    """Say what of runtime, clock and the network's inputs is not as it was; False where something is."""
    checks, show = importlib.import_module("check"), importlib.import_module("show")
    runner = importlib.import_module("agent.run_" + manifest["artifact"]["runtime"])
    try:
        state = importlib.import_module("agent.state").snapshot()
    except (OSError, ValueError, KeyError):
        state = {}
    found = [checks.runtime(manifest, runner.version())]
    now = min(latency(model, 0.5) for _ in range(3))
    found += checks.clock(manifest, read("result.json") or {}, now, state)
    stored = read("selftest.json")
    if stored is None:
        found.append(("drift", "unknown", "this bundle has no statistics: it was made by an older version"))
    elif not paths:
        found.append(("drift", "unknown", "no FILEs were given"))
    else:
        parts = manifest.get("inputs") or [{"name": name} for name in list(stored["inputs"])[:1]]
        inputs = show.together(paths, parts, read("preprocessing.json") or {})
        outputs = infer(model, [inputs[part["name"]] for part in parts])
        found += checks.drift(stored, inputs, outputs)
    for what, state_of, words in found:
        print({"ok": "  = ", "odd": "  ! ", "unknown": "  . "}[state_of] + what + ": " + words)
    return all(state_of != "odd" for _, state_of, _ in found)


def main() -> int:
    """Run the samples, or do the task on the files that are named."""
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    manifest = read("manifest.json")
    named = [argument for argument in sys.argv[1:] if argument not in ("--optimised", "--check")]
    identity = ""
    if "--identity" in named[:-1]:
        at = named.index("--identity")
        identity = named[at + 1]
        del named[at : at + 2]
    model = open_model(manifest, ahead="--optimised" in sys.argv[1:], identity=identity)
    if named and "--check" not in sys.argv[1:]:
        show = importlib.import_module("show")
        show.each(named, manifest, read("preprocessing.json") or {}, read("labels.json"), lambda x: infer(model, x))
        return 0
    good = check_samples(model, (manifest.get("task") or {}).get("kind", "classification") == "classification")
    if "--check" in sys.argv[1:]:
        usual = check(model, manifest, named)
        print("AS IT WAS" if good and usual else "NOT AS MADE" if not good else "ODD: see what is marked !")
        return 1 if not good else 0 if usual else 3
    print(f"one inference (batch {model.shape[0]}): {latency(model):.3f} ms median here")
    print("GOOD" if good else "NOT AS MADE: these outputs are too far from the ones that travel along")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
