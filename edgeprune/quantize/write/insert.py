"""Writing the Q/DQ graph: pairs where placement.py says, with the numbers of ranges.py, as the dialect wants them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeprune.errors import GraphError, RecipeError, did_you_mean
from edgeprune.quantize.correct.equalise import equalised
from edgeprune.quantize.correct.rounding import unpack
from edgeprune.quantize.ranges.grids import TINY, QParams, least_scales, qparams, quantise_weight
from edgeprune.quantize.ranges.ranges import Ranges, TensorRange, non_negative
from edgeprune.quantize.view import View, output_axis
from edgeprune.quantize.write import pools
from edgeprune.quantize.write import weights as alone
from edgeprune.quantize.write.half import to_half
from edgeprune.quantize.write.opset import raised
from edgeprune.quantize.write.placement import SHARING, Placement, place
from edgeprune.runtimes import Dialect


def apply(
    model: onnx.ModelProto, ranges: Ranges, dialect: Dialect, precision: Mapping[str, str] | None = None
) -> onnx.ModelProto:
    """The Q/DQ graph of `model` in `dialect`.

    Args:
        model: the float graph; it is left as it was.
        ranges: from `calibrate` or `dummy_ranges`.
        precision: node name -> "int8", "float", "int8-weights" or "int4-weights"; what is not named runs in INT8 where
            the dialect can. A layer whose weights alone are integers by `ranges` stays that where "float" is said here.

    Raises:
        RecipeError: `precision` names a layer that the graph does not have, or that has no such kernel.
        GraphError: a tensor that must be quantised has no range.
    """
    result = _writer(model, ranges, dialect, precision).write()
    return to_half(result) if dialect.float_type == "float16" else result


def simulated(model: onnx.ModelProto, ranges: Ranges, dialect: Dialect) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The float graph that `apply` starts from, and its Q/DQ graph in float32, scales as they are stored."""
    writer = _writer(model, ranges, dialect, None)
    return writer.view.model, writer.write()


def _writer(model: onnx.ModelProto, ranges: Ranges, dialect: Dialect, precision: Mapping[str, str] | None) -> _Writer:
    given = {n: k for n, k in (precision or {}).items() if k != "float" or ranges.precision.get(n) not in alone.BITS}
    together = {**ranges.precision, **given}
    blocks = dialect.weights_alone == "pair" and alone.only(together)
    opset = max(dialect.opset, alone.OPSET) if blocks else dialect.opset
    view = View.of(raised(equalised(model, ranges.equalise), opset))
    names = {node.name for node in view.nodes}
    for name in precision or {}:
        if name not in names:
            raise RecipeError(f"[quantize.layers] no layer is called '{name}'.", did_you_mean(name, view.layers))
    alone.check(view, dialect, together)
    return _Writer(view, ranges, dialect, place(view, dialect, together), together)


