"""Can the gates ever be passed? The dense network's latency and the floor of it; its answers on real test examples."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from edgeprune import latency, quantize, validate
from edgeprune.devices import Loaded
from edgeprune.errors import BudgetError, DataError, ModelError, RunError
from edgeprune.graph import Configuration
from edgeprune.latency import ArtifactBuilder
from edgeprune.pipeline import estimate, float_default, images, warm, workloads
from edgeprune.pipeline.bench import Bench
from edgeprune.pipeline.events import Progress, Voice, untold
from edgeprune.pipeline.facts import StageKeys
from edgeprune.pipeline.precision import in_float
from edgeprune.pipeline.rundir import RunDirectory, read_json, write_json
from edgeprune.pipeline.subject import Subject
from edgeprune.recipe import QuantizeSection
from edgeprune.result import Facts, quantity
from edgeprune.target import Target
from edgeprune.workload import Score, check_metric

SURELY = 0.1  # spread of latencies of which something is said
ENOUGH, ELSEWHERE = 4, 0.15  # examples a class, and the share of them that another order of classes mends
MENDED = 0.5  # of the errors that the stated order leaves: another one that leaves fewer is the right one
SURE, LOOK_HELD = 0.99, 256  # that held-out examples are known, and how many are looked at
LOOK, LOOK_FURTHER, CHUNK = 512, 10_000, 64  # test images that the plan tries; the second where the first do not tell
ERRORS: dict[str, type[ModelError] | type[DataError]] = {"model": ModelError, "data": DataError}


def plan_stage(
    subject: Subject,
    bench: Bench,
    run: RunDirectory,
    voice: Voice,
    shared: Sequence[Path],
    keys: StageKeys,
    folder: Path,
) -> None:
    """dense.onnx, sanity.json, feasibility.json, unit-costs.json, data.json: tried on real examples, measured on
    the device; nothing is trained. What another run has measured for another budget is taken over (warm.py)."""
    blocks = subject.recipe.search.blocks and subject.recipe.search.by_program
    floats = in_float(run)
    if warm.plan(subject, voice, shared, keys, folder, blocks, floats):
        return
    dense = look_at_dense(subject, LOOK, voice.progress("plan"))
    write_json(folder / "sanity.json", dense.sanity.to_dict())
    seen = [*dense.heads, *dense.order(subject.workload.data.names), *_seen_before(subject, dense.score)]
    write_json(folder / "data.json", [finding.to_dict() for finding in seen])
    subject.export(subject.model, folder / "dense.onnx")
    maker = variant_maker(subject, bench.target, folder / "dense.onnx", folder / "variants", floats)
    began = time.monotonic()
    found = latency.feasibility(maker, bench.device, subject.recipe.budget, blocks)
    seconds = time.monotonic() - began
    write_json(folder / "feasibility.json", {**asdict(found), "possible": found.possible})
    own = float_default.of_dense(bench, maker, found.dense_int8)
    write_json(folder / "float-default.json", msgspec.to_builtins(own) if own else {})
    networks = 2 + len(latency.floors(subject.structure, bench.target.channels))
    clock = (found.dense_fp32 + found.dense_int8) / 1e3 / bench.target.execution.batch if found.unit == "ms" else None
    estimate.measure(subject, bench.target, folder, networks, seconds, clock)


@dataclass(frozen=True)
class Dense:
    """The dense network on real test examples: is it sane, its score with an interval at SURE, its answers."""

    sanity: validate.Sanity
    score: Score
    answers: NDArray[np.int64] | None
    targets: tuple[Any, ...]
    heads: tuple[validate.Finding, ...] = ()

    def order(self, names: Sequence[str]) -> list[validate.Finding]:
        """Would it be right far more often if the classes were in another order? Then they probably are."""
        if self.answers is None or len(names) < 2 or len(self.targets) < ENOUGH * len(names):
            return []
        targets = np.asarray(self.targets, np.int64)
        found, outputs = in_best_order(targets, self.answers, len(names))
        stated = float(np.mean(targets == self.answers))
        if found < stated + ELSEWHERE:
            return []
        named = ", ".join(names[row] for row in np.argsort(outputs))
        message = (
            f"the network's outputs seem to be in another order than the classes: "
            f"{100 * stated:.1f} % right as they are, "
        )
        remedy = "State the order of the outputs: [data] classes, or classes.txt beside train/ (init: --classes)."
        surely = 1 - found < MENDED * (1 - stated)
        severity: Literal["error", "warning"] = "error" if surely else "warning"
        return [validate.Finding("order", severity, "data", f"{message}{100 * found:.1f} % as {named}.", remedy)]


def in_best_order(
    targets: NDArray[np.int64], answers: NDArray[np.int64], classes: int
) -> tuple[float, NDArray[np.int64]]:
    """The share of right answers if the classes stood in the order that suits them best, and the output that each
    class then is. Of few examples a class it flatters: any answers suit some order."""
    counts = np.zeros((classes, classes))
    known = (answers >= 0) & (answers < classes)
    np.add.at(counts, (targets[known], answers[known]), 1)
    rows, outputs = linear_sum_assignment(-counts)
    return float(counts[rows, outputs].sum()) / max(1, len(targets)), outputs


def dense_sanity(subject: Subject, look: int = LOOK) -> validate.Sanity:
    """The dense network on real test examples; raises as `look_at_dense`."""
    return look_at_dense(subject, look).sanity


def look_at_dense(subject: Subject, look: int = LOOK, report: Progress = untold) -> Dense:
    """The dense network on real test examples: `look` of them, all where those do not tell.

    `report` is told of progress: done, total, a few words.

    Raises:
        ModelError: an output is NaN or infinite, or of another shape for another example.
        TaskError: a metric that fails, gives no number, or is no better than with shuffled targets.
    """
    workload = subject.workload
    test = workload.data.split("test")
    order, judge = np.random.default_rng(0).permutation(len(test)), images.judge(subject.workload)
    kept, labels_seen = validate.Kept(), list[Any]()
    labels = getattr(getattr(test, "split", None), "labels", ())  # of all examples, where they are at hand
    for end in dict.fromkeys((min(look, len(test)), min(LOOK_FURTHER, len(test)))):
        for start in range(judge.examples, end, CHUNK):
            inputs, targets = images.some(workload, order[start : min(start + CHUNK, end)].tolist())
            with torch.no_grad():
                outputs = judge.add(workload.inputs.call(subject.model, inputs), targets)
            kept.add(outputs, targets)
            labels_seen += targets if workloads.is_top_class(workload.task) else ()
            report(judge.examples, end, "test examples through the dense network")
        found = judge.sanity(labels)
        if found.broken:
            raise ModelError(
                f"[model] the network's output is NaN or infinite on {found.broken:,} of {end:,} test examples.",
                "Check the weights, and [data] scale, mean and std: a random example was finite.",
            )
        if not workloads.is_top_class(workload.task):
            check_metric(workload.task, kept.outputs, kept.targets)
        if found.p_value <= 1 - subject.recipe.budget.confidence:
            break
    score = judge.score(SURE)
    heads = validate.swapped(workload.task, kept.outputs, kept.targets, score, found.chance)
    return Dense(found, score, judge.answers if labels_seen else None, tuple(labels_seen), tuple(heads))


def _seen_before(subject: Subject, test: Score) -> list[validate.Finding]:
    """Does the dense network know the examples that are held out to choose by, better than those of the test split?"""
    work, judge = subject.workload, images.judge(subject.workload)
    held = work.data.split("selection")
    order = np.random.default_rng(0).permutation(len(held))[:LOOK_HELD].tolist()
    for start in range(0, len(order), CHUNK):
        inputs, targets = images.some(work, order[start : start + CHUNK], "selection")
        if any(target is None for target in targets):  # only the dense network teaches there
            return []
        with torch.no_grad():
            judge.add(work.inputs.call(subject.model, inputs), targets)
    mine = judge.score(SURE)
    knows = mine.low > test.high if test.higher_is_better else mine.high < test.low
    if not knows:
        return []
    told = [f"{score.metric} {quantity(score.value, score.unit)}" for score in (mine, test)]
    message = (
        f"the dense network was trained on the examples that are held out to choose by: {told[0]} on {mine.examples:,} "
        f"of them, {told[1]} on the test split."
    )
    remedy = "What is said of them flatters; the gates judge by the test split. Give a selection split it never saw."
    return [validate.Finding("selection", "warning", "data", message, remedy)]


def in_words(dense: validate.Sanity, examples: int) -> str:
    """The dense network's score on the user's data, in one sentence."""
    some = f"{dense.examples:,} of {examples:,}" if dense.examples < examples else f"all {examples:,}"
    chance = "" if dense.chance is None else f"; {dense.blind} {quantity(dense.chance, dense.unit)}"
    value = "no number" if dense.value is None else quantity(dense.value, dense.unit)
    return f"dense FP32: {dense.metric} {value} on {some} test examples{chance}"


def findings(subject: Subject, run: RunDirectory) -> tuple[validate.Finding, ...]:
    """What the plan's look at the data and the dense network says of the gates; errors first."""
    found = sanity(run)
    known = [validate.Finding(**one) for one in read_json(run.folder("plan") / "data.json")]
    asked = validate.ask(found, len(subject.workload.data.split("test")), subject.recipe.budget)
    pays = _pays(*(read_json(run.folder("plan") / f"{name}.json") for name in ("feasibility", "float-default")))
    reasons = [one for one in known if one.severity == "error"]  # why it computes nothing, before that it does
    others = [one for one in known if one.severity != "error"]
    return (*reasons, *asked, *others, *pays, *_alone(subject.recipe.quantize))


