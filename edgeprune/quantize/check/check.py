"""What can be wrong with calibration images and what comes of them: refused, or warned of with the evidence."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeprune.errors import DataError, ModelError
from edgeprune.quantize.check.lint_float import RECURRENT
from edgeprune.quantize.ranges.observe import Watched
from edgeprune.quantize.ranges.ranges import VERSION
from edgeprune.quantize.view import View
from edgeprune.quantize.write.placement import Placement
from edgeprune.recipe import QuantizeSection
from edgeprune.runtimes import Dialect

METHODS_VERSION = 12  # raised when the same images would give other ranges
FEW = 32  # images; with fewer, ranges depend on which images they happen to be
Floats = NDArray[np.float32]


@dataclass
class InputWatch:
    """Looks at every calibration image as it passes.

    Attributes:
        images, features, constant: how many, how many of them have floating-point inputs, and how many of these are one
            single value.
        low, high: extremes of all pixels.
        whole: images whose values are all whole numbers.
    """

    images: int = 0
    features: int = 0
    constant: int = 0
    whole: int = 0
    low: float = np.inf
    high: float = -np.inf
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, feed: Mapping[str, NDArray[Any]]) -> None:
        """Look at a batch, by input name; raises DataError on NaN or Inf."""
        for row in zip(*feed.values(), strict=True):
            floats = [value for value in row if np.asarray(value).dtype.kind == "f"]
            for value in row:
                self.digest.update(np.ascontiguousarray(value).tobytes())
            bad = sum(int((~np.isfinite(value)).sum()) for value in floats)
            if bad:
                raise DataError(
                    f"calibration image {self.images} has {bad} values that are NaN or infinite.",
                    "Check the preprocessing: [data] scale, mean, std.",
                )
            self.images += 1
            self.features += bool(floats)
            if not floats:
                continue  # tokens: nothing to say of their size
            low, high = min(float(value.min()) for value in floats), max(float(value.max()) for value in floats)
            self.low, self.high = min(self.low, low), max(self.high, high)
            self.constant += low == high
            self.whole += low != high and not any(np.any(value % 1) for value in floats)

    def warnings(self) -> list[str]:
        """What looks wrong; raises DataError when there is nothing to calibrate on."""
        if self.features and self.constant == self.images:
            what = "zero everywhere" if self.low == self.high == 0 else "a single value each"
            raise DataError(
                f"all {self.images} calibration images are {what}: no range can be seen.",
                "Check [data] source and the preprocessing.",
            )
        found = []
        if self.constant:
            found.append(f"{self.constant} of {self.images} calibration images are a single value each.")
        if self.images == 1:
            found.append("ranges come from one image only; other images will saturate. Give 256 or more.")
        elif self.images < FEW:
            found.append(f"ranges come from {self.images} images only; give 256 or more.")
        if self.high > 16 and self.whole == self.images - self.constant and self.low >= 0 and self.high <= 255:
            found.append(
                f"calibration images look like raw pixels: whole numbers only, from {self.low:g} to {self.high:g}."
                " If the network reads 0..1 or normalised images, [data] scale is missing."
            )
        if self.features and self.low >= 0 and self.high < 0.02:
            found.append(
                f"calibration images are nearly black: the largest value is {self.high:.2g}."
                " Is [data] scale applied twice?"
            )
        return found


def check_weights(view: View) -> None:
    """Raise ModelError where a weight or bias is NaN or infinite."""
    for name, tensor in view.initializers.items():
        if tensor.data_type == onnx.TensorProto.FLOAT:
            bad = int((~np.isfinite(numpy_helper.to_array(tensor))).sum())
            if bad:
                raise ModelError(
                    f"'{name}' has {bad} values that are NaN or infinite.",
                    "Check the checkpoint; training may have diverged.",
                )


def check_seen(model: onnx.ModelProto, seen: Mapping[str, Watched]) -> list[str]:
    """Look at the activations; raises ModelError on NaN or Inf, warns of tensors that carry nothing."""
    for tensor, watched in seen.items():
        if watched.bad:
            node = View.of(model).producer.get(tensor)
            maker = f"node '{node.name}' ({node.op_type})" if node is not None else "the input"
            raise ModelError(
                f"{maker} gives {watched.bad} values that are NaN or infinite in tensor '{tensor}'.",
                "The weights or the preprocessing are broken: check the network's accuracy in float first.",
            )
    dead = [tensor for tensor, watched in seen.items() if watched.minimum == watched.maximum]
    if not dead:
        return []
    return [f"{len(dead)} tensors never change over all calibration images, the first is '{dead[0]}'."]


def check_placement(view: View, placement: Placement, dialect: Dialect, options: QuantizeSection) -> list[str]:
    """Warn of layers that stay in float because the runtime has no INT8 kernel for their operator."""
    wanted = {name for name, layer in options.layers.items() if layer.precision not in (None, "int8")}
    layers = [node for node in view.nodes if node.name in view.layers or node.op_type in RECURRENT]
    floats = [node for node in layers if node.name not in placement.nodes and node.name not in wanted]
    found = []
    for operator, count in Counter(node.op_type for node in floats).items():
        first = next(node.name for node in floats if node.op_type == operator)
        stay = "layer stays" if count == 1 else "layers stay"
        found.append(f"{count} {operator} {stay} in float: {dialect.title} is not given INT8 for it ('{first}', ...).")
    for name, layer in options.layers.items():
        if layer.precision == "int8" and name not in placement.nodes:
            found.append(f"'{name}' is asked to run in INT8, and {dialect.title} cannot: it stays in float.")
    return found


def cache_key(model: onnx.ModelProto, data: str, dialect: Dialect, options: QuantizeSection) -> str:
    """sha256 over the artifact, the images that were seen (their own sha256), the dialect and the options."""
    digest = hashlib.sha256()
    digest.update(model.SerializeToString(deterministic=True))
    for part in (data, repr(_plain(dialect)), repr(options), str(VERSION), str(METHODS_VERSION)):
        digest.update(part.encode())
    return digest.hexdigest()


def _plain(dialect: Dialect) -> list[tuple[str, object]]:
    fields = {**vars(dialect), "roles": sorted(dialect.roles.items())}
    return sorted((name, value) for name, value in fields.items() if name not in ("title", "notes"))
