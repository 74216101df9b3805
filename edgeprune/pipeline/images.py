"""Every artifact's outputs on the test examples, a batch at a time: what is kept of them are the task's statistics.

On a real device, all of them there. An emulated core is slow, so there the exact pre-check on this machine does all
examples, and the true runtime as many as it can in a few minutes; those outputs count in place of the pre-check's,
and how far the two agree is part of the result.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeprune import devices
from edgeprune.devices import Artifact, Device, Loaded
from edgeprune.model import Ends
from edgeprune.pipeline.bench import Bench
from edgeprune.pipeline.events import Voice
from edgeprune.pipeline.subject import Subject
from edgeprune.result import Emulated, quantity
from edgeprune.validate import ExampleIds, Judge
from edgeprune.workload import Task, Workload, decoders, item

CHUNK, CHUNK_BYTES = 500, 128 << 20  # examples at once, and bytes of their inputs or of one artifact's outputs
FIRST = 8  # examples of which an example's bytes are learned
EMULATED_CHUNK = 50
RELEASED, RELEASED_S, OTHERS_S = "pruned-int8", 240.0, 40.0  # patience with an emulated core; at least one chunk
CLOSE = 0.02  # of an example's full scale, in the mean: five steps of INT8

Array = NDArray[Any]
Batch = tuple[tuple[Array, ...], list[Any]]  # one array [N, ...] an input, N targets


@dataclass(frozen=True)
class Outputs:
    """What came of the test examples.

    Attributes:
        judges: artifact -> what its outputs leave for the task.
        emulated: artifact -> what the true runtime did under emulation; empty on a real device.
        ids: [N], a hash of each example: two runs with the same ones were judged on the same examples.
    """

    judges: dict[str, Judge]
    emulated: dict[str, Emulated]
    ids: ExampleIds


def run(
    subject: Subject, bench: Bench, voice: Voice, artifacts: Mapping[str, Artifact], loaded: Mapping[str, Loaded]
) -> Outputs:
    """The outputs of every artifact on the test split, judged by the task."""
    core, ids = devices.emulated_core(bench.target, bench.name), ExampleIds()
    if not core:
        return Outputs(_everything(subject, voice, bench.device, loaded, ids), {}, ids)
    judges: dict[str, Judge] = {}
    found: dict[str, Emulated] = {}
    with (
        devices.connect(bench.target, "local") as here,
        devices.connect(bench.target, f"qemu-user://{core}") as there,
    ):
        runtime = f"{bench.target.runtime} {there.runtime_version}, {core} under qemu-user"
        for name, artifact in artifacts.items():
            judges[name], found[name] = _both(subject, voice, here, there, artifact, runtime)
            voice.say("validate", f"{name}: {in_words(found[name], judges[name].examples)}")
    for inputs, targets in batches(subject.workload):
        ids.add(inputs, targets)
    return Outputs(judges, found, ids)


def judge(work: Workload, ends: Ends | None = None) -> Judge:
    """Nothing judged yet; `ends`: of the artifact whose outputs they will be."""
    return Judge(read_as(work.task, ends), work.data.names)


def read_as(task: Task, ends: Ends | None) -> Task:
    """The task of what an artifact gives, where that are boxes and not the head that the task decodes."""
    if ends is None or ends.output != "nms":
        return task
    made: Task = replace(task, decode=decoders.EndToEnd())  # type: ignore[type-var]
    return made


def batches(workload: Workload, start: int = 0, size: int = 0) -> Iterator[Batch]:
    """Test examples from `start` on, in their order; `size` 0: as many at once as fit CHUNK_BYTES."""
    test = workload.data.split("test")
    each = sum(max(1, int(np.prod(part.shape))) * np.dtype(part.dtype).itemsize for part in workload.inputs.parts)
    size = size or max(1, min(CHUNK, CHUNK_BYTES // each))
    for first in range(start, len(test), size):
        yield some(workload, range(first, min(first + size, len(test))))


def some(workload: Workload, places: Sequence[int], split: str = "test") -> Batch:
    """These examples of a split."""
    items = [item(workload.data.split(split), place, split) for place in places]
    return workload.inputs.batch([inputs for inputs, _ in items], places[0]), [target for _, target in items]


def infer(device: Device, loaded: Loaded, subject: Subject, inputs: tuple[Array, ...]) -> tuple[Array, ...]:
    """All outputs [N, ...] of a batch of the network's inputs, as a tuple; several inputs go by their names.

    The artifact is fed what it takes: bytes, where [export] says so.
    """
    fed = subject.ends.fed(inputs)
    given: Any = fed[0] if len(fed) == 1 else dict(zip(subject.workload.inputs.names, fed, strict=True))
    return tuple(device.infer(loaded, given))


def unproven(path: Path) -> list[str]:
    """What in an INT8 graph may give other bits on ARM than in the pre-check; empty: every bit must be the same."""
    import onnx

    from edgeprune.devices import precheck

    return list(precheck.unproven(onnx.load(path)))


def in_words(found: Emulated, examples: int) -> str:
    """One sentence on what the true runtime did under emulation."""
    scored, what = "", "examples" if found.same_class is None else "images"
    if found.score is not None:
        low, high = (quantity(one, found.score.unit) for one in (found.score.low, found.score.high))
        scored = f"{found.score.metric} {found.score.text}, 95 % interval {low} to {high}; "
    same = (
        f"within {100 * CLOSE:.0f} % of full scale of the pre-check on {100 * (found.close or 0):.2f} % of them"
        if found.same_class is None
        else f"the same class as the pre-check on {100 * found.same_class:.2f} % of them"
    )
    return (
        f"{found.images:,} of {examples:,} test {what} on the true runtime ({found.runtime}): {scored}{same}, "
        f"the same bits on {100 * found.same_bits:.2f} %"
    )


def _everything(
    subject: Subject, voice: Voice, device: Device, loaded: Mapping[str, Loaded], ids: ExampleIds
) -> dict[str, Judge]:
    """All examples through all artifacts."""
    found = {name: judge(subject.workload, subject.ends) for name in loaded}
    total, report = len(subject.workload.data.split("test")), voice.progress("validate")
    for inputs, targets in batches(subject.workload):
        ids.add(inputs, targets)
        for name, one in loaded.items():
            for part, wanted in _parts(inputs, targets, found[name]):
                found[name].add(infer(device, one, subject, part), wanted)
        report(next(iter(found.values())).examples, total, "test examples")
    return found


def _parts(inputs: tuple[Array, ...], targets: list[Any], so_far: Judge) -> Iterator[Batch]:
    """A batch in pieces whose outputs fit CHUNK_BYTES, by what an example has given so far."""
    start = 0
    while start < len(targets):
        size = max(1, min(CHUNK, CHUNK_BYTES // max(1, so_far.bytes_each))) if so_far.examples else FIRST
        yield tuple(column[start : start + size] for column in inputs), targets[start : start + size]
        start += size


def _both(
    subject: Subject, voice: Voice, here: Device, there: Device, artifact: Artifact, runtime: str
) -> tuple[Judge, Emulated]:
    """One artifact: the true runtime on the first examples, as many as its time allows; the pre-check on all."""
    work = subject.workload
    report, everything = voice.progress("validate"), judge(work, subject.ends)
    total = len(work.data.split("test"))
    agreement, checked, true = _Agreement(), here.load(artifact), there.load(artifact)
    end, done = time.monotonic() + (RELEASED_S if artifact.name == RELEASED else OTHERS_S), 0
    on_it = judge(work, subject.ends)
    for inputs, targets in batches(work, 0, EMULATED_CHUNK):
        given = on_it.add(infer(there, true, subject, inputs), targets)
        agreement.add(given, infer(here, checked, subject, inputs), on_it.task)
        everything.add(given, targets)
        done += len(targets)
        report(done, total, f"{artifact.name} on the emulated core")
        if time.monotonic() >= end:
            break
    there.unload(true)
    for inputs, targets in batches(work, done):
        for part, wanted in _parts(inputs, targets, everything):
            everything.add(infer(here, checked, subject, part), wanted)
        report(everything.examples, total, f"{artifact.name}, pre-check")
    scored = on_it.network()
    return everything, Emulated(
        runtime=runtime,
        images=done,
        accuracy=scored.accuracy,
        correct=scored.correct,
        low=scored.low,
        high=scored.high,
        score=scored.score,
        unproven=tuple(unproven(next(iter(artifact.files.values())))) if artifact.precision == "int8" else None,
        same_class=agreement.same_class,
        same_bits=float(np.concatenate(agreement.bits).mean()),
        close=float(np.concatenate(agreement.close).mean()),
        max_error=agreement.worst,
    )


@dataclass
class _Agreement:
    """How far two runtimes give the same, example by example."""

    bits: list[Array] = field(default_factory=list)
    close: list[Array] = field(default_factory=list)
    classes: list[Array] = field(default_factory=list)
    worst: float = 0.0

    def add(self, true: Sequence[Any], checked: Sequence[Any], task: Any) -> None:
        same, near = np.ones(len(true[0]), bool), np.ones(len(true[0]), bool)
        for one, other in zip(true, checked, strict=True):
            one, other = (np.asarray(output).reshape(len(output), -1) for output in (one, other))
            same &= ((one == other) | ((one != one) & (other != other))).all(axis=1)
            apart = np.abs(one.astype(np.float64) - other.astype(np.float64))
            near &= apart.mean(axis=1) <= CLOSE * np.abs(other.astype(np.float64)).max(axis=1)
            self.worst = max(self.worst, float(np.nan_to_num(apart, nan=0.0).max()))
        self.bits.append(same)
        self.close.append(near)
        mine, others = (getattr(task, "answers", lambda _: None)(tuple(outputs)) for outputs in (true, checked))
        if mine is not None and others is not None:
            self.classes.append((mine == others) & (others >= 0))

    @property
    def same_class(self) -> float | None:
        return float(np.concatenate(self.classes).mean()) if self.classes else None


def samples(work: Workload, count: int) -> tuple[tuple[Array, ...], list[Any]]:
    """Test examples that travel in the bundle: of as many classes as can be, or spread over the split."""
    test = work.data.split("test")
    labels = getattr(getattr(test, "split", None), "labels", None)
    places = [int(place) for place in np.linspace(0, len(test) - 1, min(count, len(test)))]
    if labels is not None:
        seen: dict[int, int] = {}
        turns = []
        for label in np.asarray(labels).tolist():
            turns.append(seen.get(label, 0))
            seen[label] = turns[-1] + 1
        places = np.argsort(np.array(turns, np.int64), kind="stable")[:count].tolist()
    return some(work, places)