def _alone(options: QuantizeSection) -> list[validate.Finding]:
    """Weights alone in integers: tables and closure know the layer in INT8 only."""
    if not quantize.weights_asked(options):
        return []
    message = "[quantize] weights alone: latency is planned and searched with those layers in INT8."
    remedy = "Dense and pruned are shipped and measured with them as asked; the latency gate judges that."
    return [validate.Finding("latency", "warning", "model", message, remedy)]


def _pays(found: Any, own: Any) -> list[validate.Finding]:
    """Is dense INT8 faster than dense FP32 at all, and than what the runtime makes of it by itself?

    Where the two can be told apart by a tenth only, it is said of an INT8 that is slower beyond that.
    """
    spread = found["spread"] if found.get("fp32_spread") is None else found["fp32_spread"]
    least = 1 - max(0.02, spread) if spread <= SURELY else 0.98 / (1 - min(spread, 0.99))
    int8, unit = found["dense_int8"], found["unit"]
    remedy = "The run compares pruned FP32 too; ship that where it wins, or choose a runtime with INT8 kernels."
    if int8 >= found["dense_fp32"] * least:
        both = f"{int8:.4g} against {found['dense_fp32']:.4g} {unit}"
        message = f"INT8 is not faster than FP32 on this device: {both} of the dense network."
    elif own and found["spread"] <= SURELY and int8 >= own["dense_fp32"] * (1 - max(0.02, found["spread"])):
        both = f"{own['dense_fp32']:.4g} {unit} against dense INT8's {int8:.4g}"
        message = f"INT8 is not faster than the float network by the runtime's own default, {own['type']}: {both}."
        remedy = "The run says what both take after pruning; where float wins, ship its artifacts/pruned-fp32."
    else:
        return []
    return [validate.Finding("faster", "warning", "model", message, remedy)]


