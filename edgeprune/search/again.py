"""The search once more, at another budget or by a table that has learnt: what closure asks.

The programs that gave the best evaluated answers are solved again, their answers are evaluated, and the best one is
the answer. One program alone would not do: its factors were the luckiest of many at one budget, and at the next one
its answer is as good as any other's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgeprune.errors import BudgetError
from edgeprune.graph import Structure
from edgeprune.search.curves import Sensitivity
from edgeprune.search.find import Cuts, Judge, SearchResult, find

if TYPE_CHECKING:
    from edgeprune.graph import Plan
    from edgeprune.search.program import Cost


class Again:
    """(latency predictor, budget) -> plan, for `refine`; each plan is evaluated once."""

    def __init__(
        self,
        structure: Structure,
        curves: Sensitivity,
        found: SearchResult,
        judge: Judge,
        *,
        programs: int = 4,
        max_bytes: float = float("inf"),
        time_limit: float = 60.0,
    ) -> None:
        """`found`: the search whose best `programs` (factors and what they may cut) are solved again."""
        self.structure, self.curves, self.judge = structure, curves, judge
        self.max_bytes, self.time_limit = max_bytes, time_limit
        self.programs: list[tuple[Mapping[str, float], Cuts]] = [
            (item.factors, item.cuts) for item in sorted(found.rounds, key=lambda item: item.loss)[:programs]
        ]
        self._losses = {found.plan.configuration.key: found.loss}

    def __call__(self, cost: Cost, budget: float) -> Plan:
        """The best evaluated answer within `budget`, in the unit of `cost`.

        Raises:
            BudgetError: none of the programs has an answer.
        """
        plans: list[Plan] = []
        refused: BudgetError | None = None
        for factors, cuts in self.programs:
            try:
                found = find(
                    self.structure,
                    cost,
                    budget,
                    self.curves,
                    factors=factors,
                    blocks=cuts != "widths",
                    widths=cuts != "blocks",
                    max_bytes=self.max_bytes,
                    time_limit=self.time_limit,
                )
            except BudgetError as error:
                refused = error
            else:
                plans.append(found.plan)
        if not plans:
            assert refused is not None
            raise refused
        return min(plans, key=self.loss)

    def loss(self, plan: Plan) -> float:
        """KL of the repaired network, as the judge has it."""
        name = plan.configuration.key
        if name not in self._losses:
            self._losses[name] = self.judge(plan).loss
        return self._losses[name]
