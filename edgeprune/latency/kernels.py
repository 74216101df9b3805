"""Kernel keys that name no model: what a runtime's fused kernel is, read from its profile and the graph it ran.

A runtime reports `layer1.0.conv1`, `layer1.0.conv1_token_4` or `layer1.0.conv1/WithoutBiases`. The name leads to a node
of the float ONNX graph, the node to shapes and attributes, and those make a `Family`: everything that a kernel's time
depends on but its channels. A family and its channels (c_in, c_out) are a *cell*, the unit that a table stores. Two
layers of two networks with the same cell share one entry, so one table serves every model on a device.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import onnx

from edgeprune import files
from edgeprune.devices import KernelTime
from edgeprune.latency.network import RECURRENT, WEIGHTED, FloatGraph, Node
from edgeprune.latency.network import read_network as read_network

ACTIVATIONS = frozenset(
    {"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Gelu", "Silu", "Elu", "Erf"}
)
SUMS = frozenset({"Add", "Sum"})
# Kernels that only change layout or type, in the runtimes' own words; lower case, matched at the start.
REFORMATS = (
    "reorder",
    "reformat",
    "transpose",
    "quantizelinear",
    "dequantizelinear",
    "convert",
    "cast",
    "fakequantize",
)
DATA_TYPES = {1: "f32", 2: "u8", 3: "s8", 5: "s16", 6: "s32", 10: "f16", 11: "f64", 16: "bf16"}


_RECURRENT = frozenset(op.lower() for op in RECURRENT)


@dataclass(frozen=True, order=True)
class Family:
    """A kernel without its channels.

    Attributes:
        runtime: name and version, such as "onnxruntime 1.31.1".
        kind: "conv", "convtranspose", "depthwise", "grouped", "linear", "lstm", "gru", "rnn", "reformat", or the ONNX
            operator in lower case ("matmul" is one of two activations).
        precision: element types of input, weight and output, such as "u8.s8.u8"; "f32" where it is all one.
        batch, threads: as in the target's profile.
        size: of the input without batch and channels, () for a linear layer on vectors; of both ends where they differ.
        kernel, stride, dilation, padding: of the operator; () where it has none.
        groups: 1, or the number of groups of a grouped convolution that is not depthwise (0 for depthwise: one a
            channel).
        activation: ONNX operator fused behind it, "" for none.
        residual: a residual addition is fused into it.
        layout: "last" or "first" where the graph says it; "any" where the runtime decides.
    """

    runtime: str
    kind: str
    precision: str = "f32"
    batch: int = 1
    threads: int = 1
    size: tuple[int, ...] = ()
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    groups: int = 1
    activation: str = ""
    residual: bool = False
    layout: str = "any"

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that stand for the family in a table file."""
        return files.sha256(json.dumps(asdict(self), sort_keys=True).encode())[:12]

    @property
    def cls(self) -> str:
        """The class that end-to-end calibration gives one factor."""
        if self.kind in ("conv", "grouped"):
            return "pointwise" if self.kernel and max(self.kernel) == 1 else "conv"
        if self.kind in ("depthwise", "linear", "convtranspose"):
            return self.kind
        return "recurrent" if self.kind in _RECURRENT else "other"

    @property
    def paired(self) -> bool:
        """Input and output channels move independently."""
        return self.kind in ("conv", "convtranspose", "grouped", "linear") or self.kind in _RECURRENT


