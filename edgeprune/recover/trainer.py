"""The user's own training: in this process as a callable, or anywhere, with weights that come back as a file.

Whatever comes back is held against what was planned: names, shapes, numbers. The repaired weights stay where a trainer
fails, so that nothing has to be searched again.
"""

from __future__ import annotations

import contextlib
import copy
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from edgeprune import files
from edgeprune.errors import EdgepruneError, ModelError
from edgeprune.model import assign, read_checkpoint, short
from edgeprune.recipe import RecoverSection
from edgeprune.workload import Data, Inputs, Task

REBUILD = "rebuild.py"


@dataclass(frozen=True, eq=False)
class Job:
    """What a trainer of the user's own gets: `trainer(job) -> network`, or None where it trained the student in place.

    Attributes:
        student: the pruned network, repaired; its modules and shapes must stay.
        teacher: the dense network, in eval mode.
        data: the splits; `train` to learn from, `selection` to choose by. `test` is not for training.
        inputs: `inputs.call(network, batch)` runs a batch of `data.batches(split, inputs)`.
        task: with `distance(reference, outputs) -> [batch]` and `loss(outputs, targets)`.
        options: [recover], as plain data.
        folder: for checkpoints; it is kept where the run is interrupted.
        say: one line for the user.
        log: numbers by name, for events.jsonl.
        epochs, hours, seed: of [recover]; hours 0: no limit.
        device: "cpu", "cuda", ...: what [recover] device means here. The student comes on the CPU.
        process, processes: this one's number, and how many torchrun started. The trainer is called in each of them,
            with the same; what it gives in process 0 is taken, and process 0 alone writes to `folder`.
    """

    student: nn.Module
    teacher: nn.Module
    data: Data
    inputs: Inputs
    task: Task
    options: dict[str, object]
    folder: Path
    say: Callable[[str], None]
    log: Callable[[dict[str, object]], None]
    epochs: float
    hours: float
    seed: int
    device: str
    process: int = 0
    processes: int = 1


def options_of(options: RecoverSection) -> dict[str, object]:
    """[recover] as plain data."""
    found: dict[str, object] = msgspec.to_builtins(options)
    return found


def own_training(trainer: Callable[[Job], Any], job: Job, timeout_hours: float = 0.0) -> str:
    """Let the user's trainer train `job.student`; on the CPU and in eval mode afterwards. Returns the trainer's name.

    Raises:
        ModelError: it fails, takes longer than `timeout_hours` (0: no limit), or gives something that is not the
            network that was planned: other names or shapes, NaN; the student has its repaired weights again.
    """
    name = str(getattr(trainer, "__qualname__", type(trainer).__name__))
    student, repaired = job.student, copy.deepcopy(job.student.state_dict())
    pristine = copy.deepcopy(student)
    try:
        with _limited(timeout_hours, name):
            found = trainer(job)
        state = _checked(name, student if found is None else found, repaired, pristine, job)
    except BaseException as cause:
        _restore(student, repaired)
        if isinstance(cause, EdgepruneError | KeyboardInterrupt):
            raise
        raise ModelError(
            f"[recover] the trainer {name} failed: {short(cause)}.", "The repaired weights stay."
        ) from cause
    _restore(student, state)
    return name


def _restore(student: nn.Module, state: dict[str, torch.Tensor]) -> None:
    with contextlib.suppress(RuntimeError, NotImplementedError):
        student.cpu()  # a trainer may have changed the student itself
        student.load_state_dict(state)
    student.eval()


