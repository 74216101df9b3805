"""Options of layers, found by their files: `low_rank.py` is "low-rank". A choice is spelt "low-rank:16"."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn

from edgeprune.errors import PlanError, did_you_mean
from edgeprune.graph.capture import Inputs
from edgeprune.graph.options.option import LayerOption as LayerOption
from edgeprune.graph.parts import Layer
from edgeprune.graph.state import kept as attributes_kept

HELPERS = frozenset({"__init__", "option"})  # files here that are no option


@cache
def layer_options() -> Mapping[str, LayerOption]:
    """Every option, by its name."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in HELPERS)
    found: list[LayerOption] = [importlib.import_module(f"{__name__}.{name}").OPTION for name in names]
    return MappingProxyType({option.name: option for option in found})


def spelt(option: LayerOption, setting: int) -> str:
    """A choice in words, as `Configuration.options` and plan.json have it."""
    return f"{option.name}:{setting}"


def option_of(text: str) -> tuple[LayerOption, int]:
    """The option and its setting.

    Raises:
        PlanError: there is no such option, or the setting is no positive number.
    """
    name, _, setting = text.partition(":")
    known = layer_options()
    if name not in known:
        raise PlanError(f"There is no option '{name}' for a layer.", did_you_mean(name, known))
    if not (setting.isascii() and setting.isdigit() and int(setting)):
        raise PlanError(
            f"The option '{text}' of a layer has no positive number behind its colon.", f"Give one: {name}:16."
        )
    return known[name], int(setting)


def apply_options(model: nn.Module, options: Mapping[str, str]) -> nn.Module:
    """Replace these layers of `model`, in place.

    Raises:
        PlanError: an unknown layer or option, or a layer that the option is not for.
    """
    modules = dict(model.named_modules())
    for layer, text in options.items():
        option, setting = option_of(text)
        if layer not in modules or not layer:
            raise PlanError(f"The plan makes '{layer}' {text}, which this model does not have.", "Make the plan again.")
        old = modules[layer]
        with torch.no_grad():
            try:
                new = option.replace(old, setting)
            except TypeError as error:
                raise PlanError(f"Layer '{layer}' cannot be {text}: {error}.", "Make the plan again.") from error
        new.train(old.training)
        parent, _, name = layer.rpartition(".")
        model.get_submodule(parent)._modules[name] = new
    return model


def merged(model: nn.Module, options: Mapping[str, str]) -> dict[str, nn.Module]:
    """Layer -> the ordinary layer that computes what it computes in `model`, which has these options."""
    with torch.no_grad():
        return {name: option_of(text)[0].merge(model.get_submodule(name)) for name, text in options.items()}


def fill(model: nn.Module, layers: Mapping[str, nn.Module], options: Mapping[str, str]) -> None:
    """Write ordinary layers into a model that has these options, in place: the inverse of `merged`."""
    with torch.no_grad():
        for name, layer in layers.items():
            option, setting = option_of(options[name])
            new = option.replace(layer, setting).state_dict()
            for key, value in model.get_submodule(name).state_dict().items():
                value.copy_(new[key])


def choices(
    model: nn.Module, layers: Sequence[Layer], inputs: Inputs, names: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Layer -> what it may become by the options of these names; layers without a choice are not listed.

    A layer must be called as a module, once: attention reads the weight of its last layer itself.

    Raises:
        PlanError: there is no option of that name.
    """
    options = [option_of(f"{name}:1")[0] for name in names]
    called = _calls(model, inputs) if options else {}
    found: dict[str, tuple[str, ...]] = {}
    for layer in layers:
        texts = []
        for option in options if called.get(layer.name) == 1 else ():
            for setting in option.settings(layer):
                try:
                    option.replace(model.get_submodule(layer.name), setting)
                except TypeError:
                    break
                texts.append(spelt(option, setting))
        if texts:
            found[layer.name] = tuple(texts)
    return found


def _calls(model: nn.Module, inputs: Inputs) -> Counter[str]:
    """How often each module is called in one forward."""
    counts: Counter[str] = Counter()
    handles = [
        module.register_forward_hook(lambda *_, name=name: counts.update([name]))
        for name, module in model.named_modules()
    ]
    args, kwargs = inputs
    try:
        with torch.no_grad(), attributes_kept(model):
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return counts
