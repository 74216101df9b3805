"""A network as a list of operator calls that can be run from any point, with other weights, and around removed blocks.

Loss curves and repair look at thousands of slightly different networks. Running them as modules would start each
forward at the image; a tape starts at the first operator that differs, from cached values. It is for reasoning only:
what is trained and shipped is always the user's own module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, fx, nn

from edgeprune.engine.examples import Batch, Examples, Outputs, parts
from edgeprune.errors import EdgepruneError, GraphError
from edgeprune.graph import Block, Capture, SumPlace, as_inputs, capture_error, capture_model, owner_of, with_free_heads

Values = dict[int, Any]  # step -> what it returned
Weights = Mapping[str, Tensor]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Ref:
    """In a step's arguments: the value of another step."""

    step: int


@dataclass(frozen=True)
class Name:
    """In a step's arguments: a parameter or buffer."""

    name: str


@dataclass(frozen=True, eq=False)
class OperatorCall:
    """One operator call. `module` is the qualified name of the innermost module that made it."""

    call: Callable[..., Any]
    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, object]
    module: str
    reads: tuple[int, ...]
    names: tuple[str, ...]

    def run(self, values: Values, weights: Weights, alias: Mapping[int, int]) -> Any:
        """What it returns; `alias`: a bypassed block's result -> the value that takes its place."""

        def value(item: Any) -> Any:
            if isinstance(item, Ref):
                at = item.step
                while at in alias:
                    at = alias[at]
                return values[at]
            if isinstance(item, Name):
                return weights[item.name]
            if isinstance(item, (list, tuple)):
                return type(item)(value(part) for part in item)
            return item

        return self.call(*(value(a) for a in self.args), **{key: value(v) for key, v in self.kwargs.items()})


@dataclass(frozen=True)
class Route:
    """The steps that count when some blocks are bypassed, in order, and what may be forgotten after each.

    Attributes:
        steps: what runs; the first steps are the inputs.
        alias: a bypassed block's result -> the value that takes its place.
        last: for each value, the last running step that reads it.
    """

    steps: tuple[int, ...]
    alias: tuple[tuple[int, int], ...]
    last: Mapping[int, int]

    def resolve(self, step: int) -> int:
        """Where the value of `step` comes from on this route."""
        target = dict(self.alias)
        while step in target:
            step = target[step]
        return step


class Tape:
    """The operator calls of `model` in evaluation mode, for batches of exactly `batch` examples.

    Attributes:
        first: the first step that is no input; step k < first is input number k.
        outputs: for each output the step that makes it, or the tensor itself where it does not depend on the inputs.
    """

    def __init__(
        self, steps: Sequence[OperatorCall], outputs: Sequence[int | Name | Tensor], batch: int, first: int
    ) -> None:
        self.steps, self.outputs = tuple(steps), tuple(outputs)
        self.ends_of_all = tuple(item for item in self.outputs if isinstance(item, int))
        self.batch, self.first = batch, first
        self._route = lru_cache(maxsize=256)(self._make_route)

    @staticmethod
    def of(model: nn.Module, examples: Examples) -> Tape:
        """Record the network on one batch; torch's attention as one whose heads may be fewer than its width holds.

        Raises:
            CaptureError, ModelError: torch.export cannot capture the network, or its forward fails on the examples.
            GraphError: no output depends on an input, or an operator changes its input in a way the tape cannot undo.
        """
        model = with_free_heads(model)
        modes = {module: module.training for module in model.modules()}
        try:
            found = capture_model(model.eval(), as_inputs(examples))
        except EdgepruneError:
            raise
        except Exception as error:
            raise capture_error(model, as_inputs(examples), error) from error
        finally:
            for module, training in modes.items():
                module.training = training
        batch = parts(examples)
        if len(found.inputs) != len(batch):
            raise GraphError(
                f"The network's graph has {len(found.inputs)} inputs, and {len(batch)} tensors were given."
            )
        return record(found)[0]

    def begin(self, batch: Batch) -> Values:
        """The values before the first operator."""
        return dict(enumerate(batch))

    def route(self, removed: Sequence[Block] = ()) -> Route:
        """The way through the network when these blocks are gone.

        Raises:
            GraphError: a block has no single input and output on the tape.
        """
        return self._route(tuple(sorted(removed, key=lambda block: block.module)))

    def _make_route(self, removed: tuple[Block, ...]) -> Route:
        alias = {}
        for block in removed:
            before, after = self.ends(block)
            alias[after] = before
        if any(end in alias for end in self.ends_of_all):
            raise GraphError(f"Block '{'/'.join(b.module for b in removed)}' makes the network's output.")

        def source(step: int) -> int:
            while step in alias:
                step = alias[step]
            return step

        last: dict[int, int] = dict.fromkeys(self.ends_of_all, len(self.steps))
        for k in range(len(self.steps) - 1, -1, -1):
            if k in last:
                for read in self.steps[k].reads:
                    last.setdefault(source(read), k)
        return Route(tuple(sorted(last)), tuple(alias.items()), last)

    def ends(self, block: Block) -> tuple[int, int]:
        """The steps that make a block's input and its output."""
        if block.end is not None:
            return self._sum(block.end)
        inside = [k for k, s in enumerate(self.steps) if block.holds(s.module)]
        body = set(inside)
        outer = [read for k in inside for read in self.steps[k].reads if read not in body]
        used = {read for k, s in enumerate(self.steps) if k not in body for read in s.reads} | {*self.ends_of_all}
        leaving = [k for k in inside if k in used]
        if len(set(outer)) != 1 or len(leaving) != 1:
            raise GraphError(f"'{block.module}' has {len(set(outer))} inputs and {len(leaving)} outputs on the tape.")
        return outer[0], leaving[0]

    def _sum(self, end: SumPlace) -> tuple[int, int]:
        """Of a term of a sum: the step that makes what stays, and the sum."""
        alike = [k for k, s in enumerate(self.steps) if s.module == end.module and s.op == end.op]
        operand = self.steps[alike[end.number]].args[end.operand] if end.number < len(alike) else None
        if not isinstance(operand, Ref):
            raise GraphError(f"The sum that '{end.module}' runs is not on the tape.")
        return operand.step, alike[end.number]

    def run(
        self,
        values: Values,
        route: Route,
        weights: Weights,
        start: int = 0,
        stop: int | None = None,
        keep: frozenset[int] | set[int] = frozenset(),
    ) -> None:
        """Run the steps start <= k < stop of the route on `values`, in place; forgets what nobody reads any more.

        `keep` lists values to hold on to. Values that were made before `start` must be there.
        """
        target = dict(route.alias)
        stop = len(self.steps) if stop is None else stop
        for k in route.steps:
            if k < start or k >= stop or k < self.first:
                continue
            step = self.steps[k]
            values[k] = step.run(values, weights, target)
            for read in step.reads:
                while read in target:
                    read = target[read]
                if route.last[read] == k and read not in keep:
                    values.pop(read, None)

    def results(self, values: Values, weights: Weights) -> Outputs:
        """The network's outputs after a whole run."""

        def one(item: int | Name | Tensor) -> Any:
            return values[item] if isinstance(item, int) else weights[item.name] if isinstance(item, Name) else item

        return tuple(one(item) for item in self.outputs)

    def readers(self, step: int) -> tuple[int, ...]:
        """The steps that read this one's value."""
        return tuple(k for k, s in enumerate(self.steps) if step in s.reads)


