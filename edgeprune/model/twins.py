"""A concat that holds one tensor twice holds it once: the convolutions behind it add up the weights of the two.

A removed block becomes an identity, so that a concat of what each block of a C2f stage gives has a slice twice. What is
computed stays the same; the slice and the input channels that read it are gone.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper


def merge_twins(graph: onnx.GraphProto, sizes: dict[str, int]) -> None:
    """Drop the second of two equal inputs of each concat of channels that convolutions alone read, in place.

    Args:
        sizes: channels of the tensors; a concat with one that is not listed stays.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto | None]] = {value.name: [None] for value in graph.output}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in list(graph.node):
        names = list(node.input)
        if node.op_type != "Concat" or len(set(names)) == len(names) or not all(name in sizes for name in names):
            continue
        behind = [reader for reader in readers.get(node.output[0], ()) if _plain(reader, node, weights, readers)]
        if next(a.i for a in node.attribute if a.name == "axis") != 1 or not behind:
            continue
        if len(behind) != len(readers[node.output[0]]):
            continue
        starts = np.cumsum([0, *(sizes[name] for name in names)]).tolist()
        first = {name: names.index(name) for name in names}
        for reader in behind:
            assert reader is not None
            tensor = weights[reader.input[1]]
            old = numpy_helper.to_array(tensor)
            parts = {i: old[:, starts[i] : starts[i + 1]].astype(np.float64) for i in first.values()}
            for i, name in enumerate(names):
                if i != first[name]:
                    parts[first[name]] = parts[first[name]] + old[:, starts[i] : starts[i + 1]]
            new = np.concatenate([parts[i] for i in sorted(parts)], 1).astype(old.dtype)
            tensor.CopyFrom(numpy_helper.from_array(new, tensor.name))
        del node.input[:]
        node.input.extend(dict.fromkeys(names))
        if len(node.input) == 1:
            for reader in behind:
                if reader is not None:
                    reader.input[0] = names[0]
            graph.node.remove(node)


def channels(model: onnx.ModelProto) -> dict[str, int]:
    """Tensor -> its size along axis 1, as far as shape inference knows."""
    found = onnx.shape_inference.infer_shapes(model, strict_mode=False, data_prop=True).graph
    sizes = {}
    for value in (*found.input, *found.value_info, *found.output):
        dims = value.type.tensor_type.shape.dim
        if len(dims) > 2 and dims[1].dim_value:
            sizes[value.name] = int(dims[1].dim_value)
    return sizes


def has_twins(graph: onnx.GraphProto) -> bool:
    """Whether a concat reads one tensor twice."""
    return any(node.op_type == "Concat" and len(set(node.input)) < len(node.input) for node in graph.node)


def _plain(
    reader: onnx.NodeProto | None,
    node: onnx.NodeProto,
    weights: dict[str, onnx.TensorProto],
    readers: dict[str, list[onnx.NodeProto | None]],
) -> bool:
    """Whether a reader is an ungrouped convolution whose weight nothing else reads."""
    if reader is None or reader.op_type != "Conv" or reader.input[0] != node.output[0]:
        return False
    weight = reader.input[1]
    groups = next((a.i for a in reader.attribute if a.name == "group"), 1)
    return groups == 1 and weight in weights and len(readers[weight]) == 1
