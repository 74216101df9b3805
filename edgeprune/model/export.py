"""The float ONNX graph that quantisation, the runtimes and the latency tables start from.

One form whatever the network: inputs called as the network's are, outputs called output, output_1, ...; static batch,
batch norms folded, a bias on every convolution, global means as GlobalAveragePool, opset 17 where the operators allow
it. A node that owns weights is named after its PyTorch module and its initializers are `<module>.weight` and
`<module>.bias`; other nodes are named `<module>/<operator>`. The names that the runtimes' profilers report lead back to
layers this way.
"""

from __future__ import annotations

import ast
import contextlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from edgeprune import files
from edgeprune.errors import ModelError
from edgeprune.model.masks import finite_masks
from edgeprune.model.pads import keep_zero_pads
from edgeprune.model.registry import one_registry
from edgeprune.model.twins import channels, has_twins, merge_twins

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.export import ExportedProgram

    Example = torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor]

OPSET = 17  # the newest that TensorRT 8.5 reads
TOLERANCE = 1e-3  # of an output's largest number: how far the graph may be from PyTorch
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
# Operators whose meaning or form changed between opset 17 and 18 (onnx/docs/Changelog.md): with one of them, 18 stays.
_CHANGED = {"GroupNormalization", "CenterCropPad", "Col2Im", "Mish"}
# Operators that opset 18 gave something more: what each has that opset 17 does not know, and its harmless value.
_EXTENDED: dict[str, dict[str, object]] = {
    "Split": {"num_outputs": None},
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"},
    "Pad": {},
    "ScatterElements": {},
    "ScatterND": {},
}


def export_onnx(
    module: nn.Module,
    example: Example,
    path: Path,
    names: Sequence[str] = (),
    program: ExportedProgram | None = None,
) -> onnx.ModelProto:
    """Write `module`, in eval mode, as canonical float ONNX; `module` itself is left as it was.

    Args:
        module: on the CPU.
        example: [batch, ...] of any type, one tensor, several in order, or several by the names of forward's
            arguments; their batch becomes the graph's.
        path: written whole or not at all.
        names: of the inputs, in the example's order; empty: "input", "input_1", ... One by names has its own.
        program: of this module in eval mode on this example, where it is captured already.

    Raises:
        ModelError: torch cannot export the network; the message holds torch's own reason.
    """
    model, order = _export(module, example, program)
    _rename_ends(model.graph, order if isinstance(example, Mapping) else names)
    _fold_batch_norms(model.graph)
    if has_twins(model.graph):
        merge_twins(model.graph, channels(model))
    _global_means(model.graph)
    keep_zero_pads(model.graph)
    finite_masks(model.graph)
    _name_nodes(model.graph)
    _give_biases(model.graph)
    _strip(model)
    _lower_opset(model)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=False, data_prop=True)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as partial:
        onnx.save(model, partial)
    return model


def check_export(
    module: nn.Module,
    example: Example,
    exported: onnx.ModelProto,
) -> None:
    """Does the graph compute what the network does, on the example, at every output? Raises ModelError where not."""
    import onnxruntime
    import torch
    from torch.utils._pytree import tree_leaves

    args, named = _arguments(example)
    training = {name: part.training for name, part in module.named_modules()}
    module.eval()
    try:
        with torch.no_grad():
            found = module(*args, **named)
    finally:
        for name, part in module.named_modules():
            part.training = training[name]
    wanted = [leaf.numpy() for leaf in tree_leaves(dict(found) if isinstance(found, Mapping) else found)]
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    try:
        session = onnxruntime.InferenceSession(exported.SerializeToString(), options, ["CPUExecutionProvider"])
        inputs = [value.name for value in exported.graph.input]
        given = [named[name] for name in inputs] if named else args
        outputs = session.run(None, {name: part.numpy() for name, part in zip(inputs, given, strict=True)})
    except Exception as cause:  # onnxruntime's own exceptions share no public root
        raise ModelError(f"ONNX Runtime does not run the exported network: {_reason(cause)[:300]}.") from cause
    if len(outputs) != len(wanted):
        raise ModelError(f"the exported network has {len(outputs)} outputs; the network gives {len(wanted)}.")
    for number, (one, two) in enumerate(zip(wanted, outputs, strict=True)):
        if one.shape != two.shape:
            raise ModelError(f"output {number} is {list(one.shape)} in PyTorch and {list(two.shape)} once exported.")
        if one.dtype.kind == "f":
            size = float(np.abs(one).max(initial=0.0))
            error = float(np.abs(one.astype(np.float64) - two).max(initial=0.0))
            good = error <= TOLERANCE * max(size, 1e-6)
        else:
            error = float((one != two).mean()) if one.size else 0.0
            good = error <= 0.02  # a tie between two classes may fall either way
        if not good:
            raise ModelError(
                f"output {number} of the exported network is not the network's own: they differ by {error:.3g}.",
                "Something in its forward is exported otherwise than it runs: random numbers, or a branch on data.",
            )


