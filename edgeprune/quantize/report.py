"""What is left after ranges are chosen: the mean error of each layer's channels, put right in its bias; the report.

Bias correction: rounding weights and inputs shifts the mean of a layer's output channels; the shift, measured on the
calibration images, is subtracted from the bias. Source: Nagel et al., "Data-free quantization through weight
equalization and bias correction", ICCV 2019 (arXiv 1906.04721), section 4.2, measured rather than derived.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeprune.quantize.grids import Grid, rounded_weight
from edgeprune.quantize.observe import Images
from edgeprune.quantize.placement import Placement
from edgeprune.quantize.probe import Experiment, probe
from edgeprune.quantize.ranges import LayerReport
from edgeprune.quantize.view import View
from edgeprune.runtimes.dialects import Dialect

MEASURED = 64  # images for mean errors
REPORTED = 16  # images for what only the report shows


def measure_layers(
    model: onnx.ModelProto,
    placement: Placement,
    grids: Mapping[str, Grid],
    dialect: Dialect,
    images: Images,
    limit: int,
    integers: Mapping[str, NDArray[np.int8]] | None = None,
) -> tuple[dict[str, LayerReport], dict[str, tuple[float, ...]]]:
    """Quality of every INT8 layer, and the correction of its bias (minus the mean error of each output channel).

    Args:
        grids: quantised tensor -> its grid.
        integers: layer -> integers of its weight where they are not the nearest (rounding.py).
    """
    view = View.of(model)
    parts: list[Experiment] = []
    wholes: list[Experiment] = []
    layers = [name for name, role in placement.nodes.items() if role == "compute"]
    for name in layers:
        node = view.layers[name]
        given = np.asarray(view.constant(node.input[1]), np.float32)
        weight = rounded_weight(given, node, dialect, (integers or {}).get(name))
        tensor = placement.read_by(view, node)
        assert tensor is not None
        on = {0: grids[tensor]}
        parts += [Experiment(name, constants={1: weight}), Experiment(name, grids=on)]
        wholes.append(Experiment(name, grids=on, constants={1: weight}, bias=True))
    shares = probe(model, parts, images, min(limit, REPORTED))
    outcomes = probe(model, wholes, images, min(limit, MEASURED))
    reports, biases = {}, {}
    for index, name in enumerate(layers):
        by_weight, by_input, both = *shares[2 * index : 2 * index + 2], outcomes[index]
        reports[name] = LayerReport(round(by_weight.sqnr_db, 3), round(by_input.sqnr_db, 3), round(both.sqnr_db, 3))
        biases[name] = tuple(float(np.float32(-value)) for value in both.bias)
    return reports, biases
