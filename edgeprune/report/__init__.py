"""The report: one HTML page that needs no network, with the verdict first. The same figures stand in result.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgeprune import files
from edgeprune.report.page import front_page, page, profile_page, sweep_page
from edgeprune.report.sarif import sarif
from edgeprune.report.sheet import Tile, draw, overlaid
from edgeprune.report.words import baseline, forced
from edgeprune.result import Front, SweepReport

__all__ = [
    "Tile",
    "baseline",
    "draw",
    "forced",
    "front_page",
    "overlaid",
    "page",
    "profile_page",
    "sarif",
    "sweep_page",
    "write",
    "write_front",
    "write_profile",
    "write_sweep",
]


def write(result: Mapping[str, object], path: Path) -> Path:
    """Write the page of a result at `path`, whole or not at all.

    Args:
        result: what result.json holds (docs/doors.md); a section appears when its data is there.
    """
    return _write(page(result), path)


def write_profile(found: Mapping[str, object], name: str, path: Path) -> Path:
    """Write the account of a latency table (what profile.json holds) at `path`, whole or not at all."""
    return _write(profile_page(found, name), path)


def write_front(found: Front, path: Path) -> Path:
    """Write the page of a front (what front.json holds) at `path`, whole or not at all."""
    return _write(front_page(found), path)


def write_sweep(found: SweepReport, path: Path) -> Path:
    """Write the page over all runs of a sweep (what sweep.json holds) at `path`, whole or not at all."""
    return _write(sweep_page(found, path.parent), path)


def _write(text: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, text)
    return path
