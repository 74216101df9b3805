"""Before anything is trained: can the test split and the dense network ever pass the gates?"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Literal

from edgeprune.recipe import BudgetSection
from edgeprune.result import Sanity, number
from edgeprune.validate import quality
from edgeprune.validate.gate import up
from edgeprune.workload import paired


@dataclass(frozen=True)
class Finding:
    """What is known before training.

    Attributes:
        name: of the gate that it is about.
        severity: "error": this gate cannot pass; "warning": it can, but something should be known.
        about: whose fault it is: "model" or "data".
    """

    name: str
    severity: Literal["error", "warning"]
    about: Literal["model", "data"]
    message: str
    remedy: str = ""

    def to_dict(self) -> dict[str, object]:
        """As `plan --json` prints it."""
        return asdict(self)


def ask(dense: Sanity, examples: int, budget: BudgetSection) -> tuple[Finding, ...]:
    """Findings on the dense network and the test split; errors first.

    Args:
        dense: the dense network on real examples of the test split.
        examples: of the whole test split.
    """
    found = []
    why = quality.not_sane(dense, 1 - budget.confidence)
    if why:
        message = f"the dense network computes nothing on the test split: {why}."
        one_class = dense.errors is not None and dense.chance is not None and dense.chance >= 100
        remedy = "Give test examples of every class." if one_class else quality.INSANE
        found.append(Finding("sane", "error", "data" if one_class else "model", message, remedy))
    elif dense.broken:
        message = f"the dense network's outputs are NaN or infinite on {dense.broken:,} of {dense.examples:,} examples."
        found.append(Finding("finite", "error", "model", message, quality.INSANE))
    found += _nothing_left(dense, examples, budget) or _resolution(dense, examples, budget)
    lacking = quality.missing_classes(dense)
    if lacking:
        found.append(Finding("sane", "warning", "data", lacking, "Give test examples of every class."))
    return tuple(sorted(found, key=lambda one: one.severity != "error"))


def _nothing_left(dense: Sanity, examples: int, budget: BudgetSection) -> list[Finding]:
    """With max_drop alone a network may lose what the test split can show, which has to be something."""
    drop, unit = budget.max_drop, dense.unit
    if not budget.fastest or (own := hidden(dense, examples, budget)) < drop:
        return []
    message = (
        f"[budget] max_drop = {drop:g} alone asks for the fastest network that loses so little, and with {examples:,} "
        f"test examples chance alone may take {up(own, unit)} of it: nothing is left for pruning."
    )
    remedy = f"Give more test examples, or allow more than max_drop = {up(own, unit)} by what pruning may cost."
    return [Finding("accuracy", "error", "data", message, remedy)]


def _resolution(dense: Sanity, examples: int, budget: BudgetSection) -> list[Finding]:
    """Can so many examples tell `max_drop`? Known for a share of right answers, estimated for any other score."""
    if dense.errors is None:
        return _estimated(dense, examples, budget)
    drop, sure, errors = budget.max_drop / 100, budget.confidence, dense.errors
    least, likely = paired.fewest_examples(drop, sure), paired.examples_for(drop, sure, errors)
    what = f"[budget] max_drop = {budget.max_drop:g} at confidence {sure:g}"
    tells = f"{examples:,} test examples can tell"
    reach = _up(paired.smallest_drop(examples, sure))
    honest = max(reach, _up(paired.likely_drop(examples, sure, errors)))
    if least is None or likely is None:
        message = f"{what} cannot be shown by any number of examples: chance alone could hide a drop."
        remedy = f"{tells} max_drop = {honest:g} of a network about as good as the dense one."
        return [Finding("accuracy", "error", "data", message, remedy)]
    if paired.smallest_drop(examples, sure) > drop + paired.TOLERANCE:
        message = (
            f"{what} cannot be told with {examples:,} test examples: even a network that errs nowhere else than the "
            f"dense one needs {least:,}; one that is as good, but errs on other examples, about {likely:,}."
        )
        remedy = (
            f"Give more test examples; or ask for what they can tell: max_drop = {reach:g} at best, {honest:g} likely."
        )
        return [Finding("accuracy", "error", "data", message, remedy)]
    if examples < likely:
        message = (
            f"{what} leaves little room with {examples:,} test examples: a network as good as the dense one, which "
            f"errs on other examples, needs about {likely:,} to pass four times of five."
        )
        remedy = f"Give more test examples, or allow max_drop = {honest:g} and what pruning may cost."
        return [Finding("accuracy", "warning", "data", message, remedy)]
    return []


def _estimated(dense: Sanity, examples: int, budget: BudgetSection) -> list[Finding]:
    """From the dense network's own bootstrap: its deviation, and the limit that it gives against itself.

    The limit shrinks with the number of examples, the deviation with its root. A network as good as the dense one,
    which errs on other examples, is taken to differ from it as pruned classifiers do (paired.AGAINST).
    """
    if dense.smallest is None or dense.deviation is None or not dense.examples:
        return []
    share = dense.examples / examples
    reach, honest = dense.smallest * share, hidden(dense, examples, budget)
    drop, unit = budget.max_drop, dense.unit
    what = f"[budget] max_drop = {drop:g} {unit}".rstrip() + f" at confidence {budget.confidence:g}"
    how = f"estimated by a bootstrap of the dense network's {dense.metric}, which deviates by "
    how += f"{number(dense.deviation * math.sqrt(share), unit)} {unit}".rstrip()
    tell = f"max_drop = {up(reach, unit)} at best, {up(honest, unit)} likely"
    if reach > drop:
        message = f"{what} cannot be told with {examples:,} test examples ({how})."
        return [
            Finding(
                "accuracy", "error", "data", message, f"Give more test examples; or ask for what they tell: {tell}."
            )
        ]
    if honest > drop:
        wanted = math.ceil(examples * (honest / drop) ** 2)
        message = (
            f"{what} leaves little room with {examples:,} test examples: a network as good as the dense one, which "
            f"errs on other examples, needs about {wanted:,} to pass four times of five ({how})."
        )
        remedy = f"Give more test examples, or allow max_drop = {up(honest, unit)} and what pruning may cost."
        return [Finding("accuracy", "warning", "data", message, remedy)]
    return []


def hidden(dense: Sanity, examples: int, budget: BudgetSection) -> float:
    """How far below max_drop a network's loss must be for the accuracy gate to pass it, four times of five.

    Returns:
        in the metric's unit; 0 where nothing is known of it.
    """
    if dense.errors is not None:
        return 100 * max(
            paired.smallest_drop(examples, budget.confidence),
            paired.likely_drop(examples, budget.confidence, dense.errors),
        )
    if dense.smallest is None or dense.deviation is None or not dense.examples:
        return 0.0
    share = dense.examples / examples
    return max(dense.smallest * share, paired.needed(budget.confidence) * dense.deviation * math.sqrt(share))


def _up(share: float) -> float:
    """Points, rounded up to one decimal."""
    return math.ceil(1000 * share - 1e-9) / 10
