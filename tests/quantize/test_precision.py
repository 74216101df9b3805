"""The choice of what stays in float."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgeprune.pipeline.precision import _agreement, _told_apart
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
    assert _agreement(run(count), model, model) == (1.0, 1.0)
    agreement, perhaps = _agreement(run(count), model, turned(model))
    assert agreement == 0.0 and perhaps == pytest.approx(1.6424 / (count + 1.6424), abs=1e-3)  # Wilson's, one-sided


def test_what_few_examples_leave_open() -> None:
    """One in 32 may be 3 %, 12 in 400 are; a distance is resampled: alike in all examples it leaves nothing open."""

    def classes(wrong: int, of: int) -> tuple[float, float]:
        return _told_apart(np.stack([np.arange(of) < wrong, np.ones(of)], 1).astype(np.float64), counted=True)

    assert classes(1, 32)[0] == 31 / 32 and classes(1, 32)[1] > 0.98
    assert classes(16, 400)[0] == 0.96 < classes(16, 400)[1] < 0.975 and classes(24, 400)[1] < 0.96
    alike = np.tile([0.031, 1.0], (128, 1))
    assert _told_apart(alike, counted=False) == (pytest.approx(0.969), pytest.approx(0.969))
    spread = alike.copy()
    spread[:8, 0] = 0.3  # eight examples differ more than all others
    spread[8:, 0] -= (spread[:8, 0] - 0.031).sum() / 120
    agreement, perhaps = _told_apart(spread, counted=False)
    assert agreement == pytest.approx(0.969) and 0.97 < perhaps < 0.99
    assert _told_apart(np.zeros((4, 2)), counted=False) == (1.0, 1.0)
