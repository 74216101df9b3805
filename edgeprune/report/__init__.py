"""The report: one HTML page that needs no network, with the verdict first. The same figures stand in result.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprune.report.page import page

__all__ = ["page", "write"]


def write(result: Mapping[str, Any], path: Path) -> Path:
    """Write the page of a result at `path`, whole or not at all.

    Args:
        result: what result.json holds (docs/doors.md); a section appears when its data is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(page(result), encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
