"""One pass over a captured graph: each operator's rule gives the axes of its result and the constraints between axes.

A value is a `Shaped` (a tensor's axes), a list of values, or a plain Python number. An operator without a rule, or
whose rule does not fit, freezes every axis that it touches, with its name, the source line and the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgeprune.graph.capture import Capture, owner_of, source_of
from edgeprune.graph.space import Axis, Reason, Space, constant


@dataclass(frozen=True)
class Shaped:
    """A tensor as its axes; an axis is the array of the atoms of its positions."""

    axes: tuple[Axis, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the dimensions."""
        return tuple(int(a.size) for a in self.axes)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.axes)

    def replace(self, dim: int, axis: Axis) -> Shaped:
        """The same tensor with another axis at `dim`."""
        axes = list(self.axes)
        axes[dim] = axis
        return Shaped(tuple(axes))


class RuleError(Exception):
    """A rule does not fit this call; the caller freezes what the operator touches."""


@dataclass(frozen=True)
class Literal:
    """An integer in the graph that repeats the width of `axis`, such as a view's size or a convolution's `groups`.

    `name` is the module attribute that holds it, where the layer's class says so; `part` its place in a tuple.
    `soft`: the call does not write this size, but may have computed what it writes from it.
    `sizes`: all that the call writes, this one at `part`. `near` is the module that made what the call reads.
    """

    module: str
    value: int
    axis: Axis
    node: str
    name: str = ""
    part: int | None = None
    soft: bool = False
    sizes: tuple[int, ...] = ()
    near: str = ""


@dataclass(frozen=True)
class Call:
    """A layer as the walk met it: a convolution, a linear map, a recurrent layer or an embedding.

    `inputs` and `outputs` are the channel axes; `weight` names the weight's node; sizes are for the example.
    """

    node: str
    module: str
    kind: str
    weight: str
    weight_shape: tuple[int, ...]
    inputs: Axis
    outputs: Axis
    in_size: tuple[int, ...]
    out_size: tuple[int, ...]
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    macs_per_pair: float = 0.0
    batch: int = 1


class Arguments(dict[str, Any]):
    """The arguments of one operator call, by the names of its schema; what is a tensor there is `Shaped` here."""

    def shaped(self, name: str) -> Shaped:
        """The axes of a tensor; raises KeyError where the operator has no such argument."""
        found: Shaped = self[name]
        return found


Rule = Callable[["Walk", Arguments], Any]
_NO_RULE = "the operator has no rule"
_NOT_COVERED = "its rule does not cover this use"