def _checked(
    name: str, trained: Any, planned: dict[str, torch.Tensor], pristine: nn.Module, job: Job
) -> dict[str, torch.Tensor]:
    """The trained state on the CPU, where it fits the plan."""
    if not isinstance(trained, nn.Module):
        raise ModelError(
            f"[recover] the trainer {name} gave {type(trained).__name__}.", "It gives the trained network, or None."
        )
    inner: Any = trained
    while isinstance(inner, nn.parallel.DistributedDataParallel | nn.DataParallel) or hasattr(inner, "_orig_mod"):
        inner = (
            inner._orig_mod if hasattr(inner, "_orig_mod") else inner.module
        )  # as torch wraps for processes, compile
    if any(value.is_meta for value in inner.state_dict().values()):
        raise ModelError(f"[recover] the trainer {name} left its weights on no device (meta).", "Load them first.")
    state = {key: value.detach().cpu() for key, value in inner.state_dict().items()}
    shapes = {key: value.shape for key, value in planned.items()}
    wrong = sorted(key for key in {*shapes, *state} if key not in state or shapes.get(key) != state[key].shape)
    if wrong:
        raise ModelError(
            f"[recover] the trainer {name} gave another network: {wrong[0]} is missing, new or of another shape.",
            "Train job.student; its modules, names and shapes must stay.",
        )
    kinds = {key: type(module) for key, module in pristine.named_modules()}
    other = next((key for key, module in inner.named_modules() if kinds.get(key) is not type(module)), None)
    if other is not None:
        raise ModelError(
            f"[recover] the trainer {name} gave another network: '{other}' is of another class.",
            "Train job.student; its modules, names and shapes must stay.",
        )
    bad = next((key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()), "")
    if bad:
        raise ModelError(f"[recover] the trainer {name} left NaN or infinity in {bad}.", "Lower its learning rate.")
    return state


class _TooLong(BaseException):
    """Not an Exception: a trainer that catches those must not catch this."""


@contextlib.contextmanager
def _limited(hours: float, name: str) -> Iterator[None]:
    """Interrupt the block after so many hours, again every five seconds; only the main thread can be interrupted."""
    if not hours or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: Any) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 3600 * hours, 5.0)
    try:
        yield
    except _TooLong:
        raise ModelError(
            f"[recover] the trainer {name} had not ended after {hours:g} hours, its [recover] trainer_hours.",
            "Give it longer, or let it stop by job.hours. The repaired weights stay.",
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def take_weights(student: nn.Module, path: Path) -> tuple[dict[str, object], tuple[str, ...]]:
    """Load weights that were trained elsewhere into `student`; what is said of them, and notes for the user.

    Raises:
        ModelError: they cannot be read, are of another network, or are not finite.
    """
    remedy = ""
    try:
        read = read_checkpoint(path)
        remedy = "They must be of this run's pruned network: prune --until recover leaves a script that rebuilds it."
        notes = (*read.notes, *assign(student, read.state, path.name))
    except ModelError as cause:
        raise ModelError(cause.message.replace("[model] weights", "--weights", 1), remedy or cause.remedy) from None
    notes = tuple(note.replace("[model] weights", "--weights", 1) for note in notes)
    for name, value in student.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ModelError(f"{path}: {name} has values that are NaN or infinite.", "Train again.")
    student.eval()
    return {"trainer": "trained outside", "weights": path.name, "sha256": files.sha256(path)}, tuple(notes)


def rebuild_script(factory: str, arguments: Mapping[str, object], base: Path | None = None) -> str:
    """A script that rebuilds the pruned network from the user's own factory; it needs no more than edgeprune.load.

    Args:
        factory: as [model] names it; empty: it was handed over in Python, and is handed to the script's `student` too.
        arguments: of the factory.
        base: the recipe's folder, where its paths begin too.
    """
    lines, given = ["import importlib"], ""
    if not factory:
        lines, given = [], "factory"
    elif (place := factory.rpartition(":")[0]).endswith(".py"):
        file = next((path for path in (Path(place), (base or Path()) / place) if path.is_file()), Path(place)).resolve()
        lines += ["import sys"]
        lines += ["", f"sys.path.insert(0, {str(file.parent)!r})  # where {file.name} is; change it on another machine"]
        module = file.stem
    else:
        module = place
    if factory:
        made = f"importlib.import_module({module!r}).{factory.rpartition(':')[2]}"
        if arguments:
            made = f"functools.partial({made}, **{dict(arguments)!r})"
            lines.insert(0, "import functools")
            lines = ["import datetime", *lines] if "datetime." in made else lines
        lines += [f"factory = {made}"]
    found = "\n".join(lines)
    return f'''"""Train the pruned network anywhere: this rebuilds it; bring the weights back with --weights."""

{found}
from pathlib import Path

import edgeprune
from safetensors.torch import save_file

here = Path(__file__).resolve().parent


def student({given}):
    """The pruned network with its repaired weights: your own class, narrowed by plan.json."""
    return edgeprune.load(here, factory)


def save(network, path="trained.safetensors"):
    """Then: edgeprune TARGET run RECIPE --weights trained.safetensors"""
    save_file({{name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}}, path)
'''
