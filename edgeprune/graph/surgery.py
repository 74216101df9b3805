"""Edit a copy of the user's own module: index_select its tensors, set its size attributes, take out whole blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from edgeprune.errors import PlanError, did_you_mean
from edgeprune.graph.attention import free_heads
from edgeprune.graph.capture import first_argument, shadow, tensors_of
from edgeprune.graph.state import plain_tensors


@dataclass(frozen=True)
class Cut:
    """Keep these positions of a parameter or buffer along one axis."""

    parameter: str
    axis: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Attribute:
    """Set `module.name` to `value` (an integer, or a list of them)."""

    module: str
    name: str
    value: int | tuple[int, ...]


FIRST, NOTHING = "first", "nothing"  # stand-ins of a removed module: its first input, or zeros like it


def stand_in_text(kind: str, count: int) -> str:
    """A stand-in as plans write it: "nothing", or "nothing/2" where the module returns a tuple of two."""
    return f"{kind}/{count}" if count > 1 else kind


class Removed(nn.Module):
    """What is left of a removed block: its first input, whatever else it is called with.

    Args:
        first: the name of the block's first argument.
        count: how many values it returns; all but the first are None.
        marks: plain attributes of the block and of its children, which the network round it may read (`m.f`,
            `m.type`, `m.self_attn.batch_first`); its parameters are None.
    """

    def __init__(self, first: str, marks: Mapping[str, object] | None = None, count: int = 1) -> None:
        super().__init__()
        vars(self).update(marks or {})
        self.first, self.count = first, count

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the first argument."""
        found = self._left(args[0] if args else kwargs[self.first])
        return found if self.count == 1 else (found, *[None] * (self.count - 1))

    def _left(self, value: Any) -> Any:
        return value


class ZeroStandIn(Removed):
    """What is left of a removed term of a sum: zeros like its first input. The float ONNX has no sum with them."""

    def _left(self, value: Any) -> Any:
        return torch.zeros_like(value)


_DIGITS = 3  # of how many values a module returns: a plan may come from anywhere
_STAND_INS: Mapping[str, type[Removed]] = {FIRST: Removed, NOTHING: ZeroStandIn}


def read_stand_in(text: str) -> tuple[type[Removed], int]:
    """The class and the number of returned values of a stand-in.

    Raises:
        PlanError: there is no such stand-in.
    """
    kind, _, count = text.partition("/")
    if kind not in _STAND_INS or not (count or "1").isdecimal() or not 1 <= len(count or "1") <= _DIGITS:
        raise PlanError(f"The plan puts '{text}' in a module's place, which is unknown.", "Make the plan again.")
    return _STAND_INS[kind], max(1, int(count or 1))


def narrow(
    model: nn.Module,
    cuts: Sequence[Cut],
    attributes: Sequence[Attribute],
    removed: Sequence[str] = (),
    *,
    stand_ins: Mapping[str, str] | None = None,
    empty: bool = False,
) -> nn.Module:
    """A new module; the given one is left as it was.

    `stand_ins`: what takes the place of modules that go; of a removed block that is not there, an identity.
    `empty` leaves the narrowed values undefined and shares the others: shapes for a trial, without memory.

    Raises:
        PlanError: the cuts do not fit this model.
    """
    tensors = tensors_of(model)
    places = {**dict.fromkeys(removed, FIRST), **(stand_ins or {})}
    by_tensor = _cuts_by_tensor(model, tensors, cuts, tuple(places))
    replace: dict[int, torch.Tensor] = {}
    twins: dict[tuple[Any, ...], torch.Tensor] = {}
    for name, tensor in tensors.items():
        if id(tensor) in replace:
            continue
        mine = by_tensor.get(id(tensor), {})
        if empty and not mine:
            continue
        replace[id(tensor)] = _narrowed(name, tensor, mine, twins, empty=empty)
    if not empty:
        for module in model.modules():
            for value in plain_tensors(module):
                if id(value) not in replace:
                    replace[id(value)] = value.detach().clone().requires_grad_(value.requires_grad and value.is_leaf)
    edited = shadow(model, replace)
    _take_out(edited, places)
    _set(edited, attributes)
    free_heads(edited)
    _drop_caches(edited)
    if not empty:
        check_sizes(edited)
    return edited


