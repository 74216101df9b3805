"""What torch's exporter works out anew each time, worked out once.

It makes its table of ONNX functions for each export, by reading its own sources, and asks for the operators that it
knows once for each namespace. Measured with torch 2.13 on a small network: 0.42 s of CPU for an export, 0.11 with this
(benchmarks/exports.py).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def one_registry() -> Iterator[None]:
    """Inside, torch.onnx.export takes the table that it made the first time; do not give it translations of your own.

    Operators are asked for once inside: a library of the user's own may bring more before the next export. None of what
    is replaced is a public part of torch. Where another torch has no such part, nothing is.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced("torch.onnx._internal.exporter._registration:ONNXRegistry.from_torchlib", _kept))
        stack.enter_context(_replaced("torch._export.utils:_materialize_cpp_cia_ops", functools.cache))
        yield


@contextlib.contextmanager
def _replaced(where: str, by: Callable[[Any], Any]) -> Iterator[None]:
    """A function "module:name" or "module:Class.name" replaced by what `by` makes of it."""
    module, _, path = where.partition(":")
    *owners, name = path.split(".")
    try:
        owner: Any = functools.reduce(getattr, owners, importlib.import_module(module))
        original, bound = vars(owner)[name], getattr(owner, name)
    except (ImportError, AttributeError, KeyError):
        yield
        return
    made = by(bound)
    setattr(owner, name, staticmethod(made) if owners else made)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _kept(make: Any) -> Any:
    return functools.partial(_made, make)


@functools.cache
def _made(make: Any, *given: Any, **named: Any) -> Any:
    return make(*given, **named)
