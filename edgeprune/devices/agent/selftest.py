"""What a release is held against before a device takes it: the samples that travel along, and its own claim of speed.

It runs in processes of its own (the agent's worker), and nothing of the bundle is run but its network: what comes out
is compared here as run.py in the bundle does it (`compare` is the same function: a test holds them equal).
"""

from __future__ import annotations

import os
import zipfile
from typing import Any, Callable

from . import timing
from .options import wrong
from .wire import Failure

AGREEMENT = 0.9  # of the samples' best classes
ERROR = 0.1  # largest mean error of an output, as a share of its full scale
MAX_SAMPLES = 256 << 20  # bytes, unpacked
PROTOCOL = {"warmup_runs": 5, "runs": 20, "rounds": 9, "min_seconds": 0.1, "max_seconds": 20.0, "max_spread": 0.05}
NANOSECONDS = {"ms": 1e6, "instructions": 1.0}  # an instruction clock advances one nanosecond an instruction
Ask = Callable[..., Any]


def of_release(folder: str, manifest: dict[str, Any], asked: dict[str, Any], ask: Ask, spawn: Ask) -> dict[str, Any]:
    """Test an unpacked release in a fresh process; what was found. Raises Failure("selftest") where it fails.

    Args:
        asked: `slack`, the share by which it may be slower than it claims; `unit`, what the device's clock counts
            (empty: it has none); `timeout_s`; `home`, where a runtime may keep what it builds.
        ask: (message, timeout_s, child) -> the worker's answer.
        spawn: starts a worker.
    """
    child = spawn()
    try:
        try:
            load = _load(folder, manifest, asked, ask, child)
            ask(dict(load, op="load"), asked["timeout_s"], child)
            samples = {"op": "samples", "handle": "release", "path": os.path.join(folder, "samples.npz")}
            task = manifest.get("task") or {}
            samples["classifies"] = task.get("kind", "classification") == "classification"
            found = ask(samples, asked["timeout_s"], child)
            return dict(_speed(manifest, asked, ask, child), samples=found["said"])
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise Failure("bundle", "manifest.json is damaged (%s: %s)" % (type(error).__name__, error)) from None
        except Failure as failure:
            if failure.kind in ("bundle", "selftest", "missing-runtime", "cancelled", "disk-full"):
                raise
            raise Failure("selftest", "it does not run: %s" % failure.message, failure.rc) from None
    finally:
        child.kill()


def _load(folder: str, manifest: dict[str, Any], asked: dict[str, Any], ask: Ask, child: Any) -> dict[str, Any]:
    """How the artifact is opened: the flavour for this version of the runtime, and only options that a list has."""
    entry = manifest["artifact"]
    version = str(ask({"op": "hello", "runtime": entry["runtime"]}, asked["timeout_s"], child)["version"])
    chosen = entry
    for flavour in entry.get("flavours") or []:
        if flavour["since"] and int(version.split(".")[0]) >= int(flavour["since"]):
            chosen = flavour
            break
    odd = wrong(entry["runtime"], chosen["options"])
    paths = {name: os.path.join(folder, "artifact", os.path.basename(name)) for name in chosen["files"]}
    if odd or not all(os.path.isfile(path) for path in paths.values()):
        raise Failure("bundle", odd or "a file of the artifact is missing")
    return {"handle": "release", "runtime": entry["runtime"], "paths": paths, "options": chosen["options"],
            "threads": int(entry["threads"]), "home": asked["home"]}  # fmt: skip


