"""One step of a target, from a recipe to what is printed; the commands of the steps and `quick` call it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.cli import console, session
from edgeprune.errors import BudgetError, GateError, UsageError
from edgeprune.target import Target

if TYPE_CHECKING:
    from edgeprune.pipeline import Outcome
    from edgeprune.recipe import Recipe


def run_step(
    step: str,
    target: Target,
    recipe_path: Path,
    *,
    run_dir: Path | None,
    device: str,
    start: str | None = None,
    sign: Path | None = None,
    weights: Path | None = None,
    until: str | None = None,
    accuracy: bool = False,
) -> None:
    """Run a step, or `until` a stage of it, and print what came of it; raises EdgepruneError."""
    from edgeprune import recipe as recipes
    from edgeprune.cli import outcome, progress

    now = session.current()
    recipe = recipes.load(recipe_path)
    if sign is not None:
        from edgeprune import release

        release.check_key(sign)  # before the hours of work, not after them
    now.resumable = True
    if until == "plan" and not start:
        step, until = "plan", None
    last = until or ("package" if step == "run" else step)
    if sign is not None and last != "package":
        raise UsageError(f"--sign signs the bundle; --until {last} makes none.", "Give one of them.")
    if weights is not None and step == "plan":
        raise UsageError("--weights are of a trained network; --until plan ends before that.", "Give one of them.")
    if _helps(last, recipe, target, weights):
        return
    with calm(now.verbose), progress.reporter(now) as events:
        from edgeprune import pipeline

        if step == "plan":
            plan = pipeline.plan(recipe, target, run_dir, device=device, events=events, accuracy=accuracy)
            events.close()
            _planned(plan, recipe, target, now)
            return
        try:
            done: Outcome = pipeline.run(
                recipe, target, run_dir, until=last, start=start or "", device=device, events=events, weights=weights
            )
        except GateError as refused:
            events.close()
            outcome.show_refused(refused, step, now)
            raise
        events.close()
    if sign is not None and done.bundle is not None:
        from edgeprune import release

        release.sign(done.bundle, sign)
    outcome.show(done, step, now)
    if until:
        outcome.show_end(done, until, target.name, recipe_path, now)


def _planned(plan: Mapping[str, object], recipe: Recipe, target: Target, now: session.Invocation) -> None:
    """Print a plan; raises BudgetError where it cannot be met, and what else no gate could pass with."""
    from edgeprune import pipeline
    from edgeprune.cli import outcome

    outcome.show_plan(plan, recipe, target, now)
    if not plan.get("feasible"):
        raise BudgetError("the budget cannot be met.", str(plan.get("advice", "")))
    findings = plan.get("findings")
    if isinstance(findings, list) and findings:
        pipeline.refuse(findings)


def _helps(last: str, recipe: Recipe, target: Target, weights: Path | None) -> bool:
    """Is this another process of torchrun's than the first? Then it trains with that one, and says nothing itself."""
    if os.environ.get("RANK", "0") == "0":
        return False
    from edgeprune import pipeline, recover

    if not recover.process_number():
        return False
    with calm(False), suppress(pipeline.Followed):
        if last != "plan":
            pipeline.run(recipe, target, until="recover" if last == "recover" else "prune", weights=weights)
    return True


class _Escaped(logging.Formatter):
    """Log lines of libraries quote foreign text too."""

    def format(self, record: logging.LogRecord) -> str:
        """As one line, or set in."""
        return console.lines(super().format(record))


@contextmanager
def calm(verbose: bool) -> Iterator[None]:
    """Third-party warnings and log lines are for --verbose."""
    if verbose:
        handler = logging.StreamHandler()
        handler.setFormatter(_Escaped("%(name)s: %(message)s"))
        logging.basicConfig(level=logging.INFO, handlers=[handler])
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
