"""What each stage does. A stage reads the folders of the stages before it and writes one folder of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch

from edgeprune import graph, model, quantize, runtimes
from edgeprune.devices import Artifact
from edgeprune.errors import GateError, ProofError
from edgeprune.pipeline import flavours, optimised
from edgeprune.pipeline.choose import build_table, choose_plan
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.feasible import plan_stage, refuse_impossible
from edgeprune.pipeline.precision import choose_precision
from edgeprune.pipeline.rundir import read_json, write_json
from edgeprune.target import latency_key

if TYPE_CHECKING:
    from torch import nn

SAMPLES = 8  # images that travel in the bundle
REPAIR_IMAGES = 512  # at least


def graph_stage(context: Context, folder: Path) -> None:
    """structure.json: groups, frozen parts with reasons, blocks, layers."""
    write_json(folder / "structure.json", context.structure.to_dict())


def latency_stage(context: Context, folder: Path) -> None:
    """The latency table, where the search needs one. A budget that cannot be met ends here, before any training."""
    refuse_impossible(context)
    if context.recipe.search.method == "joint":
        build_table(context, folder)


def search_stage(context: Context, folder: Path) -> None:
    """plan.json, search.json: the network that meets the budget as measured."""
    found = choose_plan(context, folder)
    found.plan.save(folder / "plan.json")
    proof = context.structure.prove(context.model, found.plan)
    write_json(folder / "proof.json", asdict(proof))
    if not proof.passed:
        raise ProofError(
            f"the pruned network does not compute what it must (error {proof.max_error:.2g}). {proof.detail}",
            "This is a defect of edgeprune: please report it with the network.",
        )
    write_json(folder / "search.json", found.to_dict())


def recover_stage(context: Context, folder: Path) -> None:
    """weights.safetensors, plan.json, recover.json: repaired, statistics estimated again, fine-tuned."""
    from edgeprune.recover import evaluate, repair, train

    plan = graph.Plan.load(context.folder("search") / "plan.json")
    student = plan.apply(context.model)
    data, options = context.data, context.recipe.recover
    accuracy = {"dense": evaluate(context.model, data.selection), "pruned": evaluate(student, data.selection)}
    context.say("recover", f"held-out accuracy: dense {accuracy['dense']:.1%}, pruned {accuracy['pruned']:.1%}")
    images = torch.from_numpy(data.train.take(max(REPAIR_IMAGES, context.recipe.search.images)).arrays())
    student = repair(context.model, student, context.structure, plan, images)
    accuracy["repaired"] = evaluate(student, data.selection)
    context.say("recover", f"repaired by least squares: {accuracy['repaired']:.1%}")
    training = train(
        student,
        copy.deepcopy(context.model),
        data.train,
        data.selection,
        options,
        folder,
        augment=context.recipe.data.augment,
        workers=context.recipe.data.workers,
        progress=context.progress("recover"),
    )
    accuracy["trained"] = evaluate(student, data.selection)
    context.say("recover", f"fine-tuned for {training.epochs:.1f} epochs: {accuracy['trained']:.1%}")
    graph.save_pruned(folder, student, plan)
    write_json(folder / "recover.json", {"selection_accuracy": accuracy, "training": training.to_dict()})


def pruned_model(context: Context) -> nn.Module:
    """The recovered network, in eval mode."""
    base = Path(context.recipe.path).parent if context.recipe.path else None
    pruned = graph.load(context.folder("recover"), model.load_factory(context.recipe.model.factory, base))
    return pruned.eval()


def quantize_stage(context: Context, folder: Path) -> None:
    """Float and Q/DQ graphs of the dense and the pruned network, with their ranges."""
    model.export_onnx(context.model, context.example, folder / "dense-fp32.onnx")
    model.export_onnx(pruned_model(context), context.example, folder / "pruned-fp32.onnx")
    report = context.progress("quantize")
    for name in ("dense", "pruned"):
        _quantize_one(context, folder, name, lambda done, name=name: report(done, 0, f"calibrating {name}"))  # type: ignore[misc]


def _quantize_one(context: Context, folder: Path, name: str, progress: Callable[[int], None]) -> None:
    options, dialect = context.recipe.quantize, context.dialect
    images = context.data.calibration.take(options.images)
    network = onnx.load(folder / f"{name}-fp32.onnx")
    ranges = quantize.calibrate(network, lambda: images.batches(32), dialect, options, progress)
    for warning in ranges.warnings:
        context.say("quantize", f"{name}: {warning}")
    precision: dict[str, Any] = {}
    if name == "pruned":
        precision = choose_precision(context, folder, network, ranges)
        write_json(folder / "precision.json", precision)
    floats = dict.fromkeys(precision.get("float", ()), "float")
    if name == "pruned" and options.qat_epochs:
        network, ranges = _train_quantised(context, network, ranges, floats)
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
        flavours.write(context, folder, network, ranges, floats)


def _train_quantised(
    context: Context, network: onnx.ModelProto, ranges: quantize.Ranges, precision: dict[str, str]
) -> tuple[onnx.ModelProto, quantize.Ranges]:
    """[quantize] qat_epochs: train with the fake-quantisation that the artifact will have."""
    from edgeprune.quantize.qat import fine_tune

    images, epochs = context.data.train, context.recipe.quantize.qat_epochs
    total, report = epochs * len(images) / 32, context.progress("quantize")
    return fine_tune(
        network,
        ranges,
        context.dialect,
        lambda: images.batches(32),
        epochs,
        precision,
        on_step=lambda step, loss: report(step, total, f"training in INT8, loss {loss:.4f}"),
    )


ARTIFACTS = {"dense-fp32": "fp32", "dense-int8": "int8", "pruned-fp32": "fp32", "pruned-int8": "int8"}


def artifacts_stage(context: Context, folder: Path) -> None:
    """The runtime's own files, dense and pruned, FP32 and INT8."""
    listed = {}
    sources = {name: context.folder("quantize") / f"{name}.onnx" for name in ARTIFACTS}
    artifacts = {
        name: runtimes.build(sources[name], folder, context.target, name, precision)
        for name, precision in ARTIFACTS.items()
    }
    for name, made in {**artifacts, **flavours.build(context, folder)}.items():
        listed[name] = {
            "precision": made.precision,
            "files": {key: path.name for key, path in made.files.items()},
            "options": made.options,
        }
    write_json(folder / "artifacts.json", listed)


