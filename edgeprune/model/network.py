"""Load a model from its factory and its weights, and refuse what cannot be right."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.errors import DataError, InputError, ModelError, did_you_mean
from edgeprune.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn


def load_callable(
    spec: str, what: str, base: Path | None = None, error: type[InputError] = ModelError
) -> Callable[..., Any]:
    """The callable that `spec` names.

    Args:
        spec: "path/to/file.py:name" or "package.module:name". Paths are tried from the current folder, then `base`.
        what: said in errors, such as "[model] factory".
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise error(f"{what}: '{spec}' is not of the form 'file.py:callable' or 'package.module:callable'.")
    module = _load_file(place, what, base, error) if place.endswith(".py") else _load_module(place, what, error)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
            raise error(f"{what}: '{place}' has no '{name}'.", did_you_mean(name, known))
        found = getattr(found, part)
    if not callable(found):
        raise error(f"{what}: '{spec}' is not callable.")
    return found  # type: ignore[no-any-return]


def load_factory(spec: str, base: Path | None = None) -> Callable[..., nn.Module]:
    """The factory of a network, such as "examples/cifar10/resnet.py:resnet56"; raises ModelError."""
    return load_callable(spec, "[model] factory", base)


def _load_file(place: str, what: str, base: Path | None, error: type[InputError]) -> Any:
    path = next((p for p in (Path(place), *([base / place] if base else [])) if p.is_file()), None)
    if path is None:
        raise error(
            f"{what}: {place}: no such file.", "The path is relative to the folder you are in, then to the recipe."
        )
    name = f"_edgeprune_user_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))  # so that the user's file can import its neighbours
    try:
        spec.loader.exec_module(module)
    except Exception as cause:
        del sys.modules[name]
        raise error(f"{what}: {path} failed while it was imported: {_short(cause)}.") from cause
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _load_module(place: str, what: str, error: type[InputError]) -> Any:
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as cause:
        raise error(
            f"{what}: no module named '{cause.name}'.", "Install it, or name a file: 'path/to/file.py:callable'."
        ) from None
    except Exception as cause:
        raise error(f"{what}: module '{place}' failed while it was imported: {_short(cause)}.") from cause


def load_model(recipe: Recipe) -> nn.Module:
    """The user's network in eval mode on the CPU, with its weights, after one forward pass.

    Raises:
        ModelError: the factory fails or gives no module, the weights are missing, of another shape, a pickle or not
            finite, the forward pass fails on one example, or its output is not finite.
    """
    from torch import nn

    section = recipe.model
    base = Path(recipe.path).parent if recipe.path else None
    factory = load_factory(section.factory, base)
    try:
        model = factory()
    except Exception as cause:
        raise ModelError(
            f"[model] factory: {section.factory}() failed: {_short(cause)}.", "It is called without arguments."
        ) from cause
    if not isinstance(model, nn.Module):
        raise ModelError(f"[model] factory: {section.factory}() gave {type(model).__name__}, not a torch.nn.Module.")
    if section.weights:
        _assign(model, load_weights(recipe.resolve(section.weights)), section.weights)
    _check_finite(model, section.weights or section.factory)
    model.eval()
    _try_forward(model, recipe)
    return model


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file, or a state dict saved by torch with `weights_only=True`; never runs a pickle's code."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError(
            f"[model] weights: {path}: no such file.",
            "Check the path; it is relative to where you are, then to the recipe.",
        )
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as cause:
            raise ModelError(f"[model] weights: {path} is not a whole safetensors file: {_short(cause)}.") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickle protocols that it then refuses
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, KeyError) as cause:
        raise ModelError(
            f"[model] weights: {path} is not a plain state dict ({_short(cause)}).",
            "Pickled modules run code when they are read and are refused. Save the weights alone: "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors').",
        ) from None
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"[model] weights: {path} holds {type(state).__name__}, not a state dict of tensors.")
    return {key.removeprefix("module."): value for key, value in state.items()}


def _assign(model: nn.Module, state: dict[str, torch.Tensor], path: str) -> None:
    own = model.state_dict()
    missing = sorted(set(own) - set(state))
    extra = sorted(set(state) - set(own))
    if missing or extra:
        parts = [f"{word} {_some(keys)}" for word, keys in (("lacks", missing), ("has the unknown", extra)) if keys]
        raise ModelError(
            f"[model] weights: {path} {' and '.join(parts)}.", "The factory must build the network that was trained."
        )
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise ModelError(
                f"[model] weights: {path}: {key} has the shape {list(value.shape)}; "
                f"the network wants {list(own[key].shape)}."
            )
    model.load_state_dict(state)


def _check_finite(model: nn.Module, where: str) -> None:
    import torch

    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
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
            f"[model] the network fails on one example of shape {[1, *shape]}: {_short(cause)}.",
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


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _short(cause: BaseException) -> str:
    """The first line of an error, at most 200 characters."""
    text = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    return f"{type(cause).__name__}: {text[:200]}".rstrip(".")


__all__ = ["DataError", "digest", "example_input", "load_callable", "load_factory", "load_model", "load_weights"]
