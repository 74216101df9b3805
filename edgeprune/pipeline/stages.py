"""What each stage does. A stage reads the folders of the stages before it and writes one folder of its own."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import onnx

from edgeprune import files, graph, quantize, stage
from edgeprune.devices import Artifact, Timing
from edgeprune.errors import GateError, ProofError, RecipeError, RunError
from edgeprune.pipeline import ends, flavours, int8_training, optimised, recovery
from edgeprune.pipeline.bench import Bench
from edgeprune.pipeline.choose import build_table, choose_plan
from edgeprune.pipeline.companions import Companions
from edgeprune.pipeline.events import Voice
from edgeprune.pipeline.feasible import refuse_impossible
from edgeprune.pipeline.precision import RANGES, calibrated, choose_precision, in_float, share_of_budget, too_slow
from edgeprune.pipeline.rundir import RunDirectory, read_json, write_json
from edgeprune.pipeline.subject import Subject
from edgeprune.recipe import QuantizeSection
from edgeprune.result import Facts
from edgeprune.runtimes import Dialect
from edgeprune.target import Target, latency_key

if TYPE_CHECKING:
    from torch import nn


def graph_stage(subject: Subject, folder: Path) -> None:
    """structure.json: groups, frozen parts with reasons, blocks, layers."""
    write_json(folder / "structure.json", subject.structure.to_dict())


def check_layers(
    options: QuantizeSection, dense: Callable[[Path], onnx.ModelProto], dialect: Callable[[], Dialect]
) -> None:
    """[quantize.layers] must name layers of the network as it is exported, weights alone need a kernel, and the device
    of training in INT8 must be here: said before any work. `dense` exports the network to a file. Raises RecipeError.
    """
    if options.qat_epochs:
        int8_training.device(options)
    if options.qat_scales and not options.qat_epochs:
        raise RecipeError("[quantize] qat_scales is of training in INT8, of which there is none.", "Set qat_epochs.")
    alone = quantize.weights_asked(options)
    if alone and options.qat_epochs:
        raise RecipeError("[quantize] weights and qat_epochs do not go together.", "Set [quantize] qat_epochs = 0.")
    if options.layers or alone:
        with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
            view = quantize.View.of(dense(Path(folder) / "dense.onnx"))
        quantize.check_overrides(view, options)
        _, nothing = quantize.weights_chosen(view, dialect(), options) if alone else ({}, [])
        if nothing:
            raise RecipeError(nothing[0], "Take it out.")


def latency_stage(subject: Subject, bench: Bench, run: RunDirectory, voice: Voice, folder: Path) -> None:
    """The latency table, where the search needs one. A budget that cannot be met ends here, before any training."""
    refuse_impossible(subject, bench.target, run, voice)
    if subject.recipe.search.by_program:
        build_table(subject, bench, run, voice, folder)


def search_stage(
    subject: Subject,
    bench: Bench,
    run: RunDirectory,
    voice: Voice,
    shared: Sequence[Path],
    neighbour: Path | None,
    folder: Path,
) -> None:
    """plan.json, search.json: the network that meets the budget as measured."""
    found = choose_plan(subject, bench, run, voice, shared, neighbour, folder)
    found.plan.save(folder / "plan.json")
    proof = subject.structure.prove(subject.model, found.plan)
    write_json(folder / "proof.json", asdict(proof))
    if not proof.passed:
        raise ProofError(
            f"the pruned network does not compute what it must (error {proof.max_error:.2g}). {proof.detail}",
            "This is a defect of edgeprune: please report it with the network.",
        )
    write_json(folder / "search.json", found.to_dict())


def recover_stage(
    subject: Subject, run: RunDirectory, voice: Voice, weights: Path | None, group: Companions | None, folder: Path
) -> None:
    """weights.safetensors, plan.json, recover.json: repaired, then fine-tuned."""
    recovery.recover(subject, run, voice, weights, group, folder)


def pruned_model(subject: Subject, run: RunDirectory) -> nn.Module:
    """The recovered network, in eval mode."""
    return graph.load(run.folder("recover"), subject.factory).eval()


def quantize_stage(subject: Subject, bench: Bench, run: RunDirectory, voice: Voice, folder: Path) -> None:
    """Float and Q/DQ graphs of the dense and the pruned network, with their ranges."""
    subject.export(subject.model, folder / "dense-fp32.onnx")
    subject.export(pruned_model(subject, run), folder / "pruned-fp32.onnx")
    if bench.dialect.name != bench.target.dialect:
        voice.say("quantize", f"the device's CPU has no VNNI: INT8 weights have 63 steps a side ({bench.dialect.name})")
    for name in ("dense", "pruned"):
        _quantize_one(subject, bench, run, voice, folder, name)


def _quantize_one(subject: Subject, bench: Bench, run: RunDirectory, voice: Voice, folder: Path, name: str) -> None:
    dialect, network = bench.dialect, onnx.load(folder / f"{name}-fp32.onnx")
    there = {node.name for node in network.graph.node}
    floats = {layer: kind for layer, kind in in_float(run, "dense").items() if layer in there}
    if name == "pruned":
        ranges, floats = _pruned_ranges(subject, bench, run, voice, folder, network, floats)
    else:
        ranges = quantize.Ranges.load(run.folder("dense") / RANGES)
    if name == "pruned" and subject.recipe.quantize.qat_epochs:
        network, ranges = int8_training.train(subject, bench, voice, folder, (network, ranges), floats)
        onnx.save(network, folder / "pruned-fp32.onnx")
    ranges.save(folder / f"{name}-ranges.json")
    quantised = quantize.apply(network, ranges, dialect, floats)
    findings = quantize.lint(quantised, dialect)
    write_json(folder / f"{name}-lint.json", [asdict(finding) for finding in findings])
    fatal = [finding for finding in findings if finding.severity == "error"]
    if fatal:
        raise GateError(
            f"the {name} Q/DQ graph breaks a rule of {dialect.title}: {fatal[0].node}: {fatal[0].why}",
            fatal[0].remedy,
        )
    onnx.save(quantised, folder / f"{name}-int8.onnx")
    if name == "pruned":
        flavours.write(bench.target, voice, folder, network, ranges, floats)


def _pruned_ranges(
    subject: Subject,
    bench: Bench,
    run: RunDirectory,
    voice: Voice,
    folder: Path,
    network: onnx.ModelProto,
    floats: Mapping[str, str],
) -> tuple[quantize.Ranges, dict[str, str]]:
    """Of the pruned network: its ranges, and the layers that stay in float; precision.json says why."""
    options = _of_layers_left(subject.recipe.quantize, network)
    ranges = calibrated(subject, bench, network, "pruned", options, voice.progress("quantize"))
    for warning in ranges.warnings:
        voice.say("quantize", f"pruned: {warning}")
    say = functools.partial(voice.say, "quantize")
    precision = choose_precision(subject, bench, say, folder, network, ranges, floats)
    found = {str(layer): "float" for layer in Facts(precision).listed("float")}
    more, share = sorted(found.keys() - floats.keys()), share_of_budget(run)
    late = too_slow(bench, folder, network, ranges, more, floats, share) if more and share else ""
    if late:
        found = dict(floats)
        precision |= {"float": sorted(found), "too_slow": more}
    if more:
        say(late or "the search did not know of these layers in float: the latency gate decides")
    write_json(folder / "precision.json", precision)
    return ranges, found


def _of_layers_left(options: QuantizeSection, pruned: onnx.ModelProto) -> QuantizeSection:
    """Without what [quantize.layers] says of layers that the search removed; names were checked before."""
    from edgeprune.quantize import View

    view = View.of(pruned)
    names = {*view.layers, *(node.name for node in view.nodes)}
    return msgspec.structs.replace(options, layers={key: one for key, one in options.layers.items() if key in names})


ARTIFACTS = {"dense-fp32": "fp32", "dense-int8": "int8", "pruned-fp32": "fp32", "pruned-int8": "int8"}


def artifacts_stage(subject: Subject, target: Target, run: RunDirectory, folder: Path) -> None:
    """The runtime's own files, dense and pruned, FP32 and INT8."""
    listed: dict[str, dict[str, object]] = {}
    sources = {name: run.folder("quantize") / f"{name}.onnx" for name in ARTIFACTS}
    artifacts = {
        name: ends.build(sources[name], folder, target, name, precision, subject.ends)
        for name, precision in ARTIFACTS.items()
    }
    for name, made in {**artifacts, **flavours.build(target, run, folder)}.items():
        listed[name] = {
            "precision": made.precision,
            "files": {key: path.name for key, path in made.files.items()},
            "options": made.options,
            "sha256": {path.name: files.sha256(path) for path in made.files.values()},
            "source": files.sha256(run.folder("quantize") / f"{name}.onnx"),
        }
    write_json(folder / "artifacts.json", listed)


