"""The recipe of a small network that the whole pipeline runs through in a minute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgeprune import model as models
from edgeprune import recipe, target

ROOT = Path(__file__).parents[2]
RECIPE = f"""
name = "tiny"
[model]
factory = "{ROOT / "tests" / "networks.py"}:fitted_resnet"
input = [3, 32, 32]
[data]
source = "SOURCE"
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


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CIFAR-10 images of this repository, 200 of them to choose by: scores are most of what a short run costs."""
    section = recipe.ModelSection(factory=f"{ROOT / 'tests' / 'networks.py'}:fitted_resnet", input=(3, 32, 32))
    source = recipe.DataSection(source=str(ROOT / "calibration" / "cifar10"))
    data = models.load_data(recipe.Recipe(section, source, recipe.BudgetSection(speedup=2.0)))
    arrays = {}
    for split in (data.train, data.selection.take(200), data.test):
        arrays[f"{split.name}_images"] = np.stack([split.pixels(number) for number in range(len(split))])
        arrays[f"{split.name}_labels"] = split.labels
    path = tmp_path_factory.mktemp("few") / "cifar10.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture
def tiny(few: Path, tmp_path: Path) -> recipe.Recipe:
    """In `tmp_path`, as a user's recipe.toml."""
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("SOURCE", str(few)))
    return recipe.load(tmp_path / "recipe.toml")


@pytest.fixture
def hurried() -> Callable[[str], target.Target]:
    """A shipped target, by its name, that measures for a shorter time."""

    def load(name: str) -> target.Target:
        found = target.load(name)
        return msgspec.structs.replace(found, protocol=msgspec.structs.replace(found.protocol, rounds=12, processes=1))

    return load