def _arguments(
    example: Example,
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example) if isinstance(example, tuple | list) else (cast("torch.Tensor", example),)), {}


def _export(module: nn.Module, example: Example, program: ExportedProgram | None) -> tuple[onnx.ModelProto, list[str]]:
    """The graph as torch exports it, and the names of the arguments, where they have one, in the graph's order."""
    import torch

    from edgeprune.graph import attributes_kept, drop_zeros

    args, named = _arguments(example)
    training = {name: part.training for name, part in module.named_modules()}
    module.eval()
    try:
        with _quiet(), torch.no_grad(), one_registry(), attributes_kept(module):  # else a cache is left without values
            if program is None or _nested(program):
                program = torch.export.export(module, args, named, strict=False)
                drop_zeros(program.graph_module)
            exported = torch.onnx.export(program, dynamo=True, optimize=True, verbose=False, opset_version=18)
        assert exported is not None
        model: onnx.ModelProto = exported.model_proto
        return model, list(program.example_inputs[1])
    except Exception as cause:
        raise ModelError(f"torch cannot export the network to ONNX: {_reason(cause)[:300]}") from cause
    finally:
        for name, part in module.named_modules():
            part.training = training[name]


def _nested(program: ExportedProgram) -> bool:
    """Does it hold graphs inside its graph? Without gradients, as here, parts under no_grad are captured flat."""
    return any(node.op == "get_attr" for node in program.graph.nodes)


