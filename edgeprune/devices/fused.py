"""Which layers of the shipped ONNX graph ONNX Runtime fused into each kernel, read from the graph as it fused it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_CASTS = ("QuantizeLinear", "DequantizeLinear")
_REORDERS = ("ReorderInput", "ReorderOutput")
_CORES = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_REACH = 8  # nodes of the original graph that a kernel can reach back over
_SUFFIX = re.compile(r"(_token_\d+|_nchwc|_nhwc|/duplicated|_quant|/MatMulAddFusion)+$")


def layers_of(kernels: list[str], original: Path, fused: Path) -> list[tuple[str, ...]]:
    """Each kernel's layers: names of nodes of `original`, in its order; Q and DQ nodes are left out."""
    import onnx

    graph = _Graph(onnx.load(original, load_external_data=False).graph)
    nodes = {node.name: node for node in onnx.load(fused, load_external_data=False).graph.node}
    ends = {number: graph.ends(nodes.get(name), name) for number, name in enumerate(kernels)}
    found = []
    for number, name in enumerate(kernels):
        others = {end for one, made in ends.items() if one != number for end in made}
        found.append(graph.layers(nodes.get(name), ends[number], others - ends[number]))
    return [tuple(graph.names(part)) for part in graph.complete(found)]


class _Graph:
    """Who makes and who uses each tensor of the original graph."""

    def __init__(self, graph: Any) -> None:
        self.nodes = list(graph.node)
        self.by_name = {node.name: index for index, node in enumerate(self.nodes)}
        self.maker = {name: index for index, node in enumerate(self.nodes) for name in node.output}
        self.constants = {tensor.name for tensor in graph.initializer}
        self.owner: dict[str, int] = {}
        shared: set[str] = set()
        for index, node in enumerate(self.nodes):
            for name in node.input[1:]:
                self._own(name, index, shared)
        for name in shared:
            del self.owner[name]

    def _own(self, name: str, index: int, shared: set[str]) -> None:
        """A constant belongs to the node that uses it, also through Q and DQ; one that several use tells nothing."""
        if name in self.constants:
            if self.owner.setdefault(name, index) != index:
                shared.add(name)
        elif name in self.maker and self.nodes[self.maker[name]].op_type in _CASTS:
            self._own(self.nodes[self.maker[name]].input[0], index, shared)

    def names(self, indices: set[int]) -> list[str]:
        """Names of nodes, in the graph's order."""
        return [self.nodes[index].name for index in sorted(indices)]

    def complete(self, found: list[set[int]]) -> list[set[int]]:
        """Give each node that no kernel claims, such as a fused sum, to the kernel of the last node before it."""
        home = {index: number for number, part in enumerate(found) for index in part}
        for index, node in enumerate(self.nodes):
            if index not in home and node.op_type not in _CASTS:
                before = [self._computing(name) for name in node.input]
                last = max((one for one in before if one is not None and one in home), default=None)
                if last is not None:
                    home[index] = home[last]
        return [{index for index, number in home.items() if number == one} for one in range(len(found))]

    def _computing(self, name: str) -> int | None:
        """The node that makes a tensor, going round Q and DQ."""
        index = self.maker.get(name)
        while index is not None and self.nodes[index].op_type in _CASTS:
            index = self.maker.get(self.nodes[index].input[0])
        return index

    def ends(self, kernel: Any, name: str) -> set[int]:
        """The nodes that make what a kernel makes."""
        if kernel is not None and kernel.op_type in (*_CASTS, *_REORDERS):
            return set()
        made = (self._find(part) for part in (name, *(kernel.output if kernel is not None else ())))
        return {index for index in made if index is not None}

    def layers(self, kernel: Any, ends: set[int], others: set[int]) -> set[int]:
        """The nodes in one kernel: from the layer that owns its constants to the tensors that it makes.

        Args:
            ends: the nodes that make those.
            others: where other kernels end.
        """
        cores = {self.owner[part] for part in (kernel.input if kernel is not None else ()) if self._layer_owns(part)}
        found: set[int] = set()
        for end in ends:
            before = self._ancestors(end)
            starts = {core for core in cores if core in before}
            if not starts and kernel is not None and kernel.op_type in _CORES:
                starts = self._back_to(kernel.op_type, end, others)  # its weights were laid out anew, under other names
            found |= {index for index in before if (starts or {end}) & self._ancestors(index)}
        return {index for index in found if self.nodes[index].op_type not in _CASTS}

    def _back_to(self, kind: str, end: int, others: set[int]) -> set[int]:
        """The nearest node of this kind before `end`, by a way on which no other kernel ends."""
        edge = {end}
        for _ in range(_REACH):
            if found := {index for index in edge if self.nodes[index].op_type == kind}:
                return found
            names = (name for index in edge for name in self.nodes[index].input)
            edge = {self.maker[name] for name in names if name in self.maker} - others
        return set()

    def _layer_owns(self, name: str) -> bool:
        index = self.owner.get(name)
        return index is not None and self.nodes[index].op_type not in _CASTS

    def _find(self, name: str) -> int | None:
        """The original node that a fused node's name or tensor leads to."""
        plain = _SUFFIX.sub("", name)
        found = [known.get(one) for one in (name, plain) for known in (self.by_name, self.maker)]
        if name.endswith("_nchwc"):  # called after the tensor that it makes; a node may have that name, too
            found.reverse()
        return next((index for index in found if index is not None), None)

    def _ancestors(self, index: int) -> set[int]:
        """The node and the nodes before it, as far as a kernel can reach back."""
        found, edge = {index}, {index}
        for _ in range(_REACH):
            edge = {self.maker[name] for one in edge for name in self.nodes[one].input if name in self.maker} - found
            found |= edge
        return found