def _speed(manifest: dict[str, Any], asked: dict[str, Any], ask: Ask, child: Any) -> dict[str, Any]:
    """Its latency against its own claim, where the claim is in what this device's clock counts."""
    unit, claim = manifest.get("unit", "ms"), manifest["figures"]["pruned_int8"]["latency_ms"]["median"]
    facts = {"unit": unit, "latency": 0.0, "claimed": float(claim), "judged": unit == asked["unit"]}
    if not facts["judged"]:
        return facts
    found = ask(dict(PROTOCOL, op="measure", handles=["release"]), asked["timeout_s"], child)
    facts["latency"] = timing.summary(found["samples"][0])["median"] / NANOSECONDS[unit]
    if not facts["latency"] <= claim * (1 + asked["slack"]):
        text = "it takes %.4g %s here and claims %.4g; %.0f %% more are allowed"
        raise Failure("selftest", text % (facts["latency"], unit, claim, 100 * asked["slack"]))
    return facts


def of_samples(model: Any, path: str, classifies: bool) -> str:
    """In the worker: run the samples; how close they come, in words. Raises Failure("selftest") where too far."""
    import numpy as np

    with zipfile.ZipFile(path) as packed:
        if sum(entry.file_size for entry in packed.infolist()) > MAX_SAMPLES:
            raise Failure("bundle", "samples.npz unpacks to more than %d bytes" % MAX_SAMPLES)
    with np.load(path, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    inputs = [arrays.pop(name) for name in _ordered([name for name in arrays if name.startswith("input")])]
    wanted = [arrays[name] for name in _ordered(list(arrays))]
    found = infer(model, inputs) if inputs and len(inputs) == len(model.shapes) else []
    if not wanted or len(found) != len(wanted):
        raise Failure("selftest", "samples.npz has %d inputs and %d outputs; the artifact gives %d outputs of %d inputs"
                      % (len(inputs), len(wanted), len(found), len(model.shapes)))  # fmt: skip
    worst, same = 0.0, 1.0
    for output, expected in zip(found, wanted):  # noqa: B905 - Python 3.8
        if output.shape != expected.shape:
            raise Failure("selftest", "outputs have shape %s; samples.npz has %s" % (output.shape, expected.shape))
        agreement, error = compare(output, expected)
        worst = max(worst, error)
        same = min(same, agreement) if classifies and agreement is not None else same
    equal = "the same class on %.0f %%, " % (100 * same) if classifies else ""
    said = "%d samples: %smean error %.2f %% of full scale" % (len(inputs[0]), equal, 100 * worst)
    if not (worst <= ERROR and same >= AGREEMENT):
        raise Failure("selftest", "it does not compute what it did when it was made: %s" % said)
    return said


def infer(model: Any, inputs: list[Any]) -> list[Any]:
    """All examples through the model, a batch at a time; the last batch is filled and cut."""
    import numpy as np

    size, parts = model.shape[0], []
    for start in range(0, len(inputs[0]), size):
        batch = [one[start : start + size].astype(dtype) for one, dtype in zip(inputs, model.dtypes)]  # noqa: B905
        count = len(batch[0])
        full = [np.concatenate([one, np.repeat(one[-1:], size - count, axis=0)]) for one in batch]
        parts.append([np.asarray(output)[:count] for output in model.run([np.ascontiguousarray(one) for one in full])])
    return [np.concatenate(column) for column in zip(*parts)]  # noqa: B905


def compare(found: Any, expected: Any) -> tuple[float | None, float]:
    """(share of equal best classes, or None where the output is no list of scores; mean error / full scale).

    Whole numbers are classes: the error is the share of others.
    """
    import numpy as np

    if expected.dtype.kind in "iu":
        equal = float(np.mean(found == expected))
        return equal if expected.ndim == 1 else None, 1 - equal
    wanted = expected.astype(np.float64)
    scale = float(np.max(np.abs(wanted))) or 1.0
    error = float(np.mean(np.abs(found.astype(np.float64) - wanted))) / scale
    if not np.all(np.isfinite(found)):
        error = float("inf")
    scores = expected.ndim == 2 and expected.shape[1] > 1
    return (float(np.mean(found.argmax(1) == expected.argmax(1))) if scores else None), error


def _ordered(names: list[str]) -> list[str]:
    """By their numbers: output, output_1, ..., output_10."""
    return sorted(names, key=lambda name: int(name.partition("_")[2] or 0))
