"""Parts that cannot be captured: cut out, with what they gave on the example in their place.

An opaque submodule is replaced by a call of the operator `edgeprune::opaque`, which has no rule: what it reads and what
it gives stays whole. Its results are those that it gave in one real run on the example inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map

from edgeprune.errors import ModelError, did_you_mean
from edgeprune.graph.capture import Inputs, quiet


@torch.library.custom_op("edgeprune::opaque", mutates_args=())
def _opaque(reads: Sequence[torch.Tensor], template: torch.Tensor) -> torch.Tensor:
    """A tensor like `template`, made from `reads` in a way that the graph does not show."""
    return template.clone()


@_opaque.register_fake
def _(reads: Sequence[torch.Tensor], template: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(template)


@dataclass(frozen=True)
class _Template:
    """Stands for a tensor in a recorded result."""

    name: str


def stand_in(module: nn.Module, results: Sequence[Any]) -> nn.Module:
    """In place of an opaque submodule: gives what that gave, call by call, and looks like it in everything else.

    It is of a subclass of the module's own class and holds its attributes, parameters and children, so that whatever
    the network round it reads (`m.f`, `m.stride`), checks (`isinstance`), indexes or iterates over is there.

    Args:
        results: what each call of one forward returned.
    """
    new = copy.copy(module)
    vars(new).update({name: copy.copy(vars(module)[name]) for name in ("_parameters", "_buffers", "_modules")})
    new.__class__ = type(type(module).__name__, (_Recorded, type(module)), {"__module__": type(module).__module__})
    state = _Recording()
    state.results = [tree_map(state.keep, result) for result in results]
    vars(new)["_recording"] = state
    return new


class _Recording:
    """What the calls of one forward gave, and how many have been made."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self.results: list[Any] = []
        self.calls = 0

    def keep(self, leaf: Any) -> Any:
        """A name in place of a tensor."""
        if not isinstance(leaf, torch.Tensor):
            return leaf
        name = f"template{len(self.tensors)}"
        self.tensors[name] = leaf.detach()
        return _Template(name)


class _Recorded(nn.Module):
    """The forward of a stand-in."""

    _recording: _Recording

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The recorded result of this call."""
        mine = self._recording
        reads = [v for v in tree_flatten((args, kwargs))[0] if isinstance(v, torch.Tensor)]
        result = mine.results[mine.calls % len(mine.results)]
        mine.calls += 1
        return tree_map(lambda v: _opaque(reads, mine.tensors[v.name]) if isinstance(v, _Template) else v, result)


def record(model: nn.Module, inputs: Inputs, names: Sequence[str]) -> dict[str, list[Any]]:
    """What each opaque submodule returns in one forward of `model`.

    Raises:
        ModelError: an unknown name, or one that the forward does not call.
    """
    private = copy.deepcopy(model)  # a forward may write to its buffers
    modules = {name: module for name, module in private.named_modules() if name}
    results: dict[str, list[Any]] = {}
    handles = []
    for name in names:
        if name not in modules:
            raise ModelError(f"opaque names '{name}', which is no submodule.", did_you_mean(name, modules))
        seen = results.setdefault(name, [])
        handles.append(modules[name].register_forward_hook(lambda m, a, r, seen=seen: seen.append(r)))
    try:
        with torch.no_grad(), quiet():
            private(*copy.deepcopy(inputs[0]), **copy.deepcopy(inputs[1]))
    except Exception as error:
        raise ModelError(f"The model fails on the example inputs: {error}.", "Check their shapes and types.") from error
    finally:
        for handle in handles:
            handle.remove()
    for name, seen in results.items():
        if not seen:
            raise ModelError(f"opaque names '{name}', which the forward does not call.", "Leave it out.")
    return results


def cut_out(model: nn.Module, results: dict[str, list[Any]]) -> None:
    """Replace the opaque submodules of a private copy, under each of their names."""
    for name, seen in results.items():
        old = model.get_submodule(name)
        new = stand_in(old, seen)
        for module in list(model.modules()):
            for leaf, child in module._modules.items():
                if child is old:
                    module._modules[leaf] = new