def _reason(error: BaseException) -> str:
    """The first line of what lies at the root; torch's exporter wraps it in a report of its own steps."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()]
    return next((line for line in lines if line), type(error).__name__)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter talks about its own progress and about optional packages."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _rename_ends(graph: onnx.GraphProto, inputs: Sequence[str]) -> None:
    """Inputs by `inputs` (or input, input_1, ...), outputs as output, output_1, ...; what is called so gives way."""
    if inputs and len(graph.input) != len(inputs):
        raise ModelError(f"the network uses {len(graph.input)} of its inputs {', '.join(inputs)}: give those alone.")
    wanted = {
        value.name: inputs[i] if inputs else "input" if i == 0 else f"input_{i}" for i, value in enumerate(graph.input)
    }
    for i, value in enumerate(graph.output):
        if value.name in wanted:
            raise ModelError("the network returns its input unchanged: there is nothing to prune or quantise.")
        wanted[value.name] = "output" if i == 0 else f"output_{i}"
    ends = list(wanted.values())
    twice = next((name for name in ends if ends.count(name) > 1), "")
    if twice:
        raise ModelError(f"an input of the network is called '{twice}', as its outputs are.", "Call it otherwise.")
    inner = [tensor.name for tensor in graph.initializer] + [name for node in graph.node for name in node.output]
    names = {name: f"{name}/inner" for name in inner if name in ends and name not in wanted} | wanted
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def _constants(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def _uses(graph: onnx.GraphProto) -> dict[str, int]:
    uses: dict[str, int] = {value.name: 1 for value in graph.output}
    for node in graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
    return uses


def _set(graph: onnx.GraphProto, name: str, value: NDArray[Any]) -> None:
    """Add or replace an initializer."""
    tensor = numpy_helper.from_array(np.ascontiguousarray(value), name)
    for old in graph.initializer:
        if old.name == name:
            old.CopyFrom(tensor)
            return
    graph.initializer.append(tensor)


def _fold_batch_norms(graph: onnx.GraphProto) -> None:
    """Fold what torch's exporter left: a BatchNormalization that alone reads a convolution or linear layer."""
    constants, uses = _constants(graph), _uses(graph)
    makers = {name: node for node in graph.node for name in node.output}
    for norm in [node for node in graph.node if node.op_type == "BatchNormalization"]:
        maker = makers.get(norm.input[0])
        if (
            maker is None
            or maker.op_type not in ("Conv", "Gemm")
            or uses[norm.input[0]] != 1
            or uses[maker.input[1]] != 1
        ):
            continue
        gamma, beta, mean, variance = (constants[name].astype(np.float64) for name in norm.input[1:5])
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        scale = gamma / np.sqrt(variance + epsilon)
        weight = constants[maker.input[1]].astype(np.float64)
        transposed = any(a.name == "transB" and a.i for a in maker.attribute)
        axis = 0 if maker.op_type == "Conv" or transposed else 1
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        bias = constants[maker.input[2]].astype(np.float64) if len(maker.input) > 2 else np.zeros_like(mean)
        _set(graph, maker.input[1], (weight * scale.reshape(shape)).astype(np.float32))
        name = maker.input[2] if len(maker.input) > 2 else f"{maker.input[1]}.folded_bias"
        if uses.get(name, 0) > 1:
            name = f"{maker.input[1]}.folded_bias"
        _set(graph, name, ((bias - mean) * scale + beta).astype(np.float32))
        maker.input[:] = [maker.input[0], maker.input[1], name]
        maker.output[0] = norm.output[0]
        graph.node.remove(norm)


def _global_means(graph: onnx.GraphProto) -> None:
    """A mean over both spatial axes becomes GlobalAveragePool: every runtime has an INT8 kernel for it."""
    constants = _constants(graph)
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*graph.value_info, *graph.input, *graph.output)}
    for position, node in reversed(list(enumerate(graph.node))):
        if node.op_type != "ReduceMean" or ranks.get(node.input[0]) != 4:
            continue
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        axes = (
            constants[node.input[1]].tolist()
            if len(node.input) > 1 and node.input[1] in constants
            else attributes.get("axes")
        )
        if axes is None or sorted(axis % 4 for axis in axes) != [2, 3]:
            continue
        keep = bool(attributes.get("keepdims", 1))
        pooled = node.output[0] if keep else f"{node.output[0]}_pooled"
        pool = helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], node.name)
        pool.metadata_props.extend(node.metadata_props)
        replacements = [pool]
        if not keep:
            flatten = helper.make_node("Flatten", [pooled], [node.output[0]], f"{node.name}_flatten", axis=1)
            flatten.metadata_props.extend(node.metadata_props)
            replacements.append(flatten)
        graph.node.remove(node)
        for offset, replacement in enumerate(replacements):
            graph.node.insert(position + offset, replacement)


def _scope(node: NodeProto) -> str:
    """The qualified name of the PyTorch module that the node came from."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = ast.literal_eval(entry.value)
            return str(scopes[-2]) if len(scopes) > 1 else ""
    return ""


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Name nodes and initializers after modules."""
    initializers = {tensor.name for tensor in graph.initializer}
    uses = _uses(graph)
    taken: dict[str, int] = {}
    renamed: dict[str, str] = {}
    for node in graph.node:
        name = ""
        weights = [i for i in node.input[1:2] if i in initializers] if node.op_type in _WEIGHTED else []
        if weights:
            name = weights[0].removesuffix(".weight") if weights[0].endswith(".weight") else _scope(node)
        name = name or "/".join(part for part in (_scope(node), node.op_type.lower()) if part)
        taken[name] = taken.get(name, 0) + 1
        node.name = name if taken[name] == 1 else f"{name}#{taken[name]}"
        if weights:
            for index, kind in ((1, "weight"), (2, "bias")):
                if index < len(node.input) and node.input[index] in initializers and uses[node.input[index]] == 1:
                    renamed[node.input[index]] = f"{node.name}.{kind}"
    renamed = {old: new for old, new in renamed.items() if new == old or new not in initializers}
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [renamed.get(i, i) for i in node.input]