def precisions(quantised: onnx.ModelProto) -> dict[str, str]:
    """Node name -> "input.weight.output" element types, as the Q/DQ pairs around it say ("f32" for a float node)."""
    producer = {name: node for node in quantised.graph.node for name in node.output}
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in quantised.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    types = {tensor.name: DATA_TYPES.get(tensor.data_type, "f32") for tensor in quantised.graph.initializer}

    def source(name: str) -> str:
        maker = producer.get(name)
        return types.get(maker.input[2], "u8") if maker is not None and maker.op_type == "DequantizeLinear" else "f32"

    def sink(name: str, depth: int = 3) -> str:
        readers = consumers.get(name, [])
        if readers and all(reader.op_type == "QuantizeLinear" for reader in readers):
            return types.get(readers[0].input[2], "u8")
        if depth and len(readers) == 1 and readers[0].op_type in ACTIVATIONS | SUMS:
            return sink(readers[0].output[0], depth - 1)
        return "f32"

    result = {}
    for node in quantised.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") or not node.input:
            continue
        weight = source(node.input[1]) if node.op_type in WEIGHTED and len(node.input) > 1 else ""
        found = [part for part in (source(node.input[0]), weight, sink(node.output[0])) if part]
        result[node.name] = "f32" if set(found) == {"f32"} else ".".join(found)
    return result


@dataclass(frozen=True)
class Entry:
    """One kernel of one run: where it belongs, and its cell.

    Attributes:
        node: the float graph's node; "" when the name leads nowhere (then `place` tells what it stands beside, if
            known).
        kernel: the runtime's own name.
        c_in, c_out: channels.
        time, mad, count: of one execution, in the device's unit.
    """

    node: str
    kernel: str
    family: Family
    c_in: int
    c_out: int
    time: float
    mad: float
    count: int
    implementation: str = ""


class Names:
    """From a runtime's kernel name back to nodes of the float graph."""

    def __init__(self, network: FloatGraph) -> None:
        self._nodes = set(network.nodes)
        self._tensors = {**dict.fromkeys(network.inputs, ""), **network.producer}
        self._readers = network.consumers

    def node(self, name: str) -> str:
        """The node that `name` (decorated by the runtime or not) means; "" for none."""
        for candidate in _shorter(name):
            if candidate in self._nodes:
                return candidate
        return ""

    def beside(self, name: str) -> str:
        """The node that a reformatting kernel's name mentions: a reader of the tensor it converts, or its maker."""
        for candidate in _shorter(name):
            if candidate in self._nodes:
                return candidate
            if candidate in self._tensors:
                return (*self._readers.get(candidate, ()), self._tensors[candidate])[0]
        return ""


_DECORATION = re.compile(r"(_token_\d+|_nhwc|_nchwc|_quant|_kernel_time|/WithoutBiases|/DQ|/Q)$")


def _shorter(name: str) -> Sequence[str]:
    """`name`, then with known decorations off, then cut at each separator from the right."""
    found = [name]
    while (bare := _DECORATION.sub("", found[-1])) != found[-1]:
        found.append(bare)
    bare = found[-1]
    cuts = [i for i, letter in enumerate(bare) if letter in "/_.:" and i]
    return [*found, *(bare[:i] for i in reversed(cuts))]


def entries(
    kernels: Sequence[KernelTime], network: FloatGraph, precision: Mapping[str, str], runtime: str, threads: int
) -> list[Entry]:
    """Join a profile with the graph.

    Kernels of one node are added up (a layer that the runtime runs as two kernels is one entry). A reformatting kernel
    (reorder, quantise, transpose) is an entry of its own beside the node that its name mentions.
    """
    names = Names(network)
    found: dict[tuple[str, bool], list[KernelTime]] = {}
    for kernel in kernels:
        reformat = kernel.kind.lower().startswith(REFORMATS)
        candidates = (kernel.name, *kernel.layers)
        node = _owner([names.node(name) for name in candidates], network)
        if reformat and (not node or not network.nodes[node].op.lower().startswith(REFORMATS)):
            node = next((place for place in (names.beside(name) for name in candidates) if place), "")
        else:
            reformat = not node
        found.setdefault((node or f"?{kernel.kind}", reformat), []).append(kernel)
    owned = {node for node, reformat in found if not reformat}
    result = []
    for (place, reformat), parts in found.items():
        node = "" if place.startswith("?") else place
        family, c_in, c_out = _cell(node, reformat, parts, network, precision, owned, runtime, threads)
        result.append(
            Entry(
                node=node,
                kernel=parts[0].name,
                family=family,
                c_in=c_in,
                c_out=c_out,
                time=sum(part.median for part in parts),
                mad=sum(part.mad for part in parts),
                count=min(part.count for part in parts),
                implementation="+".join(dict.fromkeys(part.implementation for part in parts if part.implementation)),
            )
        )
    return result


