"""What bias correction takes back."""

import numpy as np
import pytest

from edgeprune.quantize.correct.bias import seen_between, usual_error
from edgeprune.quantize.view import View
from tests.quantize import nets

RELU = (0.0, float("inf"))


def test_a_few_images_do_not_move_the_bias_of_all():
    wanted = [np.zeros((1, 2, 3, 3), np.float32) for _ in range(9)]
    got = [value + np.float32(0.1) for value in wanted]
    got[0] = got[0] + np.float32(50)
    assert usual_error(got, wanted, None) == pytest.approx(0.1, rel=1e-3)


def test_only_values_that_a_relu_lets_through_count():
    wanted = [np.full((1, 1, 4, 4), -5, np.float32) for _ in range(12)]
    for image in wanted:
        image[0, 0, 0, 0] = 1
    got = [np.float32(0.9) * image for image in wanted]  # weights that came out small
    assert usual_error(got, wanted, RELU) == pytest.approx(-0.1, rel=1e-3)
    assert usual_error(got, wanted, None) == pytest.approx((15 * 0.5 - 0.1) / 16, rel=1e-3)
    silent = [np.full((1, 1, 4, 4), -5, np.float32)] * 12
    assert usual_error([image + 1 for image in silent], silent, RELU) == 0


def test_what_few_images_say_is_believed_less():
    draw = np.random.default_rng(0)
    wanted = [np.zeros((1, 64), np.float32) for _ in range(16)]
    errors = draw.normal(0, 1, (16, 64)).astype(np.float32)
    found = usual_error([a + e for a, e in zip(wanted, errors, strict=True)], wanted, None)
    assert np.square(found).mean() < 0.6 * np.square(np.median(errors, 0)).mean()
    shifted = usual_error([a + e + 3 for a, e in zip(wanted, errors, strict=True)], wanted, None)
    assert shifted == pytest.approx(np.median(errors, 0) + 3, abs=0.15)


def test_what_reads_a_layer_says_which_values_count():
    net = nets.Net()
    x = net.relu(net.conv("input", "a", 3, 4))
    model = net.model(net.conv(x, "b", 4, 4))
    view = View.of(model)
    assert seen_between(view, view.layers["a"]) == RELU
    assert seen_between(view, view.layers["b"]) is None