@dataclass
class Walk:
    """The state of one pass: the axes of every value, and what the rules recorded."""

    capture: Capture
    rules: dict[str, Rule]
    space: Space = field(default_factory=Space)
    tensors: dict[str, Shaped] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    literals: list[Literal] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    heads: list[Axis] = field(default_factory=list)
    contracted: list[tuple[str, Axis]] = field(default_factory=list)
    fed: dict[Node, bool] = field(default_factory=dict)
    node: Node = None  # type: ignore[assignment]
    path: str = ""
    training: Walk | None = None

    def all_nodes(self) -> dict[str, Node]:
        """The nodes of this graph and of the training graph, by name."""
        return {**self.nodes, **(self.training.nodes if self.training else {})}

    def all_values(self) -> dict[str, Any]:
        """The values of this graph and of the training graph, by the node's name."""
        return {**self.values, **(self.training.values if self.training else {})}

    def run(self) -> None:
        """Walk the whole graph; its outputs are frozen."""
        graph = self.capture.module
        inputs = []
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                inputs.append(self._placeholder(node))
        outputs = self._graph(graph, inputs, self.path)
        for value in shaped_in(outputs):
            for axis in value.axes:
                self.space.freeze(axis, Reason("it is an output of the network", "output"))

    def _placeholder(self, node: Node) -> Any:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            return value
        name = self.capture.parameters.get(node.name)
        if name is None:
            return Shaped(tuple(constant(int(n)) for n in value.shape))
        if name not in self.tensors:
            self.tensors[name] = Shaped(tuple(self.space.fresh(int(n)) for n in value.shape))
            if not value.is_floating_point() and value.ndim:
                reason = Reason(f"'{name}' holds {value.dtype} values, which may be positions", "buffer")
                for axis in self.tensors[name].axes:
                    self.space.freeze(axis, reason)
        return self.tensors[name]

    def _graph(self, graph: GraphModule, inputs: Sequence[Any], path: str) -> Any:
        """Evaluate one graph (the top one, or a sub-graph of a `wrap_with_*` operator)."""
        env: dict[Node, Any] = {}
        feed = iter(inputs)
        outer = self.path
        for node in graph.graph.nodes:
            self.path = path
            if node.op == "placeholder":
                env[node] = next(feed)
            elif node.op == "get_attr":
                env[node] = self._attribute(graph, node, path)
            elif node.op == "output":
                self.path = outer
                return read(node.args[0], env)
            else:
                env[node] = self._call(node, env)
            self.values[path + node.name] = env[node]
            self.nodes[path + node.name] = node
        return None

    def _attribute(self, graph: GraphModule, node: Node, path: str) -> Any:
        target = graph
        for part in str(node.target).split("."):
            target = getattr(target, part)
        if isinstance(target, torch.Tensor):
            return Shaped(tuple(constant(int(n)) for n in target.shape))
        return (target, f"{path}{node.name}/")

    def _call(self, node: Node, env: dict[Node, Any]) -> Any:
        self.node = node
        args, kwargs = read(node.args, env), read(node.kwargs, env)
        name = operator_name(node)
        if name == "getitem":
            return args[0][args[1]]
        graphs = [a for a in args if isinstance(a, tuple) and len(a) == 2 and isinstance(a[0], GraphModule)]
        if name.startswith("wrap_with") and len(graphs) == 1:
            at = args.index(graphs[0])
            outer = self.path
            result = self._graph(graphs[0][0], args[at + 1 :], graphs[0][1])
            self.path = outer
            return list(result) if isinstance(result, tuple | list) else result
        rule = self.rules.get(name) or self.rules.get(name.removesuffix("_"))
        if rule is None or not isinstance(node.target, torch._ops.OpOverload):
            return self.unknown(args, kwargs, _NO_RULE)
        mark = len(self.space.edges), len(self.space.freezes), len(self.space.factorings)
        try:
            result = rule(self, bind(node, args, kwargs))
            check_shape(result, node.meta.get("val"))
            return result
        except (RuleError, ValueError, IndexError, KeyError, TypeError) as error:
            del self.space.edges[mark[0] :]
            del self.space.freezes[mark[1] :]
            del self.space.factorings[mark[2] :]
            return self.unknown(args, kwargs, f"{_NOT_COVERED} ({error})")

    def unknown(self, args: Any, kwargs: Any, why: str) -> Any:
        """Freeze every axis that the current operator touches."""
        for value in shaped_in((args, kwargs)):
            for axis in value.axes:
                self.space.freeze(axis, self.reason(why))
        return frozen_like(self.node.meta.get("val"))

    @staticmethod
    def unruled(reason: Reason) -> bool:
        """Whether the reason is that an operator, or this use of it, has no rule."""
        return reason.why.startswith((_NO_RULE, _NOT_COVERED))

    def reason(self, why: str) -> Reason:
        """A reason that names the current operator, line and module."""
        return Reason(why, operator_name(self.node), source_of(self.node), owner_of(self.node))

    def freeze(self, axis: Axis, why: str) -> None:
        """Freeze an axis at the current operator."""
        self.space.freeze(axis, self.reason(why))

    def unite(self, a: Axis, b: Axis) -> Axis:
        """Tie two axes at the current operator."""
        return self.space.unite(a, b, self.reason("tied to something that must stay"))

    def contract(self, axis: Axis) -> None:
        """Two activations meet along `axis` (query and key): it is narrowed only where nothing else can be."""
        self.space.avoid(axis)
        self.contracted.append((owner_of(self.node), axis))

    def factor(self, joint: Axis, parts: Sequence[Axis], why: str = "cut or joined by a view") -> None:
        """Declare a product at the current operator; look-alikes (same line, same sizes) decide alike."""
        key = (source_of(self.node), operator_name(self.node), tuple(p.size for p in parts))
        self.space.factor(joint, parts, self.reason(why), key)

    def literal(
        self, value: Any, axis: Axis, name: str = "", part: int | None = None, sizes: tuple[int, ...] = ()
    ) -> None:
        """Record that `value`, written in the call (at `part` of `sizes`), is the width of `axis`."""
        if isinstance(value, int) and value >= 0 and axis.any():
            self._record(value, axis, name, part, sizes, soft=False)

    def sources(self, value: Shaped, sizes: tuple[int, ...] = ()) -> None:
        """Record the sizes from which the call may have computed those that it writes (`dim // heads`)."""
        for axis in value.axes:
            if axis.any():
                self._record(axis.size, axis, "", None, sizes, soft=True)

    def _record(
        self, value: int, axis: Axis, name: str, part: int | None, sizes: tuple[int, ...], *, soft: bool
    ) -> None:
        node = self.node
        self.literals.append(
            Literal(owner_of(node), value, axis, self.path + node.name, name, part, soft, sizes, self._near())
        )

    def _near(self) -> str:
        node, here = self.node, owner_of(self.node)
        for _ in range(16):
            node = next(iter(node.all_input_nodes), node)
            if node.op == "placeholder":
                return self.capture.parameters.get(node.name, "").rpartition(".")[0]
            if owner_of(node) != here:
                break
        return owner_of(node)

    def is_weight(self, argument: str, position: int) -> bool:
        """Whether an argument of the current operator is made of parameters alone: of no input of the network."""
        seen: Any = self.node.kwargs.get(argument, self.node.args[position] if position < len(self.node.args) else None)
        return isinstance(seen, Node) and self._made_of_inputs(seen) is False and bool(self._origin(seen))

    def _made_of_inputs(self, node: Node) -> bool:
        if node not in self.fed:
            stack = [node]
            while stack:
                top = stack[-1]
                if top.op == "placeholder":
                    inner = top.graph.owning_module is not self.capture.module  # of a sub-graph: not known
                    self.fed[top] = inner or top.name in self.capture.inputs
                open_ = [n for n in top.all_input_nodes if n not in self.fed]
                if open_ and top not in self.fed:
                    stack.extend(open_)
                else:
                    self.fed.setdefault(top, any(self.fed[n] for n in top.all_input_nodes))
                    stack.pop()
        return self.fed[node]

    def parameter_of(self, argument: str, position: int) -> str:
        """The parameter behind an argument of the current operator, through views and casts; '' when there is none."""
        seen: Any = self.node.kwargs.get(argument) if argument in self.node.kwargs else None
        if seen is None and position < len(self.node.args):
            seen = self.node.args[position]
        return self._origin(seen)

    def parameter_in_list(self, place: int) -> str:
        """The parameter at `place` of the current operator's list argument with the weights."""
        lists = [a for a in self.node.args if isinstance(a, list | tuple) and len(a) > place]
        return self._origin(max(lists, key=len)[place]) if lists else ""

    def _origin(self, seen: Any) -> str:
        for _ in range(64):
            if not isinstance(seen, Node):
                return ""
            if seen.op == "placeholder":
                return self.capture.parameters.get(seen.name, "")
            seen = next((a for a in seen.args if isinstance(a, Node)), None)
        return ""