def _drop_caches(model: nn.Module) -> None:
    """Tell every module its mode again: those that keep tensors derived from their weights drop them then."""
    flags = [(module, module.training) for module in model.modules()]
    model.train()
    model.train(flags[0][1])
    for module, training in flags:
        module.training = training


def _inside(name: str, removed: Iterable[str]) -> bool:
    return any(name == block or name.startswith(block + ".") for block in removed)


def _cuts_by_tensor(
    model: nn.Module, tensors: dict[str, torch.Tensor], cuts: Sequence[Cut], removed: Sequence[str]
) -> dict[int, dict[int, tuple[int, ...]]]:
    modules = dict(model.named_modules())
    for block in removed:
        if block not in modules or not block:
            raise PlanError(
                f"The plan removes '{block}', which this model does not have.", did_you_mean(block, modules)
            )
    found: dict[int, dict[int, tuple[int, ...]]] = {}
    for cut in cuts:
        tensor = tensors.get(cut.parameter)
        where = f"the cut of '{cut.parameter}' along axis {cut.axis}"
        if tensor is None:
            if _inside(cut.parameter, removed):
                continue
            hint = did_you_mean(cut.parameter, tensors) if len(tensors) < 200 else ""
            raise PlanError(f"The plan cuts '{cut.parameter}', which this model does not have.", hint)
        if not 0 <= cut.axis < tensor.ndim:
            raise PlanError(f"In {where}: the tensor has {tensor.ndim} axes.", "The plan is for another model.")
        size = tensor.shape[cut.axis]
        kept = cut.kept
        if not kept or len(set(kept)) != len(kept) or min(kept) < 0 or max(kept) >= size:
            raise PlanError(
                f"In {where}: kept must be at least one position, each once, from 0 to {size - 1}.",
                "The plan is damaged or for another model; make it again with structure.plan().",
            )
        mine = found.setdefault(id(tensor), {})
        if mine.setdefault(cut.axis, kept) != kept:
            raise PlanError(f"In {where}: two names of one tied tensor are cut differently.", "Make the plan again.")
    return found


def _narrowed(
    name: str,
    tensor: torch.Tensor,
    cuts: dict[int, tuple[int, ...]],
    twins: dict[tuple[Any, ...], torch.Tensor],
    *,
    empty: bool,
) -> torch.Tensor:
    """The new tensor, with the old one's type, dtype, device, requires_grad and extra attributes."""
    data = tensor.detach()
    key = (data.data_ptr(), tuple(data.shape), data.stride(), data.dtype, data.device, tuple(sorted(cuts.items())))
    twin = twins.get(key) if data.numel() else None
    if twin is not None:
        new = twin.detach()
    elif empty:
        shape = [len(cuts.get(d, range(n))) for d, n in enumerate(data.shape)]
        new = torch.empty(shape, dtype=data.dtype, device=data.device)
    else:
        new = data
        for axis, kept in sorted(cuts.items()):
            new = new.index_select(axis, torch.tensor(kept, device=data.device))
        new = new.clone() if not cuts else new
    twins[key] = new
    if isinstance(tensor, nn.Parameter):
        new = nn.Parameter(new, requires_grad=tensor.requires_grad)
    elif tensor.requires_grad and tensor.is_leaf:
        new = new.requires_grad_(True)
    for key_, value in vars(tensor).items():
        setattr(new, key_, value)
    return new


def _take_out(model: nn.Module, places: Mapping[str, str]) -> None:
    bare = vars(nn.Module())
    for block, text in places.items():
        kind, count = read_stand_in(text)
        old = model.get_submodule(block)
        parent, _, name = block.rpartition(".")
        children = {k: SimpleNamespace(**_marks(child, bare)) for k, child in old.named_children()}
        new = kind(first_argument(old), {**_marks(old, bare), **children}, count)
        new.training = old.training
        model.get_submodule(parent)._modules[name] = new
    for part in model.modules():  # torch's own fast paths read weights of children
        if isinstance(part, nn.TransformerEncoder) and any(isinstance(m, Removed) for m in part.layers[0].modules()):
            part.use_nested_tensor = False
        if isinstance(part, nn.TransformerEncoderLayer) and any(isinstance(m, Removed) for m in part.children()):
            part.activation_relu_or_gelu = 0


