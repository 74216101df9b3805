"""Run this bundle's network on the device it was made for; needs numpy and the runtime (requirements.txt).

    python3 run.py                   run the samples that travel along, compare, and time one inference
    python3 run.py IMAGE [IMAGE...]  classify images (.npy: uint8 [H, W, C]; other formats need Pillow)
    python3 run.py --optimised ...   the same with the graph as the device's runtime optimised it ahead

Python 3.8 and up. Exit code 0: the samples come out as they did when the bundle was made; 1: they do not.
"""

from __future__ import annotations

import importlib
import json
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
AGREEMENT = 0.9  # of the samples' best classes; INT8 kernels of another CPU may round a near tie the other way
ERROR = 0.1  # largest mean error of an output, as a share of its full scale


def read(name: str) -> Any:
    """A JSON file of the bundle; None when it does not travel along."""
    path = HERE / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def open_model(manifest: dict[str, Any], ahead: bool = False) -> Any:
    """Open the artifact as it was measured: same options, same number of threads; `ahead`: the optimised graph."""
    sys.path.insert(0, str(HERE))
    artifact = manifest["artifact"]
    runner = importlib.import_module("agent.run_" + artifact["runtime"])
    chosen = flavour(artifact, runner.version()) if artifact.get("flavours") else artifact
    if ahead:
        chosen = optimised(artifact, runner.version())
    files = {name: str(HERE / "artifact" / name) for name in chosen["files"]}
    return runner.Model(files, chosen["options"], artifact["threads"], home())


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


def infer(model: Any, images: Any) -> list[Any]:
    """All images [N, ...] through the model, a batch at a time; the last batch is filled up and cut again."""
    size = model.shape[0]
    parts = []
    for start in range(0, len(images), size):
        batch = images[start : start + size].astype(model.dtype)
        short = size - len(batch)
        if short:
            batch = np.concatenate([batch, np.repeat(batch[-1:], short, axis=0)])
        parts.append([np.asarray(output)[: size - short] for output in model.run(np.ascontiguousarray(batch))])
    return [np.concatenate(column) for column in zip(*parts)]  # noqa: B905 - Python 3.8 has no strict=


def ordered(outputs: Any) -> list[str]:
    """Names of outputs by their numbers: output, output_1, ..., output_10."""
    return sorted(outputs, key=lambda name: int(name.partition("_")[2] or 0))


def compare(found: Any, expected: Any) -> Any:
    """(share of equal best classes, or None where the output is no list of scores; mean error / full scale)."""
    scale = float(np.max(np.abs(expected))) or 1.0
    error = float(np.mean(np.abs(found.astype(np.float64) - expected))) / scale
    if not np.all(np.isfinite(found)):
        error = float("inf")
    agreement = float(np.mean(found.argmax(1) == expected.argmax(1))) if expected.ndim == 2 else None
    return agreement, error


def check_samples(model: Any) -> bool:
    """Run the samples and say how close they come."""
    with np.load(str(HERE / "samples.npz"), allow_pickle=False) as stored:
        samples = {name: stored[name] for name in stored.files}
    images = samples.pop("input")
    good = True
    names = ordered(samples)
    for found, name in zip(infer(model, images), names):  # noqa: B905
        agreement, error = compare(found, samples[name])
        good = good and error <= ERROR and (agreement is None or agreement >= AGREEMENT)
        same = "" if agreement is None else f"the same class on {agreement:.0%} of them, "
        print(f"{len(images)} samples, {name}: {same}mean error {error:.2%} of full scale")
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


def load_image(path: str, spec: dict[str, Any]) -> Any:
    """Pixels to network input, as preprocessing.json says: [C, H, W] float32."""
    if path.endswith(".npy"):
        pixels = np.load(path, allow_pickle=False)
    else:
        image_module = importlib.import_module("PIL.Image")
        pixels = np.asarray(image_module.open(path).convert("RGB"))
    if spec.get("resize") or spec.get("crop"):
        pixels = fit(pixels, spec)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    scaled = pixels.astype(np.float32) * np.float32(spec["scale"])
    normal = (scaled - np.asarray(spec["mean"], np.float32)) / np.asarray(spec["std"], np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1), dtype=np.float32)


def fit(pixels: Any, spec: dict[str, Any]) -> Any:
    """Resize the shorter side, then crop the centre."""
    image = importlib.import_module("PIL.Image").fromarray(pixels)
    if spec.get("resize"):
        side, ratio = spec["resize"], spec["resize"] / min(image.size)
        image = image.resize((max(side, round(image.width * ratio)), max(side, round(image.height * ratio))), 2)
    if spec.get("crop"):
        side = spec["crop"]
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image)


def classify(model: Any, paths: list[str]) -> None:
    """Print the best class of each image."""
    labels = read("labels.json")
    spec = read("preprocessing.json")
    for path in paths:
        scores = infer(model, load_image(path, spec)[None])[0][0]
        best = int(np.argmax(scores))
        print(f"{path}: {labels[best] if labels else '?'} (class {best}, score {float(scores[best]):.3f})")


def main() -> int:
    """Run the samples, or classify the images that are named."""
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        return 0
    manifest = read("manifest.json")
    named = [argument for argument in sys.argv[1:] if argument != "--optimised"]
    model = open_model(manifest, ahead=len(named) < len(sys.argv) - 1)
    if named:
        classify(model, named)
        return 0
    good = check_samples(model)
    print(f"one inference (batch {model.shape[0]}): {latency(model):.3f} ms median here")
    print("GOOD" if good else "NOT AS MADE: these outputs are too far from the ones that travel along")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
