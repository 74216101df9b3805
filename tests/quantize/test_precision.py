"""The choice of what stays in float."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from edgeprune.pipeline.precision import _agreement
from edgeprune.tasks import Classification
from edgeprune.workload import Data, Inputs, Workload

from . import nets


def turned(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with its logits negated, so that it never agrees."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name.startswith("head."):
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    return result


def run(count: int) -> Any:
    """What the choice reads of a run: a classifier of images with `count` of them to calibrate on."""
    listed = [(image, 0) for image in nets.images(max(count, 1))]
    data = Data(train=listed, test=listed, selection=listed, calibration=listed[:count] or None, seed=None)
    inputs = Inputs.of(listed[0][0])
    work = Workload(lambda: pytest.fail("no network is built here"), inputs, data, Classification(), "")
    return SimpleNamespace(workload=work, recipe=SimpleNamespace(quantize=SimpleNamespace(images=count)))


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_agreement_counts_every_image_once_and_no_padding(count: int) -> None:
    model = nets.residual()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    assert _agreement(run(count), model, model) == (1.0, count)
    assert _agreement(run(count), model, turned(model)) == (0.0, count)