def _marks(module: nn.Module, bare: Mapping[str, object]) -> dict[str, object]:
    plain = {key: value for key, value in vars(module).items() if key not in bare and _plain(value)}
    return {**dict.fromkeys(module._parameters), **plain}


def _plain(value: Any) -> bool:
    """Whether a value is a number, a text, or a list or tuple of these."""
    if isinstance(value, list | tuple):
        return all(_plain(v) for v in value)
    return value is None or isinstance(value, bool | int | float | str)


def _set(model: nn.Module, attributes: Sequence[Attribute]) -> None:
    modules = dict(model.named_modules())
    for item in attributes:
        module = modules.get(item.module)
        if module is None or not hasattr(module, item.name):
            raise PlanError(
                f"The plan sets '{item.name}' of module '{item.module}', which this model does not have.",
                "The plan is for another model, or for another version of its code.",
            )
        old = getattr(module, item.name)
        value: Any = item.value
        if isinstance(old, tuple | list):
            values = list(value) if isinstance(value, tuple | list) else [value]
            value = torch.Size(values) if isinstance(old, torch.Size) else type(old)(values)
        setattr(module, item.name, value)


def check_sizes(model: nn.Module) -> None:
    """Each layer's own account of its sizes must be true.

    Raises:
        PlanError: a layer whose attributes and tensors disagree.
    """
    for name, says in false_accounts(model):
        raise PlanError(
            f"Layer '{name}' would say {says}.",
            "The plan was edited by hand or is for another model; make it again with structure.plan().",
        )


def false_accounts(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Each layer that says a size which it does not have, and what it says."""
    for name, module in model.named_modules():
        for what, said, true in _accounts(module):
            if said != true:
                yield name, f"{what} = {said} but hold {true}"


def _accounts(module: nn.Module) -> Iterable[tuple[str, Any, Any]]:
    weight = getattr(module, "weight", None)
    bias = getattr(module, "bias", None)
    if isinstance(module, nn.MultiheadAttention):
        packed = module.in_proj_weight is not None
        queries = module.in_proj_weight if packed else module.q_proj_weight
        yield "embed_dim", module.embed_dim, queries.shape[1]
        yield "num_heads x head_dim", module.num_heads * module.head_dim, len(queries) // (3 if packed else 1)
    if not isinstance(weight, torch.Tensor):
        return
    if isinstance(module, nn.modules.conv._ConvNd):
        if isinstance(module, nn.modules.conv._ConvTransposeNd):
            inputs, outputs = weight.shape[0], weight.shape[1] * module.groups
        else:
            inputs, outputs = weight.shape[1] * module.groups, weight.shape[0]
        yield "in_channels", module.in_channels, inputs
        yield "out_channels", module.out_channels, outputs
        yield "out_channels", module.out_channels, len(bias) if bias is not None else outputs
    elif isinstance(module, nn.Linear):
        yield "in_features", module.in_features, weight.shape[1]
        yield "out_features", module.out_features, weight.shape[0]
        yield "out_features", module.out_features, len(bias) if bias is not None else weight.shape[0]
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        for tensor in (weight, bias, module.running_mean, module.running_var):
            if tensor is not None:
                yield "num_features", module.num_features, len(tensor)
    elif isinstance(module, nn.LayerNorm):
        yield "normalized_shape", tuple(module.normalized_shape), tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm):
        yield "num_channels", module.num_channels, len(weight)
        yield "a multiple of num_groups", module.num_channels % module.num_groups, 0
    elif isinstance(module, nn.Embedding):
        yield "embedding_dim", module.embedding_dim, weight.shape[1]
