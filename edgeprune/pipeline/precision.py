"""Which layers run in INT8: all that the runtime can, unless the recipe, speed or accuracy says otherwise.

It is decided on the dense network, so that the search closes on the mix that will be shipped: what the recipe or speed
says before anything is planned (`precision_stage`), what accuracy says before any table (`dense_stage`). Accuracy is
asked once more of the pruned network, when it is calibrated (`choose_precision`): where pruning made INT8 harder,
more layers stay in float than the search knew.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from edgeprune import latency, quantize, runtimes
from edgeprune.devices import Loaded
from edgeprune.pipeline import workloads
from edgeprune.pipeline.bench import Bench
from edgeprune.pipeline.events import Progress, Voice
from edgeprune.pipeline.rundir import RunDirectory, read_json, write_json
from edgeprune.pipeline.subject import Subject
from edgeprune.quantize import Ranges, fallback, inference_session
from edgeprune.recipe import QuantizeSection
from edgeprune.result import Facts
from edgeprune.workload import Difference, Sums, bootstrap, score_batches, wilson

FILE, RANGES = "precision.json", "ranges.json"
SLOWER = 1.25  # times as slow in INT8: where most layers are, float is looked at for speed
CHUNK = 64  # examples at once
AGREEMENT = 0.97  # of INT8 with float on the calibration images; where it may be so much no layer stays in float
SURELY = 0.9  # one-sided: how sure it must be that it is less
LEAST, JUDGED = 128, 512  # examples of the selection split that tell, where it is less, what the metric says
WORSE = 0.8  # one-sided: how sure it must be that the metric is worse
NOISE = 0.003  # noise over signal at the output (25 dB) that INT8 may add in all, where layers do have to stay


def precision_stage(subject: Subject, bench: Bench, voice: Voice, folder: Path) -> None:
    """precision.json: which layers stay in float whatever the search does, because the recipe says so or because this
    device runs them faster so. Decided on the dense network, before anything is planned: every table, every network of
    the search and the release itself are then of that mix, and so is dense INT8, which the release is held against.

    The file says what was decided and nothing else, so that what comes from it holds where the decision is the same.
    """
    options = subject.recipe.quantize
    floats = [name for name, layer in options.layers.items() if layer.precision == "float"]
    if options.fallback == "auto":
        subject.export(subject.model, folder / "dense.onnx")
        network = onnx.load(folder / "dense.onnx")
        (folder / "dense.onnx").unlink()
        floats += for_speed(bench, voice, folder, network, floats)
    write_json(folder / FILE, {"float": sorted(floats)})


def dense_stage(subject: Subject, bench: Bench, run: RunDirectory, voice: Voice, folder: Path) -> None:
    """ranges.json, agreement.json, precision.json: the dense network calibrated before anything is searched or trained.

    It is what dense INT8 is made from later, so that it costs nothing in all; and it says beforehand what INT8 costs
    this network, and which layers stay in float for it. precision.json says that and nothing else, as in
    `precision_stage`: other options of [quantize] that end in the same choice throw no table and no training away.
    """
    subject.export(subject.model, folder / "dense.onnx")
    network = onnx.load(folder / "dense.onnx")
    (folder / "dense.onnx").unlink()
    report = voice.progress("dense")
    ranges = calibrated(subject, bench, network, "dense", subject.recipe.quantize, report)
    for warning in ranges.warnings:
        voice.say("dense", warning)
    ranges.save(folder / RANGES)
    say = functools.partial(voice.say, "dense")
    found = Facts(choose_precision(subject, bench, say, folder, network, ranges, in_float(run)))
    agreement = found.number("agreement")
    if agreement is not None and agreement >= AGREEMENT:
        say(f"INT8 agrees with float on {100 * agreement:.1f} % of the calibration examples, before anything is pruned")
    write_json(folder / "agreement.json", dict(found))
    write_json(folder / FILE, {"float": found.listed("float")})


def calibrated(
    subject: Subject, bench: Bench, network: onnx.ModelProto, name: str, options: QuantizeSection, report: Progress
) -> Ranges:
    """The ranges of a float graph on the calibration split, by the task's distance."""
    task = subject.workload.task
    return quantize.calibrate(
        network,
        workloads.feeds(subject.workload, "calibration", options.images),
        bench.dialect,
        options,
        lambda done, total: report(done, total, f"calibrating {name}"),
        distance=None if workloads.is_top_class(task) else task.distance,
    )


