"""Which runtime is installed here, and the command that installs one that is not."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from edgeprune.errors import MissingDependency, UsageError

EXTRAS = {"onnxruntime": "onnxruntime", "openvino": "openvino", "tensorrt": ""}


def version(name: str) -> str:
    """Version of runtime `name` on this machine; raises MissingDependency with the command that installs it.

    TensorRT lives on the device: here it has no version.
    """
    if name not in EXTRAS:
        raise UsageError(f"no runtime is called '{name}'.", f"Known: {', '.join(EXTRAS)}.")
    if not EXTRAS[name]:
        raise MissingDependency("TensorRT is not needed here.", "It runs on the device: edgeprune devices probe DEVICE")
    require(name)
    return importlib.metadata.version(name).split("-")[0]


def require(name: str) -> None:
    """Raise MissingDependency unless package `name` can be imported here."""
    try:
        found = importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise MissingDependency(f"{name} is not installed.", f'pip install "edgeprune[{EXTRAS[name]}]"')
