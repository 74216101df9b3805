"""Outputs on the test images: all on a real device; under emulation the pre-check on all, the true runtime on some."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeprune import devices, target, tasks
from edgeprune.devices import Artifact
from edgeprune.model import Ends
from edgeprune.pipeline import images
from edgeprune.workload import Data, Input, Inputs, Workload

LABELS = np.arange(120) % 3
EXACT = np.eye(3)[LABELS]


class Numbers:
    """Example i is the number i, of class LABELS[i]."""

    def __len__(self) -> int:
        return len(LABELS)

    def __getitem__(self, index: int) -> Any:
        return np.array([index]), int(LABELS[index])


class FakeDevice:
    """Answers an image with its row of `logits`."""

    runtime_version = "1.0"

    def __init__(self, logits: Any) -> None:
        self.logits, self.asked = logits, 0

    def __enter__(self) -> FakeDevice:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def load(self, artifact: Artifact) -> Artifact:
        return artifact

    def unload(self, loaded: Artifact) -> None: ...

    def infer(self, loaded: Artifact, rows: Any) -> list[Any]:
        self.asked += len(rows)
        return [self.logits[rows[:, 0]]]


def work(task: Any = None) -> Workload:
    inputs = Inputs((Input("input", (1,), "int64"),))
    return Workload(lambda: None, inputs, Data(Numbers(), Numbers()), task or tasks.Classification(), "")


def subject(task: Any = None) -> Any:
    return SimpleNamespace(workload=work(task), ends=Ends())


def bench(device: str, own: FakeDevice | None = None) -> Any:
    return SimpleNamespace(target=target.load("raspberry-pi-5"), name=device, device=own)


def voice(said: list[str]) -> Any:
    return SimpleNamespace(
        progress=lambda stage: lambda *_: None, say=lambda stage, text: said.append(text),
    )  # fmt: skip


ARTIFACTS = {"pruned-int8": Artifact("pruned-int8", "onnxruntime", "int8", {"a.onnx": Path("a.onnx")})}


def test_a_real_device_does_all_images() -> None:
    board = FakeDevice(EXACT)
    found = images.run(subject(), bench("ssh://10.0.0.7", board), voice([]), ARTIFACTS, ARTIFACTS)
    assert found.emulated == {} and board.asked == len(LABELS)
    network = found.judges["pruned-int8"].network()
    assert network.correct == network.images == len(LABELS)


@pytest.mark.long
def test_maps_are_judged_in_pieces_that_fit() -> None:
    """512 KiB an example: never more than 4 MiB of outputs at once."""

    class Maps(FakeDevice):
        most = 0

        def infer(self, loaded: Artifact, rows: Any) -> list[Any]:
            self.most = max(self.most, len(rows))
            return [
                np.broadcast_to(self.logits[rows[:, 0], :, None, None], (len(rows), 3, 128, 341)).astype(np.float32)
            ]

    class Masks(Numbers):
        def __getitem__(self, index: int) -> Any:
            return np.array([index]), np.full((128, 341), LABELS[index])

    board, given = Maps(EXACT), subject(tasks.Segmentation())
    given.workload.data._made["test"] = Masks()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "CHUNK_BYTES", 4 << 20)
        found = images.run(given, bench("ssh://10.0.0.7", board), voice([]), ARTIFACTS, ARTIFACTS)
    assert board.most == 8 and found.judges["pruned-int8"].score().value == 100.0
    assert found.judges["pruned-int8"].network().score.metric == "mIoU"


def test_without_classes_the_true_runtime_is_held_to_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = EXACT.copy()
    apart[7] += 0.01  # within what INT8 rounds to
    apart[8] += 0.5
    ways = {"local": FakeDevice(EXACT), "qemu-user://cortex-a76": FakeDevice(apart)}
    monkeypatch.setattr(devices, "connect", lambda _, device: ways[device])
    monkeypatch.setattr(images, "unproven", lambda path: ["Resize"])

    class Rows(Numbers):
        def __getitem__(self, index: int) -> Any:
            return np.array([index]), EXACT[index]

    said: list[str] = []
    given = subject(tasks.Regression("MAE", unit="mm"))
    given.workload.data._made["test"] = Rows()
    facts = images.run(given, bench(""), voice(said), ARTIFACTS, {}).emulated["pruned-int8"]
    assert facts.same_class is None and facts.accuracy is None and facts.score is not None
    assert facts.close == pytest.approx(1 - 1 / 120) and facts.same_bits == pytest.approx(1 - 2 / 120)
    assert "MAE" in said[0] and "mm" in said[0] and "class" not in said[0]


@pytest.mark.parametrize(("patience", "count"), [(1e9, 120), (0.0, 50)])
def test_an_emulated_core_does_what_it_can_and_is_held_against_the_pre_check(
    patience: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    differs = EXACT.copy()
    differs[3] = [9.0, 0.0, 0.0]  # another class, and right
    differs[4] += [0.0, 0.25, 0.0]  # the same class, other bits
    precheck = EXACT.copy()
    precheck[3] = [0.0, 9.0, 0.0]
    ways = {"local": FakeDevice(precheck), "qemu-user://cortex-a76": FakeDevice(differs)}
    monkeypatch.setattr(devices, "connect", lambda _, device: ways[device])
    monkeypatch.setattr(images, "RELEASED_S", patience)
    monkeypatch.setattr(images, "unproven", lambda path: [f"float {path.stem}"])
    said: list[str] = []
    found = images.run(subject(), bench(""), voice(said), ARTIFACTS, {})
    assert [way.asked for way in ways.values()] == [120, count]
    assert found.judges["pruned-int8"].network().correct == 120  # the true runtime's, where it has them
    facts = found.emulated["pruned-int8"]
    assert facts.images == facts.correct == count
    assert facts.same_class == pytest.approx(1 - 1 / count) and facts.same_bits == pytest.approx(1 - 2 / count)
    assert facts.unproven == ("float a",) and facts.max_error == 9.0 and facts.low < facts.accuracy == 1.0
    assert said[0].startswith(
        f"pruned-int8: {count} of 120 test images on the true runtime (onnxruntime 1.0, cortex-a76"
    )
