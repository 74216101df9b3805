"""Ranges: what calibration found, as plain data that a run directory keeps and a report shows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx

from edgeprune import files
from edgeprune.errors import InputError, ModelError
from edgeprune.quantize.view import View, attribute

VERSION = 2
# Dummy ranges: the least, what is added at most, and the step (of 1, no two alike) from one tensor to the next.
HIGH, BELOW = (2.0, 8.0, 0.6180339887), (0.6, 0.8, 0.4142135624)


@dataclass(frozen=True)
class TensorRange:
    """The range of one activation tensor.

    Attributes:
        low, high: what is represented; values outside saturate.
        method: how it was chosen: one of recipe.Method, a multiple of it, a part of the full range, "user" or "dummy".
        minimum, maximum: what was seen.
        sqnr_db: signal to the noise that rounding this tensor alone to its range makes, in decibels, in the lead of
            the first class (influence.py); None when unknown.
        candidates: method -> its sqnr_db, where several were compared.
        counts: histogram of what was seen, from `start` in bins of `width`.
    """

    low: float
    high: float
    method: str = "user"
    minimum: float = 0.0
    maximum: float = 0.0
    sqnr_db: float | None = None
    candidates: Mapping[str, float] = field(default_factory=dict)
    counts: tuple[int, ...] = ()
    start: float = 0.0
    width: float = 0.0


@dataclass(frozen=True)
class LayerReport:
    """What quantisation does to one layer, measured at its output, in decibels.

    Attributes:
        weight_sqnr_db: only its weights quantised.
        input_sqnr_db: only its input quantised.
        sqnr_db: both, everything before it in float.
        accumulated_sqnr_db: everything before it quantised as well, after correction.
    """

    weight_sqnr_db: float | None = None
    input_sqnr_db: float | None = None
    sqnr_db: float | None = None
    accumulated_sqnr_db: float | None = None


@dataclass(frozen=True)
class Ranges:
    """Everything that `apply` needs beside the float graph, and what the report shows.

    Attributes:
        tensors: activation tensor -> its range.
        images: how many images were seen.
        dialect: the dialect that the ranges were chosen for; "" for dummies.
        layers: layer -> its quality.
        bias: layer -> what is added to its bias when it runs in INT8, one value an output channel.
        equalise: stream of tensors -> a factor a channel, see equalise.py.
        rounding: layer -> learned rounding of its weights, packed, see rounding.py.
        precision: layer -> "float", "int8-weights" or "int4-weights" where the recipe asks for it.
        warnings: what looked wrong, with the evidence.
        key: hash of the artifact, the data and the options.
    """

    tensors: Mapping[str, TensorRange]
    images: int = 0
    dialect: str = ""
    layers: Mapping[str, LayerReport] = field(default_factory=dict)
    bias: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    equalise: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    rounding: Mapping[str, str] = field(default_factory=dict)
    precision: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    key: str = ""

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Ranges:
        """The inverse of `to_dict`; raises InputError when `data` is not that."""
        try:
            if data["version"] != VERSION:
                raise InputError(
                    f"ranges of version {data['version']}; this edgeprune reads {VERSION}.", "Calibrate again."
                )
            return cls(
                tensors={
                    name: TensorRange(**{**entry, "counts": tuple(entry.get("counts", ()))})
                    for name, entry in data["tensors"].items()
                },
                images=int(data["images"]),
                dialect=str(data["dialect"]),
                layers={name: LayerReport(**entry) for name, entry in data["layers"].items()},
                bias={name: tuple(values) for name, values in data["bias"].items()},
                equalise={name: tuple(values) for name, values in data["equalise"].items()},
                rounding=dict(data["rounding"]),
                precision=dict(data["precision"]),
                warnings=tuple(data["warnings"]),
                key=str(data["key"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as cause:
            raise InputError(f"not a file of ranges ({cause!r}).", "Calibrate again.") from None

    def save(self, path: Path) -> None:
        """Write JSON; the file appears whole or not at all."""
        files.write_text(path, json.dumps(self.to_dict(), separators=(",", ":"), sort_keys=True) + "\n")

    @classmethod
    def load(cls, path: Path) -> Ranges:
        """Read what `save` wrote; raises InputError."""
        data = files.read_json(path, InputError, "Calibrate again.")
        if not isinstance(data, dict):
            raise InputError(f"{path}: not a file of ranges.", "Calibrate again.")
        return cls.from_dict(data)


NON_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Softplus")
MOVING = (
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Concat",
    "Resize",
    "Split",
    "Slice",
    "Gather",
    "DepthToSpace",
    "SpaceToDepth",
    "Expand",
    "Tile",
    "ReduceMean",
    "ReduceMax",
)


def non_negative(view: View, tensor: str) -> bool:
    """Whether the structure alone makes `tensor` non-negative, whatever the data."""
    node = view.producer.get(tensor)
    if node is None:
        return False
    if node.op_type == "Clip":
        bounds = view.bounds(node)
        return bounds is not None and bounds[0] >= 0
    if node.op_type == "Resize" and attribute(node, "mode") == b"cubic":
        return False  # it overshoots
    if node.op_type in MOVING:
        return all(non_negative(view, node.input[index]) for index in view.data_inputs(node))
    return node.op_type in NON_NEGATIVE


def dummy_ranges(float_onnx: Path | onnx.ModelProto) -> Ranges:
    """Ranges for latency sampling: right in sign, and each of a size of its own; no image is needed.

    Sizes differ as real ones do, because runtimes put them into code: layers that are alike share a kernel where their
    ranges are the same. With one size for all, OpenVINO 2026.4 ran ResNet-56 in a fifth less than with its real ranges
    on a CPU with AMX (docs/latency.md).

    Args:
        float_onnx: the float graph, a file or already loaded.

    Raises:
        ModelError: the file is not a readable ONNX model.
    """
    view = View.of(read_model(float_onnx))
    tensors: dict[str, TensorRange] = {name: TensorRange(0.0, 1.0, "dummy") for name in view.inputs}
    made = [(node, output) for node in view.nodes for output in node.output]
    for number, (node, output) in enumerate(made):
        high, below = (least + more * (number * step % 1) for least, more, step in (HIGH, BELOW))
        bounds = view.bounds(node) if node.op_type == "Clip" else None
        if bounds is not None and 0 < bounds[1] < math.inf:  # what passes it takes the Clip away
            high *= bounds[1] / sum(HIGH[:2])
        tensors[output] = TensorRange(0.0 if non_negative(view, output) else -below * high, high, "dummy")
    return Ranges(tensors)


def read_model(source: Path | onnx.ModelProto) -> onnx.ModelProto:
    """The model in a file, or the one given; raises ModelError."""
    if isinstance(source, onnx.ModelProto):
        return source
    try:
        return onnx.load(str(source))
    except Exception as cause:  # onnx raises protobuf's and its own errors, without a common root
        raise ModelError(f"{source}: not a readable ONNX model ({cause}).", "Export it again.") from None
