"""torchrun on the command line: one answer, one voice, and a training that both processes took part in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeprune import recipe

ROOT = Path(__file__).resolve().parents[2]


def _torchrun(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += ["-m", "edgeprune", "x86-onnxruntime", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1100)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_both_train_and_one_speaks(tiny: recipe.Recipe, tmp_path: Path) -> None:
    text = (tmp_path / "recipe.toml").read_text().replace("[search]", '[search]\nmethod = "uniform"')
    (tmp_path / "recipe.toml").write_text(text)
    done = _torchrun(tmp_path, "prune", "recipe.toml", "--run-dir", "run", "--json")
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    training = json.loads((tmp_path / "run" / "recover" / "recover.json").read_text())["training"]
    assert training["processes"] == 2 and training["steps"] > 1
    assert done.stderr.count("repaired by least squares") == 1

    (tmp_path / "recipe.toml").write_text(text.replace("batch = 32", "batch = 1"))
    refused = _torchrun(tmp_path, "prune", "recipe.toml", "--run-dir", "run")
    assert refused.returncode == 1, "torchrun's own word for a process that ended with another code than 0"
    assert refused.stderr.count("batch is 1, and 2 processes train together") == 1
