"""examples/python_api.py: its data is fixed, and its metric tells a good network from a bad one."""

from __future__ import annotations

import numpy as np
from example_code import module

from edgeprune import tasks

api = module("python_api")


def test_blobs_are_the_same_at_every_read_and_splits_do_not_overlap():
    first, again = api.Blobs(0, 10)[3], api.Blobs(0, 10)[3]
    assert np.array_equal(first[0], again[0]) and np.array_equal(first[1], again[1])
    assert np.array_equal(api.Blobs(3, 5)[0][0], first[0])
    assert first[0].shape == (1, 48, 48) and first[1].shape == (2,)


def test_the_metric_is_a_distance_in_pixels_and_lower_is_better():
    task = tasks.Custom(api.distance, "distance", unit="px", higher_is_better=False)
    targets = [api.Blobs(0, 50)[i][1] for i in range(50)]
    true = np.stack(targets)
    near, far = (task.score((true + np.float32(off),), targets) for off in (1.0, 5.0))
    assert abs(near.value - 2**0.5) < 1e-5 and abs(far.value - 5 * 2**0.5) < 1e-4
    assert far.against(near).drop > 5
