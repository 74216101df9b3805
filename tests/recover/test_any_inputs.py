"""Training of networks that are no image classifiers: several inputs by name, several outputs, a task of one's own."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgeprune import tasks
from edgeprune.errors import DataError, ModelError, RecipeError
from edgeprune.recipe import RecoverSection
from edgeprune.recover import check, train
from edgeprune.recover.judge import HeldOutScorer
from edgeprune.recover.source import Loader
from edgeprune.workload import Inputs

TRAIN = sys.modules["edgeprune.recover.loop"]


class Tokens(nn.Module):
    """Token ids and a mask in, a value and scores of three classes out."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 16)
        self.up = nn.Linear(16, width)
        self.norm = nn.LayerNorm(width)
        self.drop = nn.Dropout(0.2)
        self.value = nn.Linear(width, 1)
        self.scores = nn.Linear(width, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.norm(torch.relu(self.up(self.embed(ids))))
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.value(self.drop(pooled)), self.scores(pooled)


class Sentences:
    """The share of small ids is the target; `noisy` ones replace an id at random on every read."""

    def __init__(self, count: int, seed: int, noisy: bool = False) -> None:
        self.ids = np.random.default_rng(seed).integers(0, 12, (count, 10))
        self.noisy = noisy

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, place: int) -> Any:
        ids = self.ids[place].copy()
        if self.noisy:
            ids[random.randrange(10)] = np.random.randint(12)
            ids[int(torch.randint(10, ()))] = 3
        mask = np.ones(10, np.float32)
        mask[8:] = place % 2
        return {"ids": ids, "mask": mask}, float((self.ids[place] < 4).mean())


def error(outputs: Any, targets: list[Any]) -> float:
    return float(np.abs(outputs[0][:, 0] - np.asarray(targets)).mean())


def labels(outputs: Any, targets: list[Any]) -> Tensor:
    return (outputs[0][:, 0] - torch.tensor(targets, dtype=torch.float32)).square().mean()


TASK = tasks.Custom(error, "mean error", higher_is_better=False, loss=labels)
FAST = {"epochs": 4.0, "batch": 32, "lr": 0.05, "ema": 0.9, "precision": "fp32"}


def network(seed: int, width: int = 16) -> Tokens:
    torch.manual_seed(seed)
    return Tokens(width).eval()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    made = network(0, 24)
    options = RecoverSection(**{**FAST, "epochs": 12}, distill="none", label_weight=1.0)
    found = train(
        made, network(9), Sentences(512, 0), Sentences(128, 1), options, tmp_path_factory.mktemp("t"), task=TASK
    )
    assert found.best_score < 0.1 and found.best_accuracy is None
    return made


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_a_student_learns_from_the_teacher_alone_and_the_lower_error_is_kept(
    teacher: Tokens, tmp_path: Path, workers: int
) -> None:
    student, held = network(1), Sentences(128, 1)
    before = HeldOutScorer(held, TASK, Inputs.of(held[0][0]))(student)
    found = train(
        student, teacher, Sentences(512, 0), held, RecoverSection(**FAST), tmp_path, task=TASK, workers=workers
    )
    assert found.best_score < 0.5 * before and found.metric == "mean error"
    assert HeldOutScorer(held, TASK, Inputs.of(held[0][0]))(student) == pytest.approx(found.best_score, rel=1e-5)
    assert found.best_score in (found.history[-1]["score"], min(entry["score"] for entry in found.history))


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [
        {"distill": "distance"},
        {"distill": "mse"},
        {"distill": {"mse": 1.0, "features": 0.5}, "feature_layers": ("norm",)},
        {"distill": {"mse": 1.0, "attention": 0.2}},
        {"distill": {"mse": 1.0, "kl": 0.1}, "temperature_end": 1.0},
        {"distill": {"mse": 1.0, "kl": 0.1}, "temperature_learnt": True},
        {"distill": {"mse": 1.0, "soft": 0.1, "dist": 0.05}, "label_weight": 0.1},
        {"optimizer": "adamw", "lr": 0.01, "schedule": "linear", "clip": 1.0},
        {"optimizer": "muon", "lr": 0.01, "schedule": "constant"},
        {"micro_batch": 7},
    ],
    ids=lambda settings: " ".join(map(str, settings)) + str(settings.get("distill", "")),
)
def test_every_way_of_learning_brings_the_student_nearer(teacher: Tokens, tmp_path: Path, settings: Any) -> None:
    held = Sentences(128, 1)
    student = network(1)
    before = HeldOutScorer(held, TASK, Inputs.of(held[0][0]))(student)
    options = RecoverSection(**{**FAST, **settings})
    found = train(student, teacher, Sentences(256, 0), held, options, tmp_path, task=TASK)
    assert found.best_score < 0.7 * before
    assert not any("bridge" in name for name in student.state_dict()), "what was added is dropped"
    assert not any(module._forward_hooks for net in (student, teacher) for module in net.modules())


