"""What the stages ask of a run's workload is what the recipe's images are, example for example and bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgeprune import recipe, target, validate
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.events import silent
from edgeprune.pipeline.rundir import RunDirectory
from edgeprune.recover import logits


@pytest.mark.long
def test_a_classifier_of_images_is_a_workload_of_the_same_figures(tiny: recipe.Recipe, tmp_path: Path) -> None:
    device = target.load("x86-onnxruntime")
    with RunDirectory(tmp_path / "run") as directory, Context(tiny, device, directory, "", silent) as context:
        work, images = context.subject.workload, context.subject.data
        for name in ("train", "calibration", "selection", "test"):
            split = getattr(images, name).take(150)
            found = list(work.data.batches(name, work.inputs, 64, 150))
            assert np.array_equal(np.concatenate([batch for (batch,), _ in found]), split.arrays())
            assert [target for _, targets in found for target in targets] == split.labels.tolist()
        assert work.data.names == images.classes
        dense = logits(context.subject.model, images.test)
        scored = validate.network(work.task, dense.numpy(), images.test.labels)
        assert work.task.score(dense.numpy(), images.test.labels).value == pytest.approx(100 * scored.accuracy)
        again = work.build()
        assert all(
            torch.equal(a, b) for a, b in zip(again.parameters(), context.subject.model.parameters(), strict=True)
        )
