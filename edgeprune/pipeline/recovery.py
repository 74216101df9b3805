"""Accuracy won back: training before the cut if asked for, least-squares repair, edgeprune's training or the user's."""

from __future__ import annotations

import copy
import functools
import inspect
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn

from edgeprune import files, graph
from edgeprune.errors import ModelError, ProofError, RecipeError
from edgeprune.model import digest, usercode
from edgeprune.pipeline import tracking, workloads
from edgeprune.pipeline.companions import Companions
from edgeprune.pipeline.events import Progress, Voice
from edgeprune.pipeline.rundir import RunDirectory, write_json
from edgeprune.pipeline.subject import Subject
from edgeprune.recipe import Recipe, RecoverSection
from edgeprune.recover import REBUILD, Job, Penalty, process_count, process_number, rebuild_script, take_weights
from edgeprune.workload import Task, Workload, score_batches

REPAIR_EXAMPLES = 512  # at least
SPARSE = "sparse"  # for the checkpoint of the training before the cut
MOST_LOGGED = 10_000  # entries of a trainer's own log that the report may draw; events.jsonl has all
Log = Callable[[dict[str, object]], None]
CHUNK, LARGEST = 256, 1 << 24  # examples at once, and numbers where they are large


def recover(
    subject: Subject, run: RunDirectory, voice: Voice, weights: Path | None, group: Companions | None, folder: Path
) -> None:
    """weights.safetensors, plan.json, recover.json in `folder`."""
    from edgeprune.recover import checkpoint

    plan = graph.Plan.load(run.folder("search") / "plan.json")
    uncut, work, before = subject.model, subject.workload, dict[str, object]()
    scores = {"dense": score(work, uncut)}
    if _sparsifies(subject.recipe.recover, weights):
        uncut, found = _before_cut(subject, voice, plan, folder)
        before = {"sparsity": found}
    student = plan.apply(uncut)
    scores["pruned"] = score(work, student)
    voice.say("recover", f"held-out {shown(work, scores['dense'])} dense, {shown(work, scores['pruned'])} pruned")
    student = repaired(subject, plan, student, uncut)
    scores["repaired"] = score(work, student)
    voice.say("recover", f"repaired by least squares: {shown(work, scores['repaired'])}")
    graph.save_pruned(folder, student, plan)  # kept where training fails
    section = subject.recipe.model
    factory = "" if subject.objects is not None else section.factory
    files.write_text(folder / REBUILD, rebuild_script(factory, section.arguments, _base(subject.recipe)))
    training, how = _trained(subject, voice, weights, group, student, folder)
    scores["trained"] = score(work, student)
    voice.say("recover", f"{how}: {shown(work, scores['trained'])}")
    worse = (
        scores["repaired"] - scores["trained"] if work.task.higher_is_better else scores["trained"] - scores["repaired"]
    )
    if "trainer" in training and worse > 0:
        voice.say("recover", "training left it worse than it was after the repair, by the selection split")
    graph.save_pruned(folder, student, plan)
    selection = _fractions(work.task, scores)
    write_json(folder / "recover.json", {"selection_accuracy": selection, "training": training, **before})
    checkpoint.forget(folder)  # not before: a run that is killed here would train anew
    shutil.rmtree(folder / SPARSE, ignore_errors=True)


def _sparsifies(options: RecoverSection, weights: Path | None) -> bool:
    """Is there training before the cut? Not where trained weights are handed in: they would replace it."""
    return options.sparsity != "none" and weights is None


