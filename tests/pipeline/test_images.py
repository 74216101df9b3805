"""Outputs on the test images: all on a real device; under emulation the pre-check on all, the true runtime on some."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from edgeprune import devices, target
from edgeprune.devices import Artifact
from edgeprune.pipeline import images

LABELS = np.arange(120) % 3
EXACT = np.eye(3)[LABELS]


class Split:
    labels = LABELS

    def __len__(self) -> int:
        return len(LABELS)

    def arrays(self, which: range) -> Any:
        return np.array(which)


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
        return [self.logits[rows]]


def context(device: str, said: list[str], own: FakeDevice | None = None) -> Any:
    return SimpleNamespace(
        target=target.load("raspberry-pi-5"), device_name=device, device=own, data=SimpleNamespace(test=Split()),
        progress=lambda stage: lambda *_: None, say=lambda stage, text: said.append(text),
    )  # fmt: skip


ARTIFACTS = {"pruned-int8": Artifact("pruned-int8", "onnxruntime", "int8", {"a.onnx": Path("a.onnx")})}


def test_a_real_device_does_all_images() -> None:
    board = FakeDevice(EXACT)
    found = images.run(context("ssh://10.0.0.7", [], board), ARTIFACTS, ARTIFACTS)
    assert found.emulated == {} and board.asked == len(LABELS)
    np.testing.assert_array_equal(found.logits["pruned-int8"], EXACT)


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
    found = images.run(context("", said), ARTIFACTS, {})
    assert [way.asked for way in ways.values()] == [120, count]
    np.testing.assert_array_equal(found.logits["pruned-int8"], np.concatenate([differs[:count], precheck[count:]]))
    facts = found.emulated["pruned-int8"]
    assert facts["images"] == facts["correct"] == count
    assert facts["same_class"] == pytest.approx(1 - 1 / count) and facts["same_bits"] == pytest.approx(1 - 2 / count)
    assert facts["unproven"] == ["float a"] and facts["max_error"] == 9.0 and facts["low"] < facts["accuracy"] == 1.0
    assert said[0].startswith(
        f"pruned-int8: {count} of 120 test images on the true runtime (onnxruntime 1.0, cortex-a76"
    )
