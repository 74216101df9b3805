"""[quantize] qat_epochs: the last part of recovery, in INT8, with the very rounding that the artifact will have.

What is trained is kept only where the selection split says that it is no worse.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from edgeprune import quantize
from edgeprune.pipeline import recovery, workloads
from edgeprune.pipeline.bench import Bench
from edgeprune.pipeline.events import Voice
from edgeprune.pipeline.precision import CHUNK, fed_by_name, run_graph
from edgeprune.pipeline.rundir import write_json
from edgeprune.pipeline.subject import Subject
from edgeprune.quantize import Ranges, inference_session
from edgeprune.recipe import QuantizeSection
from edgeprune.workload import score_batches

LOG_SECONDS = 10.0
TRAINED = tuple[onnx.ModelProto, Ranges]


def device(options: QuantizeSection) -> str:
    """Where it trains; Apple's GPUs have no float64, in which biases are rounded. Raises RecipeError."""
    from edgeprune.recover import find_device

    return find_device(options.qat_device, options.qat_precision, "[quantize] qat_", without=("mps",))


def train(
    subject: Subject, bench: Bench, voice: Voice, folder: Path, found: TRAINED, floats: dict[str, str]
) -> TRAINED:
    """The float graph and its ranges after training in INT8, or as they were where that is better; qat.json."""
    from edgeprune.quantize import fine_tune

    options, task = subject.recipe.quantize, subject.workload.task
    count = len(subject.workload.data.split("train"))
    total = max(1, round(options.qat_epochs * math.ceil(count / options.qat_batch)))
    report, began = voice.progress("quantize"), time.monotonic()
    told, losses, history = [began], list[float](), list[dict[str, float]]()

    def step(number: int, loss: float) -> None:
        report(number, total, f"training in INT8, loss {loss:.4f}")
        losses.append(loss)
        if time.monotonic() - told[0] > LOG_SECONDS or number == total:
            entry = {"epoch": round(number * options.qat_batch / count, 3), "loss": sum(losses) / len(losses)}
            history.append(entry)
            voice.track("quantize", {"step": number, "steps": total, **entry})
            told[0] = time.monotonic()
            losses.clear()

    where = device(options)
    trained = fine_tune(
        *found,
        bench.dialect,
        workloads.feeds(subject.workload, "train", count, options.qat_batch),
        options.qat_epochs,
        floats,
        lr=options.qat_lr,
        on_step=step,
        distance=None if workloads.is_top_class(task) else task.distance,
        device=where,
        reduced=options.qat_precision == "bf16",
        steps=options.qat_scales,
    )
    before, after = (_score(subject, bench, *one, floats) for one in (found, trained))
    worse = after != after or (after < before if task.higher_is_better else after > before)
    scores = [recovery.shown(subject.workload, one) for one in (before, after)]
    voice.say("quantize", f"training in INT8: held-out {scores[0]} before, {scores[1]} after")
    if worse:
        voice.say("quantize", "training in INT8 left it worse by the selection split: it is not kept")
    write_json(
        folder / "qat.json",
        {
            "before": before,
            "after": after,
            "kept": not worse,
            "history": history,
            "device": where,
            "precision": options.qat_precision,
            "seconds": round(time.monotonic() - began, 1),
        },
    )
    return found if worse else trained


def _score(subject: Subject, bench: Bench, network: onnx.ModelProto, ranges: Ranges, floats: dict[str, str]) -> float:
    """The metric of the Q/DQ graph on the selection split, by ONNX Runtime on this host."""
    graph, work = quantize.apply(network, ranges, bench.dialect, floats), subject.workload
    runner = inference_session(graph)

    def outputs() -> Iterator[tuple[Any, Any]]:
        for batch, targets in work.data.batches("selection", work.inputs, CHUNK):
            named = batch[0] if len(batch) == 1 else dict(zip(work.inputs.names, batch, strict=True))
            for fed in fed_by_name(graph, [named]):
                yield tuple(run_graph(runner, graph, fed)), targets

    return score_batches(work.task, outputs()).value
