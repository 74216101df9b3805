"""Augmentation: what comes out is what the names say, and the same for the same seed and step."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from edgeprune.errors import MissingDependency, RecipeError
from edgeprune.model import Preprocess
from edgeprune.recover import augment
from edgeprune.recover.augment import Augment

PREPARE = Preprocess(0, 0, 1 / 255, (0.5,), (0.25,), (3, 16, 16))


def images(count: int = 64) -> torch.Tensor:
    pixels = torch.randint(0, 256, (count, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    return (pixels / 255 - 0.5) / 0.25


@pytest.mark.parametrize("names", [("crop",), ("flip",), ("erasing",), ("mixup",), ("cutmix",), ("crop", "erasing")])
def test_a_batch_is_a_function_of_seed_and_step(names: tuple[str, ...]) -> None:
    given = images()
    first = Augment(names, PREPARE, 3, 64)(given, 5)
    assert first.shape == given.shape and first.dtype == torch.float32 and not torch.equal(first, given)
    assert torch.equal(first, Augment(names, PREPARE, 3, 64)(given, 5))
    assert not torch.equal(first, Augment(names, PREPARE, 3, 64)(given, 6))
    assert not torch.equal(first, Augment(names, PREPARE, 4, 64)(given, 5))


@pytest.mark.parametrize("names", [("crop",), ("flip",), ("erasing",)])
def test_two_processes_give_the_images_of_one(names: tuple[str, ...]) -> None:
    given = images()
    whole = Augment(names, PREPARE, 3, 64)(given, 5)
    parts = [Augment(names, PREPARE, 3, 64, rank, 2) for rank in (0, 1)]
    for part in parts:
        assert torch.equal(part(given[part.mine], 5), whole[part.mine])


def test_erasing_greys_one_rectangle_of_a_quarter_of_the_images() -> None:
    given = images(400).abs() + 1  # never 0 before
    found = Augment(("erasing",), PREPARE, 0, 400)(given, 0)
    erased = (found == 0).all(1)
    touched = erased.flatten(1).any(1)
    assert 0.18 < float(touched.float().mean()) < 0.32
    for mask in erased[touched]:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
        assert int(mask.sum()) == height * width  # whole
        assert 0.005 < height * width / 256 < 0.3
    assert torch.equal(found[~touched], given[~touched])


def test_mixup_is_one_share_of_each_image_and_one_of_another() -> None:
    given = images(8)
    found = Augment(("mixup",), PREPARE, 1, 8)(given, 2)
    shares = set()
    for index in range(8):
        fits = []
        for other in range(8):
            apart = (given[index] - given[other]).flatten()
            if other == index:
                continue
            part = float((found[index] - given[other]).flatten() @ apart / (apart @ apart))
            if torch.allclose(torch.lerp(given[other], given[index], part), found[index], atol=1e-5):
                fits.append(round(part, 4))
        same = torch.allclose(found[index], given[index], atol=1e-5)
        assert same or len(fits) == 1
        shares |= set() if same else set(fits)
    assert len(shares) <= 1


def test_cutmix_pastes_one_rectangle_of_another_image() -> None:
    given = images(8)
    steps = [Augment(("cutmix",), PREPARE, 1, 8)(given, step) for step in range(6)]
    areas = []
    for found in steps:
        changed = (found != given).any(1)
        for index, mask in enumerate(changed):
            if not mask.any():
                continue
            sources = [o for o in range(8) if o != index and torch.equal(found[index][:, mask], given[o][:, mask])]
            assert len(sources) == 1
        areas.append(float(changed.any(0).float().mean()))
    assert len(set(areas)) > 2 and max(areas) > 0.2


def test_both_of_the_mixing_are_taken_in_turn() -> None:
    given = images(8)
    made = Augment(("mixup", "cutmix"), PREPARE, 0, 8)
    whole = set()
    for step in range(12):
        touched = (made(given, step) != given).flatten(1).float().mean(1)
        if float(touched.max()) > 0:  # mixup changes every pixel that differs, CutMix those of a rectangle
            whole.add(float(touched.max()) > 0.98)
    assert whole == {True, False}


def test_mixed_images_have_no_label() -> None:
    augment.check(("mixup", "crop"), labelled=False)
    augment.check(("crop", "erasing"), labelled=True)
    with pytest.raises(RecipeError, match="cutmix mixes two examples"):
        augment.check(("crop", "cutmix"), labelled=True)


def test_randaugment_is_of_colours() -> None:
    with pytest.raises(RecipeError, match="of 1 or 3 channels; these images have 4"):
        augment.check(("randaugment",), labelled=False, channels=4)


def test_randaugment_sees_red_first_whatever_the_network_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    def bright_red(image: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.full_like(image[:1], 255), image[1:]])

    monkeypatch.setattr(augment, "_transforms", lambda: SimpleNamespace(RandAugment=lambda: bright_red))
    bgr = Preprocess(0, 0, 1 / 255, (0.0,), (1.0,), (3, 16, 16), order="BGR")
    given = torch.zeros(4, 3, 16, 16)
    found = Augment(("randaugment",), bgr, 0, 4)(given, 1)
    assert found.mean((0, 2, 3)).tolist() == [0.0, 0.0, 1.0]


def test_randaugment_sees_pixels_and_says_where_torchvision_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)
    with pytest.raises(MissingDependency, match="randaugment needs torchvision"):
        augment.check(("randaugment",), labelled=False)
    seen: list[Any] = []

    def inverted(image: torch.Tensor) -> torch.Tensor:
        seen.append((image.dtype, int(torch.randint(0, 10**6, ()))))
        return 255 - image

    monkeypatch.setattr(augment, "_transforms", lambda: SimpleNamespace(RandAugment=lambda: inverted))
    given = images(4)
    state = torch.get_rng_state()
    found = Augment(("randaugment",), PREPARE, 0, 4)(given, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.allclose(found, -given, atol=1e-5)  # 0..255 about 127.5 is -2..2 about 0 here
    assert {dtype for dtype, _ in seen} == {torch.uint8} and len({drawn for _, drawn in seen}) == 4
