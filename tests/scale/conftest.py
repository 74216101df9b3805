"""A folder with two recipes of a tiny network, its data, two targets and a sweep; commands run in it."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_sweep import NETWORK, QUICK, RECIPE, ROOT, SWEEP


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEPRUNE_TARGETS", str(tmp_path / "targets"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    for name in ("quick", "other"):
        (tmp_path / "targets" / name).mkdir(parents=True)
        (tmp_path / "targets" / name / "profile.toml").write_text(QUICK.format(name=name))
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text(RECIPE.format(name=name, method="uniform"))
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    random = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 120), ("test", 60)):
        labels = np.arange(count) % 4
        arrays[f"{split}_labels"] = labels
        bright = random.random((count, 16, 16, 3)) * (labels[:, None, None, None] + 1) / 4
        arrays[f"{split}_images"] = (255 * bright).astype(np.uint8)
    np.savez("data.npz", classes=np.array(["a", "b", "c", "d"]), **arrays)
    return tmp_path
