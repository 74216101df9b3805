"""The study of `tune`: Optuna's, in SQLite, which processes share and which goes on where one of them was killed.

A trial's process holds a lock in the trial's folder, so that a trial whose process is gone is known at once, and taken
up from its checkpoint by whoever comes next. Where locks are not seen (another machine), Optuna's signs of life tell.

Sources: Optuna, KDD 2019, arXiv:1907.10902; tree-structured Parzen estimator, Bergstra et al., NeurIPS 2011; stopping a
trial below the median of the others at as many steps, Vizier, KDD 2017.
"""

from __future__ import annotations

import contextlib
import fcntl
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgeprune.errors import EdgepruneError, RunError

if TYPE_CHECKING:
    import optuna

BEAT, GONE = 15, 60  # seconds between a trial's signs of life, and without one until it is tried again
FIRST, WARM = 4, 1  # trials that are never stopped, and evaluations before which none is
WAY, PLACE, HELD = "way", "folder", "held"  # what a trial carries: whose settings, where it trains, that it is locked
LOCK = "lock"


def opened(file: Path, name: str, higher_is_better: bool, seed: int) -> optuna.Study:
    """The study of that name in `file`, new or as far as it is; raises RunError."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # what ends a trial by an error ends the command with it
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # signs of life, of trials side by side
    try:
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{file}",
            engine_kwargs={"connect_args": {"timeout": 60}},
            heartbeat_interval=BEAT,
            grace_period=GONE,
            heartbeat_stale_trial_callback=_again,
        )
        return optuna.create_study(
            storage=storage,
            study_name=name,
            load_if_exists=True,
            direction="maximize" if higher_is_better else "minimize",
            sampler=sampler(seed, 0),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=FIRST, n_warmup_steps=WARM),
        )
    except Exception as cause:  # SQLAlchemy's and Optuna's own, of a file that is none of theirs
        raise RunError(
            f"{file} is no study that can be read: {told(cause)}.", "Move it away to begin a new one."
        ) from None


def told(cause: BaseException) -> str:
    """The first line of what SQLAlchemy and Optuna say, without SQLAlchemy's own address."""
    return next(iter(str(cause).splitlines()), type(cause).__name__)[:200]


@contextlib.contextmanager
def writable(file: Path) -> Iterator[None]:
    """What the storage raises while trials run becomes a RunError; what is done is kept."""
    import optuna

    try:
        yield
    except EdgepruneError:
        raise
    except Exception as cause:  # Optuna's own, or what it stumbles over on the way out of that
        found = next((one for one in _chain(cause) if isinstance(one, optuna.exceptions.StorageInternalError)), None)
        if found is None:
            raise
        raise RunError(
            f"{file}: the study cannot be written: {told(found.__cause__ or found)}.",
            "Free some space, or let it be written there, and run the same command again: it goes on.",
        ) from None


def _chain(cause: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that it came from."""
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def sampler(seed: int, number: int) -> optuna.samplers.BaseSampler:
    """What chooses the settings of trial `number`: with a seed of its own, so that neither a study that goes on nor a
    process beside draws what was drawn before.
    """
    import optuna

    own = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    return optuna.samplers.TPESampler(n_startup_trials=FIRST, constant_liar=True, seed=own)


def _again(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    """What was interrupted is tried again, from its checkpoint."""
    kept = {PLACE: trial.user_attrs.get(PLACE, ""), WAY: trial.user_attrs.get(WAY, "")}
    study.enqueue_trial(trial.params, user_attrs=kept)


def take_up(study: optuna.Study, folder: Path) -> None:
    """What was interrupted and is nobody's is tried again, once; trials train in folders of `folder`."""
    import optuna

    states = optuna.trial.TrialState
    for trial in study.get_trials(deepcopy=False, states=(states.RUNNING,)):
        if trial.user_attrs.get(HELD) and _deserted(folder / str(trial.user_attrs.get(PLACE))):
            study.tell(trial.number, state=states.FAIL, skip_if_finished=True)
    trials = study.get_trials(deepcopy=False)
    taken = {one.user_attrs.get(PLACE) for one in trials if one.state != states.FAIL}
    for trial in trials:
        place = trial.user_attrs.get(PLACE, "")
        if trial.state == states.FAIL and place and place not in taken and (folder / place).is_dir():
            taken.add(place)
            _again(study, trial)


def _deserted(folder: Path) -> bool:
    """Is the process gone that trained there?"""
    try:
        with (folder / LOCK).open("wb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held; no such folder; a file system without locks
        return False
    return True


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """This process trains in `folder`, as long as it lives."""
    with (folder / LOCK).open("wb") as stream:
        with contextlib.suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
