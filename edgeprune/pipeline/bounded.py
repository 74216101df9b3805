"""The fastest network within max_drop, where [budget] names no latency: speed-ups tried by halves, each repaired and
trained for a part of the epochs; closure and all that follows then work as for a speed-up that was asked for.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeprune import validate
from edgeprune.errors import BudgetError
from edgeprune.graph import Plan
from edgeprune.latency import Predictor
from edgeprune.pipeline import feasible, recovery, workloads
from edgeprune.pipeline.events import Voice
from edgeprune.pipeline.rundir import RunDirectory, read_json
from edgeprune.pipeline.subject import Subject
from edgeprune.search import Again, Evaluator, Sensitivity, find

HALVINGS = 5  # a span of 4x is told to 4 %
SPARE = 1.04  # room above the fastest network that was measured: there nothing is left to choose
PART = 0.2  # of the epochs, for a network that is tried


@dataclass(frozen=True)
class Tried:
    """A speed-up over dense INT8, and what its network lost: in the metric's unit, None where there is no network."""

    speedup: float
    drop: float | None


def fastest(drop: Callable[[float], float | None], most: float, allowed: float) -> tuple[float, list[Tried]]:
    """The largest speed-up whose network loses at most `allowed`, between 1 and `most`; 1 where none was found.

    Args:
        drop: speed-up -> what the network loses; None: there is no such network. Taken to grow with the speed-up.
    """
    low, high, tried = 0.0, math.log(most), list[Tried]()
    for number in range(HALVINGS):
        middle = (low + high) / 2 if number else high  # the fastest of all may do
        tried.append(Tried(math.exp(middle), drop(math.exp(middle))))
        lost = tried[-1].drop
        if lost is not None and lost <= allowed:
            low = middle
            if not number:
                break
        else:
            high = middle
    return math.exp(low), tried


@dataclass(frozen=True)
class Bounded:
    """What was found: the speed-up to search for, and the networks that were tried for it."""

    speedup: float
    allowed: float
    tried: Sequence[Tried]

    def to_dict(self) -> dict[str, object]:
        """For search.json."""
        return {"speedup": self.speedup, "allowed": self.allowed, "tried": [vars(one) for one in self.tried]}


def within_drop(
    subject: Subject,
    run: RunDirectory,
    voice: Voice,
    predictor: Predictor,
    curves: Sensitivity,
    evaluator: Evaluator,
    limit: float,
    folder: Path,
) -> Bounded:
    """The speed-up to search for. Scores are of the selection split; nothing is measured on the device.

    `limit`: of the weights, in bytes.

    Raises:
        BudgetError: no network faster than dense INT8 loses so little.
    """
    options, work, budget = subject.recipe.search, subject.workload, subject.recipe.budget
    most = float(read_json(run.folder("plan") / "feasibility.json")["max_speedup"]) / SPARE
    hidden = validate.hidden(feasible.sanity(run), len(work.data.split("test")), budget)
    allowed = max(0.0, budget.max_drop - hidden)
    dense = recovery.score(work, subject.model)
    middle = find(
        subject.structure, predictor, predictor.dense / math.sqrt(most), curves, judge=evaluator, rounds=1,
        blocks=options.blocks, max_bytes=limit, time_limit=options.time_limit,
    )  # fmt: skip
    again = Again(subject.structure, curves, middle, evaluator, max_bytes=limit, time_limit=options.time_limit)
    voice.say(
        "search",
        f"the fastest within max_drop = {budget.max_drop:g}: tried up to {most:.2f}x; a loss of {allowed:.3g} "
        f"{work.task.unit} can be shown by the test split".rstrip(),
    )

    def drop(speedup: float) -> float | None:
        try:
            plan = again(predictor, predictor.dense / speedup)
        except BudgetError:
            voice.say("search", f"{speedup:.2f}x: no such network")
            return None
        value, how = _tried(subject, voice, plan, folder / "trial")
        lost = dense - value if work.task.higher_is_better else value - dense
        voice.say("search", f"{speedup:.2f}x: {recovery.shown(work, value)} {how}, {lost:.3g} from dense")
        return lost

    speedup, tried = fastest(drop, most, allowed)
    if speedup == 1:
        least = tried[-1]
        lost = "there is no such network" if least.drop is None else f"loses {least.drop:.3g} {work.task.unit}".rstrip()
        raise BudgetError(
            f"no network that is faster than dense INT8 was found within max_drop = {budget.max_drop:g}: of those "
            f"tried the mildest, {least.speedup:.2f}x, {lost}; the test split can show {allowed:.3g}.",
            "Allow more, give more test examples, or more epochs.",
        )
    return Bounded(speedup, allowed, tried)


def _tried(subject: Subject, voice: Voice, plan: Plan, folder: Path) -> tuple[float, str]:
    """The score of a plan's network, repaired and trained a little, and a few words of that."""
    from edgeprune.recover import checkpoint, process_count, repair

    work, options = subject.workload, subject.recipe.recover
    examples = workloads.examples(work, "train", max(recovery.REPAIR_EXAMPLES, subject.recipe.search.images))
    student = plan.apply(subject.model)
    student = repair(subject.model, student, subject.structure, plan, examples, session=subject.session)
    alone = process_count() == 1  # others would have to train too
    if not options.epochs or not alone or recovery.trainer_of(subject) is not None:
        return recovery.score(work, student), "repaired"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        recovery.briefly(subject, voice, student, folder, PART * options.epochs)
        checkpoint.forget(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return recovery.score(work, student), f"after {100 * PART:.0f} % of the epochs"
