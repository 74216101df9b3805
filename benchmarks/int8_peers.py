"""What the other tools make of a network, each as its own guide says: onnxruntime.quantization, NNCF, NVIDIA ModelOpt.

A network is an ONNX file, its calibration images one array [N, C, H, W]. Each library is imported where it is used, as
they pin versions that do not go together.
"""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.float32]

ORT = {"ort-minmax": "MinMax", "ort-entropy": "Entropy", "ort-percentile": "Percentile"}
MODELOPT = {"modelopt-entropy": "entropy", "modelopt-max": "max"}


def onnxruntime_quantization(model: Path, prepared: Path, images: Images, maker: str, out: Path, signed: bool) -> None:
    """Q/DQ with a scale a channel; U8S8 for x86, S8S8 for ARM.

    Args:
        prepared: where the preprocessed model is kept.
    """
    quantization = importlib.import_module("onnxruntime.quantization")
    preprocess = importlib.import_module("onnxruntime.quantization.shape_inference").quant_pre_process
    if not prepared.exists() or prepared.stat().st_mtime < model.stat().st_mtime:
        preprocess(str(model), str(prepared), skip_symbolic_shape=True)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.left, None)
            return None if image is None else {"input": image[None]}

    quantization.quantize_static(
        str(prepared),
        str(out),
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QInt8 if signed else quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        calibrate_method=getattr(quantization.CalibrationMethod, ORT[maker]),
        extra_options={"CalibMaxIntermediateOutputs": 7},  # a divisor of the images would leave it none at the end
    )


def nncf(model: Path, images: Images, out: Path) -> None:
    """Post-training quantisation with its defaults, for OpenVINO."""
    library, openvino = importlib.import_module("nncf"), importlib.import_module("openvino")
    dataset = library.Dataset([image[None] for image in images])
    found = library.quantize(openvino.Core().read_model(model), dataset, subset_size=len(images))
    openvino.save_model(found, out, compress_to_fp16=False)


def modelopt(model: Path, images: Images, maker: str, out: Path, kind: str) -> None:
    """INT8 with one of its two methods; `kind`, "fp32" or "fp16", around it; on a copy, as it rewrites its input."""
    own = Path(shutil.copy(model, out.with_suffix(".input.onnx")))
    importlib.import_module("modelopt.onnx.quantization").quantize(
        str(own),
        calibration_data={"input": images},
        calibration_method=MODELOPT[maker],
        calibration_eps=["cpu"],
        high_precision_dtype=kind,
        output_path=str(out),
        log_level="ERROR",
    )
    own.unlink()
