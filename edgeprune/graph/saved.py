"""Pruned models on disk: plan.json and weights.safetensors, no pickle."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import nn

from edgeprune import files
from edgeprune.errors import ModelError, PlanError
from edgeprune.graph.capture import tensors_of
from edgeprune.graph.plan import Plan

PLAN = "plan.json"
WEIGHTS = "weights.safetensors"


def save_pruned(directory: str | os.PathLike[str], model: nn.Module, plan: Plan) -> None:
    """Write the plan and the pruned state; a tied tensor is stored once, a file appears whole or not at all."""
    state: dict[str, torch.Tensor] = {}
    seen: set[tuple[object, ...]] = set()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            raise ModelError(f"'{name}' of the state dict is not a tensor.", "edgeprune saves plain tensors only.")
        data = tensor.detach()
        key = (data.data_ptr(), data.dtype, tuple(data.shape), data.stride(), data.device)
        if data.numel() and key in seen:
            continue
        seen.add(key)
        state[name] = data.cpu().contiguous().clone()
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_bytes(folder / WEIGHTS, save_bytes(state))
    plan.save(folder / PLAN)


def load(path: str | os.PathLike[str], factory: Callable[[], nn.Module]) -> nn.Module:
    """Build the user's own class, narrow it by `plan.json` and load `weights.safetensors`.

    Raises:
        PlanError: the plan or the weights are missing, damaged or for another model.
    """
    folder = Path(path)
    plan = Plan.load(folder / PLAN)
    model = plan.apply(factory())
    try:
        state = load_bytes((folder / WEIGHTS).read_bytes())
    except OSError as error:
        raise PlanError(
            f"'{folder / WEIGHTS}' cannot be read: {error.strerror}.", "Give the folder of a pruned model."
        ) from error
    except SafetensorError as error:
        raise PlanError(f"'{folder / WEIGHTS}' is damaged: {error}.", "Prune again.") from error
    _fill(model, state, folder)
    return model


def _fill(model: nn.Module, state: dict[str, torch.Tensor], folder: Path) -> None:
    own = model.state_dict()
    by_id: dict[int, list[str]] = {}
    for name, tensor in tensors_of(model).items():
        by_id.setdefault(id(tensor), []).append(name)
    twins = {name: names for names in by_id.values() for name in names}
    full = dict(state)
    for name in own:
        if name not in full:
            stored = [t for t in twins.get(name, ()) if t in state]
            if stored:
                full[name] = state[stored[0]]
    missing = sorted(own.keys() - full.keys())
    extra = sorted(full.keys() - own.keys())
    if missing or extra:
        what = f"lacks '{missing[0]}'" if missing else f"has '{extra[0]}', which the model does not"
        raise PlanError(f"'{folder / WEIGHTS}' {what}.", "The folder belongs to another factory.")
    for name, tensor in own.items():
        if isinstance(tensor, torch.Tensor) and tensor.shape != full[name].shape:
            raise PlanError(
                f"'{name}' is {tuple(full[name].shape)} in '{folder / WEIGHTS}', {tuple(tensor.shape)} in the model.",
                "The folder belongs to another factory.",
            )
    model.load_state_dict(full, strict=True)
