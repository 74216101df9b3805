"""What a runtime needs: its artifact, made from ONNX, and its options. It runs on a device (`edgeprune.devices`)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.devices.types import Artifact
from edgeprune.errors import UsageError
from edgeprune.runtimes.versions import version
from edgeprune.target import Target

if TYPE_CHECKING:
    from edgeprune.runtimes.dialects import DIALECTS as DIALECTS
    from edgeprune.runtimes.dialects import Dialect as Dialect

__all__ = ["DIALECTS", "Artifact", "Dialect", "build", "flavours", "version"]


def build(onnx_path: Path, folder: Path, target: Target, name: str, precision: str) -> Artifact:
    """Make the artifact that `target` runs, in `folder`.

    Args:
        onnx_path: the float graph, or the Q/DQ graph in the target's dialect.
        folder: where its files go; made if need be. Files appear whole or not at all.
        target: decides the runtime.
        name: names the artifact and its files, such as "dense-int8".
        precision: "fp32" (stays FP32 through and through) or "int8".

    Raises MissingDependency when the runtime's converter is not installed, RunError when the folder cannot be written,
    ModelError when the runtime refuses the graph.
    """
    if precision not in ("fp32", "int8"):
        raise UsageError(f"precision '{precision}' is unknown.", "Use fp32 or int8.")
    folder.mkdir(parents=True, exist_ok=True)
    maker = importlib.import_module(f"edgeprune.runtimes.{target.runtime}")
    artifact: Artifact = maker.build(onnx_path, folder, target, name, precision)
    return artifact


def flavours(target: Target) -> tuple[str, ...]:
    """The Q/DQ schemes that a release carries: the target's own, then the others that its profile names."""
    return tuple(dict.fromkeys((target.dialect, *target.extra.get("flavours", ()))))


def __getattr__(name: str) -> Any:
    if name in ("DIALECTS", "Dialect"):
        return getattr(importlib.import_module("edgeprune.runtimes.dialects"), name)
    raise AttributeError(f"module 'edgeprune.runtimes' has no attribute '{name}'")
