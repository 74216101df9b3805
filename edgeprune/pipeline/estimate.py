"""What `run` will take, told by `plan`: seconds a stage, memory, disk.

Nothing is a fixed figure. `plan` has built and timed some networks on the device; here one forward and one training
step of the dense network are timed too, the reading of examples, and one narrowed network's repair and judgement, and
what every stage does is counted in these. What is not counted (solving, a noisy device that is waited for) makes a run
longer than its estimate, rarely shorter.
"""

from __future__ import annotations

import copy
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import nn

from edgeprune import latency, quantize
from edgeprune.engine import Session
from edgeprune.errors import EdgepruneError
from edgeprune.pipeline import workloads
from edgeprune.pipeline.recovery import REPAIR_EXAMPLES
from edgeprune.pipeline.rundir import RunDirectory, read_json, write_json
from edgeprune.pipeline.subject import Subject
from edgeprune.recipe import Recipe, SearchSection
from edgeprune.recover import same_steps
from edgeprune.search import Evaluator, stages
from edgeprune.stage import STEPS
from edgeprune.target import Target
from edgeprune.workload import Workload

FILE = "unit-costs.json"
WITHIN, TIMES = 0.25, 5  # seconds of one timed forward, and how often: the fastest counts, as on a quiet machine
AGAIN = 0.25  # of the table's networks are measured twice more, at most
MASK_BATCH = 64  # examples of a step of learning masks, at most
CLOSING, ANSWERS = 5, 2  # networks of closure, usually, and how many plans are judged for each
SIMPLER = 2  # plans of blocks alone and of widths alone
RIDGES = 1  # plan's worth: the ridge of each layer is chosen at the first one
NARROWED, JUDGED, A_WHILE = 0.3, 16, 1.0  # a plan that is tried: its share, on at most so many examples, seconds
READ = 32  # examples whose reading is timed
LIVE = 2  # tensors of every example of the search that are held at once: a layer's input and a shortcut
FLOAT_FILES, INT8_FILES = 7, 5  # copies of the weights that a run keeps: graphs, artifacts, bundle


@dataclass(frozen=True, kw_only=True)
class UnitCosts:
    """What `plan` measured.

    Attributes:
        forward, step: seconds an example, of the dense network in PyTorch: inference; one step of training with its
            teacher (None: it cannot be trained alone on so few examples).
        read: seconds to read an example.
        judged: seconds an example of the search to repair and judge one plan; None: it could not be tried.
        anew: seconds a plan more, whatever the examples, where its network has to be captured.
        network: seconds to build and time one network on the device.
        run: seconds an example on the device, FP32 and INT8 together; None where it has no clock.
        kept, largest: bytes an example that training keeps for its backward pass, and of the largest tensor among them.
        weights: bytes of the float weights.
        resident: bytes that this process has held at most, by now.
        train, test, selection: examples.
        load: busy processes a core meanwhile.
        widths, blocks: loss curves' points.
        stages: kinds of cut that the search corrects apart.
    """

    forward: float
    step: float | None
    read: float = 0.0  # (an older plan knows it not)
    judged: float | None = None
    anew: float = 0.0
    network: float
    run: float | None
    kept: int
    largest: int
    weights: int
    resident: int
    train: int
    test: int
    selection: int
    widths: int
    blocks: int
    stages: int = 1
    load: float


@dataclass(frozen=True)
class Estimate:
    """Seconds by step of the command line; bytes of memory and disk; bytes that are free there.

    Attributes:
        load: busy processes a core while it was measured; above 1 a quiet machine is faster.
    """

    seconds: Mapping[str, float]
    total: float
    memory: int
    disk: int
    free: int
    load: float


