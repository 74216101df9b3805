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

from edgeprune.errors import GraphError
from edgeprune.graph.capture import capture, owner_of

Values = dict[int, Any]  # step -> what it returned
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Ref:
    """In a step's arguments: the value of another step."""

    step: int


@dataclass(frozen=True)
class Name:
    """In a step's arguments: a parameter or buffer."""

    name: str


@dataclass(frozen=True, eq=False)
class Step:
    """One operator call. `module` is the qualified name of the innermost module that made it."""

    call: Callable[..., Any]
    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    module: str
    reads: tuple[int, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Route:
    """The steps that count when some blocks are bypassed, in order, and what may be forgotten after each.

    Attributes:
        steps: what runs; step 0 is the input.
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
    """The operator calls of `model` in evaluation mode, for batches of exactly `batch` images."""

    def __init__(self, steps: Sequence[Step], output: int, batch: int) -> None:
        self.steps = tuple(steps)
        self.output = output
        self.batch = batch
        self._route = lru_cache(maxsize=256)(self._make_route)

    @staticmethod
    def of(model: nn.Module, images: Tensor) -> Tape:
        """Record the network on one batch [B, ...]; only its first output is followed.

        Raises:
            CaptureError: torch.export cannot capture the network.
        """
        modes = {module: module.training for module in model.modules()}
        try:
            found = capture(model.eval(), ((images,), {}))
        finally:
            for module, training in modes.items():
                module.training = training
        if len(found.inputs) != 1:
            raise GraphError("The network takes several inputs; loss curves and repair need one batch of images.")
        return _record(found.module, found.parameters, found.constants, found.inputs[0], len(images))

    def route(self, removed: Sequence[str] = ()) -> Route:
        """The way through the network when these blocks are identities.

        Raises:
            GraphError: a block has no single input and output on the tape.
        """
        return self._route(tuple(sorted(removed)))

    def _make_route(self, removed: tuple[str, ...]) -> Route:
        alias = {}
        for block in removed:
            before, after = self.ends(block)
            alias[after] = before
        if self.output in alias:
            raise GraphError(f"Block '{'/'.join(removed)}' makes the network's output.")

        def source(step: int) -> int:
            while step in alias:
                step = alias[step]
            return step

        last: dict[int, int] = {self.output: len(self.steps)}
        for k in range(len(self.steps) - 1, -1, -1):
            if k in last:
                for read in self.steps[k].reads:
                    last.setdefault(source(read), k)
        return Route(tuple(sorted(last)), tuple(alias.items()), last)

    def ends(self, module: str) -> tuple[int, int]:
        """The steps that make a module's first input and its output."""
        inside = [k for k, s in enumerate(self.steps) if s.module == module or s.module.startswith(module + ".")]
        body = set(inside)
        outer = [read for k in inside for read in self.steps[k].reads if read not in body]
        used = {read for k, s in enumerate(self.steps) if k not in body for read in s.reads} | {self.output}
        leaving = [k for k in inside if k in used]
        if len(set(outer)) != 1 or len(leaving) != 1:
            raise GraphError(f"'{module}' has {len(set(outer))} inputs and {len(leaving)} outputs on the tape.")
        return outer[0], leaving[0]

    def run(
        self,
        values: Values,
        route: Route,
        weights: Weights,
        start: int = 1,
        stop: int | None = None,
        keep: frozenset[int] | set[int] = frozenset(),
    ) -> None:
        """Run the steps start <= k < stop of the route on `values`, in place; forgets what nobody reads any more.

        `keep` lists values to hold on to. Values that were made before `start` must be there.
        """
        target = dict(route.alias)
        stop = len(self.steps) if stop is None else stop
        for k in route.steps:
            if k < start or k >= stop or k == 0:
                continue
            step = self.steps[k]

            def value(item: Any) -> Any:
                if isinstance(item, Ref):
                    at = item.step
                    while at in target:
                        at = target[at]
                    return values[at]
                if isinstance(item, Name):
                    return weights[item.name]
                if isinstance(item, (list, tuple)):
                    return type(item)(value(part) for part in item)
                return item

            values[k] = step.call(*(value(a) for a in step.args), **{key: value(v) for key, v in step.kwargs.items()})
            for read in step.reads:
                while read in target:
                    read = target[read]
                if route.last[read] == k and read not in keep:
                    values.pop(read, None)

    def logits(self, values: Values) -> Tensor:
        """The network's output after a whole run."""
        result: Tensor = values[self.output]
        return result

    def readers(self, step: int) -> tuple[int, ...]:
        """The steps that read this one's value."""
        return tuple(k for k, s in enumerate(self.steps) if step in s.reads)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers (non-persistent ones too) by qualified name; convolution weights in channels-last
    order.
    """
    found = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    return {name: layout(value.detach()) for name, value in found.items()}


def layout(value: Tensor) -> Tensor:
    """Channels last where that applies: three to four times faster for thin convolutions on CPUs."""
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


def batches(images: Tensor, size: int) -> list[Tensor]:
    """Whole batches of `size`; what does not fill one is left out."""
    return [layout(images[k : k + size]) for k in range(0, len(images) - size + 1, size)]


def batch_size(images: Tensor) -> int:
    """A batch that keeps activations in the CPU's caches: 64 CIFAR images, 4 of 224 x 224."""
    return max(1, min(len(images), 64, max(4, 64 * 3072 // max(1, images[0].numel()))))


def _record(module: fx.GraphModule, parameters: Any, constants: Any, user: str, batch: int) -> Tape:
    steps = [Step(lambda: None, "input", (), {}, "", (), ())]
    place: dict[str, Any] = {}
    output = 0
    for node in module.graph.nodes:
        if node.op == "placeholder":
            if node.name == user:
                place[node.name] = Ref(0)
            elif node.name in parameters:
                place[node.name] = Name(parameters[node.name])
            else:
                place[node.name] = constants.get(node.name)
        elif node.op == "get_attr":
            place[node.name] = _attribute(module, str(node.target))
        elif node.op == "output":
            results = [item for item in _flat(node.args) if isinstance(item, fx.Node)]
            final = place[results[0].name]
            if not isinstance(final, Ref):
                raise GraphError("The network's output does not depend on its input.")
            output = final.step
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
            steps.append(Step(call, op, tuple(args), dict(kwargs), owner_of(node), reads, names))
    return Tape(steps, output, batch)


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
