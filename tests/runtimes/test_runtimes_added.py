"""A runtime of one's own, as docs/runtimes.md shows it: three files beside edgeprune's, and nothing else is edited."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "runtimes.md"

SCRIPT = """
import json, pathlib, sys
import numpy as np
import torch
from torch import nn
from edgeprune import devices, runtimes, target
from edgeprune.model import export_onnx

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
here = pathlib.Path(sys.argv[1])
images = np.random.default_rng(0).random((3, 3, 8, 8), np.float32)
source = here / "net.onnx"
export_onnx(net, torch.from_numpy(images[:1]), source)
profile = target.load("reference")
artifact = runtimes.build(source, here, profile, "dense-fp32", "fp32")
with devices.connect(profile, "local") as device:
    loaded = device.load(artifact)
    (found,) = device.infer(loaded, images)
    (timing,) = device.measure([loaded], profile.protocol)
    kernels = [kernel.name for kernel in device.profile(loaded, 2)]
    probe = device.probe().fingerprint
with torch.no_grad():
    wanted = net(torch.from_numpy(images)).numpy()
print("FOUND", json.dumps({
    "error": float(np.abs(found - wanted).max()), "ms": timing.median, "kernels": kernels, "runtime": probe["runtime"],
    "names": runtimes.names(), "title": runtimes.title("reference"),
}))
"""


def files_of_the_page() -> dict[str, str]:
    """Path -> text of each file that the page shows."""
    blocks = re.findall(r"^`([\w./-]+)`:\n\n```\w+\n(.*?)^```", PAGE.read_text("utf-8"), flags=re.S | re.M)
    return dict(blocks)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the page's files in it."""
    root = tmp_path_factory.mktemp("house")
    for folder in ("edgeprune", "targets"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in files_of_the_page().items():
        path = root / name
        assert not path.exists(), f"{name} is edgeprune's own: adding a runtime must not edit it"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def run(house: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(house), "EDGEPRUNE_CACHE": str(house / "cache")}
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, cwd=house, timeout=600
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_three_files_are_all_it_takes(house: Path) -> None:
    assert len(files_of_the_page()) == 3


@pytest.mark.slow
def test_it_builds_runs_measures_and_profiles(house: Path) -> None:
    (house / "work").mkdir(exist_ok=True)  # the test may run again
    found = json.loads(run(house, "-c", SCRIPT, "work").partition("FOUND ")[2])
    assert found["error"] < 1e-5 and found["ms"] > 0
    assert found["runtime"] == "reference" and "reference" in found["names"]
    assert found["title"] == "ONNX reference evaluator"
    assert found["kernels"]


@pytest.mark.slow
def test_its_target_has_commands_with_its_options(house: Path) -> None:
    assert "reference" in run(house, "-m", "edgeprune", "targets")
    text = run(house, "-m", "edgeprune", "reference", "run", "--help")
    assert "--verbosity" in text and "--streams" not in text
