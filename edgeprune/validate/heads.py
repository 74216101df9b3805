"""Are the outputs of a network of several heads in the order that the metric takes them in?

A metric of one's own that reads two heads of one shape cannot see that they are swapped: the network then knows nothing
on the given order, may be no worse than chance by luck, and would lose nothing when it is pruned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations, permutations
from typing import Any

import numpy as np

from edgeprune.errors import EdgepruneError
from edgeprune.result import quantity
from edgeprune.validate.ask import Finding
from edgeprune.workload import Outputs, Score, count

ORDERS = 23  # other orders that are tried: all of four heads, swaps of more
SHARE = 0.25  # of what another order tells beyond chance: a network that tells less is taken for swapped
FEWEST = 20  # examples of which something is said


def swapped(
    task: Any, outputs: Outputs | None, targets: Sequence[Any], given: Score, chance: float | None
) -> list[Finding]:
    """An error where the outputs in another order score far better, and as they are hardly better than chance.

    Args:
        outputs, targets: of the examples that were kept.
        given: the dense network's score on all that was looked at.
        chance: what a guess scores; None: not known, and nothing is said.
    """
    if outputs is None or len(outputs) < 2 or count(outputs) < FEWEST or chance is None:
        return []
    sign = 1 if given.higher_is_better else -1
    best: tuple[Score, tuple[int, ...]] | None = None
    for order in _orders(outputs):
        try:
            found = task.score(tuple(outputs[place] for place in order), list(targets))
        except EdgepruneError:  # a metric that takes each head for what it is
            continue
        if math.isfinite(found.value) and (best is None or sign * (found.value - best[0].value) > 0):
            best = found, order
    if best is None or not math.isfinite(given.value):
        return []
    score, order = best
    sure = score.low > given.high if given.higher_is_better else score.high < given.low
    if not sure or sign * (given.value - chance) >= SHARE * sign * (score.value - chance):
        return []
    named = ", ".join(map(str, order))
    message = (
        f"the network's outputs seem to be in another order than {given.metric} takes them in: "
        f"{quantity(given.value, given.unit)} as they are, {quantity(score.value, score.unit)} as outputs {named}."
    )
    remedy = "Return the heads in the order that the metric and the targets have, or mend the metric."
    return [Finding("sane", "error", "model", message, remedy)]


def _orders(outputs: Outputs) -> Iterator[tuple[int, ...]]:
    """Other orders of outputs that have one shape and type; at most ORDERS of them."""
    kinds: dict[Any, list[int]] = {}
    for place, output in enumerate(outputs):
        if isinstance(output, np.ndarray):  # outputs that change their shape are lists
            kinds.setdefault((output.shape[1:], output.dtype.kind), []).append(place)
    left = ORDERS
    for places in kinds.values():
        few = len(places) <= 4
        for change in permutations(places) if few else combinations(places, 2):
            order = list(range(len(outputs)))
            for place, other in zip(places, change, strict=True) if few else (change, change[::-1]):
                order[place] = other
            if left and order != list(range(len(outputs))):
                left -= 1
                yield tuple(order)