def _check_sparsity(subject: Subject, weights: Path | None) -> None:
    """Training before the cut must be edgeprune's own, in one process: said before any work. Raises RecipeError."""
    from edgeprune.recover import process_count

    options = subject.recipe.recover
    if not _sparsifies(options, weights):
        return
    if trainer_of(subject) is not None:
        raise RecipeError(
            f'[recover] sparsity = "{options.sparsity}" is of edgeprune\'s own training; here a trainer of your own '
            "takes its place.",
            'Use sparsity = "none", or leave the trainer out.',
        )
    if process_count() > 1:
        raise RecipeError(
            f'[recover] sparsity = "{options.sparsity}" trains in one process; torchrun started {process_count()}.',
            'Use sparsity = "none", or start it without torchrun.',
        )
    if not options.sparsity_epochs or not options.sparsity_strength:
        raise RecipeError(
            f'[recover] sparsity = "{options.sparsity}" with sparsity_epochs or sparsity_strength = 0 does nothing.',
            'Use sparsity = "none", or give both more than 0.',
        )


def _before_cut(subject: Subject, voice: Voice, plan: graph.Plan, folder: Path) -> tuple[nn.Module, dict[str, object]]:
    """The dense network, trained so that what `plan` takes away is nearly nothing, and what is told of it.

    `folder`: the stage's; the checkpoint in it stays until the stage is whole.
    """
    from edgeprune.recover import Penalty

    own, network = subject.recipe.recover, copy.deepcopy(subject.model)
    # Its rate must not fall while the penalty rises, and an average would lag behind it.
    options = msgspec.structs.replace(
        own, epochs=own.sparsity_epochs, hours=0.0, patience=0, schedule="constant", ema=0.0
    )
    penalty = Penalty(network, subject.structure, plan, own.sparsity, own.sparsity_strength)
    before = penalty.size()
    progress = voice.progress("recover")
    log = functools.partial(voice.track, "recover")
    found = trained(subject, options, progress, log, network, folder / SPARSE, penalty)
    left = penalty.size() / max(before, 1e-30)
    proof = subject.structure.prove(network, plan)
    if not proof.passed:
        raise ProofError(
            f"the network trained before the cut does not compute what it must (error {proof.max_error:.2g}). "
            f"{proof.detail}",
            "This is a defect of edgeprune: please report it with the network.",
        )
    dense, uncut = (score(subject.workload, one) for one in (subject.model, network))
    voice.say(
        "recover",
        f"trained before the cut, {own.sparsity} growing: what goes is {100 * left:.1f} % of its size; "
        f"held-out {shown(subject.workload, uncut)} uncut, {shown(subject.workload, dense)} before it",
    )
    return network, {"kind": own.sparsity, "left": left, "dense": dense, "score": uncut, "training": found}


def repaired(subject: Subject, plan: graph.Plan, student: nn.Module, uncut: nn.Module | None = None) -> nn.Module:
    """The pruned network with each layer fitted to what the network before the cut computes; where training begins.

    `uncut`: that network; None: the dense one.
    """
    from edgeprune.recover import repair

    count = max(REPAIR_EXAMPLES, subject.recipe.search.images)
    examples = workloads.examples(subject.workload, "train", count)
    if uncut is None or uncut is subject.model:
        return repair(subject.model, student, subject.structure, plan, examples, session=subject.session)
    return repair(uncut, student, subject.structure, plan, examples)


def _trained(
    subject: Subject, voice: Voice, weights: Path | None, group: Companions | None, student: nn.Module, folder: Path
) -> tuple[dict[str, object], str]:
    """Train `student` in place, by whatever the user asked for; what is kept of it, and a word for people."""
    if weights is not None:
        found, notes = take_weights(student, weights)
        for note in notes:
            voice.say("recover", note)
        return found, f"trained outside, from {weights.name}"
    trainer = trainer_of(subject)
    if trainer is not None:
        return _own(subject, voice, group, trainer, student, folder), "trained by your own trainer"
    found = _built_in(subject, voice, group, student, folder)
    return found, "fine-tuned" if subject.recipe.recover.epochs else "not trained ([recover] epochs = 0)"


def _fractions(task: Task, scores: dict[str, float]) -> dict[str, float]:
    """Accuracies as fractions, as they always were; other metrics in their own unit."""
    return {name: one / 100 for name, one in scores.items()} if workloads.is_top_class(task) else scores