def in_float(run: RunDirectory, stage: str = "precision") -> dict[str, str]:
    """Layer -> "float", of those that stay in float whatever the search does: for speed and by the recipe alone
    ("precision"), or for accuracy too ("dense").
    """
    return {str(name): "float" for name in Facts(read_json(run.folder(stage) / FILE)).listed("float")}


def for_speed(
    bench: Bench, voice: Voice, folder: Path, network: onnx.ModelProto, asked: Sequence[str] = ()
) -> list[str]:
    """Layers that the device runs faster in float; none where the whole network is not faster beyond noise with them.

    Latency depends neither on ranges nor on weights, so that nothing need be calibrated to tell.

    Args:
        network: the dense one in float.
        asked: layers that stay in float in any case.
    """
    ranges, floats = quantize.dummy_ranges(network), dict.fromkeys(asked, "float")
    layers = {name: 0.0 for name in quantize.View.of(network).layers if name not in floats}
    costs, edges = _costs(bench, folder, network, ranges, layers, floats)
    if sum(cost.int8_ms > cost.float_ms * SLOWER for cost in costs.values()) <= len(costs) / 2:
        return []
    choice = fallback.choose("auto", costs, edges, 0.0)
    kept = sorted(name for name, kind in choice.precision.items() if kind == "float")
    if not kept or len(kept) == len(costs):  # without a layer in INT8 it is no INT8 artifact; the plan says what pays
        return []
    whole = _whole(
        bench, folder, network, ranges, kept, floats
    )  # a profile times kernels: their sum is not the network
    unit = bench.target.protocol.unit
    told = (
        f"dense INT8 with {len(kept)} of {len(costs)} layers in float takes {whole['chosen']:.4g} {unit}, without "
        f"{whole['int8']:.4g}"
    )
    if whole["chosen"] > whole["room"] * whole["int8"]:
        voice.say("precision", f"{told}: no layer stays in float for speed")
        return []
    voice.say("precision", f"{told}: they stay in float, in all that is measured from here on")
    return kept


def choose_precision(
    subject: Subject,
    bench: Bench,
    say: Callable[[str], None],
    folder: Path,
    network: onnx.ModelProto,
    ranges: Ranges,
    floats: Mapping[str, str],
) -> dict[str, object]:
    """Which layers of a network stay in float for accuracy, beside `floats`, and why.

    The recipe's [quantize] fallback: "auto" solves the program of `quantize.fallback` on times measured on the device,
    "greedy" reverts the worst layer until the rest is good enough, "none" keeps all in INT8.
    """
    method, kept = subject.recipe.quantize.fallback, sorted(floats)
    if method == "none":
        return {"method": method, "float": kept}
    graph = quantize.apply(network, ranges, bench.dialect, floats)
    agreement, perhaps = _agreement(subject, network, graph)
    found: dict[str, object] = {"method": method, "agreement": agreement, "perhaps": perhaps, "float": kept}
    if perhaps >= AGREEMENT:
        return found
    agrees = f"INT8 agrees on {100 * agreement:.1f} %"
    difference = _lost(subject, network, graph)
    found["drop"] = difference.to_dict()
    change = f"{abs(difference.drop):.3g} {difference.unit}".rstrip() + (" worse" if difference.drop > 0 else " better")
    change = change if difference.drop else "the same"
    told = f"{difference.metric} of {difference.examples} examples of the selection split is {change}"
    if difference.examples >= LEAST and difference.limit(1 - WORSE) <= 0:
        say(f"{agrees}, and {told}: not beyond noise, so that no layer stays in float for it")
        return found
    batches = workloads.feeds(subject.workload, "calibration", subject.recipe.quantize.images)
    losses = fallback.sensitivities(network, ranges, bench.dialect, batches, 16)
    left = {name: loss for name, loss in losses.items() if name not in floats}
    costs, edges = _costs(bench, folder, network, ranges, left, floats)
    choice = fallback.choose(method, costs, edges, NOISE)
    more = {name for name, kind in choice.precision.items() if kind == "float"}
    found |= {"ms": choice.ms, "loss": choice.loss}
    if len(more) == len(costs):  # the precision gate refuses it: it is no INT8 artifact
        say(f"{agrees}; what agrees more leaves no layer in INT8: all run in INT8, and the gates decide")
        return found
    if more:
        say(f"{agrees}, and {told}; {len(more)} of {len(costs)} layers stay in float for it")
    else:
        say(f"{agrees}, and {told}; no single layer is to blame, and none stays in float for it")
    return {**found, "float": sorted({*floats, *more})}


