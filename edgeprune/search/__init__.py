"""Which network to keep: loss curves, the program over them, its solver, and the loop that closes on measured latency.

`edgeprune.search(structure, table, budget, curves)` works whether `edgeprune.search` is this package or the function
in it: importing a package binds its name in the parent, so the package itself can be called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgeprune.search.again import Again as Again
from edgeprune.search.closure import Closure as Closure
from edgeprune.search.closure import refine as refine
from edgeprune.search.curves import Sensitivity as Sensitivity
from edgeprune.search.curves import measure as measure
from edgeprune.search.evaluator import Evaluator as Evaluator
from edgeprune.search.find import SearchResult as SearchResult
from edgeprune.search.find import find as find
from edgeprune.search.formulate import formulate as formulate
from edgeprune.search.formulate import stages as stages
from edgeprune.search.formulate import to_plan as to_plan
from edgeprune.search.masks import MaskSettings as MaskSettings
from edgeprune.search.masks import learn as learn
from edgeprune.search.program import Cost as Cost
from edgeprune.search.solve import solve as solve

if TYPE_CHECKING:
    from edgeprune.graph import Plan, Structure


def search(structure: Structure, table: Cost, budget: float, curves: Sensitivity, *, blocks: bool = True) -> Plan:
    """The network of least loss that the table predicts to run within the budget.

    Args:
        structure: of the dense network, from `edgeprune.trace`.
        table: a predictor of latency (`edgeprune.latency.Predictor`).
        budget: milliseconds.
        curves: what each width and each block costs (`edgeprune.search.measure`).
        blocks: may whole residual blocks go?

    Raises:
        BudgetError: the budget lies under the floor; the message names it.
    """
    return find(structure, table, budget, curves, blocks=blocks).plan


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Plan:
        return search(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