def _owner(candidates: Sequence[str], network: FloatGraph) -> str:
    """Of the nodes that a kernel's names mean, the one that owns weights, else the first."""
    known = [name for name in candidates if name]
    return next((name for name in known if network.nodes[name].weighted), known[0] if known else "")


def _cell(
    name: str,
    reformat: bool,
    parts: Sequence[KernelTime],
    network: FloatGraph,
    precision: Mapping[str, str],
    owned: set[str],
    runtime: str,
    threads: int,
) -> tuple[Family, int, int]:
    if not name:
        kind = f"unplaced {parts[0].kind.lower()}"
        return Family(runtime, kind, batch=network.batch, threads=threads), 1, 1
    node = network.nodes[name]
    if reformat:
        kind = f"reformat {parts[0].kind.lower()}"
        return Family(runtime, kind, "any", network.batch, threads, node.size), *cell_channels(node, True)
    kind, groups = _kind(node)
    activation, residual = _fused(node, network, owned)
    family = Family(
        runtime=runtime,
        kind=kind,
        precision=precision.get(name, "f32"),
        batch=network.batch,
        threads=threads,
        size=node.size,
        kernel=_ints(node, "kernel_shape"),
        stride=_ints(node, "strides"),
        dilation=_ints(node, "dilations"),
        padding=_ints(node, "pads"),
        groups=groups,
        activation=activation,
        residual=residual,
        layout="last" if kind == "linear" else "any",
    )
    return family, *cell_channels(node)


def cell_channels(node: Node, reformat: bool = False) -> tuple[int, int]:
    """(c_in, c_out) of a node's cell: both of a layer, else those that its time grows with, twice."""
    if reformat:
        return node.c_in, node.c_in
    if node.op == "MatMul" and not node.weighted:
        return (max(node.c_in, node.c_out),) * 2
    paired = node.weighted and _kind(node)[0] != "depthwise"
    return (node.c_in if paired else node.c_out), node.c_out


def _kind(node: Node) -> tuple[str, int]:
    groups = int(node.attributes.get("group", 1))
    if node.op in ("Gemm", "MatMul") and node.weighted:
        return "linear", 1
    if not node.weighted or node.op in RECURRENT:
        return node.op.lower(), 1
    if groups == 1:
        return "conv" if node.op == "Conv" else "convtranspose", 1
    return ("depthwise", 0) if groups == node.c_in == node.c_out else ("grouped", groups)


def _ints(node: Node, key: str) -> tuple[int, ...]:
    return tuple(int(value) for value in node.attributes.get(key, ()))


def _fused(node: Node, network: FloatGraph, owned: set[str]) -> tuple[str, bool]:
    """Which activation and residual addition behind `node` have no kernel of their own."""
    activation, residual, current = "", False, node
    while True:
        readers = network.consumers.get(current.output, ())
        if len(readers) != 1 or readers[0] in owned:
            return activation, residual
        current = network.nodes[readers[0]]
        if current.op in ACTIVATIONS and not activation:
            activation = current.op
        elif current.op in SUMS and len(current.inputs) == 2 and not residual:
            if not _last_of(node, current, network):
                return activation, residual
            residual = True
        else:
            return activation, residual


def _last_of(node: Node, add: Node, network: FloatGraph) -> bool:
    """Is `node` the later one of the two branches of `add`? A runtime fuses a sum into the layer that runs last."""
    order = {name: i for i, name in enumerate(network.nodes)}
    makers = [order.get(network.producer.get(name, ""), -1) for name in add.inputs]
    return order[node.name] == max(makers)