def share_of_budget(run: RunDirectory) -> float:
    """The latency that the search measured over the one asked for; 0 where any is welcome that keeps max_drop."""
    found = Facts(read_json(run.folder("search") / "search.json"))
    measured, budget = found.number("measured_ratio"), found.number("budget_ratio")
    return measured / budget if measured and budget and not found.part("bounded") else 0.0


def too_slow(
    bench: Bench,
    folder: Path,
    network: onnx.ModelProto,
    ranges: Ranges,
    more: Sequence[str],
    floats: Mapping[str, str],
    share: float,
) -> str:
    """Why `more` layers cannot stay in float: the search closed on the network without them, and with them it misses
    the latency asked for. "" where it does not.

    Args:
        share: `share_of_budget` of the search.
    """
    whole = _whole(bench, folder, network, ranges, more, floats)
    slower = whole["chosen"] / whole["int8"]
    if slower <= 1 or share * slower <= 1:
        return ""
    return (
        f"with them the network takes {100 * share * slower:.1f} % of the latency budget, where the search had "
        f"measured {100 * share:.1f} %: none of them stays in float, and the gates decide"
    )


def _whole(
    bench: Bench,
    folder: Path,
    network: onnx.ModelProto,
    ranges: Ranges,
    kept: Iterable[str],
    asked: Mapping[str, str],
) -> dict[str, float]:
    """The latency of the network without and with `kept` in float too, interleaved.

    `room` is the share of the first that the second must stay below to be faster beyond this device's noise.
    """
    with contextlib.ExitStack() as stack:
        loaded = [
            stack.enter_context(_opened(bench, folder, f"whole-{name}", quantised, "int8"))
            for name, quantised in (
                ("int8", quantize.apply(network, ranges, bench.dialect, asked)),
                ("chosen", quantize.apply(network, ranges, bench.dialect, {**dict.fromkeys(kept, "float"), **asked})),
            )
        ]
        every, chosen = bench.device.measure(loaded, bench.target.protocol)
    noise = latency.deviation((every, chosen), bench.target.protocol.unit)
    return {"int8": every.median, "chosen": chosen.median, "room": latency.room(noise, bench.target.protocol.unit)}


@contextlib.contextmanager
def _opened(bench: Bench, folder: Path, name: str, graph: onnx.ModelProto, precision: str) -> Iterator[Loaded]:
    """The graph on the device, and no file of it afterwards."""
    path = folder / f"{name}.onnx"
    onnx.save(graph, path)
    artifact = runtimes.build(path, folder / "fallback", bench.target, name, precision)
    loaded = bench.device.load(artifact)
    try:
        yield loaded
    finally:
        bench.device.unload(loaded)
        for file in (path, *artifact.files.values()):
            file.unlink(missing_ok=True)


def _agreement(subject: Subject, one: onnx.ModelProto, other: onnx.ModelProto) -> tuple[float, float]:
    """How far two graphs agree on the calibration examples, in ONNX Runtime on this host; and how far they perhaps do,
    as few examples leave it open (one-sided, SURELY).

    For a classifier the share of examples of the same class. Else one less the task's distance between the two, as a
    share of its distance between the outputs of one example and those of another. 1 where they are equal, 0 is no
    relation at all.
    """
    work, limit = subject.workload, subject.recipe.quantize.images
    sessions = [inference_session(one), inference_session(other)]
    rows: list[NDArray[np.float64]] = []  # [examples, 2]: what differs, and the most that could
    for fed in fed_by_name(one, workloads.feeds(work, "calibration", limit, CHUNK)()):
        a, b = (run_graph(runner, one, fed) for runner in sessions)
        if workloads.is_top_class(work.task):
            differ = a[0].argmax(1) != b[0].argmax(1)
            rows.append(np.stack([differ, np.ones(len(differ))], 1).astype(np.float64))
            continue
        wanted, found = (tuple(torch.from_numpy(value) for value in values) for values in (a, b))
        near = work.task.distance(wanted, found)
        far = work.task.distance(wanted, tuple(value.roll(1, 0) for value in wanted))
        rows.append(torch.stack([near, far], 1).double().numpy())
    return _told_apart(np.concatenate(rows), workloads.is_top_class(work.task))


