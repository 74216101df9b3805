"""What runs on a device; as light as the host's command line needs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from edgeprune.devices.agent.options import wrong as wrong_options

__all__ = ["HOST_RUNTIME", "Artifact", "wrong_options"]
HOST_RUNTIME = "onnxruntime"  # comes with edgeprune: it computes here what no device does, and is what is emulated


@dataclass(frozen=True)
class Artifact:
    """What runs on a device: a runtime's own file, or the files that belong together.

    Attributes:
        name: short and unique in a run, such as "dense-int8".
        runtime: as profiles name it.
        precision: "fp32" or "int8".
        files: name on the device -> path here; the first is the one that the runtime opens.
        options: handed to the runtime when it loads the artifact.
    """

    name: str
    runtime: str
    precision: str
    files: dict[str, Path]
    options: dict[str, object] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of all files on disk."""
        return sum(path.stat().st_size for path in self.files.values())
