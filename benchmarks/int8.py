"""INT8 side by side: edgeprune against NNCF, onnxruntime.quantization and NVIDIA ModelOpt, on the runtime itself.

Accuracy and latency come from the device agent, all artifacts of a network interleaved in one run. A case is a float
ONNX file and an .npz with `images` (N, C, H, W; preprocessed), `labels` (N) and `calibration` (M, C, H, W).

    python benchmarks/int8.py peers   --case resnet56 resnet56.onnx resnet56.npz --folder DIR  # NNCF, ModelOpt
    python benchmarks/int8.py measure --case resnet56 resnet56.onnx resnet56.npz --folder DIR  # writes int8.json

`peers` may run in another environment than `measure` (NNCF and ModelOpt pin other versions); what it leaves in the
folder takes part. A label of -1 for all images means that only agreement with the float network can be told.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
TARGETS = {"intel-cpu": "openvino", "x86-onnxruntime": "ort-x86"}
ORT_METHODS = ("MinMax", "Entropy", "Percentile")


def peers(name: str, model: Path, data: Any, folder: Path) -> None:
    """Write what the peers that are installed here make of a case."""
    if importlib.util.find_spec("nncf"):
        nncf, openvino = importlib.import_module("nncf"), importlib.import_module("openvino")
        images = data["calibration"]
        dataset = nncf.Dataset([image[None] for image in images])
        began = time.perf_counter()
        quantised = nncf.quantize(openvino.Core().read_model(model), dataset, subset_size=len(images))
        openvino.save_model(quantised, folder / f"{name}.nncf.xml", compress_to_fp16=False)
        print(f"{name}: NNCF {nncf.__version__}, {time.perf_counter() - began:.0f} s")
    if importlib.util.find_spec("modelopt"):
        quantise = importlib.import_module("modelopt.onnx.quantization").quantize
        out = folder / f"{name}.modelopt.onnx"
        quantise(str(model), calibration_data={"input": data["calibration"]}, output_path=str(out))
        print(f"{name}: ModelOpt {importlib.metadata.version('nvidia-modelopt')}")


def onnxruntime_peers(name: str, model: Path, data: Any, folder: Path) -> Iterator[tuple[str, Path]]:
    """onnxruntime.quantization, U8S8 a channel (its fast format on x86), by each of its methods."""
    quantization = importlib.import_module("onnxruntime.quantization")
    preprocess = importlib.import_module("onnxruntime.quantization.shape_inference").quant_pre_process
    prepared = folder / f"{name}.prepared.onnx"
    preprocess(str(model), str(prepared), skip_symbolic_shape=True)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = iter(data["calibration"])

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.left, None)
            return None if image is None else {"input": image[None]}

    for method in ORT_METHODS:
        out = folder / f"{name}.ort-{method.lower()}.onnx"
        if not out.exists():
            quantization.quantize_static(
                str(prepared),
                str(out),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                calibrate_method=getattr(quantization.CalibrationMethod, method),
                extra_options={"CalibMaxIntermediateOutputs": 8},
            )
        yield f"onnxruntime.quantization {method.lower()}", out


def ours(name: str, model: Path, data: Any, folder: Path, dialect: str) -> Iterator[tuple[str, Path]]:
    """edgeprune with its defaults, and with reconstruction of rounding."""
    import onnx

    from edgeprune import quantize
    from edgeprune.recipe import QuantizeSection
    from edgeprune.runtimes.dialects import DIALECTS

    for label, options in (
        ("edgeprune", QuantizeSection(images=len(data["calibration"]))),
        ("edgeprune reconstruct", QuantizeSection(images=len(data["calibration"]), reconstruct=True)),
    ):
        out = folder / f"{name}.{label.replace(' ', '-')}.{dialect}.onnx"
        began = time.perf_counter()
        ranges = quantize.calibrate(model, data["calibration"], DIALECTS[dialect], options, cache=folder / "cache")
        onnx.save(quantize.apply(onnx.load(model), ranges, DIALECTS[dialect]), out)
        print(f"{name}: {label} for {dialect}, {time.perf_counter() - began:.0f} s", flush=True)
        yield label, out


def measure(name: str, model: Path, data: Any, folder: Path, target_name: str, limit: int) -> list[dict[str, Any]]:
    """Rows of one case on one target."""
    import msgspec

    from edgeprune import devices, runtimes, target
    from edgeprune.devices.types import Artifact

    profile = target.load(target_name)
    profile = msgspec.structs.replace(
        profile, protocol=msgspec.structs.replace(profile.protocol, rounds=12, runs=20, max_spread=10.0)
    )
    files = [("FP32", model, "fp32")]
    files += [(label, path, "int8") for label, path in ours(name, model, data, folder, profile.dialect)]
    files += [(label, path, "int8") for label, path in onnxruntime_peers(name, model, data, folder)]
    modelopt = folder / f"{name}.modelopt.onnx"
    if modelopt.exists():
        files.append(("NVIDIA ModelOpt", modelopt, "int8"))
    artifacts = {
        label: runtimes.build(
            path, folder / f"{name}-{target_name}", profile, label.replace(" ", "-").lower(), precision
        )
        for label, path, precision in files
    }
    nncf = folder / f"{name}.nncf.xml"
    if profile.runtime == "openvino" and nncf.exists():
        options = artifacts["FP32"].options
        pair = {f"nncf{suffix}": nncf.with_suffix(suffix) for suffix in (".xml", ".bin")}
        artifacts["NNCF"] = Artifact("nncf", "openvino", "int8", pair, options)
    images, labels = data["images"][:limit], data["labels"][:limit]
    rows = []
    with devices.connect(profile) as device:
        loaded = {label: device.load(artifact) for label, artifact in artifacts.items()}
        timings = dict(zip(loaded, device.measure(list(loaded.values()), profile.protocol), strict=True))
        reference = None
        for label, one in loaded.items():
            outputs = device.infer(one, images)[0]
            reference = outputs if reference is None else reference
            found = outputs.argmax(1)
            noise = float(((outputs - reference) ** 2).sum())
            rows.append(
                {
                    "network": name,
                    "target": target_name,
                    "artifact": label,
                    "images": len(images),
                    "top1": None if (labels < 0).all() else round(100 * float((found == labels).mean()), 2),
                    "agreement": round(100 * float((found == reference.argmax(1)).mean()), 2),
                    "sqnr_db": round(10 * float(np.log10((reference**2).sum() / noise)), 2) if noise else None,
                    "ms_median": round(timings[label].median, 4),
                    "ms_min": round(timings[label].minimum, 4),
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["peers", "measure"])
    parser.add_argument("--case", nargs=3, action="append", required=True, metavar=("NAME", "ONNX", "NPZ"))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "edgeprune-int8")
    parser.add_argument("--target", action="append", choices=list(TARGETS))
    parser.add_argument("--limit", type=int, default=10_000, help="images")
    parser.add_argument("--out", type=Path, default=HERE / "int8.json")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = json.loads(given.out.read_text())["rows"] if given.out.exists() else []
    for name, model, images in given.case:
        data = dict(np.load(images))
        if given.command == "peers":
            peers(name, Path(model), data, given.folder)
            continue
        for target_name in given.target or TARGETS:
            found = measure(name, Path(model), data, given.folder, target_name, given.limit)
            rows = [row for row in rows if (row["network"], row["target"]) != (name, target_name)] + found
            versions = {p: importlib.metadata.version(p) for p in ("onnxruntime", "openvino", "onnx", "numpy")}
            text = json.dumps({"versions": versions, "rows": rows}, indent=1)
            given.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