def _told_apart(rows: NDArray[np.float64], counted: bool) -> tuple[float, float]:
    """`_agreement` of [examples, 2]; `counted`: an example differs or does not."""

    def share(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        near, far = sums[..., 0], sums[..., 1]
        return np.where(far > 0, np.maximum(0.0, 1 - near / np.where(far > 0, far, 1.0)), near == 0)

    agreement = float(share(rows.sum(0)))
    if counted:
        perhaps = wilson(len(rows) - round(rows[:, 0].sum()), len(rows), SURELY)
    else:
        sample = bootstrap(Sums(rows, rows, share))
        perhaps = float(np.quantile(sample, SURELY)) if len(sample) else agreement
    return agreement, max(agreement, perhaps)


def _lost(subject: Subject, one: onnx.ModelProto, other: onnx.ModelProto) -> Difference:
    """What the second graph loses to the first in the task's metric, on JUDGED examples of the selection split."""
    work = subject.workload

    def outputs(graph: onnx.ModelProto) -> Iterator[tuple[Any, Any]]:
        runner = inference_session(graph)
        for batch, targets in work.data.batches("selection", work.inputs, CHUNK, JUDGED):
            fed = dict(zip(work.inputs.names, batch, strict=True))
            yield tuple(run_graph(runner, one, fed)), targets

    reference, score = (score_batches(work.task, outputs(graph)) for graph in (one, other))
    return score.against(reference)


def fed_by_name(graph: onnx.ModelProto, batches: Iterable[Any]) -> Iterator[dict[str, NDArray[Any]]]:
    """Batches by the graph's input names."""
    names = [value.name for value in graph.graph.input]
    for batch in batches:
        yield dict(batch) if isinstance(batch, dict) else {names[0]: batch}


def run_graph(runner: Any, graph: onnx.ModelProto, fed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """All outputs of a batch, run in pieces of the graph's own batch; the last one is filled up."""
    size = max(1, graph.graph.input[0].type.tensor_type.shape.dim[0].dim_value)
    count = len(next(iter(fed.values())))
    parts = []
    for start in range(0, count, size):
        chosen = np.minimum(np.arange(start, start + size), count - 1)
        parts.append(runner.run(None, {name: value[chosen] for name, value in fed.items()}))
    return [np.concatenate(column)[:count] for column in zip(*parts, strict=True)]


def _costs(
    bench: Bench,
    folder: Path,
    network: onnx.ModelProto,
    ranges: Ranges,
    losses: Mapping[str, float],
    floats: Mapping[str, str],
) -> tuple[dict[str, fallback.LayerCost], fallback.Edges]:
    """Each layer's profiled time in float and in INT8 (where `floats` are float anyway) and its loss; reformats."""
    profiles = {}
    for name, graph, precision in (
        ("float", network, "fp32"),
        ("int8", quantize.apply(network, ranges, bench.dialect, floats), "int8"),
    ):
        with _opened(bench, folder, f"fallback-{name}", graph, precision) as loaded:
            profiles[name] = bench.device.profile(loaded)
    times = {name: fallback.times(losses, kernels) for name, kernels in profiles.items()}
    reformat = [kernel.median for kernel in profiles["int8"] if "quantize" in kernel.kind.lower()]
    numbers = sum(
        int(np.prod([max(1, one.dim_value) for one in value.type.tensor_type.shape.dim]))
        for value in network.graph.input
    )
    per_element = min(reformat, default=0.0) / max(1, numbers)
    costs = {n: fallback.LayerCost(times["float"][n], times["int8"][n], loss) for n, loss in losses.items()}
    return costs, fallback.layer_edges(network, per_element)
