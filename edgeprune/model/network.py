"""Load a model from its factory and its weights, and refuse what cannot be right."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.errors import DataError, ModelError
from edgeprune.model.usercode import call, load_callable, short
from edgeprune.model.weights import assign as _assign
from edgeprune.model.weights import read_checkpoint
from edgeprune.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn


def load_factory(spec: str, base: Path | None = None) -> Callable[..., nn.Module]:
    """The factory of a network, such as "examples/cifar10/resnet.py:resnet56"; raises ModelError."""
    return load_callable(spec, "[model] factory", base)


def factory_of(recipe: Recipe) -> Callable[[], nn.Module]:
    """The recipe's factory with its arguments; raises ModelError."""
    base = Path(recipe.path).parent if recipe.path else None
    return functools.partial(load_factory(recipe.model.factory, base), **recipe.model.arguments)


def load_model(recipe: Recipe, say: Callable[[str], None] | None = None, logits: bool = True) -> nn.Module:
    """The user's network in eval mode on the CPU, with its weights, after one forward pass.

    Args:
        say: is told, in one sentence each, what was chosen, renamed or cast.
        logits: it takes one image and gives logits: tried on random pixels. Other networks are tried on real examples.

    Raises:
        ModelError: the factory fails or gives no module, the weights are missing, of another shape, a pickle or not
            finite, the forward pass fails on one example, or its output is not finite.
    """
    from torch import nn

    section = recipe.model
    base = Path(recipe.path).parent if recipe.path else None
    factory = load_factory(section.factory, base)
    model = call(factory, f"[model] factory: {section.factory}", ModelError, section.arguments)
    if not isinstance(model, nn.Module):
        raise ModelError(f"[model] factory: {section.factory}() gave {type(model).__name__}, not a torch.nn.Module.")
    if section.weights:
        checkpoint = read_checkpoint(recipe.resolve(section.weights), section.weights_key)
        for note in (*checkpoint.notes, *_assign(model, checkpoint.state, Path(section.weights).name)):
            if say is not None:
                say(note)
    check_finite(model, section.weights or section.factory)
    model.eval()
    if logits:
        _try_forward(model, recipe)
    return model


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, or of a checkpoint saved by torch; see `weights.read_checkpoint`."""
    state = read_checkpoint(path).state
    parallel = all(name.startswith("module.") for name in state)  # torch's DataParallel
    return {name.removeprefix("module."): value for name, value in state.items()} if parallel else state


def check_finite(model: nn.Module, where: str) -> None:
    """Refuse NaN and infinity among parameters and buffers; raises ModelError."""
    import torch

    for name, value in model.state_dict().items():
        if (value.is_floating_point() or value.is_complex()) and not torch.isfinite(value).all():
            count = int((~torch.isfinite(value)).sum())
            raise ModelError(
                f"[model] weights: {where}: {name} has {count} values that are NaN or infinite.",
                "Train or export it again.",
            )


def example_input(recipe: Recipe, batch: int = 1) -> torch.Tensor:
    """Seeded random pixels, preprocessed: [batch, *input] float32."""
    import numpy as np
    import torch

    shape = recipe.model.input
    pixels = np.random.default_rng(0).random((batch, *shape), np.float32)
    if len(shape) == 3:
        mean = np.asarray(recipe.data.mean, np.float32).reshape(-1, 1, 1)
        std = np.asarray(recipe.data.std, np.float32).reshape(-1, 1, 1)
        pixels = (pixels * np.float32(255 * recipe.data.scale) - mean) / std
    return torch.from_numpy(pixels.astype(np.float32))


def _try_forward(model: nn.Module, recipe: Recipe) -> None:
    import torch

    shape = list(recipe.model.input)
    try:
        with torch.no_grad():
            output = model(example_input(recipe))
    except Exception as cause:
        raise ModelError(
            f"[model] the network fails on one example of shape {[1, *shape]}: {short(cause)}.",
            "Is [model] input right?",
        ) from cause
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        got = f"shape {list(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
        raise ModelError(
            f"[model] the network's output is {got}; top-1 accuracy needs one tensor of logits [N, classes].",
            "Wrap the network so that it returns the logits alone.",
        )
    if not torch.isfinite(output).all():
        raise ModelError(
            "[model] the network's output on one example has NaN or infinite values.",
            "Check the weights and [data] scale.",
        )


def digest(model: nn.Module) -> str:
    """sha256 over the names, shapes and bytes of all parameters and buffers, and the source of the network's class."""
    import torch

    sha = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        sha.update(f"{name}{value.dtype}{list(value.shape)}".encode())
        sha.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for kind in sorted({type(module) for module in model.modules()}, key=lambda k: k.__qualname__):
        if not kind.__module__.startswith("torch."):
            try:
                sha.update(inspect.getsource(kind).encode())
            except (OSError, TypeError):
                sha.update(kind.__qualname__.encode())
    return f"sha256:{sha.hexdigest()}"


__all__ = ["DataError", "digest", "example_input", "load_callable", "load_factory", "load_model", "load_weights"]