@pytest.mark.slow
def test_an_interrupted_run_of_a_dataset_that_augments_ends_with_the_same_weights(
    teacher: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers, random augmentation, dropout, bridges and a learnt temperature: all of it goes on where it was."""
    monkeypatch.setattr(TRAIN, "CHECKPOINT_SECONDS", 0.0)
    options = RecoverSection(
        **{**FAST, "optimizer": "adamw", "lr": 0.01}, label_weight=1.0,
        distill={"kl": 1.0, "features": 1.0}, temperature_learnt=True,
    )  # fmt: skip

    def go(folder: str, stop: int = -1, workers: int = 0) -> tuple[Tokens, Any]:
        def watch(done: float, total: float, message: str) -> None:
            if done == stop:
                raise KeyboardInterrupt

        student = network(1)
        found = train(
            student, teacher, Sentences(256, 0, noisy=True), Sentences(64, 1), options, tmp_path / folder, task=TASK,
            workers=workers, progress=watch,
        )  # fmt: skip
        return student, found

    whole, _ = go("a")
    with pytest.raises(KeyboardInterrupt):
        go("b", stop=13)
    resumed, found = go("b", workers=2)
    assert found.resumed == 13
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[key], value)
    again, found = go("b")
    assert found.resumed == found.steps == 32, "a run that had ended is not trained again"
    torch.testing.assert_close(again.up.weight, resumed.up.weight)


@pytest.mark.long
def test_a_batch_is_the_same_whatever_the_workers_and_the_processes() -> None:
    data, inputs = Sentences(100, 0, noisy=True), Inputs.of(Sentences(1, 0)[0][0])
    one, two = Loader(data, inputs, 16, 3), Loader(data, inputs, 16, 3, workers=2)
    for step in (4, 5, 6, 1):
        for name in ("ids", "mask"):
            assert torch.equal(one.at(step)[0][name], two.at(step)[0][name])
    clean = Sentences(100, 0)
    whole = Loader(clean, inputs, 16, 3).at(7)[1]
    shares = [Loader(clean, inputs, 16, 3, rank=rank, world=2).at(7)[1] for rank in (0, 1)]
    assert sorted(whole) == sorted(shares[0] + shares[1]) and len(shares[0]) == 8


@pytest.mark.long
def test_out_of_memory_halves_what_is_computed_at_once(
    teacher: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Tokens.forward

    def small(self: Tokens, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.training and len(ids) > 10:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return forward(self, ids, mask)

    def run(folder: str, **settings: Any) -> tuple[Tokens, Any]:
        student, options = network(1), RecoverSection(**{**FAST, **settings})
        return student, train(
            student, teacher, Sentences(256, 0), Sentences(64, 1), options, tmp_path / folder, task=TASK
        )

    whole, _ = run("a", distill="mse")
    monkeypatch.setattr(Tokens, "forward", small)
    found, training = run("b", distill="mse")
    assert training.micro_batch == 8
    torch.testing.assert_close(found.up.weight, whole.up.weight, rtol=1e-3, atol=1e-4)
    monkeypatch.setattr(TRAIN.Learner, "forward", _out_of_memory)
    with pytest.raises(ModelError, match="one example at a time does not fit the memory of the cpu"):
        run("c", distill="mse")


def _out_of_memory(*args: Any) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.long
def test_training_ends_when_its_hours_are_over_and_the_schedule_with_it(teacher: Tokens, tmp_path: Path) -> None:
    numbers: list[dict[str, Any]] = []
    options = RecoverSection(**{**FAST, "epochs": 10_000, "hours": 1.5 / 3600, "warmup": 0.0})
    shares = list[float]()
    found = train(
        network(1), teacher, Sentences(256, 0), Sentences(64, 1), options, tmp_path, task=TASK, log=numbers.append,
        progress=lambda done, total, message: shares.append(done / total),
    )  # fmt: skip
    assert shares[-1] == 1, "what is shown as done is of the hours, where they end first"
    assert found.stopped == "hours" and found.steps < 80_000
    assert 1.5 <= found.seconds < 20
    assert numbers[-1]["lr"] < 0.2 * FAST["lr"], "the learning rate goes down with the time"  # type: ignore[operator]
    assert numbers[-1]["score"] == found.history[-1]["score"] and numbers[-1]["examples_per_second"] > 0


@pytest.mark.long
def test_training_ends_when_it_gets_no_better(teacher: Tokens, tmp_path: Path) -> None:
    student = network(0, 24)
    student.load_state_dict(teacher.state_dict())
    options = RecoverSection(**{**FAST, "epochs": 50, "lr": 1e-9, "patience": 3})
    found = train(student, teacher, Sentences(64, 0), Sentences(64, 1), options, tmp_path, task=TASK)
    assert found.stopped == "patience" and found.epochs < 50


@pytest.mark.long
def test_several_teachers_teach_their_mean_or_the_surer_one(teacher: Tokens, tmp_path: Path) -> None:
    from edgeprune.recover.distill import merged

    task = tasks.Classification()
    sure, unsure = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.1, 0.0]])
    assert torch.allclose(merged([(sure,), (unsure,)], "mean", task)[0], (sure + unsure) / 2)
    assert float(merged([(sure,), (unsure,)], "confidence", task)[0][0, 0]) > 5.5
    options = RecoverSection(**FAST, distill="mse", combine="confidence")
    found = train(network(1), [teacher, teacher], Sentences(256, 0), Sentences(64, 1), options, tmp_path, task=TASK)
    assert found.best_score < 0.2


class Wrong(Sentences):
    def __getitem__(self, place: int) -> Any:
        inputs, target = super().__getitem__(place)
        if place == 40:
            inputs["ids"] = inputs["ids"][:-1]
        return inputs, target


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_an_example_of_another_shape_is_named(teacher: Tokens, tmp_path: Path, workers: int) -> None:
    with pytest.raises(DataError, match=r"input ids of example \d+ is \[9\]; it must be \[10\]"):
        train(
            network(1), teacher, Wrong(64, 0), Sentences(64, 1), RecoverSection(**FAST), tmp_path, task=TASK,
            workers=workers,
        )  # fmt: skip


EXAMPLE = {"ids": torch.zeros(2, 10, dtype=torch.long), "mask": torch.ones(2, 10)}


class Other(Tokens):
    def forward(self, ids: Tensor, mask: Tensor) -> Any:
        return super().forward(ids, mask)[1]


@pytest.mark.parametrize(
    ("settings", "teachers", "kind", "message"),
    [
        ({"device": "xpu"}, [], RecipeError, r"device is 'xpu', but torch .* finds no Intel GPU"),
        ({"precision": "fp16", "device": "cpu"}, [], RecipeError, "fp16', which no CPU trains in"),
        ({"distill": "none"}, [], DataError, "nothing to learn from"),
        ({"distill": {"kl": 0.0}}, [], DataError, "nothing to learn from"),
        ({}, [Other()], ModelError, r"teacher 1 has outputs of \[\[3\]\] an example; the pruned network has"),
        ({}, [nn.Linear(2, 2)], ModelError, "a network does not take the examples"),
        ({"distill": "features", "feature_layers": ("nrom",)}, [], RecipeError, "(?s)no layer 'nrom'.*'norm'"),
        ({"distill": "features", "feature_layers": ("value",)}, [], RecipeError, "'value' in the two networks cannot"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_work_is_said_before_any_training(settings: Any, teachers: Any, kind: Any, message: str) -> None:
    if settings.get("device") == "xpu" and torch.xpu.is_available():
        pytest.skip("there is an Intel GPU here")
    with pytest.raises(kind, match=message) as found:
        check(RecoverSection(**settings), network(0), teachers, EXAMPLE, TASK)
    assert "\n" not in found.value.message


def test_labels_without_a_loss_are_refused() -> None:
    task = tasks.Custom(error, "mean error", higher_is_better=False)
    with pytest.raises(RecipeError, match="the task has no loss of labels"):
        check(RecoverSection(label_weight=1.0), network(0), [], EXAMPLE, task)


class Reader(Tokens):
    """torch's own encoder, whose fused layer a teacher without gradients would take."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.encoder(self.embed(ids), src_key_padding_mask=mask == 0)
        pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.value(pooled), self.scores(pooled)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_torch_s_own_encoder_teaches_in_bfloat16(tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher, student = Reader().eval(), Reader().eval()
    options = RecoverSection(**{**FAST, "epochs": 1.0, "lr": 0.001, "precision": "bf16"})
    found = train(student, teacher, Sentences(64, 0), Sentences(32, 1), options, tmp_path, task=TASK)
    assert (found.steps, found.precision) == (2, "bf16") and np.isfinite(found.best_score)
    assert torch.backends.mha.get_fastpath_enabled()
