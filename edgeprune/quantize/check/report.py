"""The report of each layer alone: what its weights, its input and both cost at its output in INT8."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from edgeprune.quantize.feeds import Images
from edgeprune.quantize.ranges.grids import QParams, rounded_weight
from edgeprune.quantize.ranges.probe import Experiment, probe
from edgeprune.quantize.ranges.ranges import LayerReport
from edgeprune.quantize.view import View
from edgeprune.quantize.write.placement import Placement
from edgeprune.runtimes import Dialect

REPORTED = (4, 16)  # images, whatever they cost, and at most


def measure_layers(
    model: onnx.ModelProto,
    placement: Placement,
    grids: Mapping[str, QParams],
    dialect: Dialect,
    images: Images,
    limit: int,
) -> dict[str, LayerReport]:
    """Quality of every INT8 layer, everything before it in float.

    Args:
        grids: quantised tensor -> its grid.
    """
    view = View.of(model)
    experiments: list[Experiment] = []
    layers = [name for name, role in placement.nodes.items() if role == "compute"]
    for name in layers:
        node = view.layers[name]
        weight = {1: rounded_weight(np.asarray(view.constant(node.input[1]), np.float32), node, dialect)}
        tensor = placement.read_by(view, node)
        assert tensor is not None
        on = {0: grids[tensor]}
        experiments += [
            Experiment(name, constants=weight),
            Experiment(name, grids=on),
            Experiment(name, grids=on, constants=weight),
        ]
    reached = [round(outcome.sqnr_db, 3) for outcome in probe(model, experiments, images, limit)]
    return {name: LayerReport(*reached[3 * index : 3 * index + 3]) for index, name in enumerate(layers)}
