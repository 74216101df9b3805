"""What a forward leaves behind in a module: caches of anchors, masks and shapes, counters, hidden states.

Networks keep such things in attributes, in lists and dictionaries, or in objects of their own; often the attribute
appears with the first forward (`if not hasattr(self, "mask")`) or hides one of the class (`shape = None`). A capture
that finds what the one before it left takes another path, so every capture starts from the state that the model came
in.
"""

from __future__ import annotations

import contextlib
import random
import types
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

_MOST = 200_000  # containers and objects that are looked into
_PLAIN = bool | int | float | complex | str | bytes | None | torch.Size | torch.dtype | torch.device
_OPEN = (list, dict, set, deque)
_OWN = frozenset(["_parameters", "_buffers", "_modules"])


@contextlib.contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Put back afterwards what the attributes of `model` and its submodules hold."""
    before = _holdings(model)
    try:
        yield
    finally:
        for _, holder, saved in before:
            _refill(holder, saved)


@contextlib.contextmanager
def same_dice() -> Iterator[None]:
    """Put the random states of torch, numpy and Python back afterwards."""
    states = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])


def changed_attributes(model: nn.Module, run: Callable[[], Any]) -> tuple[str, ...]:
    """The attributes of `model` that `run` changes, by name ("head.anchors"); the changes stay."""
    before = _holdings(model)
    run()
    found: dict[str, None] = {}
    for name, holder, saved in before:
        now = _inside(holder)
        if isinstance(holder, nn.Module):
            for attribute in {**saved, **now}:
                there = attribute in saved and attribute in now
                if attribute not in _OWN and not (there and _same(saved[attribute], now[attribute])):
                    found[f"{name}.{attribute}".removeprefix(".")] = None
        elif not _same(saved, now):
            found[name] = None
    return tuple(found)


def _holdings(model: nn.Module) -> list[tuple[str, Any, Any]]:
    """Every module, container and object with state, a copy of what it holds, and the attribute that leads to it."""
    found: list[tuple[str, Any, Any]] = []
    seen: set[int] = set()

    def look(name: str, value: Any) -> None:
        if id(value) in seen or len(found) > _MOST or isinstance(value, nn.Module | torch.Tensor | _PLAIN):
            return
        if isinstance(value, tuple | frozenset):
            for item in value:
                look(name, item)
        elif isinstance(value, _OPEN) or _has_state(value):
            seen.add(id(value))
            saved = _inside(value)
            found.append((name, value, saved))
            for item in saved.values() if isinstance(saved, dict) else saved:
                look(name, item)

    for path, module in model.named_modules():
        saved = dict(vars(module))
        found.append((path, module, saved))
        for attribute, value in saved.items():
            look(f"{path}.{attribute}".removeprefix("."), value)
    return found


def _has_state(value: Any) -> bool:
    """Whether a value is an object whose attributes a forward could change: no type, function or Python module."""
    if isinstance(value, type | types.ModuleType | types.FunctionType | types.MethodType | types.BuiltinFunctionType):
        return False
    return isinstance(getattr(value, "__dict__", None), dict) and not type(value).__module__.startswith("torch.")


def _inside(holder: Any) -> Any:
    """A shallow copy of what a holder holds."""
    if isinstance(holder, dict):
        return dict(holder)
    return list(holder) if isinstance(holder, list | set | deque) else dict(vars(holder))


def _refill(holder: Any, saved: Any) -> None:
    """Make a holder hold this again; one that does is left alone."""
    now = _inside(holder)
    if isinstance(saved, dict):
        if len(now) != len(saved) or any(k not in now or now[k] is not v for k, v in saved.items()):
            target = holder if isinstance(holder, dict) else vars(holder)
            target.clear()
            target.update(saved)
    elif len(now) != len(saved) or any(a is not b for a, b in zip(now, saved, strict=True)):
        holder.clear()
        (holder.update if isinstance(holder, set) else holder.extend)(saved)


def _same(a: Any, b: Any, depth: int = 0) -> bool:
    """Whether two values are one, or hold the same in containers of one kind."""
    if a is b:
        return True
    if type(a) is not type(b) or depth > 8:
        return False
    if isinstance(a, _PLAIN):
        return bool(a == b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(v, b[k], depth + 1) for k, v in a.items())
    if isinstance(a, list | tuple | deque):
        return len(a) == len(b) and all(_same(x, y, depth + 1) for x, y in zip(a, b, strict=True))
    return isinstance(a, set | frozenset) and bool(a == b)


def plain_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """The tensors that a module holds besides its parameters and buffers: as attributes, in containers, in objects."""
    seen: set[int] = set()

    def look(value: Any) -> Iterator[torch.Tensor]:
        if isinstance(value, torch.Tensor):
            yield value
        elif id(value) in seen or len(seen) > _MOST or isinstance(value, nn.Module | _PLAIN):
            return
        elif isinstance(value, list | tuple | set | frozenset | deque):
            seen.add(id(value))
            for item in value:
                yield from look(item)
        elif isinstance(value, dict):
            seen.add(id(value))
            for item in value.values():
                yield from look(item)
        elif _has_state(value):
            seen.add(id(value))
            yield from look(dict(vars(value)))

    for name, value in vars(module).items():
        if name not in _OWN:
            yield from look(value)
