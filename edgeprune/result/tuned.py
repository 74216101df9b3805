"""What `tune` found: the trials, and the best of them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One training.

    Attributes:
        settings: of [recover], what the trial tried.
        state: "done"; "stopped", as others were better after as many steps; "diverged"; "unfit", as its settings do not
            go together.
        score: best on the selection split, in the metric's unit; of one that was stopped its last; None: it has none.
        steps: after which that was.
    """

    number: int
    settings: Mapping[str, object]
    state: str
    score: float | None = None
    steps: int = 0
    seconds: float = 0.0


class Tuned(msgspec.Struct, frozen=True, kw_only=True):
    """A study of recovery settings, as far as it is.

    Attributes:
        epochs: of one trial.
        repaired: the score before any training.
        own: the trial of the recipe's own settings, where it is done.
        trials: by score, best first.
        recipe: the file with the best settings.
        weights: the folder of the best trial's network.
    """

    name: str
    target: str
    metric: str
    unit: str
    higher_is_better: bool
    epochs: float
    repaired: float
    trials: tuple[Trial, ...]
    own: Trial | None = None
    recipe: str = ""
    weights: str = ""

    @property
    def best(self) -> Trial | None:
        """The best of those that are done."""
        return next((one for one in self.trials if one.state == "done"), None)