class _Writer:
    """Builds the new node and initializer lists of one graph."""

    def __init__(
        self, view: View, ranges: Ranges, dialect: Dialect, placement: Placement, precision: Mapping[str, str]
    ) -> None:
        self.view, self.ranges, self.dialect, self.placement = view, ranges, dialect, placement
        self.alone = alone.only(precision)
        self.tables = alone.tables(view, dialect, precision)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.half = dialect.float_type == "float16"
        self.grids = {name: self._grid(members, name in placement.even) for name, members in placement.groups.items()}
        outputs = set(view.outputs)
        self.raw = {name: f"{name}.raw" for name in placement.tensors if name in outputs}
        self.readable: set[str] = set()

    def write(self) -> onnx.ModelProto:
        for name in self.view.inputs:
            if name in self.placement.scale_of:
                self._pair(name)
        for node in self.view.nodes:
            self._node(node)
        return self._model()

    def _grid(self, members: tuple[str, ...], even: bool) -> QParams:
        found = [self._range(name) for name in members]
        positive = all(non_negative(self.view, name) for name in members)
        return qparams(min(r.low for r in found), max(r.high for r in found), self.dialect, positive, even)

    def _range(self, name: str) -> TensorRange:
        """The range of a tensor; or that of what it was moved or selected from: where a layer stays in float, the pair
        is behind a node that bytes pass through else.
        """
        source = name
        while source not in self.ranges.tensors:
            maker = self.view.producer.get(source)
            if maker is None or maker.op_type not in SHARING or not self.view.data_inputs(maker):
                raise GraphError(
                    f"tensor '{name}' must be quantised, but the ranges do not have it.", "Calibrate this graph."
                )
            source = maker.input[self.view.data_inputs(maker)[0]]
        return self.ranges.tensors[source]

    def _node(self, node: onnx.NodeProto) -> None:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for index in range(len(node.input)):
            tensor = self.placement.edges.get((node.name, index))
            if tensor is not None and tensor == node.input[index]:
                copy.input[index] = tensor if tensor in self.raw else f"{tensor}.dq"
        if self.placement.nodes.get(node.name) == "compute":
            self._weights(node, copy)
        elif node.name in self.alone:
            self._weights_alone(node, copy, self.alone[node.name])
        elif node.name in self.tables:
            self._table(node)
            return
        elif self.dialect.slow_pools and node.name in self.placement.nodes:
            self._pool(node, copy)
        if self.dialect.slow_norms and self._before_norm(node):
            copy.op_type = "Sum"  # the same, and no SkipLayerNormalization is made of it (docs/int8.md)
        if self.dialect.fuses_matmul and node.op_type == "Add":
            self._keep_apart(node, copy)
        for index, output in enumerate(node.output):
            if output in self.raw:
                copy.output[index] = self.raw[output]
        self.nodes.append(copy)
        for output in node.output:
            if output in self.placement.scale_of:
                self._pair(output)

    def _before_norm(self, node: onnx.NodeProto) -> bool:
        """Whether a node adds two tensors in float for a LayerNormalization."""
        if node.op_type != "Add" or node.name in self.placement.nodes or len(self.view.data_inputs(node)) < 2:
            return False
        return any(reader.op_type == "LayerNormalization" for reader, _ in self.view.consumers.get(node.output[0], []))

    def _pair(self, tensor: str) -> None:
        """Q and DQ after `tensor`; a graph output keeps its name on the dequantised side."""
        grid = self.grids[self.placement.scale_of[tensor]]
        scale = self._constant(f"{tensor}.scale", np.array(grid.scale, np.float32))
        zero = self._constant(f"{tensor}.zero", np.array(grid.zero, grid.dtype))
        source, target = (self.raw[tensor], tensor) if tensor in self.raw else (tensor, f"{tensor}.dq")
        self._emit("QuantizeLinear", [source, scale, zero], f"{tensor}.q", f"{tensor}/Q")
        self._emit("DequantizeLinear", [f"{tensor}.q", scale, zero], target, f"{tensor}/DQ")

    def _emit(
        self, operator: str, inputs: list[str], output: str, name: str, axis: int | None = None, **attributes: Any
    ) -> None:
        node = helper.make_node(operator, inputs, [output], name=name, **attributes)
        if axis is not None:
            node.attribute.append(helper.make_attribute("axis", axis))
        self.nodes.append(node)

    def _constant(self, name: str, value: NDArray[np.generic]) -> str:
        if name not in self.constants:
            self.constants[name] = numpy_helper.from_array(np.asarray(value), name)
        return name

    def _own(self, node: onnx.NodeProto, index: int) -> str:
        """A name for this node's constant: the constant's own, unless several nodes read it."""
        name = node.input[index]
        return name if len(self.view.consumers[name]) == 1 else f"{node.name}:{name}"

    def _keep_apart(self, node: onnx.NodeProto, copy: onnx.NodeProto) -> None:
        """Give the bias behind an INT8 MatMul the rank of what it is added to.

        ONNX Runtime fuses a MatMul on [batch, tokens, features] and the Add of a bias of one axis into a float Gemm,
        before it looks for INT8 kernels; with a bias of more axes the same sum stays outside, and the MatMul runs in
        INT8 (docs/int8.md).
        """
        for index in range(2):
            maker, bias = self.view.producer.get(node.input[1 - index]), self.view.constant(node.input[index])
            if maker is None or bias is None or maker.op_type != "MatMul" or maker.name not in self.placement.nodes:
                continue
            rank = len(self.view.shape(maker.output[0]) or ())
            if bias.ndim and rank > max(bias.ndim, 2):
                shape = (*[1] * (rank - bias.ndim), *bias.shape)
                copy.input[index] = self._constant(f"{node.name}.bias{rank}d", bias.reshape(shape))

    def _weights(self, node: onnx.NodeProto, copy: onnx.NodeProto) -> None:
        """Quantise the weight (and the bias, if the dialect wants) of one layer."""
        weight = np.asarray(self.view.constant(node.input[1]), np.float32)
        name = self._own(node, 1)
        axis = output_axis(node) if self.dialect.per_channel else None
        if axis is not None:
            axis %= weight.ndim
        bias = self._corrected_bias(node)
        least = self._least(node, bias) if bias is not None and self.dialect.bias == "int32" else None
        integers, scales = quantise_weight(weight, axis, self.dialect.weight_levels, self.half, least)
        learned = self.ranges.rounding.get(node.name) if self.ranges.dialect == self.dialect.name else None
        better = unpack(learned, weight.shape) if learned is not None else None
        if better is not None and least is None:
            integers = better
        elif better is not None and axis is not None:  # integers of a scale that was raised are not those learned
            _, usual = quantise_weight(weight, axis, self.dialect.weight_levels, self.half)
            integers = np.where((usual == scales).reshape(_along(axis, weight.ndim)), better, integers)
        copy.input[1] = f"{name}.dq"
        scale = self._constant(f"{name}.scale", scales)
        zero = self._constant(f"{name}.zero", np.zeros(scales.shape, np.int8))
        if self.dialect.store_float:
            steps = scales if axis is None else scales.reshape(_along(axis, weight.ndim))
            source = self._constant(name, weight if better is None else np.asarray(integers * steps, np.float32))
            self._emit("QuantizeLinear", [source, scale, zero], f"{name}.q", f"{node.name}.weight/Q", axis)
        else:
            self._constant(f"{name}.q", integers)
        self._emit("DequantizeLinear", [f"{name}.q", scale, zero], f"{name}.dq", f"{node.name}.weight/DQ", axis)
        if bias is None:
            return
        if len(copy.input) < 3:
            copy.input.append("")
        if self.dialect.bias == "int32":
            self._bias(node, copy, bias, scales)
        else:
            copy.input[2] = self._constant(self._bias_name(node), bias)

    def _weights_alone(self, node: onnx.NodeProto, copy: onnx.NodeProto, bits: int) -> None:
        """Store the weight of a linear layer as integers with a scale a block of inputs."""
        name = self._own(node, 1)
        integers, scales = alone.stored(node, np.asarray(self.view.constant(node.input[1]), np.float32), bits)
        del copy.attribute[:]  # a Gemm's transB: here inputs come first
        if self.dialect.weights_alone == "operator":
            copy.CopyFrom(alone.operator(copy, name, len(integers), scales, bits))
            self.constants[f"{name}.q"] = alone.packed_by_output(f"{name}.q", integers, len(scales), bits)
            self._constant(f"{name}.scale", np.ascontiguousarray(scales.T).reshape(-1))
            return
        self.constants[f"{name}.q"] = alone.packed(f"{name}.q", integers, bits)
        given = [f"{name}.q", self._constant(f"{name}.scale", scales)]
        block = len(integers) // len(scales)
        self._emit("DequantizeLinear", given, f"{name}.dq", f"{node.name}.weight/DQ", 0, block_size=block)
        copy.input[1] = f"{name}.dq"

    def _table(self, node: onnx.NodeProto) -> None:
        """Gather rows of bytes, and dequantise those: a scale a feature, as every row has them all."""
        name, output = self._own(node, 0), node.output[0]
        integers, scales = quantise_weight(np.asarray(self.view.constant(node.input[0]), np.float32), 1, 127)
        rows = [self._constant(f"{name}.q", integers), node.input[1]]
        self._emit("Gather", rows, f"{output}.q", node.name, 0)
        given = [f"{output}.q", self._constant(f"{name}.scale", scales)]
        given.append(self._constant(f"{name}.zero", np.zeros(scales.shape, np.int8)))
        target = self.raw.get(output, output)
        self._emit("DequantizeLinear", given, target, f"{node.name}/DQ", len(self.view.shape(output) or ()) - 1)
        if output in self.placement.scale_of:
            self._pair(output)

    def _pool(self, node: onnx.NodeProto, copy: onnx.NodeProto) -> None:
        """Write an average pooling as a convolution, its weights as bytes."""
        shape = pools.window(self.view, node)
        if shape is None:
            return
        value = np.full(shape, pools.share(shape), np.float32)
        integers, scales = quantise_weight(value, 0 if self.dialect.per_channel else None, self.dialect.weight_levels)
        name = f"{node.name}.window"
        given = [self._constant(f"{name}.q", integers), self._constant(f"{name}.scale", scales)]
        given.append(self._constant(f"{name}.zero", np.zeros(scales.shape, np.int8)))
        self._emit("DequantizeLinear", given, f"{name}.dq", f"{name}/DQ", 0 if scales.ndim else None)
        copy.CopyFrom(pools.convolution(node, copy.input[0], f"{name}.dq", shape))

    def _corrected_bias(self, node: onnx.NodeProto) -> NDArray[np.float32] | None:
        """The layer's bias with what calibration adds to it; None where there is neither."""
        given = self.view.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        added = self.ranges.bias.get(node.name)
        if given is not None and node.op_type == "Gemm" and given.size in (1, self._channels(node)):
            given = np.broadcast_to(given.reshape(-1), self._channels(node))  # it may be one number, or [1, N]
        if added is None or node.op_type == "MatMul" or (given is not None and given.shape != (len(added),)):
            return None if given is None else np.asarray(given, np.float32)
        return np.asarray(added, np.float32) + (np.float32(0) if given is None else np.asarray(given, np.float32))

    def _channels(self, node: onnx.NodeProto) -> int:
        """Output channels of a Gemm."""
        return int(self.view.initializers[node.input[1]].dims[output_axis(node)])

    def _step(self, node: onnx.NodeProto) -> float:
        """The scale of what a layer reads."""
        return self.grids[self.placement.scale_of[self.placement.edges[(node.name, 0)]]].scale

    def _least(self, node: onnx.NodeProto, bias: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Scales that the bias needs, where the largest weight of a channel would give a smaller one."""
        least = least_scales(bias, self._step(node))
        return least if np.any(least > TINY) else None

    def _bias_name(self, node: onnx.NodeProto) -> str:
        """The bias initializer's name, or a new one for a layer without; a shared one is not overwritten."""
        return self._own(node, 2) if len(node.input) > 2 and node.input[2] else f"{node.name}.bias"

    def _bias(
        self, node: onnx.NodeProto, copy: onnx.NodeProto, bias: NDArray[np.float32], weight_scale: NDArray[np.float32]
    ) -> None:
        name = self._bias_name(node)
        scales = np.asarray(np.float32(self._step(node)) * weight_scale, np.float32)
        integers = np.rint(bias.astype(np.float64) / scales).astype(np.int32)
        copy.input[2] = f"{name}.dq"
        scale = self._constant(f"{name}.scale", scales)
        zero = self._constant(f"{name}.zero", np.zeros(scales.shape, np.int32))
        self._constant(f"{name}.q", integers)
        axis = 0 if scales.ndim else None
        self._emit("DequantizeLinear", [f"{name}.q", scale, zero], f"{name}.dq", f"{node.name}.bias/DQ", axis)

    def _model(self) -> onnx.ModelProto:
        source = self.view.model
        used = {name for node in self.nodes for name in node.input}
        kept = [
            tensor for name, tensor in self.view.initializers.items() if name in used and name not in self.constants
        ]
        graph = helper.make_graph(
            self.nodes,
            source.graph.name,
            list(source.graph.input),
            list(source.graph.output),
            [*kept, *self.constants.values()],
        )
        result = helper.make_model(graph, opset_imports=list(source.opset_import), producer_name="edgeprune")
        result.ir_version = min(result.ir_version, 10)
        result.metadata_props.extend(source.metadata_props)
        if any(node.domain == alone.DOMAIN for node in self.nodes):
            alone.describe(result, self.view)
        return result


def _along(axis: int, rank: int) -> list[int]:
    """The shape in which one value an index of `axis` broadcasts over `rank` axes."""
    return [-1 if index == axis else 1 for index in range(rank)]
