"""The recipe of a small network that the whole pipeline runs through in a minute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edgeprune import recipe, target

ROOT = Path(__file__).parents[2]
RECIPE = f"""
name = "tiny"
[model]
factory = "{ROOT / "tests" / "networks.py"}:fitted_resnet"
input = [3, 32, 32]
[data]
source = "{ROOT / "calibration" / "cifar10"}"
test = 100
calibration = 32
[budget]
speedup = 1.5
max_drop = 100
[search]
images = 64
rounds = 1
[recover]
epochs = 0.05
batch = 32
[quantize]
images = 32
[measure]
patience = 5
"""


@pytest.fixture
def tiny(tmp_path: Path) -> recipe.Recipe:
    """In `tmp_path`, as a user's recipe.toml."""
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return recipe.load(tmp_path / "recipe.toml")


@pytest.fixture
def hurried() -> Callable[[str], target.Target]:
    """A shipped target, by its name, that measures for a shorter time."""

    def load(name: str) -> target.Target:
        found = target.load(name)
        return msgspec.structs.replace(found, protocol=msgspec.structs.replace(found.protocol, rounds=12, processes=1))

    return load
