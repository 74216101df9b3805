"""Mixtures of two examples of any floats: a value is of one, of the other, or between; all inputs go alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from edgeprune.engine import Examples
from edgeprune.errors import RecipeError
from edgeprune.recover.mixing import Mixing, check_inputs
from edgeprune.recover.source import Loader
from edgeprune.workload import Input, Inputs


def numbered(*shape: int) -> Tensor:
    """Example k holds k everywhere, so that a mixture tells of whom it is."""
    return torch.arange(6.0).reshape(6, *(1 for _ in shape)).expand(6, *shape).contiguous()


def test_all_inputs_are_mixed_with_the_same_other_in_the_same_shares() -> None:
    given = {"sound": numbered(8, 50), "speed": numbered(1)}
    found = Mixing(["mixup"], 1)(given, 3)
    assert isinstance(found, dict) and list(found) == ["sound", "speed"]
    assert torch.equal(found["sound"], found["speed"][:, :, None].expand(6, 8, 50))
    assert not torch.equal(found["speed"], given["speed"])
    again = Mixing(["mixup"], 1)(given, 3)
    assert isinstance(again, dict) and torch.equal(again["sound"], found["sound"])


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((3, 20, 30), (1, 2)), ((2, 3, 20, 30), (2, 3)), ((98, 40), (0,)), ((40, 98), (1,)), ((50,), (0,))],
)
def test_a_part_of_another_is_whole_along_the_axes_that_it_spans(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    shares = []
    for step in range(20):
        found = Mixing(["cutmix"], 0)(numbered(*shape), step)
        assert isinstance(found, Tensor)
        for number, one in enumerate(found):
            other = one != number
            if not other.any():
                continue
            assert len(one[other].unique()) == 1
            inside = torch.tensor(True)
            for axis in axes:
                span = other.movedim(axis, 0).reshape(shape[axis], -1).any(1)
                places = span.nonzero().flatten()
                assert len(places) == int(places[-1] - places[0]) + 1  # in one piece
                inside = inside & span.reshape([-1 if at == axis else 1 for at in range(len(shape))])
            assert torch.equal(other, inside.expand(shape))
            shares.append(float(other.float().mean()))
    assert min(shares) < 0.3 and max(shares) > 0.7


def test_inputs_of_other_sizes_lose_the_same_part() -> None:
    found = Mixing(["cutmix"], 2)((numbered(1, 20, 20), numbered(1, 40, 40)), 1)
    assert isinstance(found, tuple)
    small, large = (one != numbered(*one.shape[1:]) for one in found)
    assert small.any()
    assert float((small.repeat_interleave(2, 2).repeat_interleave(2, 3) ^ large).float().mean()) < 0.1


def test_the_loader_mixes_what_it_reads() -> None:
    data = [(torch.full((4,), float(number)), number) for number in range(12)]
    inputs = Inputs((Input("x", (4,)),))

    def read(augment: tuple[str, ...], step: int) -> tuple[Examples, list[int]]:
        return Loader(data, inputs, 6, 3, augment=augment).at(step)

    plain, targets = read((), 1)
    mixed, same = read(("mixup",), 1)
    assert targets == same and isinstance(plain, Tensor) and isinstance(mixed, Tensor)
    assert torch.equal(mixed, Mixing(("mixup",), 3)(plain, 1)) and not torch.equal(mixed, plain)  # type: ignore[arg-type]


def test_what_cannot_be_mixed_is_said() -> None:
    words = Inputs((Input("ids", (8,), "int64"), Input("mask", (8,), "bool")))
    check_inputs((), words)
    check_inputs(("mixup", "cutmix"), Inputs((Input("x", (8,)), Input("y", (8,), "float16"))))
    with pytest.raises(RecipeError, match="input ids is int64: there is nothing between"):
        check_inputs(("mixup",), words)
    with pytest.raises(RecipeError, match="flip is for images of classes"):
        check_inputs(("flip", "mixup"), Inputs((Input("x", (3, 8, 8)),)))
