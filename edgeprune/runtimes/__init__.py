"""What a runtime needs: its artifact, made from ONNX, and its options. It runs on a device (`edgeprune.devices`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from edgeprune.devices import Artifact, wrong_options
from edgeprune.errors import TargetError, UsageError, did_you_mean
from edgeprune.runtimes.dialects import Dialect, Role
from edgeprune.runtimes.runtime import DIALECT, Option, Runtime, load, names, title
from edgeprune.target import Target

if TYPE_CHECKING:
    DIALECTS: Mapping[str, Dialect]

__all__ = [
    "DIALECT",
    "DIALECTS",
    "Artifact",
    "Dialect",
    "Option",
    "Role",
    "Runtime",
    "build",
    "check_schemes",
    "flavours",
    "for_cpu",
    "load",
    "names",
    "title",
    "version",
    "wrong_options",
]


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
    return load(target.runtime).build(onnx_path, folder, target, name, precision)


def version(name: str) -> str:
    """Version of runtime `name` on this machine; raises MissingDependency with the command that installs it."""
    return load(name).version()


def for_cpu(name: str, features: Collection[str]) -> Dialect:
    """The dialect `name`, or its twin of 63 weight steps where the CPU would saturate.

    Args:
        features: of the CPU, as the agent reports them; empty where it is not known or no x86.
    """
    schemes = __getattr__("DIALECTS")
    dialect: Dialect = schemes[name]
    whole = any("vnni" in feature or feature == "amx_int8" for feature in features)
    return dialect if whole or "avx2" not in features else schemes.get(dialect.without_vnni, dialect)


def check_schemes(target: Target) -> None:
    """Refuse a profile that names a Q/DQ scheme which no runtime has; raises TargetError."""
    others, schemes = target.extra.get("flavours", []), __getattr__("DIALECTS")
    if not isinstance(others, list):
        raise TargetError(f"{target.name}: flavours is no list.", f"A list of: {', '.join(schemes)}.")
    for name in (target.dialect, *others):
        if not isinstance(name, str) or name not in schemes:
            message = f"{target.name}: '{str(name)[:80]}' is no dialect that a runtime has."
            raise TargetError(message, did_you_mean(str(name), schemes))


def flavours(target: Target) -> tuple[str, ...]:
    """The Q/DQ schemes that a release carries: the target's own, then the others that its profile names."""
    return tuple(dict.fromkeys((target.dialect, *target.extra.get("flavours", ()))))


def __getattr__(name: str) -> Any:
    """`DIALECTS`: the Q/DQ schemes of all runtimes, by name."""
    if name == "DIALECTS":
        return MappingProxyType({one.name: one for runtime in names() for one in load(runtime).dialects})
    raise AttributeError(f"module 'edgeprune.runtimes' has no attribute '{name}'")
