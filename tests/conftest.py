"""Tests that measure a latency or train on this machine are tried up to three times: a neighbour may take the core.

What is wrong fails each time. What was tried again is listed at the end of a run.
"""

from __future__ import annotations

import pytest

MEASURING = {"slow", "device"}  # marks


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks them, and puts the files that hold them first: processes side by side then end at about the same time."""
    slow = [item for item in items if MEASURING & {mark.name for mark in item.iter_markers()}]
    for item in slow:
        item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=3))
    files = {item.path for item in slow}
    items.sort(key=lambda item: item.path not in files)
