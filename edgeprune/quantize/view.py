"""An index over an ONNX graph: who makes a tensor, who reads it, which are constants. It changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FLOATING = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
ACTIVATIONS = ("Relu", "Clip")  # what every runtime fuses into the node before


@dataclass(frozen=True)
class View:
    """A graph with its indexes. Build it again after changing the graph.

    Attributes:
        model: the model that was indexed.
        producer: tensor -> the node that makes it.
        consumers: tensor -> the (node, input index) pairs that read it, in graph order.
    """

    model: onnx.ModelProto
    producer: dict[str, onnx.NodeProto] = field(repr=False)
    consumers: dict[str, list[tuple[onnx.NodeProto, int]]] = field(repr=False)

    @classmethod
    def of(cls, model: onnx.ModelProto) -> View:
        """Index `model`."""
        producer: dict[str, onnx.NodeProto] = {}
        consumers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
        for node in model.graph.node:
            for output in node.output:
                if output:
                    producer[output] = node
            for index, name in enumerate(node.input):
                if name:
                    consumers.setdefault(name, []).append((node, index))
        return cls(model, producer, consumers)

    @cached_property
    def values(self) -> dict[str, onnx.TypeProto.Tensor]:
        """Type and shape of every tensor that ONNX's shape inference knows, by name."""
        graph = self.model.graph
        known = {value.name for value in (*graph.value_info, *graph.input, *graph.output) if _typed(value)}
        made = {output for node in graph.node for output in node.output if output}
        if not made <= known:
            graph = onnx.shape_inference.infer_shapes(self.model, data_prop=True).graph
        found = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input, *graph.output)}
        for tensor in graph.initializer:
            found[tensor.name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims).tensor_type
        return found

    def is_float(self, tensor: str) -> bool:
        """Whether a tensor holds floating-point numbers; not known counts as no."""
        found = self.values.get(tensor)
        return found is not None and found.elem_type in FLOATING

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        """The shape of a tensor, 0 where a size is not known; None where not even the rank is."""
        found = self.values.get(tensor)
        if found is None or not found.HasField("shape"):
            return None
        return tuple(int(dim.dim_value) for dim in found.shape.dim)

    @property
    def nodes(self) -> Iterator[onnx.NodeProto]:
        """Nodes in the graph's (topological) order."""
        return iter(self.model.graph.node)

    @cached_property
    def initializers(self) -> dict[str, onnx.TensorProto]:
        """Initializers by name."""
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    @cached_property
    def inputs(self) -> list[str]:
        """Graph inputs that are data (older files list initializers as inputs as well)."""
        return [value.name for value in self.model.graph.input if value.name not in self.initializers]

    @cached_property
    def outputs(self) -> list[str]:
        """Graph outputs."""
        return [value.name for value in self.model.graph.output]

    def constant(self, name: str) -> Array | None:
        """The value of a constant tensor; None when it is computed or fed."""
        if name in self.initializers:
            return numpy_helper.to_array(self.initializers[name])
        node = self.producer.get(name)
        if node is not None and node.op_type == "Constant":
            value = next((a for a in node.attribute if a.name == "value"), None)
            return numpy_helper.to_array(value.t) if value is not None else None
        return None

    def is_constant(self, name: str) -> bool:
        """Whether `name` is an initializer or the output of a Constant node."""
        if name in self.initializers:
            return True
        node = self.producer.get(name)
        return node is not None and node.op_type == "Constant"

    def data_inputs(self, node: onnx.NodeProto) -> list[int]:
        """Indexes of the inputs that are neither empty nor constant."""
        return [index for index, name in enumerate(node.input) if name and not self.is_constant(name)]

    def only_consumer(self, tensor: str) -> onnx.NodeProto | None:
        """The one node that reads `tensor`; None if there are several, none, or it is a graph output."""
        readers = self.consumers.get(tensor, [])
        return readers[0][0] if len(readers) == 1 and tensor not in self.outputs else None

    def activation_after(self, tensor: str) -> onnx.NodeProto | None:
        """The Relu or Clip that alone reads `tensor` and that runtimes fuse into its producer."""
        node = self.only_consumer(tensor)
        if node is None or node.op_type not in ACTIVATIONS or node.input[0] != tensor:
            return None
        return node if node.op_type == "Relu" or self.bounds(node) is not None else None

    def bounds(self, node: onnx.NodeProto) -> tuple[float, float] | None:
        """The constant bounds of a Clip (open ends are infinite); None if they are computed."""
        bounds = [-np.inf, np.inf]
        for index in (1, 2):
            if len(node.input) > index and node.input[index]:
                value = self.constant(node.input[index])
                if value is None:
                    return None
                bounds[index - 1] = float(value.reshape(()))
        return bounds[0], bounds[1]

    def settled(self, tensor: str) -> str:
        """`tensor`, or the output of the activation that is fused into its producer."""
        node = self.activation_after(tensor)
        return node.output[0] if node is not None else tensor

    @cached_property
    def layers(self) -> dict[str, onnx.NodeProto]:
        """Nodes that own weights (a constant second input), by node name, in graph order."""
        return {
            node.name: node
            for node in self.nodes
            if node.op_type in WEIGHTED and len(node.input) > 1 and self.is_constant(node.input[1])
        }


def _typed(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.tensor_type.elem_type) and value.type.tensor_type.HasField("shape")


def attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """The value of a node's attribute, or `default`."""
    found = next((a for a in node.attribute if a.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def output_axis(node: onnx.NodeProto) -> int:
    """The axis of a layer's weight that indexes output channels (for ConvTranspose: within a group)."""
    match node.op_type:
        case "Conv":
            return 0
        case "ConvTranspose":
            return 1
        case "Gemm":
            return 0 if attribute(node, "transB", 0) else 1
        case _:
            return -1


def is_depthwise(node: onnx.NodeProto, shape: tuple[int, ...]) -> bool:
    """Whether a Conv has as many groups as output channels, and more than one."""
    return node.op_type == "Conv" and attribute(node, "group", 1) == shape[0] > 1