def operator_name(node: Node) -> str:
    """`conv2d` for aten.conv2d.default; the function's name for anything else."""
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        space, name = str(target._schema.name).split("::")
        return name if space == "aten" else f"{space}::{name}"
    return str(getattr(target, "__name__", target))


def read(value: Any, env: dict[Node, Any]) -> Any:
    """Replace the nodes in nested arguments by their values."""
    if isinstance(value, Node):
        return env[value]
    if isinstance(value, tuple | list):
        return [read(v, env) for v in value] if isinstance(value, list) else tuple(read(v, env) for v in value)
    if isinstance(value, dict):
        return {k: read(v, env) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(read(value.start, env), read(value.stop, env), read(value.step, env))
    return value


def bind(node: Node, args: Sequence[Any], kwargs: Mapping[str, object]) -> Arguments:
    """Arguments by their schema name, defaults filled in."""
    bound = Arguments()
    target: Any = node.target
    for i, argument in enumerate(target._schema.arguments):
        if i < len(args):
            bound[argument.name] = args[i]
        elif argument.name in kwargs:
            bound[argument.name] = kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value if argument.has_default_value() else None
    return bound


def shaped_in(value: Any) -> Iterable[Shaped]:
    """Every tensor in a nested value."""
    if isinstance(value, Shaped):
        yield value
    elif isinstance(value, tuple | list):
        for v in value:
            yield from shaped_in(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from shaped_in(v)


def frozen_like(value: Any) -> Any:
    """Frozen axes in the shape of a fake value."""
    if isinstance(value, torch.Tensor):
        return Shaped(tuple(constant(int(n)) for n in value.shape))
    if isinstance(value, tuple | list):
        return [frozen_like(v) for v in value]
    return value


def check_shape(result: Any, expected: Any) -> None:
    """A rule's result must have the shape that capture saw.

    Raises:
        RuleError: it has not.
    """
    if isinstance(expected, torch.Tensor):
        shape = tuple(int(n) for n in expected.shape)
        if not isinstance(result, Shaped) or result.shape != shape:
            raise RuleError(f"got {getattr(result, 'shape', result)}, expected {shape}")
    elif isinstance(expected, tuple | list):
        if not isinstance(result, tuple | list) or len(result) != len(expected):
            raise RuleError("wrong number of results")
        for r, e in zip(result, expected, strict=True):
            check_shape(r, e)


def constant_along(grid: Axis, dim: int) -> bool:
    """Whether an array of atoms does not change along `dim`."""
    return bool(np.array_equal(grid, np.broadcast_to(np.take(grid, [0], axis=dim), grid.shape)))
