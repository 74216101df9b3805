"""TensorRT takes Q/DQ graphs in two flavours; a release carries the profile's others too, from the very same ranges.

Each is checked by the own linter, and, where it is installed, by TensorRT-RTX, which compiles for the same kernels
without a GPU. Neither is a measurement on a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from edgeprune import quantize, runtimes
from edgeprune.errors import GateError
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.rundir import read_json, write_json
from edgeprune.quantize import rtx
from edgeprune.runtimes.dialects import DIALECTS, Dialect
from edgeprune.target import Target

FILE = "flavours.json"


def artifact(dialect: str, target: Target) -> str:
    """The artifact's name: pruned-int8 in the target's own flavour, pruned-int8-b in flavour B."""
    return "pruned-int8" if dialect == target.dialect else f"pruned-int8-{dialect.rpartition('-')[2]}"


def write(
    context: Context, folder: Path, network: onnx.ModelProto, ranges: quantize.Ranges, floats: Mapping[str, str]
) -> None:
    """flavours.json, and the graphs of the other flavours; nothing for a runtime that has one flavour only.

    Raises GateError when a graph breaks a rule of its flavour.
    """
    names = runtimes.flavours(context.target)
    if len(names) == 1 and context.target.runtime != "tensorrt":
        return
    facts = {}
    for name in names:
        graph = quantize.apply(network, ranges, DIALECTS[name], floats)
        onnx.save(graph, folder / f"{artifact(name, context.target)}.onnx")
        facts[name] = check(graph, DIALECTS[name], str(context.target.extra.get("rtx_capability", "")))
        context.say("quantize", f"flavour {name}: {in_words(facts[name])}")
    write_json(folder / FILE, facts)


def check(graph: onnx.ModelProto, dialect: Dialect, capability: str) -> dict[str, Any]:
    """What the own linter finds, and what TensorRT-RTX makes of the graph; raises GateError for a rule that is broken.

    Args:
        capability: the GPU that TensorRT-RTX compiles for, such as "SM86"; empty: it knows none like the target's.
    """
    findings = quantize.lint(graph, dialect)
    facts: dict[str, Any] = {"lint": [asdict(finding) for finding in findings]}
    if not capability:
        facts["rtx"] = {"skipped": "TensorRT-RTX compiles for no GPU of this generation"}
    elif not rtx.available():
        facts["rtx"] = {"skipped": 'TensorRT-RTX is not installed: pip install "edgeprune[tensorrt-lint]"'}
    else:
        compiled = rtx.compile_for(graph, capability)
        findings += rtx.judge(compiled)
        facts["rtx"] = {
            "version": compiled.version,
            "capability": capability,
            "accepted": compiled.accepted,
            "intended": len(compiled.intended),
            "int8": len(compiled.in_int8) if compiled.layers else None,
        }
    fatal = [finding for finding in findings if finding.severity == "error"]
    if fatal:
        raise GateError(f"the Q/DQ graph breaks a rule of {dialect.title}: {fatal[0].why}", fatal[0].remedy)
    return facts


def in_words(facts: Mapping[str, Any]) -> str:
    """One sentence on a flavour's checks."""
    found, said = facts["rtx"], "no finding" if not facts["lint"] else f"{len(facts['lint'])} findings"
    if "skipped" in found:
        return f"linter: {said}. {found['skipped']}"
    int8 = "did not say which" if found["int8"] is None else found["int8"]
    return (
        f"linter: {said}. TensorRT-RTX {found['version']} compiled it for {found['capability']}: "
        f"{int8} of {found['intended']} quantised convolutions run in INT8"
    )


def build(context: Context, folder: Path) -> dict[str, runtimes.Artifact]:
    """The artifacts of the other flavours."""
    import msgspec

    made = {}
    for dialect in runtimes.flavours(context.target)[1:]:
        name, target = artifact(dialect, context.target), msgspec.structs.replace(context.target, dialect=dialect)
        made[name] = runtimes.build(context.folder("quantize") / f"{name}.onnx", folder, target, name, "int8")
    return made


def facts(context: Context) -> dict[str, Any]:
    """Flavour -> its checks, as the quantize stage wrote them down."""
    path = context.folder("quantize") / FILE
    return dict(read_json(path)) if path.is_file() else {}
