"""The other processes that train with this one, as a training sees them."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Companions(Protocol):
    """The other processes that train with this one."""

    def train(self, folder: Path) -> None:
        """Let them train too: the repaired network that `folder` holds."""
