"""What is left after ranges are chosen: the mean error of each layer's channels, put right in its bias; the report.

Bias correction: rounding weights and inputs shifts the mean of a layer's output channels; the shift, measured on the
calibration images, is subtracted from the bias. Source: Nagel et al., "Data-free quantization through weight
equalization and bias correction", ICCV 2019 (arXiv 1906.04721), section 4.2, measured rather than derived.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

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
) -> tuple[dict[str, LayerReport], dict[str, tuple[float, ...]]]:
    """Quality of every INT8 layer, and the correction of its bias (minus the mean error of each output channel).

    Args:
        grids: quantised tensor -> its grid.
    """
    view = View.of(model)
    parts: list[Experiment] = []
    wholes: list[Experiment] = []
    layers = [name for name, role in placement.nodes.items() if role == "compute"]
    for name in layers:
        node = view.layers[name]
        weight = rounded_weight(np.asarray(view.constant(node.input[1]), np.float32), node, dialect)
        tensor = placement.read_by(view, node)
        assert tensor is not None
        on = {0: grids[tensor]}
        parts += [Experiment(name, constants={1: weight}), Experiment(name, grids=on)]
        wholes.append(Experiment(name, grids=on, constants={1: weight}, bias=True))
    shares = probe(model, parts, images, min(limit, REPORTED))
    outcomes = probe(model, wholes, images, min(limit, MEASURED))
    reports, biases = {}, {}
    for index, name in enumerate(layers):
        alone, given, both = *shares[2 * index : 2 * index + 2], outcomes[index]
        reports[name] = LayerReport(round(alone.sqnr_db, 3), round(given.sqnr_db, 3), round(both.sqnr_db, 3))
        biases[name] = tuple(float(np.float32(-value)) for value in both.bias)
    return reports, biases
