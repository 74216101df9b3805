"""Parts that only training runs: auxiliary heads, mask embeddings, second detection heads.

Where eval leaves parameters unused, the training graph is walked too; the two share their parameters, so that what a
training-only part reads is narrowed with the rest. A training forward that cannot be captured (layers dropped at
random, masks made in numpy) is run
instead, watched: what the unused parameters touch stays whole, and nothing else.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from edgeprune.graph.capture import (
    Capture,
    Inputs,
    capture_model,
    doubled,
    first_line,
    owner_of,
    quiet,
    shadow,
    shadow_to_run,
)
from edgeprune.graph.rules import RULES
from edgeprune.graph.space import Reason
from edgeprune.graph.state import same_dice
from edgeprune.graph.walk import Shaped, Walk

_HERE = str(Path(__file__).parent)
_RUNS = 3  # training forwards that are watched: what is drawn at random is met in one of them
_MARK, _OF = "_edgeprune_made_in", "_edgeprune_of"


@dataclass(frozen=True)
class Touch:
    """A training-only parameter met a tensor: which parameter, which operator, where, and what the tensor was.

    Attributes:
        made_in: the innermost module that ran when the tensor was made.
        shape: the tensor's, at twice the batch.
    """

    parameter: str
    operator: str
    source: str
    made_in: str
    shape: tuple[int, ...]


def training_branches(
    view: nn.Module, walk: Walk, inputs: Inputs, names: dict[str, str], given: Collection[str]
) -> str:
    """Take training-only parts into the walk: "" where there are none, "walked" or "run" by how trials check them.

    Args:
        names: the canonical name of each parameter and buffer.
        given: opaque submodules; they are none of the network's.
    """
    nodes = walk.capture.module.graph.nodes
    used = {walk.capture.parameters.get(n.name) for n in nodes if n.op == "placeholder" and n.users}
    inside = tuple(f"{name}." for name in given)
    unused = sorted(
        {
            names[n]
            for n, p in view.named_parameters()
            if p.ndim and names.get(n, n) not in used and not n.startswith(inside or ("\0",))
        }
    )
    if not unused:
        return ""
    try:
        graph = named(capture_model(shadow(view).train(), doubled(inputs)), names)
    except Exception as error:
        return "run" if _freeze_touched(view, walk, inputs, unused, first_line(error)[:120]) else ""
    other = Walk(graph, RULES, space=walk.space, tensors=walk.tensors, path="train:")
    other.run()
    walk.training = other
    return "walked"


def named(graph: Capture, names: dict[str, str]) -> Capture:
    """The capture with canonical names of tied parameters."""
    return replace(graph, parameters={k: names.get(v, v) for k, v in graph.parameters.items()})


def _freeze_touched(view: nn.Module, walk: Walk, inputs: Inputs, unused: Collection[str], why: str) -> bool:
    """Freeze what the unused parameters touch in a training forward; whether there is anything to check later."""
    try:
        touches = watch(view, inputs, unused)
    except Exception as error:
        return _freeze_beside(walk, unused, f"{why}; a plain run fails: {first_line(error)[:80]}")
    for touch in touches:
        words = (
            f"'{touch.parameter}', used in training only, meets it, and the training graph cannot be captured ({why})"
        )
        reason = Reason(words, touch.operator, touch.source, touch.made_in)
        made = [
            walk.values[name]
            for name, node in walk.nodes.items()
            if node.op != "placeholder" and owner_of(node) == touch.made_in and isinstance(walk.values[name], Shaped)
        ]
        alike = [v for v in made if v.shape[1:] == touch.shape[1:]]
        for value in alike or made:
            for axis in value.axes:
                if alike or axis.size in touch.shape:
                    walk.space.freeze(axis, reason)
    return bool(touches)


def _freeze_beside(walk: Walk, unused: Collection[str], why: str) -> bool:
    """Freeze every axis as long as a side of an unused parameter, in the modules round it: it could not be watched."""
    for name in unused:
        scope = name.rpartition(".")[0]
        sizes = set(walk.tensors[name].shape) - {1} if name in walk.tensors else set()
        reason = Reason(f"'{name}' is used in training only, and the training graph cannot be captured ({why})")
        while True:
            inside = [
                n for n, node in walk.nodes.items() if (owner_of(node) + ".").startswith(scope + "." if scope else "")
            ]
            if inside or not scope:
                break
            scope = scope.rpartition(".")[0]
        for node in inside:
            value = walk.values[node]
            for axis in value.axes if isinstance(value, Shaped) else ():
                if axis.size in sizes:
                    walk.space.freeze(axis, reason)
    return False


def watch(view: nn.Module, inputs: Inputs, unused: Collection[str]) -> list[Touch]:
    """Run a private copy in train mode, at twice the batch, and list what met the unused parameters.

    Raises:
        Exception: whatever the network's own training forward raises on these inputs.
    """
    private = shadow_to_run(view).train()
    parameters = {id(p): n for n, p in private.named_parameters(remove_duplicate=False) if n in set(unused)}
    watcher = _Watcher(parameters)
    for path, module in private.named_modules():
        module.register_forward_pre_hook(lambda m, a, path=path: watcher.stack.append(path))
        module.register_forward_hook(lambda m, a, r: watcher.stack.pop() and None, always_call=True)
    train_forward(private, inputs, watcher)
    return list(watcher.touches)


def train_forward(
    model: nn.Module, inputs: Inputs, watcher: contextlib.AbstractContextManager[Any] | None = None
) -> None:
    """Forwards in train mode at twice the batch, without gradients; the random states are afterwards as they were."""
    args, kwargs = doubled(inputs)
    with same_dice(), torch.no_grad(), quiet(), watcher or contextlib.nullcontext():
        for seed in range(_RUNS):
            torch.manual_seed(seed)
            model(*args, **kwargs)


class _Watcher(TorchFunctionMode):
    """Notes every call that joins a parameter of `parameters` with another tensor, and where each tensor was made."""

    def __init__(self, parameters: dict[int, str]) -> None:
        super().__init__()
        self.parameters = parameters
        self.stack: list[str] = [""]
        self.touches: dict[Touch, None] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the call; mark what it gives with the module that runs."""
        tensors = [v for v in tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
        mine = [self.parameters[id(v)] for v in tensors if id(v) in self.parameters]
        mine += [name for v in tensors if (name := vars(v).get(_OF)) is not None]
        others = [v for v in tensors if id(v) not in self.parameters and _OF not in vars(v)]
        if mine:
            operator = str(getattr(func, "__name__", func))
            for v in others:
                made_in = vars(v).get(_MARK)
                if made_in is not None and v.is_floating_point():
                    self.touches.setdefault(Touch(mine[0], operator, _line(), made_in, tuple(v.shape)))
        result = func(*args, **(kwargs or {}))
        for v in tree_leaves(result):
            if isinstance(v, torch.Tensor) and id(v) not in self.parameters:
                with contextlib.suppress(AttributeError):
                    setattr(v, _MARK, self.stack[-1])
                    if mine and not others:
                        setattr(v, _OF, mine[0])
        return result


def _line() -> str:
    """The line of the network's own code that is running."""
    for frame in reversed(traceback.extract_stack()):
        if "/torch/" not in frame.filename and not frame.filename.startswith(_HERE):
            return f"{frame.filename}:{frame.lineno}"
    return ""
