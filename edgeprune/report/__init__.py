"""The report: one HTML page that needs no network, with the verdict first. The same figures stand in result.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprune.report.page import page, profile_page

__all__ = ["page", "profile_page", "write", "write_profile"]


def write(result: Mapping[str, Any], path: Path) -> Path:
    """Write the page of a result at `path`, whole or not at all.

    Args:
        result: what result.json holds (docs/doors.md); a section appears when its data is there.
    """
    return _write(page(result), path)


def write_profile(found: Mapping[str, Any], name: str, path: Path) -> Path:
    """Write the account of a latency table (what profile.json holds) at `path`, whole or not at all."""
    return _write(profile_page(found, name), path)


def _write(text: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path
