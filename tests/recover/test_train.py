"""Fine-tuning learns, chooses on held-out images, and goes on after an interruption as if there had been none."""

from __future__ import annotations

import copy
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgeprune.errors import DataError, ModelError, RunError
from edgeprune.model import Preprocess, Split
from edgeprune.recipe import RecoverSection
from edgeprune.recover import evaluate, train
from edgeprune.recover.batches import Batches
from edgeprune.recover.distill import dist
from edgeprune.recover.steps import schedule

TRAIN = sys.modules["edgeprune.recover.loop"]


def split(count: int, seed: int) -> Split:
    """Noise whose brightness tells the class: learnable in a few steps."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    images = (random.integers(0, 60, (count, 8, 8, 3)) + labels[:, None, None, None] * 60).astype(np.uint8)
    prepare = Preprocess(0, 0, 1 / 255, (0.5,), (0.25,), (3, 8, 8))
    return Split("train", images.__getitem__, tuple(range(count)), labels.astype(np.int64), prepare)


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 3)).eval()


OPTIONS = RecoverSection(epochs=3, batch=32, lr=0.05, ema=0.9, distill="dist", label_weight=1, precision="fp32")


@pytest.mark.long
@pytest.mark.parametrize("distill", ["dist", "kl", "none"])
def test_it_learns_what_the_labels_or_the_teacher_know(tmp_path: Path, distill: str) -> None:
    teacher, student = network(0), network(1)
    labelled = RecoverSection(epochs=6, batch=32, lr=0.05, distill="none", label_weight=1)
    train(teacher, network(2), split(256, 0), split(64, 1), labelled, tmp_path)
    before = evaluate(student, split(200, 2))
    by_labels = float(distill == "none")
    options = RecoverSection(epochs=6, batch=32, lr=0.05, ema=0.9, distill=distill, label_weight=by_labels)
    result = train(student, teacher, split(256, 0), split(64, 1), options, tmp_path)
    assert evaluate(student, split(200, 2)) > before + 0.25
    assert result.best_accuracy == next(e["accuracy"] for e in result.history if e["epoch"] == result.best_epoch)
    assert result.best_accuracy >= max(entry["accuracy"] for entry in result.history) - 0.1  # 64 images tell no less
    assert not student.training


@pytest.mark.long
def test_training_never_makes_the_held_out_accuracy_worse(tmp_path: Path) -> None:
    student = network(1)
    train(
        student,
        student,
        split(256, 0),
        split(64, 1),
        RecoverSection(epochs=4, batch=32, distill="none", label_weight=1),
        tmp_path,
    )
    before, state = evaluate(student, split(64, 1)), copy.deepcopy(student.state_dict())
    wrong = split(256, 0)
    wrong = Split("train", wrong.read, wrong.indices, (wrong.labels + 1) % 3, wrong.preprocess)
    train(
        student,
        student,
        wrong,
        split(64, 1),
        RecoverSection(epochs=2, batch=32, lr=0.1, distill="none", label_weight=1),
        tmp_path,
    )
    assert evaluate(student, split(64, 1)) == before
    assert all(torch.equal(value, state[key]) for key, value in student.state_dict().items())


@pytest.mark.long
@pytest.mark.parametrize("distill", ["kl", "none"])
def test_dropout_is_off_while_the_student_learns_from_the_teacher(tmp_path: Path, distill: str) -> None:
    student = nn.Sequential(*list(network(1))[:-1], nn.Dropout(0.5), nn.Linear(8 * 36, 3))
    seen: set[bool] = set()
    student[-2].register_forward_hook(lambda module, inputs, output: seen.add(module.training))
    options = RecoverSection(epochs=1, batch=32, distill=distill, label_weight=float(distill == "none"))
    train(student, network(0), split(64, 0), split(32, 1), options, tmp_path)
    assert seen == ({False, True} if distill == "none" else {False})  # evaluations never use it
    assert not student[-2].training


@pytest.mark.long
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TRAIN, "CHECKPOINT_SECONDS", 0.0)
    whole = network(1)
    train(whole, network(0), split(256, 0), split(64, 1), OPTIONS, tmp_path / "a", augment=("crop", "flip"))

    def interrupt(done: float, total: float, message: str) -> None:
        if done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            network(1), network(0), split(256, 0), split(64, 1), OPTIONS, tmp_path / "b",
            augment=("crop", "flip"), progress=interrupt,
        )  # fmt: skip
    assert (tmp_path / "b" / "checkpoint.pt").exists()
    resumed = network(1)
    result = train(resumed, network(0), split(256, 0), split(64, 1), OPTIONS, tmp_path / "b", augment=("crop", "flip"))
    assert result.resumed == 13
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[key], value)


@pytest.mark.long
def test_a_run_killed_after_its_last_step_repeats_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = network(1)
    first = train(whole, network(0), split(256, 0), split(64, 1), OPTIONS, tmp_path)
    resumed = network(1)
    monkeypatch.setattr(TRAIN.TrainingRun, "_one_step", lambda self: pytest.fail("a step was repeated"))
    again = train(resumed, network(0), split(256, 0), split(64, 1), OPTIONS, tmp_path)
    assert again.resumed == again.steps == first.steps
    assert again.history == first.history
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value)


@pytest.mark.long
def test_a_full_disk_is_a_run_error_and_keeps_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on a file's size stands in for a full disk: the write itself fails, deep inside torch's zip writer."""
    monkeypatch.setattr(TRAIN, "CHECKPOINT_SECONDS", 0.0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    kept: list[bytes] = []

    def fill(done: float, total: float, message: str) -> None:
        if done == 3:
            kept.append((tmp_path / "checkpoint.pt").read_bytes())
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept[0]) // 2, hard))

    try:
        with pytest.raises(RunError, match=r"checkpoint\.pt: the checkpoint cannot be written \(File too large\)"):
            train(network(1), network(0), split(256, 0), split(64, 1), OPTIONS, tmp_path, progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert (tmp_path / "checkpoint.pt").read_bytes() == kept[0]


@pytest.mark.long
def test_a_checkpoint_of_other_options_or_a_damaged_one_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes(b"half a file")
    result = train(network(1), network(0), split(64, 0), split(32, 1), OPTIONS, tmp_path)
    assert result.resumed == 0


@pytest.mark.long
def test_divergence_is_one_clear_error(tmp_path: Path) -> None:
    student, teacher = network(1), network(0)
    with torch.no_grad():
        teacher[4].bias.fill_(float("nan"))
    with pytest.raises(ModelError, match="diverged"):
        train(student, teacher, split(64, 0), split(32, 1), OPTIONS, tmp_path)


def test_nothing_to_learn_from_is_refused(tmp_path: Path) -> None:
    options = RecoverSection(distill="none")
    with pytest.raises(DataError, match="nothing to learn from"):
        train(network(1), network(0), split(64, 0), split(32, 1), options, tmp_path)


def test_batches_cover_an_epoch_once_and_do_not_depend_on_history() -> None:
    batches = Batches(split(70, 0), 16, seed=3)
    seen = torch.cat([batches._chosen(step) for step in range(len(batches))])
    assert len(batches) == 4 and len(set(seen.tolist())) == 64
    again = Batches(split(70, 0), 16, seed=3, augment=("crop", "flip"))
    first = again.at(2)[0]
    again.at(0)
    assert torch.equal(again.at(2)[0], first)
    assert not torch.equal(first, batches.at(2)[0]), "augmented"


def test_images_that_do_not_fit_in_memory_are_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Batches(split(70, 0), 16, seed=3)
    monkeypatch.setattr("edgeprune.recover.batches.PRELOAD_BYTES", 0)
    lazy = Batches(split(70, 0), 16, seed=3, workers=2)
    assert lazy.images is None
    for step in (0, 1, 2, 5):
        for one, other in zip(lazy.at(step), wanted.at(step), strict=True):
            assert torch.equal(one, other)


def test_dist_is_zero_for_the_same_ranking_and_positive_otherwise() -> None:
    logits = torch.randn(16, 5)
    assert float(dist(logits, logits, 4.0)) == pytest.approx(0, abs=1e-5)
    assert float(dist(logits, logits.flip(0), 4.0)) > 1


def test_the_schedule_warms_up_and_ends_at_zero() -> None:
    values = [schedule(step / 100, 0.05) for step in range(101)]
    assert max(values) <= 1 and values[100] == pytest.approx(0, abs=1e-9)
    assert values[0] < values[3] < values[5] and values[10] > values[50] > values[90]


@pytest.mark.long
def test_a_network_frozen_for_inference_learns_and_is_frozen_afterwards(tmp_path: Path) -> None:
    frozen, free = network(1).requires_grad_(False), network(1)
    for student, folder in ((frozen, "a"), (free, "b")):
        train(student, network(0).requires_grad_(False), split(128, 0), split(64, 1), OPTIONS, tmp_path / folder)
    assert not any(p.requires_grad or p.grad is not None for p in frozen.parameters())
    assert all(p.requires_grad for p in free.parameters())
    assert not torch.equal(frozen[0].weight, network(1)[0].weight), "it has learnt"
    for mine, theirs in zip(frozen.state_dict().values(), free.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.long
def test_a_part_that_was_frozen_on_purpose_stays_as_it_is(tmp_path: Path) -> None:
    student = network(1)
    student[0].requires_grad_(False)
    kept = student[0].weight.clone()
    train(student, network(0), split(64, 0), split(32, 1), OPTIONS, tmp_path)
    assert torch.equal(student[0].weight, kept)
    assert not torch.equal(student[4].weight, network(1)[4].weight)
