"""The choice of what stays in float."""

from __future__ import annotations

import onnx
import pytest
from onnx import numpy_helper

from edgeprune.errors import DataError
from edgeprune.pipeline.precision import _agreement

from . import nets


def turned(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with its logits negated, so that it never agrees."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.name.startswith("head."):
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    return result


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_agreement_counts_every_image_once_and_no_padding(count: int) -> None:
    model = nets.residual()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    images = nets.images(count)
    assert _agreement(model, model, images) == 1.0
    assert _agreement(model, turned(model), images) == 0.0


def test_agreement_on_no_image_is_refused() -> None:
    with pytest.raises(DataError):
        _agreement(nets.residual(), nets.residual(), nets.images(1)[:0])
