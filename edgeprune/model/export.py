"""The float ONNX graph that quantisation, the runtimes and the latency tables start from.

One form whatever the network: static batch, batch norms folded, a bias on every convolution, global means as
GlobalAveragePool, opset 17 where the operators allow it. A node that owns weights is named after its PyTorch module and
its initializers are `<module>.weight` and `<module>.bias`; other nodes are named `<module>/<operator>`. The names that
the runtimes' profilers report lead back to layers this way.
"""

from __future__ import annotations

import ast
import contextlib
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from edgeprune.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

OPSET = 17  # the newest that TensorRT 8.5 reads
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
# Operators whose meaning or form changed between opset 17 and 18 (onnx/docs/Changelog.md): with one of them, 18 stays.
_CHANGED = {
    "Split",
    "Pad",
    "Resize",
    "ScatterElements",
    "ScatterND",
    "GroupNormalization",
    "CenterCropPad",
    "Col2Im",
    "Mish",
}


def export_onnx(module: nn.Module, example: torch.Tensor, path: Path) -> onnx.ModelProto:
    """Write `module`, in eval mode, as canonical float ONNX; `module` itself is left as it was.

    Args:
        module: on the CPU, one tensor in.
        example: [batch, ...] float32; its batch becomes the graph's.
        path: written whole or not at all.

    Raises:
        ModelError: torch cannot export the network; the message holds torch's own reason.
    """
    model = _export(module, example)
    _rename_ends(model.graph)
    _fold_batch_norms(model.graph)
    _global_means(model.graph)
    _name_nodes(model.graph)
    _give_biases(model.graph)
    _strip(model)
    _lower_opset(model)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=False, data_prop=True)
    onnx.checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    try:
        onnx.save(model, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return model


def _export(module: nn.Module, example: torch.Tensor) -> onnx.ModelProto:
    import torch

    training = {name: part.training for name, part in module.named_modules()}
    module.eval()
    try:
        with _quiet(), torch.no_grad():
            program = torch.export.export(module, (example,), strict=False)
            exported = torch.onnx.export(program, dynamo=True, optimize=True, verbose=False, opset_version=18)
        assert exported is not None
        model: onnx.ModelProto = exported.model_proto
        return model
    except Exception as cause:
        raise ModelError(f"torch cannot export the network to ONNX: {_reason(cause)[:300]}") from cause
    finally:
        for name, part in module.named_modules():
            part.training = training[name]


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


def _rename_ends(graph: onnx.GraphProto) -> None:
    names = {value.name: "input" if i == 0 else f"input_{i}" for i, value in enumerate(graph.input)}
    for i, value in enumerate(graph.output):
        if value.name in names:
            raise ModelError("the network returns its input unchanged: there is nothing to prune or quantise.")
        names[value.name] = "output" if i == 0 else f"output_{i}"
    for value in (*graph.input, *graph.output):
        value.name = names[value.name]
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


def _lower_opset(model: onnx.ModelProto) -> None:
    """Declare opset 17 where no operator needs 18; reductions go back to axes as an attribute."""
    constants = _constants(model.graph)
    kinds = {node.op_type for node in model.graph.node}
    reductions = [
        node for node in model.graph.node if node.op_type.startswith("Reduce") and node.op_type != "ReduceSum"
    ]
    if (
        kinds & _CHANGED
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