def load_artifacts(context: Context) -> dict[str, Artifact]:
    """The artifacts of a whole artifacts stage."""
    folder = context.folder("artifacts")
    return {
        name: Artifact(
            name,
            context.target.runtime,
            entry["precision"],
            {key: folder / file for key, file in entry["files"].items()},
            entry["options"],
        )
        for name, entry in read_json(folder / "artifacts.json").items()
    }


def validate_stage(context: Context, folder: Path) -> None:
    """measured.json: accuracy and latency of the very artifacts, on the device's runtime, all interleaved."""
    from edgeprune import validate
    from edgeprune.pipeline import images

    device, artifacts = context.device, load_artifacts(context)
    if context.target.protocol.unit != "modelled ms":  # a device's TensorRT may be too old for the other flavours
        artifacts = {name: artifacts[name] for name in ARTIFACTS}
    before = device.probe()
    loaded = {name: device.load(artifact) for name, artifact in artifacts.items()}
    context.say("validate", "measuring latency, dense and pruned interleaved")
    timings = dict(zip(loaded, device.measure(list(loaded.values()), context.target.protocol), strict=True))
    labels, found = context.data.test.labels, images.run(context, artifacts, loaded)
    outputs = found.logits
    figures: dict[str, Any] = {}
    for name, artifact in artifacts.items():
        scored = validate.accuracy(outputs[name], labels, outputs["dense-fp32"])
        unit = timings[name].unit
        figures[name.replace("-", "_")] = {
            **scored.to_dict(),
            latency_key(unit): _timing(timings[name]),
            "bytes": artifact.bytes,
            **({"emulated": found.emulated[name]} if name in found.emulated else {}),
        }
    difference = validate.difference(outputs["pruned-int8"], outputs["dense-fp32"], labels)
    kernels = {name: [asdict(k) for k in device.profile(loaded[name])] for name in ("dense-int8", "pruned-int8")}
    samples = context.data.test.take(SAMPLES).arrays()
    given = device.infer(loaded["pruned-int8"], samples)
    arrays: dict[str, Any] = {"output" if i == 0 else f"output_{i}": output for i, output in enumerate(given)}
    np.savez(folder / "samples.npz", input=samples, **arrays)
    write_json(folder / "preprocessing.json", context.data.preprocess.to_dict())
    if context.data.classes:
        write_json(folder / "labels.json", list(context.data.classes))
    second = optimised.write(context, folder, loaded["pruned-int8"]) if optimised.wanted(context) else None
    write_json(
        folder / "measured.json",
        {
            "unit": timings["dense-int8"].unit,
            "networks": figures,
            "difference": difference.to_dict(),
            "kernels": kernels,
            "device": before.fingerprint,
            "state": {"before": before.state, "after": device.probe().state},
            **({"optimised": second} if second else {}),
        },
    )


def _timing(timing: Any) -> dict[str, Any]:
    return {
        "median": timing.median,
        "p90": timing.p90,
        "p99": timing.p99,
        "min": timing.minimum,
        "mean": timing.mean,
        "spread": timing.spread,
        "count": timing.count,
        "rounds": list(timing.rounds),
        "valid": timing.valid,
        "reasons": list(timing.reasons),
    }


WORK: dict[str, Callable[[Context, Path], None]] = {
    "graph": graph_stage,
    "plan": plan_stage,
    "latency": latency_stage,
    "search": search_stage,
    "recover": recover_stage,
    "quantize": quantize_stage,
    "artifacts": artifacts_stage,
    "validate": validate_stage,
}
