"""A tiny project in a folder of its own, a stand-in for the pipeline, and the command line to call."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_project import EXAMPLE, NETWORK, QUICK, RECIPE, Called, Event, Pipeline, pixels
from click.testing import CliRunner

import edgeprune
from edgeprune.cli import main


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a recipe, a network, images and a target called `quick`; the commands run in it."""
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(RECIPE)
    Path("net.py").write_text(NETWORK)
    Path("targets/quick").mkdir(parents=True)
    Path("targets/quick/profile.toml").write_text(QUICK)
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 200), ("test", 60)):
        arrays[f"{split}_labels"] = rng.integers(0, 4, count)
        arrays[f"{split}_images"] = pixels(arrays[f"{split}_labels"], count)
    np.savez("data.npz", classes=np.array(["ant", "bee", "cat", "dog"]), **arrays)
    return tmp_path


@pytest.fixture
def edgeprune_command():
    """Call the command line: edgeprune_command("targets", "--json")."""

    def call(*arguments: Any) -> Called:
        done = CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="edgeprune")
        return Called(done.exit_code, done.stdout, done.stderr, done.exception)

    return call


@pytest.fixture
def pipeline(monkeypatch):
    """The stand-in, in place."""
    stand_in = Pipeline(json.loads(EXAMPLE.read_text()))
    module: Any = types.ModuleType("edgeprune.pipeline")
    module.run, module.plan, module.Event = stand_in.run, stand_in.plan, Event
    monkeypatch.setitem(sys.modules, "edgeprune.pipeline", module)
    monkeypatch.setattr(edgeprune, "pipeline", module, raising=False)
    return stand_in
