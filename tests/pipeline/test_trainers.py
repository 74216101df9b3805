"""A trainer of the user's own and weights that were trained elsewhere, through the whole of `prune`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeprune import pipeline, recipe, target
from edgeprune.errors import ModelError, RunError, UsageError

TRAINER = """
import torch

def fit(job):
    with torch.no_grad():
        for parameter in job.student.parameters():
            parameter.mul_(SCALE)
    job.log({"loss": 0.5})
    return job.student
"""


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_trainer_by_name_then_weights_from_elsewhere_then_weights_put_there_by_hand(
    tiny: recipe.Recipe, hurried: Callable[[str], target.Target], tmp_path: Path
) -> None:
    folder, device = tmp_path / "run", hurried("intel-cpu")
    (tmp_path / "train.py").write_text(TRAINER.replace("SCALE", "float('nan')"))
    tiny = msgspec.structs.replace(tiny, search=recipe.SearchSection(method="uniform", images=64))
    own = msgspec.structs.replace(tiny, recover=recipe.RecoverSection(trainer=str(tmp_path / "train.py") + ":fit"))

    def prune(**given: Path) -> dict[str, object]:
        pipeline.run(own, device, folder, until="prune", **given)  # type: ignore[arg-type]
        found: dict[str, object] = json.loads((folder / "recover" / "recover.json").read_text())["training"]
        return found

    with pytest.raises(ModelError, match="the trainer fit left NaN or infinity"):
        prune()
    repaired = load_file(folder / "recover.part" / "weights.safetensors")
    assert all(value.isfinite().all() for value in repaired.values()), "the repaired weights stay"

    pipeline.run(own, device, folder, until="recover")  # repaired, and the trainer that fails is not asked
    trained = json.loads((folder / "recover" / "recover.json").read_text())["training"]
    assert trained["epochs"] == 0 and "trainer" not in trained
    script = (folder / "recover" / "rebuild.py").read_text()
    assert "import_module('networks').fitted_resnet" in script
    weights = load_file(folder / "recover" / "weights.safetensors")
    scaled = {name: value * 0.999 if value.is_floating_point() else value for name, value in weights.items()}
    save_file(scaled, tmp_path / "trained.safetensors")
    with pytest.raises(UsageError, match=r"--weights: .*nowhere"):
        prune(weights=tmp_path / "nowhere.safetensors")
    for until in ("search", "recover"):
        with pytest.raises(UsageError, match=f"--until {until} ends before that"):
            pipeline.run(own, device, folder, until=until, weights=tmp_path / "trained.safetensors")
    found = prune(weights=tmp_path / "trained.safetensors")
    assert found["trainer"] == "trained outside" and found["weights"] == "trained.safetensors"
    for name, value in load_file(folder / "recover" / "weights.safetensors").items():
        assert torch.equal(value, scaled[name])

    save_file(weights, folder / "recover" / "weights.safetensors")
    with pytest.raises(RunError, match=r"(?s)not as the run left it.*--weights FILE"):
        prune(weights=tmp_path / "trained.safetensors")