def score(work: Workload, network: nn.Module) -> float:
    """The metric on the selection split, in PyTorch, in its own unit; for choosing. Gates measure on the device."""
    was = network.training
    network.eval()
    numbers = sum(int(np.prod(part.shape)) for part in work.inputs.parts)
    size = CHUNK if workloads.is_top_class(work.task) else max(1, min(CHUNK, LARGEST // max(1, numbers)))

    def outputs() -> Any:
        for batch, targets in work.data.batches("selection", work.inputs, size):
            with torch.no_grad():
                yield work.inputs.call(network, batch), targets

    try:
        return score_batches(work.task, outputs()).value
    finally:
        network.train(was)


def shown(work: Workload, value: float) -> str:
    """A figure with its metric and unit."""
    return f"{work.task.metric} {value:.4g} {work.task.unit}".rstrip()


def _built_in(
    subject: Subject, voice: Voice, group: Companions | None, student: nn.Module, folder: Path
) -> dict[str, object]:
    """edgeprune's own training."""
    _together(group, folder)
    log = functools.partial(voice.track, "recover")
    return trained(subject, subject.recipe.recover, voice.progress("recover"), log, student, folder)


def briefly(subject: Subject, voice: Voice, student: nn.Module, folder: Path, epochs: float) -> None:
    """Train a network that is only tried, for so many epochs and no longer; in place."""
    options = msgspec.structs.replace(subject.recipe.recover, epochs=epochs)
    trained(subject, options, voice.progress("search"), None, student, folder)


def trained(
    subject: Subject,
    options: RecoverSection,
    progress: Progress,
    log: Log | None,
    student: nn.Module,
    folder: Path,
    penalty: Penalty | None = None,
) -> dict[str, object]:
    """Train `student` in place as the recipe has it, but for `options`; `log` hears the numbers. Raises as `train`."""
    from edgeprune.recover import train

    work, split = subject.workload, split_of(subject)
    return train(
        student,
        [copy.deepcopy(subject.model), *_teachers(subject.recipe, options)],
        split("train"),
        split("selection"),
        options,
        folder,
        task=work.task,
        inputs=work.inputs,
        augment=subject.recipe.data.augment,
        workers=subject.recipe.data.workers,
        progress=progress,
        log=log,
        penalty=penalty,
    ).to_dict()


def _together(group: Companions | None, folder: Path) -> None:
    """Where torchrun started several processes: let the others train too."""
    if group is not None:
        group.train(folder)


def assist(subject: Subject, voice: Voice, group: Companions | None, place: Path, folder: Path) -> None:
    """What a process but 0 does when process 0 trains: the same training, of which process 0 keeps the outcome.

    Args:
        place: holds plan.json and weights.safetensors of the repaired network; this process's own.
        folder: process 0's, as a trainer of the user's own is told it.
    """
    student = graph.load(place, subject.factory)
    trainer = trainer_of(subject)
    if trainer is not None:
        _own(subject, voice, group, trainer, student, folder)
    else:
        _built_in(subject, voice, group, student, place)


def _images(subject: Subject) -> bool:
    """Are the examples images of classes that edgeprune reads, augments and keeps in memory itself?"""
    return subject.pictured and workloads.is_top_class(subject.task)


def split_of(subject: Subject) -> Callable[[str], Any]:
    """A split by its name, as `train` takes it."""
    if _images(subject):
        return lambda name: getattr(subject.data, name)
    return subject.workload.data.split


def _teachers(recipe: Recipe, options: RecoverSection) -> list[nn.Module]:
    """The networks of `options`' teachers, in eval mode; raises ModelError."""
    base, found = _base(recipe), []
    for spec in options.teachers:
        what = f"[recover] teachers: {spec}"
        teacher = usercode.call(usercode.load_callable(spec, "[recover] teachers", base), what, ModelError)
        if not isinstance(teacher, nn.Module):
            raise ModelError(f"{what}() gave {type(teacher).__name__}, not a torch.nn.Module.")
        found.append(teacher.eval())
    return found


def check(subject: Subject, weights: Path | None) -> None:
    """What [recover] needs must be here: said before any work.

    Raises:
        RecipeError, ModelError, DataError: see `recover.check`. MissingDependency: see `tracking.check`.
    """
    from edgeprune.recover import device_kind

    tracking.check(subject.recipe)
    _check_sparsity(subject, weights)
    if trainer_of(subject) is not None:
        device_kind(subject.recipe.recover)
        if subject.recipe.data.augment:
            raise RecipeError(
                "[data] augment is of edgeprune's own training; your trainer reads the examples as they are.",
                "Augment in the trainer, and leave it out.",
            )
    elif weights is None and (subject.recipe.recover.epochs or _sparsifies(subject.recipe.recover, weights)):
        check_training(subject, subject.recipe.recover)


def check_training(subject: Subject, options: RecoverSection) -> None:
    """Can edgeprune's own training work with these settings? Trains nothing. Raises as `check`."""
    from edgeprune import recover as training
    from edgeprune.recover import augment, mixing

    names = subject.recipe.data.augment
    if not _images(subject):
        mixing.check_inputs(names, subject.workload.inputs)
    channels = subject.recipe.model.input[0] if _images(subject) and subject.recipe.model.input else 3
    augment.check(names, options.label_weight > 0, channels)
    training.check(options, subject.model, _teachers(subject.recipe, options), subject.example, subject.task)


def _own(
    subject: Subject,
    voice: Voice,
    group: Companions | None,
    trainer: Callable[[Job], Any],
    student: nn.Module,
    folder: Path,
) -> dict[str, object]:
    """The user's training; what comes back must be the network that was planned. Raises ModelError."""
    from edgeprune.recover import device_kind, options_of, own_training

    work, options = subject.workload, subject.recipe.recover
    history: list[dict[str, float]] = []

    def log(numbers: Mapping[str, object]) -> None:
        voice.track("recover", numbers)
        if len(history) < MOST_LOGGED:
            history.append({key: value for key, value in numbers.items() if isinstance(value, int | float)})

    _together(group, folder)
    job = Job(
        student=student,
        teacher=copy.deepcopy(subject.model).eval(),
        data=work.data,
        inputs=work.inputs,
        task=work.task,
        options=options_of(options),
        folder=folder,
        say=lambda line: voice.say("recover", line),
        log=log,
        epochs=options.epochs,
        hours=options.hours,
        seed=options.seed,
        device=device_kind(options),
        process=process_number(),
        processes=process_count(),
    )
    name = own_training(trainer, job, options.trainer_hours)
    return {"trainer": name, **({"history": history} if history else {})}


def trainer_of(subject: Subject) -> Callable[[Job], Any] | None:
    """The user's trainer, handed over or named by [recover] trainer; None: edgeprune's own training."""
    if subject.objects is not None and subject.objects.trainer is not None:
        return subject.objects.trainer
    spec = subject.recipe.recover.trainer
    return usercode.load_callable(spec, "[recover] trainer", _base(subject.recipe)) if spec else None


def facts(subject: Subject, weights: Path | None) -> list[Any]:
    """What recovery depends on beside [recover]: the trainer's source, the other teachers' weights, and weights that
    were trained elsewhere.
    """
    trainer = trainer_of(subject)
    source = ""
    if trainer is not None:
        try:
            source = inspect.getsource(inspect.getmodule(inspect.unwrap(trainer)) or inspect.unwrap(trainer))
        except (OSError, TypeError):
            source = getattr(trainer, "__qualname__", type(trainer).__name__)
    others = taught_by(subject.recipe, subject.recipe.recover) if trainer is None and weights is None else []
    return [*subject.trainer, source, others, files.sha256(weights) if weights is not None else ""]


def taught_by(recipe: Recipe, options: RecoverSection) -> list[str]:
    """A digest of each network that teaches beside the dense one; raises ModelError."""
    return [digest(teacher) for teacher in _teachers(recipe, options)]


def _base(recipe: Recipe) -> Path | None:
    return Path(recipe.path).parent if recipe.path else None
