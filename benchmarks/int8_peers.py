"""What the other tools make of a network, each as its own guide says: onnxruntime.quantization, NNCF, NVIDIA ModelOpt.

A network is an ONNX file, its calibration images one array [N, C, H, W]. Each library is imported where it is used, as
they pin versions that do not go together.

    python benchmarks/int8_peers.py MODEL EXAMPLES.npz OUT.xml [--transformer]     # NNCF alone, for another interpreter
    python benchmarks/int8_peers.py MODEL EXAMPLES.npz OUT.onnx --modelopt MAKER    # or ModelOpt
"""

from __future__ import annotations

import argparse
import importlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.float32]

ORT = {"ort-minmax": "MinMax", "ort-entropy": "Entropy", "ort-percentile": "Percentile"}
HELD = 16  # images whose activations are held at once
MODELOPT = {"modelopt-entropy": "entropy", "modelopt-max": "max"}


def onnxruntime_quantization(
    model: Path, prepared: Path, images: Any, maker: str, out: Path, signed: bool, reduced: bool = False
) -> None:
    """Q/DQ with a scale a channel; U8S8 for x86, S8S8 for ARM.

    CalibMaxIntermediateOutputs must stay unset: with it ONNX Runtime 1.31 drops every full batch of outputs unread, and
    min-max ranges come from the last few images alone. Percentile and entropy keep every activation of all images until
    the histograms are made, gigabytes of them: they get a few images at a time, and the histograms add up.

    Args:
        images: one array, or a sequence of mappings by input name.
        prepared: where the preprocessed model is kept.
    """
    quantization = importlib.import_module("onnxruntime.quantization")
    preprocess = importlib.import_module("onnxruntime.quantization.shape_inference").quant_pre_process
    if not prepared.exists() or prepared.stat().st_mtime < model.stat().st_mtime:
        preprocess(str(model), str(prepared), skip_symbolic_shape=True)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = iter(images)

        def __len__(self) -> int:
            return len(images)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.left = iter(images[start_index:end_index])

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.left, None)
            if image is None or isinstance(image, dict):
                return image
            return {"input": image[None]}

    quantization.quantize_static(
        str(prepared),
        str(out),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QInt8 if signed else quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        reduce_range=reduced,
        calibrate_method=getattr(quantization.CalibrationMethod, ORT[maker]),
        extra_options={} if maker == "ort-minmax" else {"CalibStridedMinMax": at_once(len(images))},
    )


def at_once(count: int) -> int:
    """How many of `count` images are held at a time: a divisor of it, as the option asks for."""
    return max(size for size in range(1, HELD + 1) if count % size == 0)


def nncf(model: Path, images: Any, out: Path, transformer: bool = False) -> None:
    """Post-training quantisation with its defaults, for OpenVINO; `transformer`: its setting for these."""
    library, openvino = importlib.import_module("nncf"), importlib.import_module("openvino")
    dataset = library.Dataset([image if isinstance(image, dict) else image[None] for image in images])
    kind = {"model_type": library.ModelType.TRANSFORMER} if transformer else {}
    found = library.quantize(openvino.Core().read_model(model), dataset, subset_size=len(images), **kind)
    openvino.save_model(found, out, compress_to_fp16=False)


def modelopt(model: Path, images: Images | dict[str, Images], maker: str, out: Path, kind: str) -> None:
    """INT8 with one of its two methods; `kind`, "fp32" or "fp16", around it; on a copy, as it rewrites its input."""
    own = Path(shutil.copy(model, out.with_suffix(".input.onnx")))
    importlib.import_module("modelopt.onnx.quantization").quantize(
        str(own),
        calibration_data=images if isinstance(images, dict) else {"input": images},
        calibration_method=MODELOPT[maker],
        calibration_eps=["cpu"],
        high_precision_dtype=kind,
        output_path=str(out),
        log_level="ERROR",
    )
    own.unlink()


def main() -> None:
    """NNCF or ModelOpt on examples that are stored by input name, [N, 1, ...]."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("examples", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--transformer", action="store_true")
    parser.add_argument("--modelopt", choices=list(MODELOPT))
    given = parser.parse_args()
    stored = dict(np.load(given.examples))
    if given.modelopt:
        whole = {name: value[:, 0] for name, value in stored.items()}
        return modelopt(given.model, whole, given.modelopt, given.out, "fp32")
    examples = [dict(zip(stored, row, strict=True)) for row in zip(*stored.values(), strict=True)]
    return nncf(given.model, examples, given.out, given.transformer)


if __name__ == "__main__":
    main()