def measure(subject: Subject, target: Target, folder: Path, networks: int, seconds: float, run: float | None) -> None:
    """unit-costs.json: time one forward and one training step, beside what was timed already.

    Args:
        networks, seconds: how many were built and timed on the device, and how long that took.
        run: seconds an example there, FP32 and INT8 together.
    """
    work, structure = subject.workload, subject.structure
    one = workloads.examples(work, "train", 2)
    forward = _timed(lambda: _forward(subject.model, one)) / 2
    count = max(2, min(32, int(WITHIN / max(forward, 1e-6))))
    several = workloads.examples(work, "train", count)
    forward = min(forward, _timed(lambda: _forward(subject.model, several)) / count)
    steps = [_step(subject.model, several) for _ in range(TIMES - 2)]
    judged, anew = _judged(subject, forward) if subject.recipe.search.by_program else (None, 0.0)
    step, kept = min(steps, key=lambda one: one[0] or 0.0)
    allowed = latency.options(structure, target.channels)
    points = sum(min(len(widths) - 1, 4) for widths in allowed.values())
    found = UnitCosts(
        forward=forward,
        step=None if step is None else step / count + forward,
        read=_reading(work),
        judged=judged,
        anew=anew,
        network=seconds / max(1, networks),
        run=run,
        kept=sum(kept) // count,
        largest=max(kept, default=0) // count,
        weights=sum(p.numel() * p.element_size() for p in subject.model.parameters()),
        resident=_resident(),
        train=len(work.data.split("train")),
        test=len(work.data.split("test")),
        selection=len(work.data.split("selection")),
        widths=points,
        blocks=len(structure.blocks),
        stages=len({kind.rpartition(" ")[0] for kind in stages(structure).values()}),
        load=os.getloadavg()[0] / (os.cpu_count() or 1),
    )
    write_json(folder / FILE, asdict(found))


def estimate(recipe: Recipe, target: Target, run: RunDirectory, weights: Path | None) -> Estimate:
    """What is left to do, by what `plan` measured."""
    found = msgspec.convert(read_json(run.folder("plan") / FILE), UnitCosts)
    seconds = {step.name: 0.0 for step in STEPS}
    joint = recipe.search.by_program
    images, passes = min(recipe.quantize.images, found.train), sum(quantize.RUNS.values())
    calibrating = images * (passes * found.forward + found.read)
    seconds["profile"] = calibrating  # of the dense network, before its table
    if joint:
        seconds["profile"] += found.network * (sum(latency.QUICK_NETWORKS) * (1 + 2 * AGAIN) + 3)
    seconds["prune"] = _searching(found, recipe.search, joint, target) + _training(found, recipe, weights)
    seconds["calibrate"] = calibrating
    seconds["export"] = 4 * found.network
    seconds["validate"] = found.test * (2 * _on_device(found) + found.read) + 2 * _timed_runs(target) * _on_device(
        found
    )
    held = found.weights * (FLOAT_FILES + INT8_FILES / 4)
    examples = max(found.kept * _batch(recipe), LIVE * found.largest * recipe.search.images)
    memory = found.resident + examples + 4 * found.weights  # gradients, momentum, averages, the teacher
    free = shutil.disk_usage(run.path).free
    return Estimate(seconds, sum(seconds.values()), int(memory), int(held), free, found.load)


def _on_device(found: UnitCosts) -> float:
    """Seconds an example on the device, FP32 and INT8 together."""
    return found.run if found.run is not None else 2 * found.forward


def _timed_runs(target: Target) -> int:
    """Runs of one network under the target's protocol."""
    protocol = target.protocol
    return protocol.warmup_runs * protocol.processes + protocol.runs * protocol.rounds


def _searching(found: UnitCosts, search: SearchSection, joint: bool, target: Target) -> float:
    """Loss curves from the changed layer on (half the network), plans repaired and judged, networks of closure."""
    if not joint:
        return found.network * 6
    curves = (found.widths + found.blocks) * 0.5 * search.images * found.forward
    if search.method == "learned":
        step = found.step if found.step is not None else 4 * found.forward
        curves = search.mask_steps * MASK_BATCH * (step + found.forward + found.read)
    judged = found.judged if found.judged is not None else 3 * found.forward
    plans: float = (
        search.rounds + (search.rounds - 1) * found.stages + SIMPLER + search.trials + RIDGES + CLOSING * ANSWERS
    )
    closing = CLOSING * found.network + 2 * _timed_runs(target) * _on_device(found)
    plans *= search.images * judged + found.anew
    return curves + plans + search.images * (found.forward + found.read) + closing


