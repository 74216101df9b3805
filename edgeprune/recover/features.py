"""Outputs of layers inside two networks, matched by name, and the bridges between their widths.

A plan keeps every name, so that the student's layer is the teacher's of the same name, narrowed. A removed block is an
identity under its old name: its output is the stream that passes it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.engine import Examples, call
from edgeprune.errors import RecipeError, did_you_mean


@contextlib.contextmanager
def watched(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """A dict that holds the output of each named layer after a forward pass; the hooks go with the block."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple | list) and output else output
            if isinstance(first, Tensor):
                seen[name] = first

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def choose(
    teacher: nn.Module, student: nn.Module, examples: Examples, wanted: Sequence[str]
) -> dict[str, tuple[int, int, int]]:
    """The layers whose outputs are compared: name -> (axis of channels, student's width, teacher's width).

    Args:
        wanted: names; empty: the last layer at each size of maps (or tokens), the ends of the network's stages.

    Raises:
        RecipeError: a name is unknown, or its output is not one that can be compared.
    """
    known = [name for name, _ in teacher.named_modules() if name]
    for name in wanted:
        if name not in known:
            raise RecipeError(
                f"[recover] feature_layers: the network has no layer '{name}'.", did_you_mean(name, known)
            )
    names = list(wanted) or known
    seen: list[dict[str, Tensor]] = []
    for model in (teacher, student):
        training = model.training
        model.eval()
        with watched(model, [name for name in names if _has(model, name)]) as found:
            call(model, examples)
            seen.append(dict(found))
        model.train(training)
    theirs, mine = seen
    fitting = {}
    for name in theirs:
        place = _axis(mine.get(name), theirs[name])
        if place is not None:
            fitting[name] = (place, mine[name].shape[place], theirs[name].shape[place])
    for name in wanted:
        if name not in fitting:
            raise RecipeError(
                f"[recover] feature_layers: the outputs of '{name}' in the two networks cannot be compared.",
                "They must be one floating tensor each that differs in its channels at most.",
            )
    return fitting if wanted else _ends(fitting, theirs)


def _has(model: nn.Module, name: str) -> bool:
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def _axis(mine: Tensor | None, theirs: Tensor) -> int | None:
    """The axis of channels: the one in which the widths differ, else that of the usual layout; None: not comparable."""
    if mine is None or mine.ndim != theirs.ndim or theirs.ndim < 3 or not theirs.is_floating_point():
        return None
    differ = [axis for axis in range(theirs.ndim) if mine.shape[axis] != theirs.shape[axis]]
    if len(differ) > 1 or 0 in differ:
        return None
    return differ[0] if differ else (2 if theirs.ndim == 3 else 1)


def _ends(fitting: dict[str, tuple[int, int, int]], outputs: dict[str, Tensor]) -> dict[str, tuple[int, int, int]]:
    """The last layer of each size of maps, in the order in which they ran."""
    last: dict[tuple[int, ...], str] = {}
    for name, (axis, _, _) in fitting.items():  # hooks fire in the order of execution
        shape = list(outputs[name].shape)
        last[(axis, *(size for place, size in enumerate(shape) if place not in (0, axis)))] = name
    return {name: fitting[name] for name in last.values()}


class Bridges(nn.Module):
    """A 1x1 map from the student's width to the teacher's, where widths differ; dropped after training."""

    def __init__(self, layers: dict[str, tuple[int, int, int]]) -> None:
        super().__init__()
        self.axes = {name: axis for name, (axis, _, _) in layers.items()}
        self.maps = nn.ModuleDict(
            {_key(name): nn.Linear(mine, theirs) for name, (_, mine, theirs) in layers.items() if mine != theirs}
        )

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each layer's output [batch, ...] with as many channels as the teacher's."""
        found = {}
        for name, value in features.items():
            key, axis = _key(name), self.axes[name]
            found[name] = (
                self.maps[key](value.float().movedim(axis, -1)).movedim(-1, axis) if key in self.maps else value
            )
        return found


def _key(name: str) -> str:
    return name.replace(".", "\u2024")  # a ModuleDict takes no dots