def record(capture: Capture) -> tuple[Tape, list[Shape]]:
    """The tape of a capture, and for each step the shape of its value there (empty where it is no tensor).

    Raises:
        GraphError: see `Tape.of`.
    """
    module, parameters, constants, user = capture.module, capture.parameters, capture.constants, capture.inputs
    shapes: list[Shape] = [()] * len(user)
    steps = [OperatorCall(lambda: None, "input", (), {}, "", (), ()) for _ in user]
    place: dict[str, Any] = {name: Ref(number) for number, name in enumerate(user)}
    outputs: list[int | Name | Tensor] = []
    for node in module.graph.nodes:
        if node.op == "placeholder":
            if node.name in parameters:
                place[node.name] = Name(parameters[node.name])
            elif node.name in user:
                shapes[user.index(node.name)] = _shape(node)
            else:
                place[node.name] = constants.get(node.name)
        elif node.op == "get_attr":
            place[node.name] = _attribute(module, str(node.target))
        elif node.op == "output":
            results = [item for item in _flat(node.args) if isinstance(item, fx.Node)]
            finals = [place[item.name] for item in results]
            outputs = [item.step if isinstance(item, Ref) else item for item in finals if item is not None]
            if not any(isinstance(item, int) for item in outputs):
                raise GraphError("The network's output does not depend on its input.")
        else:
            call, op, inplace = _functional(node.target)
            args = fx.node.map_arg(node.args, lambda n: place[n.name])
            kwargs = fx.node.map_arg(node.kwargs, lambda n: place[n.name])
            flat = [*_flat(args), *_flat(tuple(kwargs.values()))]
            reads = tuple(dict.fromkeys(item.step for item in flat if isinstance(item, Ref)))
            names = tuple(item.name for item in flat if isinstance(item, Name))
            place[node.name] = Ref(len(steps))
            if inplace and node.args and isinstance(node.args[0], fx.Node):
                old = place[node.args[0].name]  # from here on, that name means the new value
                for name, item in list(place.items()):
                    if item == old:
                        place[name] = Ref(len(steps))
            if op.startswith("conv") and len(args) > 6 and isinstance(args[6], int) and args[6] > 1:
                call = _grouped(call)
            shapes.append(_shape(node))
            steps.append(OperatorCall(call, op, tuple(args), dict(kwargs), owner_of(node), reads, names))
    return Tape(steps, outputs, next((shape[0] for shape in shapes if shape), 1), len(user)), shapes


def _shape(node: fx.Node) -> Shape:
    return tuple(int(size) for size in getattr(node.meta.get("val"), "shape", ()))


def _functional(target: Any) -> tuple[Callable[..., Any], str, bool]:
    """The operator without its side effect, so that cached values stay what they were."""
    name = getattr(target, "_opname", "") or getattr(target, "__name__", str(target))
    overload = getattr(target, "_overloadname", "")
    if isinstance(target, torch._ops.OpOverload) and name.endswith("_") and not name.endswith("__"):
        packet = getattr(torch.ops.aten, name[:-1], None)
        if packet is None or not hasattr(packet, overload):
            raise GraphError(f"{target} changes its input in place; the tape knows no plain form of it.")
        return getattr(packet, overload), name[:-1], True
    return target, name, False


def _grouped(call: Callable[..., Any]) -> Callable[..., Any]:
    """A grouped convolution whose number of groups follows from its tensors: narrowing changes it."""

    def narrowed(value: Tensor, weight: Tensor, *rest: Any) -> Any:
        return call(value, weight, *rest[:4], value.shape[1] // weight.shape[1], *rest[5:])

    return narrowed


def _attribute(module: nn.Module, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _flat(item: Any) -> list[Any]:
    if isinstance(item, (list, tuple)):
        return [leaf for part in item for leaf in _flat(part)]
    return [item]