def load_artifacts(target: Target, run: RunDirectory) -> dict[str, Artifact]:
    """The artifacts of a whole artifacts stage; raises RunError where one is not the file that was built."""
    folder = run.folder("artifacts")
    for entry in read_json(folder / "artifacts.json").values():
        for file, digest in entry["sha256"].items():
            if not (folder / file).is_file() or files.sha256(folder / file) != digest:
                raise RunError(
                    f"{folder / file} is not the file that was built.",
                    "Let nothing write there; build it again: the same command with --from export.",
                )
    return {
        name: Artifact(
            name,
            target.runtime,
            entry["precision"],
            {key: folder / file for key, file in entry["files"].items()},
            entry["options"],
        )
        for name, entry in read_json(folder / "artifacts.json").items()
    }


def validate_stage(subject: Subject, bench: Bench, run: RunDirectory, voice: Voice, folder: Path) -> None:
    """measured.json: score and latency of the very artifacts, on the device's runtime, all interleaved."""
    from edgeprune import validate
    from edgeprune.pipeline import fleets, float_default, images, travelling, validations

    device, artifacts = bench.device, load_artifacts(bench.target, run)
    if bench.target.protocol.unit != "modelled ms":  # a device's TensorRT may be too old for the other flavours
        artifacts = {name: artifacts[name] for name in ARTIFACTS}
    before = device.probe()
    loaded = {name: device.load(artifact) for name, artifact in artifacts.items()}
    voice.say("validate", "measuring latency, dense and pruned interleaved")
    measure = validations.Measuring(subject.recipe, bench, run, voice, artifacts, loaded, before.fingerprint)
    timings, kept = measure()
    found = images.run(subject, bench, voice, artifacts, loaded)
    timings, kept = measure.later(timings, kept)
    beside = fleets.compare(bench, voice, artifacts) | float_default.measure(bench, loaded, timings, before)
    scores = {name: judge.score() for name, judge in found.judges.items()}
    figures = {
        name.replace("-", "_"): msgspec.structs.replace(
            found.judges[name].network(found.judges["dense-fp32"]),
            bytes=artifact.bytes,
            emulated=found.emulated.get(name),
            **{latency_key(timings[name].unit): validations.facts(timings[name])},
        )
        for name, artifact in artifacts.items()
    }
    difference = validate.difference(scores["pruned-int8"], scores["dense-fp32"])
    compared = validate.comparison(scores["pruned-int8"], scores["dense-fp32"], subject.recipe.budget.confidence)
    sane = {name.replace("-", "_"): found.judges[name].sanity() for name in ("dense-fp32", "pruned-int8")}
    kernels = {name: [asdict(k) for k in device.profile(loaded[name])] for name in ("dense-int8", "pruned-int8")}
    travelling.write(subject, bench, folder, device, loaded["pruned-int8"])
    validate.Answers.of(found.ids.array, scores["pruned-int8"]).save(folder / "answers.npz")
    flavour = (subject, bench, voice, folder, loaded["pruned-int8"])
    second = {"optimised": optimised.write(*flavour)} if optimised.wanted(bench.target) else {}
    plain = {
        "task": travelling.task(images.read_as(subject.workload.task, subject.ends)),
        "inputs": travelling.inputs(subject),
        "networks": figures,
        **({"difference": difference} if difference else {}),
        **_behind(subject, run, voice, kernels["pruned-int8"], timings["pruned-int8"]),
        "comparison": compared,
        "sanity": sane,
        "precision": validate.precision(kernels["pruned-int8"], quantised_layers(run)),
        "validations": kept,
        "earlier": measure.earlier,
        **beside,
    }
    write_json(
        folder / "measured.json",
        {
            **msgspec.to_builtins(plain),
            "unit": timings["dense-int8"].unit,
            "kernels": kernels,
            **validations.whose(artifacts, before.fingerprint),
            "state": {"before": before.state, "after": device.probe().state},
            **second,
            "data": subject.workload.digest,
            "sha256": _measured_files(bench.target, run, folder),
        },
    )