def sanity(run: RunDirectory) -> validate.Sanity:
    """What the plan's look at the dense network found."""
    return msgspec.convert(read_json(run.folder("plan") / "sanity.json"), validate.Sanity)


def variant_maker(
    subject: Subject, target: Target, dense: Path, folder: Path, floats: Mapping[str, str]
) -> ArtifactBuilder:
    """Makes INT8 artifacts of narrowed networks for latency alone; their weights do not matter.

    `floats`: the layers that stay in float.
    """
    return latency.maker(
        subject.model,
        subject.structure,
        subject.example,
        target,
        folder,
        layers=floats,
        float_onnx=onnx.load(dense),
        ends=subject.ends,
    )


def plan_report(subject: Subject, bench: Bench, run: RunDirectory, weights: Path | None) -> dict[str, Any]:
    """What `edgeprune TARGET plan` prints and `--json` gives."""
    found = read_json(run.folder("plan") / "feasibility.json")
    frozen = read_json(run.folder("graph") / "structure.json").get("frozen", [])
    return {
        **found,
        "claim": bench.claim(bench.probe.fingerprint).to_dict(),
        "feasible": found["possible"],
        "advice": " ".join(part for part in (found["message"], found["remedy"]) if part),
        "dense": in_words(sanity(run), len(subject.workload.data.split("test"))),
        "estimate": asdict(estimate.estimate(subject.recipe, bench.target, run, weights)),
        "findings": [finding.to_dict() for finding in findings(subject, run)],
        "layers": [{**layer, "ms": layer["time"]} for layer in found["layers"]],
        "frozen": frozen,
    }


def left_open(run: RunDirectory) -> bool:
    """An earlier plan said "no" by latencies that were too noisy for it."""
    path = run.folder("plan") / "feasibility.json"
    try:
        return bool(read_json(path).get("unsure")) if path.is_file() else False
    except (RunError, AttributeError):  # damaged: its stage is done again anyway
        return False


def refuse_impossible(subject: Subject, target: Target, run: RunDirectory, voice: Voice) -> None:
    """Before any training: raise when the plan says that a gate cannot be passed.

    Raises:
        BudgetError: the latency is out of reach.
        ModelError, DataError: the dense network is not better than chance, or the test split cannot tell max_drop.
    """
    known = [finding.to_dict() for finding in findings(subject, run)]
    refuse(known)
    for finding in known:
        voice.say("plan", f"{finding['message']} {finding['remedy']}")
    found = read_json(run.folder("plan") / "feasibility.json")
    if not found["possible"]:
        raise BudgetError(f"{target.name}: {found['message']}", found["remedy"])


def refuse(known: Iterable[Mapping[str, object]]) -> None:
    """Raise the first finding of a plan that no gate could pass with; raises ModelError or DataError."""
    for finding in map(Facts, known):
        if finding.text("severity") == "error":
            raise ERRORS[finding.text("about")](finding.text("message"), finding.text("remedy"))


def load_variant(bench: Bench, maker: ArtifactBuilder, variant: Configuration, name: str) -> Loaded:
    """Build one narrowed network and open it on the device."""
    return bench.device.load(maker.build(variant, name).artifact)
