"""A training run's state on disk: whole or not there, and only ever used by the run that it belongs to."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

from edgeprune import files
from edgeprune.errors import RunError
from edgeprune.recipe import RecoverSection

NAME = "checkpoint.pt"
WHERE_ONLY = ("device", "processes")  # where a run computes is no part of what it computes


def key_of(options: RecoverSection, augment: Sequence[str], batches: int, first: dict[str, Tensor]) -> str:
    """What a checkpoint must share with the run that goes on from it: settings and the weights it began with."""
    settings = {key: value for key, value in msgspec.to_builtins(options).items() if key not in WHERE_ONLY}

    def content() -> Iterator[bytes]:
        yield repr((sorted(settings.items()), tuple(augment), batches)).encode()
        for name, value in first.items():
            yield f"{name}{list(value.shape)}".encode()
            yield value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()

    return files.sha256(content())


def save(folder: Path, key: str, state: dict[str, object]) -> None:
    """Write `checkpoint.pt`; raises RunError where it cannot be written, and the one before stays."""
    folder.mkdir(parents=True, exist_ok=True)
    whole, path = io.BytesIO(), folder / NAME  # torch's own word for a full disk is that positions are unexpected
    torch.save({**state, "key": key}, whole)
    try:
        files.write_bytes(path, whole.getvalue())
    except OSError as cause:
        raise RunError(
            f"{path}: the checkpoint cannot be written ({cause.strerror}).",
            "Free some space and run the same command again: it goes on from the checkpoint before.",
        ) from None


def load(folder: Path, key: str, device: torch.device) -> dict[str, Any] | None:
    """The state of an interrupted run with this key; None where there is none, or it is damaged or another's."""
    path = folder / NAME
    if not path.exists():
        return None
    try:
        state: dict[str, object] = torch.load(path, weights_only=True, map_location=device)
        return state if state["key"] == key else None
    except Exception:  # a damaged checkpoint costs time, not the run
        return None


def forget(folder: Path) -> None:
    """Take the checkpoint away: what it led to is safe, or not wanted."""
    (folder / NAME).unlink(missing_ok=True)
