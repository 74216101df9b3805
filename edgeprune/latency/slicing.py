"""The float graph of a narrowed network: the dense ONNX with initializers sliced and removed blocks by-passed.

Latency does not depend on the values of weights, so a variant keeps the first units of each group: milliseconds
instead of a new export. Constants that hold channel counts (shapes, the sizes of a split, the ends of a slice) follow
from which channels are left of each tensor (`left`). `narrow` checks the result by strict shape inference and says None
when slicing is not valid for this network.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgeprune.graph import Block, Configuration, Structure, width
from edgeprune.latency.going import calls_of, going
from edgeprune.latency.left import Removed, resize_constants
from edgeprune.model import channels, has_twins, merge_twins

UNNAMED = ("embedding", "lstm", "gru", "rnn_tanh", "rnn_relu")  # no node bears the name of such a layer


def narrow(dense: onnx.ModelProto, structure: Structure, variant: Configuration) -> onnx.ModelProto | None:
    """The variant's float graph by slicing the dense one, or None where that does not give a sound graph.

    Args:
        dense: as `model.export_onnx` writes it: initializers are called `<module>.weight` and `<module>.bias`.
    """
    model = onnx.ModelProto()
    model.CopyFrom(dense)
    del model.graph.value_info[:]
    for block in structure.blocks:
        if block.module in variant.removed and not _bypass(model.graph, block):
            return None
    _drop_dead(model.graph)
    gone = removed_positions(structure, variant.widths)
    _slice(model.graph, structure, gone)
    _groups(model.graph, structure, variant)
    if variant.widths and not resize_constants(model.graph, dense, gone):
        return None
    if variant.removed and has_twins(model.graph):
        merge_twins(model.graph, channels(model))
    try:
        model = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return None
    return model if _sound(model, dense, structure, variant) else None


def _bypass(graph: onnx.GraphProto, block: Block) -> bool:
    """Connect what a block reads to what reads the block; False when it has not one entry and one exit."""
    gone = going(calls_of(graph), block)
    if gone is None or any(value.name == gone.result for value in graph.output):
        return False
    for node in [node for node in graph.node if node.name in gone.nodes]:
        graph.node.remove(node)
    for node in graph.node:
        node.input[:] = [gone.source if name == gone.result else name for name in node.input]
    return True


def _drop_dead(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _turned(node: onnx.NodeProto) -> bool:
    """Reads its weights as [inputs, outputs], where PyTorch has [outputs, inputs]."""
    gemm = node.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in node.attribute)
    return len(node.input) > 1 and (node.op_type == "MatMul" or gemm)


def _slice(graph: onnx.GraphProto, structure: Structure, gone: Removed) -> None:
    bias_axis = {la.name: 1 if la.kind.startswith("conv_transpose") else 0 for la in structure.layers}
    turned = {node.input[1] for node in graph.node if _turned(node)}
    linear = {layer.weight for layer in structure.layers if layer.kind == "linear"}
    for tensor in graph.initializer:
        cuts = dict(gone.get(tensor.name, {}))
        if tensor.name in turned and tensor.name in linear and len(tensor.dims) == 2:
            cuts = {1 - axis: positions for axis, positions in cuts.items()}
        module, _, kind = tensor.name.rpartition(".")
        if kind == "bias" and tensor.name not in gone and module in bias_axis:
            axis = bias_axis[module]
            weight = gone.get(f"{module}.weight", {})
            cuts = {0: weight[axis]} if axis in weight else {}
        if cuts:
            array = numpy_helper.to_array(tensor)
            for axis, positions in cuts.items():
                if axis < array.ndim:
                    array = np.delete(array, positions[positions < array.shape[axis]], axis)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))


def removed_positions(structure: Structure, widths: Mapping[str, int]) -> Removed:
    """Parameter -> axis -> positions that go when group g keeps its first `widths[g]` units."""
    found: dict[str, dict[int, list[NDArray[np.int64]]]] = {}
    for group in structure.groups:
        kept = widths.get(group.name, group.size)
        if kept < group.size:
            for member in group.members:
                found.setdefault(member.parameter, {}).setdefault(member.axis, []).append(member.indices[kept:].ravel())
    return {name: {axis: np.concatenate(parts) for axis, parts in axes.items()} for name, axes in found.items()}


def _groups(graph: onnx.GraphProto, structure: Structure, variant: Configuration) -> None:
    """The `group` attribute of grouped and depthwise convolutions."""
    counts = {la.name: width(la.group_axis, variant.widths) for la in structure.layers if la.group_axis}
    for node in graph.node:
        if node.name in counts:
            for attribute in node.attribute:
                if attribute.name == "group":
                    attribute.i = counts[node.name]


def _sound(model: onnx.ModelProto, dense: onnx.ModelProto, structure: Structure, variant: Configuration) -> bool:
    """Every layer has the channels that the structure says, and the outputs kept their shapes."""
    made = {n.name: n.output[0] for n in model.graph.node}
    known = (*model.graph.value_info, *model.graph.output)
    shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in known}
    for layer in structure.layers:
        if layer.name not in made or layer.kind in UNNAMED:
            continue
        shape = shapes.get(made[layer.name], ())
        axis = 1 if layer.kind.startswith("conv") else -1
        channels = shape[axis] if len(shape) > axis % max(len(shape), 1) else -1
        if channels != width(layer.outputs, variant.widths):
            return False
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes.update({v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in model.graph.input})
    for node in model.graph.node:  # ONNX's own shape inference does not compare these
        if node.op_type == "Conv" and node.input[1] in weights:
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            if shapes.get(node.input[0], (0, -1))[1] != weights[node.input[1]][1] * groups:
                return False
    old = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in dense.graph.output]
    return old == [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.output]
