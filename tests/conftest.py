"""For all tests: a cache for each process of them, and a second try where something was measured.

Tests that measure a latency or train on this machine are tried up to three times: a neighbour may take the core. What
is wrong fails each time. What was tried again is listed at the end of a run.
"""

from __future__ import annotations

import os

import pytest

from edgeprune.devices.emulation import emulator

MEASURING = {"slow", "device"}  # marks


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks them, and puts the files that hold them first: processes side by side then end at about the same time."""
    slow = [item for item in items if MEASURING & {mark.name for mark in item.iter_markers()}]
    for item in slow:
        item.add_marker(pytest.mark.flaky(reruns=2, reruns_delay=3))
    files = {item.path for item in slow}
    items.sort(key=lambda item: item.path not in files)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Away from the user's, and from that of the tests beside it, for whose measurements it would wait."""
    os.environ["EDGEPRUNE_EMULATOR"] = str(emulator.folder())
    os.environ["EDGEPRUNE_CACHE"] = str(tmp_path_factory.mktemp("edgeprune-cache", numbered=False))
