"""What bytes in and classes out cost in the artifact ([export]), beside what a host spends on the same with numpy.

    python benchmarks/bytes_in.py [--out FILE] [--rounds 3]
    python benchmarks/bytes_in.py --table          # docs/data.md, from benchmarks/results/bytes_in.json

Two networks of examples/, dense, with their own weights, in INT8: the U-Net at 96 x 96 (a map of seven classes) and
MobileNetV2 at 224 x 224 with ImageNet's mean and deviation. Each is built as it is, with bytes in, with the best class
out, and with both; for OpenVINO also with bytes in by its own PrePostProcessor. All forms of a network are timed in one
interleaved run, several times; figures are ratios to the network as it is. Ranges are dummies: latency does not depend
on them.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from common import EXAMPLES, RESULTS, ROOT, beside, heads, kept, line, put, ratios, save

from edgeprune import devices, model, quantize, runtimes
from edgeprune import target as targets
from edgeprune.devices import Artifact
from edgeprune.model import Ends

OUT, PAGE = RESULTS / "bytes_in.json", ROOT / "docs" / "data.md"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CASES = {  # name: (file and factory below examples/, weights, side, mean, std)
    "U-Net, 96 x 96": ("segmentation/unet.py:unet", "segmentation/unet.safetensors", 96, (0.0,), (1.0,)),
    "MobileNetV2, 224 x 224": ("transfer/mobilenet.py:mobilenet", "", 224, *IMAGENET),
}


def forms(mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, Ends]:
    """What is built."""
    plain = Ends("NHWC", 1 / 255, mean, std)
    both = dataclasses.replace(plain, output="argmax")
    return {"as it is": Ends(), "uint8 NHWC in": plain, "argmax out": Ends(output="argmax"), "both": both}


def by_openvino(path: Path, folder: Path, ends: Ends) -> Artifact:
    """Bytes in by OpenVINO's own pre-processing."""
    import openvino
    from openvino import preprocess

    made = preprocess.PrePostProcessor(openvino.Core().read_model(path))
    given = made.input()
    given.tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    given.model().set_layout(openvino.Layout("NCHW"))
    steps = given.preprocess().convert_element_type(openvino.Type.f32)
    if any(ends.mean):
        steps.mean([value / ends.scale for value in ends.mean])
    steps.scale([value / ends.scale for value in ends.std])
    xml = folder / "prepostprocessor.xml"
    openvino.save_model(made.build(), xml, compress_to_fp16=True)
    return Artifact("own", "openvino", "int8", {xml.name: xml, "prepostprocessor.bin": xml.with_suffix(".bin")})


def host(ends: Ends, side: int, scores: Any) -> dict[str, float]:
    """Milliseconds of the same by numpy: bytes [H, W, 3] -> float32 [1, 3, H, W], and the best class of scores."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    mean, std = (np.asarray(part, np.float32) for part in (ends.mean, ends.std))

    def scaled() -> Any:
        made = (pixels.astype(np.float32) * np.float32(ends.scale) - mean) / std
        return np.ascontiguousarray(made.transpose(2, 0, 1)[None])

    found = {}
    for name, work in (("uint8 NHWC in", scaled), ("argmax out", lambda: scores.argmax(1))):
        times = []
        for _ in range(50):
            start = time.perf_counter()
            work()
            times.append(1000 * (time.perf_counter() - start))
        found[name] = statistics.median(times)
    return found


def row(name: str, target: Any, rounds: int, folder: Path) -> dict[str, Any]:
    """One network on one target: form -> its ratios to the network as it is, all rounds."""
    factory, weights, side, mean, std = CASES[name]
    network = model.load_factory(str(EXAMPLES / factory))()
    if weights:
        network.load_state_dict(model.load_weights(EXAMPLES / weights))
    graph = model.export_onnx(network.eval(), torch.zeros(1, 3, side, side), folder / "float.onnx")
    quantised = quantize.apply(graph, quantize.dummy_ranges(graph), runtimes.DIALECTS[target.dialect])
    made: dict[str, Artifact] = {}
    for number, (form, ends) in enumerate(forms(mean, std).items()):
        path = folder / f"form-{number}.onnx"
        onnx.save(ends.around(quantised), path)
        made[form] = runtimes.build(path, folder / str(number), target, "int8", "int8")
    if target.runtime == "openvino":
        (folder / "own").mkdir()
        made["uint8 NHWC in, PrePostProcessor"] = by_openvino(
            folder / "form-0.onnx", folder / "own", forms(mean, std)["both"]
        )
    with devices.connect(target, "local") as device:
        found, medians = ratios(device, [device.load(one) for one in made.values()], target.protocol, rounds)
    each = dict(zip(made, found, strict=True))
    with torch.inference_mode():
        scores = network(torch.zeros(1, 3, side, side)).numpy()
    numpy_ms = host(forms(mean, std)["both"], side, scores)
    return {
        "ratios": each,
        "median": {form: statistics.median(times) for form, times in each.items()},
        "numpy": {name: one / statistics.median(medians) for name, one in numpy_ms.items()},
        "load": round(os.getloadavg()[0], 1),
    }


def table(rows: dict[str, Any]) -> str:
    """Markdown: a line a network and target."""
    forms = ["uint8 NHWC in", "argmax out", "both", "uint8 NHWC in, PrePostProcessor"]
    own = ("bytes in", "best class out", "both", "bytes in, OpenVINO's own way")
    lines = heads("dense INT8 network", *own, "numpy: bytes", "numpy: best class")
    for name, one in rows.items():
        cells = [f"{one['median'][head]:.2f}" if head in one["median"] else "" for head in forms]
        cells += [f"{one['numpy'][head]:.2f}" for head in forms[:2]]
        lines.append(line(name, *cells))
    return "\n".join(lines)


def main() -> None:
    """Every network on every target of this machine; the rows of the others are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--targets", nargs="*", default=["intel-cpu", "x86-onnxruntime"])
    parser.add_argument("--only", nargs="*", default=list(CASES))
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.table:
        put(PAGE, "bytes_in.py", table(kept(OUT)))
        return
    beside("examples")
    found = kept(given.out)
    for target in map(targets.load, given.targets):
        for name in given.only:
            with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
                found[f"{name} on {target.name}"] = made = row(name, target, given.rounds, Path(folder))
            print(name, target.name, {form: round(one, 3) for form, one in made["median"].items()}, made["numpy"])
            save(given.out, found)


if __name__ == "__main__":
    main()