def _training(found: UnitCosts, recipe: Recipe, weights: Path | None) -> float:
    """Repair, scores on the selection split, and the training that the recipe asks for."""
    options, once = recipe.recover, found.selection * (found.forward + found.read)
    examples = max(REPAIR_EXAMPLES, recipe.search.images)
    repair = examples * (2 * found.forward if found.judged is None else found.judged)
    step = found.step if found.step is not None else 4 * found.forward
    train = options.epochs * (found.train * (step + found.read) + once)
    before = options.sparsity_epochs * found.train * (step + found.read) if options.sparsity != "none" else 0.0
    if options.hours:
        train = min(train, 3600 * options.hours)
    return repair + 4 * once + (0.0 if weights is not None else before + train)


def _batch(recipe: Recipe) -> int:
    """Examples that training holds at once."""
    options = recipe.recover
    return (options.micro_batch or options.batch) if options.epochs else 0


def _forward(network: nn.Module, examples: workloads.Examples) -> Any:
    if isinstance(examples, torch.Tensor):
        return network(examples)
    return network(**examples) if isinstance(examples, dict) else network(*examples)


def _tensors(outputs: Any) -> list[torch.Tensor]:
    """All tensors that a forward gave."""
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    listed = outputs if isinstance(outputs, tuple | list) else [outputs]
    return [one for part in listed for one in (_tensors(part) if not isinstance(part, torch.Tensor) else [part])]


def _reading(work: Workload) -> float:
    """Seconds to read a test example, as one that has been read before."""
    count = min(READ, len(work.data.split("test")))
    began = time.perf_counter()
    workloads.examples(work, "test", count)
    return (time.perf_counter() - began) / count


def _judged(subject: Subject, forward: float) -> tuple[float | None, float]:
    """Seconds an example to repair and judge one narrowed network (None: it cannot be), and to capture it."""
    count = max(4, min(JUDGED, int(A_WHILE / (3 * max(forward, 1e-6))), len(subject.workload.data.split("train"))))
    try:
        examples = workloads.examples(subject.workload, "train", count)
        session = Session(subject.model, examples, distance=subject.distance, capture=subject.capture)
        plan = subject.structure.uniform(NARROWED)
        session.ridges.update((layer.name, 1.0) for layer in session.layers)  # chosen once a run: no part of a plan's
        judge = Evaluator(subject.structure, session)
        began = time.perf_counter()
        same_steps(session, subject.structure, plan)
        captured = time.perf_counter()
        judge(plan)
    except (EdgepruneError, RuntimeError, ValueError):  # the stage that needs it says so
        return None, 0.0
    anew = captured - began
    return max(0.0, time.perf_counter() - captured - anew) / count, anew


def _timed(run: Callable[[], object]) -> float:
    """Seconds of the fastest call after the first, which makes caches."""
    found = []
    with torch.inference_mode():
        run()
        for _ in range(TIMES):
            began = time.perf_counter()
            run()
            found.append(time.perf_counter() - began)
    return min(found)


def _step(network: nn.Module, examples: workloads.Examples) -> tuple[float | None, list[int]]:
    """Seconds of one forward and backward pass, and the bytes of each tensor that is kept between them."""
    student, kept = copy.deepcopy(network).train(), dict[int, int]()
    own = {p.data_ptr() for p in student.parameters()}
    for parameter in student.parameters():
        parameter.requires_grad_(parameter.is_floating_point())

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    began = time.perf_counter()
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            outputs = _tensors(_forward(student, examples))
            sum(one.float().mean() for one in outputs if one.is_floating_point()).backward()  # type: ignore[union-attr]
    except (RuntimeError, ValueError, AttributeError):  # batch norms of one value a channel, outputs without gradients
        return None, []
    return time.perf_counter() - began, list(kept.values())


def _resident() -> int:
    """Bytes that this process has held at most."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