def _behind(
    subject: Subject, run: RunDirectory, voice: Voice, kernels: list[dict[str, object]], timing: Timing
) -> dict[str, object]:
    """`postprocessing`: what stays in float behind the last weights of the released artifact, if anything does."""
    from edgeprune.pipeline import behind

    graph = onnx.load(run.folder("quantize") / "pruned-fp32.onnx")
    found = behind.cost(graph, subject.ends, kernels, timing.median)
    if found is None:
        return {}
    voice.say("validate", found.said(timing.unit))
    return {"postprocessing": found}


def _measured_files(target: Target, run: RunDirectory, folder: Path) -> dict[str, str]:
    """STAGE/FILE -> sha256 of what was measured and what it came from: what a bundle is made of."""
    load_artifacts(target, run)  # still the same files, after all measurements
    found: dict[str, str] = {}
    for name in stage.SHIPPED:
        found.update(run.hashes(name))
    own = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    visible = {name: path for name, path in own.items() if not any(part.startswith(".") for part in name.parts)}
    return {**found, **{f"validate/{name.as_posix()}": files.sha256(path) for name, path in visible.items()}}


def quantised_layers(run: RunDirectory) -> dict[str, bool]:
    """Each operator with weights of the released graph: do its data and its weights come out of DequantizeLinear?"""
    network = onnx.load(run.folder("quantize") / "pruned-int8.onnx").graph
    producer = {name: node.op_type for node in network.node for name in node.output}
    return {
        node.name: all(producer.get(name) == "DequantizeLinear" for name in node.input[:2])
        for node in network.node
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
    }
