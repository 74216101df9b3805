"""The user's own training: what comes back is held against the plan; weights from elsewhere are checked and said."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import edgeprune
from edgeprune import tasks
from edgeprune.errors import ModelError
from edgeprune.graph import save_pruned
from edgeprune.recover.trainer import Job, own_training, rebuild_script, take_weights
from edgeprune.workload import Data, Inputs

X = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
DATA = Data(train=[(x, int(x.sum() > 0)) for x in X], test=[(x, 0) for x in X[:8]], selection_examples=16)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()


def job(tmp_path: Path, student: nn.Module) -> Job:
    said: list[Any] = []
    inputs = Inputs.of(X[0])
    return Job(
        student, net(), DATA, inputs, tasks.Classification(), {}, tmp_path, said.append, said.append, 3.0, 0.0, 0, "cpu"
    )


def fit(job: Job) -> nn.Module:
    student = job.student.to(job.device).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-2)
    for _ in range(int(job.epochs)):
        for batch, targets in job.data.batches("train", job.inputs, size=16):
            loss = job.task.loss(job.inputs.call(student, batch), targets)
            assert loss is not None
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return student


def in_place(job: Job) -> None:
    fit(job)


def compiled(job: Job) -> Any:
    return torch.compile(fit(job), backend="eager")


@pytest.mark.parametrize("trainer", [fit, in_place, compiled])
def test_a_trainer_trains_and_gives_the_network_or_nothing(tmp_path: Path, trainer: Any) -> None:
    student = net()
    assert own_training(trainer, job(tmp_path, student), 1.0) == trainer.__qualname__
    alone = net()
    fit(job(tmp_path, alone))
    for name, value in student.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name])
    assert not student.training and not torch.equal(student[0].weight, net()[0].weight)


def raises(job: Job) -> None:
    fit(job)
    raise ValueError("no such column\nand more")


def exits(job: Job) -> None:
    sys.exit(3)


def hangs(job: Job) -> None:
    while True:
        try:
            time.sleep(0.01)
        except Exception:
            continue


def nan(job: Job) -> None:
    with torch.no_grad():
        job.student[2].bias[0] = float("nan")  # type: ignore[index,operator]


def wider(job: Job) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 2))


def other_class(job: Job) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 2))


def nothing(job: Job) -> int:
    return 7


def elsewhere(job: Job) -> nn.Module:
    return job.student.to("meta")


@pytest.mark.long
@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (raises, r"the trainer raises failed: ValueError: no such column"),
        (exits, r"the trainer exits failed: SystemExit"),
        (hangs, r"the trainer hangs had not ended after .* hours"),
        (nan, r"the trainer nan left NaN or infinity in 2.bias"),
        (wider, r"the trainer wider gave another network: 0.bias is missing, new or of another shape"),
        (other_class, r"the trainer other_class gave another network: '1' is of another class"),
        (nothing, r"the trainer nothing gave int"),
        (elsewhere, r"the trainer elsewhere left its weights on no device"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_used_is_one_line_and_the_repaired_weights_stay(
    tmp_path: Path, trainer: Any, message: str
) -> None:
    student = net()
    with pytest.raises(ModelError, match=message) as found:
        own_training(trainer, job(tmp_path, student), (0.5 if trainer is hangs else 600.0) / 3600)
    assert "\n" not in found.value.message
    if trainer is not elsewhere:
        for name, value in student.state_dict().items():
            assert torch.equal(value, net().state_dict()[name])


def test_weights_from_elsewhere_are_taken_checked_and_said(tmp_path: Path) -> None:
    trained = net()
    fit(job(tmp_path, trained))
    save_file({f"module.{name}": value for name, value in trained.state_dict().items()}, tmp_path / "t.safetensors")
    student = net()
    found, _ = take_weights(student, tmp_path / "t.safetensors")
    assert found["trainer"] == "trained outside" and len(found["sha256"]) == 64
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in student.state_dict().items())
    save_file({"0.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"^--weights: other.safetensors") as refused:  # they are not [model] weights
        take_weights(net(), tmp_path / "other.safetensors")
    assert "this run's pruned network" in refused.value.remedy and "factory" not in refused.value.remedy
    save_file({**trained.state_dict(), "2.bias": torch.tensor([0.0, float("inf")])}, tmp_path / "inf.safetensors")
    with pytest.raises(ModelError, match=r"NaN or inf"):
        take_weights(net(), tmp_path / "inf.safetensors")


@pytest.mark.long
def test_the_script_that_is_left_rebuilds_the_pruned_network_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "my-net.py").write_text(
        "from torch import nn\nclass Nets:\n    @staticmethod\n    def make(width, classes):\n"
        "        return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, classes))\n"
    )
    dense = net()
    structure = edgeprune.trace(dense, X[:2])
    plan = structure.uniform(0.5, multiple=1)
    pruned = plan.apply(dense)
    folder = tmp_path / "recover"
    save_pruned(folder, pruned, plan)
    script = rebuild_script("my-net.py:Nets.make", {"width": 8, "classes": 2}, tmp_path)  # as beside a recipe
    (folder / "rebuild.py").write_text(script)
    script = "import rebuild; n = rebuild.student(); print([list(p.shape) for p in n.parameters()]); rebuild.save(n)"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True)
    assert str([list(p.shape) for p in pruned.parameters()]) in done.stdout
    again = plan.apply(net())
    with torch.no_grad():
        again[0].weight.zero_()
    take_weights(again, folder / "trained.safetensors")
    assert torch.equal(again[0].weight, pruned[0].weight)


def test_of_a_network_that_was_handed_over_the_script_asks_for_it(tmp_path: Path) -> None:
    names: dict[str, Any] = {"__file__": str(tmp_path / "rebuild.py")}
    dense = net()
    plan = edgeprune.trace(dense, X[:2]).uniform(0.5, multiple=1)
    save_pruned(tmp_path, plan.apply(dense), plan)
    exec(rebuild_script("", {}), names)
    assert torch.equal(names["student"](net)[0].weight, plan.apply(dense)[0].weight)
