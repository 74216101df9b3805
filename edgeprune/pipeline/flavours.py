"""TensorRT takes Q/DQ graphs in two flavours; a release carries the profile's others too, from the very same ranges.

Each is checked by the own linter, and, where it is installed, by TensorRT-RTX, which compiles for the same kernels
without a GPU. Neither is a measurement on a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import onnx

from edgeprune import quantize, runtimes
from edgeprune.errors import GateError
from edgeprune.pipeline.events import Voice
from edgeprune.pipeline.rundir import RunDirectory, read_json, write_json
from edgeprune.quantize import rtx
from edgeprune.result import Facts
from edgeprune.runtimes import DIALECTS, Dialect
from edgeprune.target import Target

FILE = "flavours.json"


def artifact(dialect: str, target: Target) -> str:
    """The artifact's name: pruned-int8 in the target's own flavour, pruned-int8-b in flavour B."""
    return "pruned-int8" if dialect == target.dialect else f"pruned-int8-{dialect.rpartition('-')[2]}"


def write(
    target: Target,
    voice: Voice,
    folder: Path,
    network: onnx.ModelProto,
    ranges: quantize.Ranges,
    floats: Mapping[str, str],
) -> None:
    """flavours.json, and the graphs of the other flavours; nothing for a runtime that has one flavour only.

    Raises GateError when a graph breaks a rule of its flavour.
    """
    names = runtimes.flavours(target)
    if len(names) == 1 and not runtimes.load(target.runtime).flavours:
        return
    facts = {}
    for name in names:
        graph = quantize.apply(network, ranges, DIALECTS[name], floats)
        onnx.save(graph, folder / f"{artifact(name, target)}.onnx")
        facts[name] = check(graph, DIALECTS[name], str(target.extra.get("rtx_capability", "")))
        voice.say("quantize", f"flavour {name}: {in_words(facts[name])}")
    write_json(folder / FILE, facts)


def check(graph: onnx.ModelProto, dialect: Dialect, capability: str) -> dict[str, object]:
    """What the own linter finds, and what TensorRT-RTX makes of the graph; raises GateError for a rule that is broken.

    Args:
        capability: the GPU that TensorRT-RTX compiles for, such as "SM86"; empty: it knows none like the target's.
    """
    findings = quantize.lint(graph, dialect)
    facts: dict[str, object] = {"lint": [asdict(finding) for finding in findings]}
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


def in_words(facts: Mapping[str, object]) -> str:
    """One sentence on a flavour's checks."""
    found, findings = Facts(facts).part("rtx"), len(Facts(facts).listed("lint"))
    said = f"{findings} findings" if findings else "no finding"
    if found.get("skipped"):
        return f"linter: {said}. {found.text('skipped')}"
    return (
        f"linter: {said}. TensorRT-RTX {found.text('version')} compiled it for {found.text('capability')}: "
        f"{found.text('int8', 'did not say which')} of {found.text('intended')} quantised convolutions run in INT8"
    )


def build(target: Target, run: RunDirectory, folder: Path) -> dict[str, runtimes.Artifact]:
    """The artifacts of the other flavours."""
    import msgspec

    made = {}
    for dialect in runtimes.flavours(target)[1:]:
        name, other = artifact(dialect, target), msgspec.structs.replace(target, dialect=dialect)
        made[name] = runtimes.build(run.folder("quantize") / f"{name}.onnx", folder, other, name, "int8")
    return made


def facts(run: RunDirectory) -> dict[str, object]:
    """Flavour -> its checks, as the quantize stage wrote them down."""
    path = run.folder("quantize") / FILE
    return dict(read_json(path)) if path.is_file() else {}
