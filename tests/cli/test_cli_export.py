"""[export] from a recipe to the board: bytes in, a class out, measured, verified, and run on a picture."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from cli_project import pixels

pytest.importorskip("onnxruntime")

ROOT = Path(__file__).resolve().parents[2]


def call(*command, **more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "EDGEPRUNE_CACHE": str(Path("cache").absolute())}
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, env=environment, **more)


@pytest.mark.slow
def test_bytes_in_and_a_class_out_from_a_recipe_to_the_board(project):
    recipe = Path("recipe.toml")
    recipe.write_text(recipe.read_text() + '\n[export]\ninput = "uint8 NHWC"\noutput = "argmax"\n')
    edgeprune = ("-m", "edgeprune.cli", "--targets", "targets")
    done = call(*edgeprune, "quick", "run", "recipe.toml", "--json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    result = outcome["result"]
    assert result["verdict"] == "release" and result["dense_fp32"]["accuracy"] > 0.9
    assert result["inputs"] == [{"name": "input", "shape": [16, 16, 3], "dtype": "uint8"}]
    assert result["recipe"]["export"] == {"input": "uint8 NHWC", "output": "argmax"}
    assert "Every artifact is fed uint8 NHWC and gives argmax" in Path(outcome["report"]).read_text()
    checked = call(*edgeprune, "verify", outcome["bundle"])
    assert "8 samples on onnxruntime" in checked.stdout and "INTACT" in checked.stdout, checked.stderr
    with tarfile.open(outcome["bundle"]) as archive:
        archive.extractall("bundle", filter="data")
    samples = np.load("bundle/samples.npz")
    assert samples["input"].dtype == np.uint8 and samples["output"].dtype == np.int64
    assert "fed bytes" in Path("bundle/README.md").read_text()
    assert call("run.py", cwd="bundle").returncode == 0
    for number, name in enumerate(("ant", "bee", "cat", "dog")):
        np.save("bundle/one.npy", pixels(np.array([number]), 9)[0])
        said = call("run.py", "one.npy", cwd="bundle")
        assert said.stdout.startswith(f"one.npy: {name} (class {number})"), said.stderr