def _give_biases(graph: onnx.GraphProto) -> None:
    """A convolution without a bias gets one of zeros, so that latency does not depend on what training left there."""
    constants = _constants(graph)
    for node in graph.node:
        if node.op_type == "Conv" and len(node.input) == 2 and node.input[1] in constants:
            name = f"{node.name}.bias"
            _set(graph, name, np.zeros(constants[node.input[1]].shape[0], np.float32))
            node.input.append(name)


def _strip(model: onnx.ModelProto) -> None:
    """Remove unused initializers, stale shapes, and everything that says how or where the graph was made."""
    used = {name for node in model.graph.node for name in node.input} | {v.name for v in model.graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:], model.graph.value_info[:], model.metadata_props[:], model.graph.metadata_props[:]
    model.graph.initializer.extend(kept)
    model.doc_string = model.graph.doc_string = ""
    model.graph.name = "network"
    model.producer_name, model.producer_version = "edgeprune", ""
    for item in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        item.doc_string = ""
        del item.metadata_props[:]


def _lowers(node: NodeProto, model: onnx.ModelProto) -> bool:
    """Whether an operator of opset 18 means the same in opset 17 once its new attributes are left out."""
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    match node.op_type:
        case "Split":
            if len(node.input) > 1:
                return True
            graph = onnx.shape_inference.infer_shapes(model).graph
            known = {value.name: _sizes(value) for value in (*graph.value_info, *graph.input)}
            sizes = known.get(node.input[0]) or [0]
            size = sizes[found.get("axis", 0)] if len(sizes) > found.get("axis", 0) else 0
            return size > 0 and size % len(node.output) == 0
        case "Pad":
            return len(node.input) < 4
        case "Resize":
            new = _EXTENDED["Resize"]
            return "axes" not in found and all(found.get(name, value) == value for name, value in new.items())
    return found.get("reduction", b"none") in (b"none", b"add", b"mul")


def _sizes(value: onnx.ValueInfoProto) -> list[int]:
    return [dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _lower_opset(model: onnx.ModelProto) -> None:
    """Declare opset 17 where no operator needs 18; reductions go back to axes as an attribute."""
    constants = _constants(model.graph)
    kinds = {node.op_type for node in model.graph.node}
    reductions = [
        node for node in model.graph.node if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum"
    ]
    extended = [node for node in model.graph.node if node.op_type in _EXTENDED]
    if (
        kinds & _CHANGED
        or not all(_lowers(node, model) for node in extended)
        or any(len(node.input) > 1 and node.input[1] not in constants for node in reductions)
        or any(
            len(node.input) == 1 and a.name == "noop_with_empty_axes" and a.i
            for node in reductions
            for a in node.attribute
        )
        or len(model.functions)
    ):
        return
    if any(item.domain not in ("", "ai.onnx") for item in model.opset_import):
        return
    for node in extended:
        kept = [a for a in node.attribute if a.name not in _EXTENDED[node.op_type]]
        del node.attribute[:]
        node.attribute.extend(kept)
    for node in reductions:
        kept = [a for a in node.attribute if a.name != "noop_with_empty_axes"]  # opset 18's
        if len(node.input) > 1:
            kept.append(helper.make_attribute("axes", constants[node.input[1]].tolist()))
            del node.input[1:]
        del node.attribute[:]
        node.attribute.extend(kept)
    used = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in used]:
        model.graph.initializer.remove(tensor)
    model.opset_import[0].version = OPSET
    model.ir_version = min(model.ir_version, 8)
