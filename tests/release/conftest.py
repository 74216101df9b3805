"""A run directory as the pipeline leaves it, around a tiny network that really runs."""

from __future__ import annotations

import pytest
from finished_run import make

from edgeprune import target


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The agent's cache, away from the user's."""
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path_factory.getbasetemp() / "edgeprune-cache"))


@pytest.fixture(scope="session", params=["intel-cpu", "x86-onnxruntime"])
def made(request, tmp_path_factory):
    """(run directory, result) for each runtime that is here."""
    profile = target.load(request.param)
    pytest.importorskip(profile.runtime)
    run = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPRUNE_CACHE", str(tmp_path_factory.getbasetemp() / "edgeprune-cache"))
        return make(run, profile)
