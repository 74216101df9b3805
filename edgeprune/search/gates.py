"""Gates of a network: a number from 0, closed, to 1, open, for each unit of each group and for each removable block.

A unit is closed where it is read, which is exactly pruning it; a block's gate stands between its input and its result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgeprune.engine import Examples, Outputs, call
from edgeprune.graph import Block, Group


@dataclass(frozen=True)
class Gates:
    """Where the gates of a network are: a slice of one vector for each group, then one place for each block."""

    groups: tuple[Group, ...]
    blocks: tuple[Block, ...]

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(group.size for group in self.groups) + len(self.blocks)

    def units(self) -> dict[str, slice]:
        """Group -> the places of its units in the vector."""
        found, at = dict[str, slice](), 0
        for group in self.groups:
            found[group.name] = slice(at, at + group.size)
            at += group.size
        return found

    def places(self) -> dict[str, int]:
        """Block -> its place in the vector."""
        first = self.count - len(self.blocks)
        return {block.module: first + number for number, block in enumerate(self.blocks)}


class Masked:
    """A network with gates: (examples, gates [count]) -> outputs. Gradients reach gates and parameters."""

    def __init__(self, network: nn.Module, gates: Gates) -> None:
        self.network, self.gates, self.units, self.places = network, gates, gates.units(), gates.places()
        self.tensors = {
            **dict(network.named_parameters(remove_duplicate=False)),
            **dict(network.named_buffers(remove_duplicate=False)),
        }
        self.readers = {group.name: self._readers(group) for group in gates.groups}

    def _readers(self, group: Group) -> list[tuple[str, int, Tensor, int]]:
        """Where a group is read (hidden units also by themselves): tensor, axis, positions one unit after the other,
        positions a unit. Where nothing is known to read it, where it is made.
        """
        known = [m for m in group.members if m.parameter in self.tensors]
        known = [m for m in known if self.tensors[m.parameter].is_floating_point()]
        found = [m for m in known if m.role == "input" or (m.axis and ".weight_hh_l" in f".{m.parameter}")] or known
        device = next(iter(self.tensors.values())).device
        return [
            (m.parameter, m.axis, torch.as_tensor(m.indices, device=device).reshape(-1), m.indices.shape[1])
            for m in found
        ]

    def __call__(self, examples: Examples, gates: Tensor) -> Outputs:
        """The outputs, as a tuple of tensors."""
        tensors = dict(self.tensors)
        for group in self.gates.groups:
            own = gates[self.units[group.name]]
            for name, axis, spots, each in self.readers[group.name]:
                value = tensors[name]
                scale = torch.ones(value.shape[axis], dtype=own.dtype, device=value.device)
                scale = scale.index_copy(0, spots, own.repeat_interleave(each)).to(value.dtype)
                tensors[name] = value * scale.reshape([-1 if k == axis else 1 for k in range(value.dim())])
        with self._bypassed(gates), self._recurrent(tensors):
            return call(_Called(self.network, tensors), examples)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def _recurrent(self, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Recurrent layers read their weights from a list of their own, which functional_call does not know."""
        layers = [(name, module) for name, module in self.network.named_modules() if isinstance(module, nn.RNNBase)]
        before = [layer._flat_weights for _, layer in layers]
        try:
            for name, layer in layers:
                stem = f"{name}." if name else ""
                layer._flat_weights = [tensors[f"{stem}{own}"] for own in layer._flat_weights_names]
            yield
        finally:
            for (_, layer), weights in zip(layers, before, strict=True):
                layer._flat_weights = weights

    @contextlib.contextmanager
    def _bypassed(self, gates: Tensor) -> Iterator[None]:
        """Each block gives its input and a gate's share of what it adds to it; a term of a sum, its share of itself."""
        with contextlib.ExitStack() as stack:
            for block in self.gates.blocks:
                gate = gates[self.places[block.module]]
                for module, stand_in in block.stand_ins or ((block.module, "first"),):
                    if block.kind == "term" and not stand_in.startswith("nothing"):
                        continue
                    hook = _hook(gate, block.kind == "term")
                    handle = self.network.get_submodule(module).register_forward_hook(hook, with_kwargs=True)
                    stack.callback(handle.remove)
            yield


class _Called:
    """The network with other tensors, to be called as itself."""

    def __init__(self, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
        self.network, self.tensors = network, dict(tensors)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return functional_call(self.network, self.tensors, args, kwargs, tie_weights=False)


def _hook(gate: Tensor, term: bool) -> Callable[..., Any]:
    def run(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, object], output: Any) -> Any:
        first = output[0] if isinstance(output, tuple | list) else output
        share = gate.to(first.dtype)
        if term:
            changed = first * share
        else:
            given: Any = args[0] if args else next(iter(kwargs.values()))
            changed = given + share * (first - given)
        return type(output)((changed, *output[1:])) if isinstance(output, tuple | list) else changed

    return run
