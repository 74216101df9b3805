"""The trainers of examples/training, run as a user runs them: in one process, and in two."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from test_trainer import job, net

from edgeprune.recover.trainer import own_training

NEEDS = {"lightning_fit": ["lightning"], "hugging_face": ["transformers", "accelerate"]}
LIGHTNING = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # Lightning 2.6's own, of torch 2.13
FOLDER = Path(__file__).parents[2] / "examples" / "training"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.mark.parametrize("name", ["plain", "ddp", pytest.param("lightning_fit", marks=LIGHTNING), "hugging_face"])
def test_it_brings_the_student_nearer_to_the_dense_network(tmp_path: Path, name: str) -> None:
    for needed in NEEDS.get(name, ()):
        pytest.importorskip(needed)
    trainer = module(name)
    trainer.BATCH, trainer.RATE = 16, 1e-2  # type: ignore[attr-defined]
    student = net()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    made = dataclasses.replace(job(tmp_path, student), options={"batch": 16, "lr": 1e-2})
    plain = module("plain")

    def far() -> float:
        return float(plain.distance(made, student, made.teacher, plain._held_out(made)))

    before = far()
    assert own_training(trainer.fit, made) == "fit"
    assert far() < 0.5 * before
