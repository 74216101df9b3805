"""Heads in another order than the metric takes them in are found; honest ones, whatever they are, are not accused."""

from __future__ import annotations

import numpy as np
import pytest

from edgeprune import tasks, validate
from edgeprune.validate import heads

CLASSES = 4


def worse(outputs, targets):
    """Right answers of the worse head, in points."""
    truth = np.asarray(targets)
    return 100 * min(float((outputs[n].argmax(1) == truth[:, n]).mean()) for n in range(len(outputs)))


def first_only(outputs, targets):
    """Right answers of the first head alone."""
    return 100 * float((outputs[0].argmax(1) == np.asarray(targets)[:, 0]).mean())


def network(heads_of, noise=0.4, count=200, seed=0):
    """(outputs, targets): a head says what the given column of the targets is; None: noise."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, CLASSES, (count, len(heads_of)))
    outputs = [
        noise * rng.standard_normal((count, CLASSES)) + (0 if column is None else np.eye(CLASSES)[targets[:, column]])
        for column in heads_of
    ]
    return tuple(one.astype(np.float32) for one in outputs), [list(row) for row in targets]


def found(metric, outputs, targets, chance=25.0, **more):
    task = tasks.Custom(metric, "m", unit="points", **more)
    return heads.swapped(task, outputs, targets, task.score(outputs, targets, 0.99), chance)


@pytest.mark.parametrize("order", [(1, 0), (2, 0, 1), (0, 2, 1), (3, 1, 0, 2)])
def test_heads_in_another_order_are_refused(order):
    (finding,) = found(worse, *network(order))
    assert (finding.severity, finding.name, finding.about) == ("error", "sane", "model")
    right = ", ".join(str(order.index(place)) for place in range(len(order)))
    assert f"as outputs {right}" in finding.message and "another order" in finding.message


def test_where_lower_is_better():
    outputs, targets = network((1, 0))
    metric = lambda o, t: 100 - worse(o, t)  # noqa: E731
    assert found(metric, outputs, targets, chance=75.0, higher_is_better=False)
    assert found(metric, outputs[::-1], targets, chance=75.0, higher_is_better=False) == []


@pytest.mark.parametrize("seed", range(5))
def test_honest_heads_are_not_accused(seed):
    assert found(worse, *network((0, 1), seed=seed)) == []
    assert found(worse, *network((0, None), seed=seed)) == []  # one dead head is for `sane`
    assert found(first_only, *network((0, 0), seed=seed)) == []  # two heads that say the same


def test_an_auxiliary_head_that_is_better_is_no_swap():
    """A metric of the first head alone, which is weaker than the second, and honest."""
    outputs, targets = network((0, 0))
    noise = np.random.default_rng(1).standard_normal(outputs[0].shape).astype(np.float32)
    weak = (outputs[0] + 0.5 * noise, outputs[1])
    assert first_only(weak[::-1], targets) > first_only(weak, targets) + 5
    assert found(first_only, weak, targets) == []


def test_where_nothing_can_be_said():
    outputs, targets = network((1, 0))
    task = tasks.Custom(worse, "m")
    given = task.score(outputs, targets, 0.99)
    assert validate.swapped(task, outputs, targets, given, None) == []
    assert validate.swapped(task, None, targets, given, 25.0) == []
    assert validate.swapped(task, tuple(one[:10] for one in outputs), targets[:10], given, 25.0) == []
    other = (outputs[0], outputs[1][:, :3])  # of two shapes there is one order
    assert validate.swapped(task, other, targets, given, 25.0) == []


def test_a_metric_that_takes_each_head_for_what_it_is_is_left_alone():
    outputs, targets = network((1, 0))

    def strict(given, truth):
        if given[0] is not None and not np.array_equal(given[0][:1], outputs[0][: len(given[0])][:1]):
            raise ValueError("not this head")
        return worse(given, truth)

    task = tasks.Custom(strict, "m", unit="points")
    given = tasks.Custom(worse, "m", unit="points").score(outputs, targets, 0.99)
    assert validate.swapped(task, outputs, targets, given, 25.0) == []


def test_many_heads_are_only_swapped_in_pairs():
    outputs, _ = network(tuple(range(8)))
    orders = list(heads._orders(outputs))
    assert len(orders) == heads.ORDERS and len(set(orders)) == len(orders)
    assert all(sum(a != b for a, b in enumerate(order)) == 2 for order in orders)
