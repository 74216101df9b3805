"""A side or two: read right, and the interpreter lives on."""

from __future__ import annotations

import gc

import msgspec
import pytest

from edgeprune.recipe import DataSection


@pytest.mark.long
@pytest.mark.parametrize(("given", "read"), [(32, 32), ([24, 32], (24, 32))])
def test_a_side_or_two(given: object, read: object) -> None:
    assert msgspec.convert({"source": "x", "resize": given, "crop": given}, DataSection).crop == read
    gc.collect()


@pytest.mark.long
@pytest.mark.parametrize("given", [-1, [1], [1, 2, 3], "32", [1.5, 2]])
def test_other_sides_are_refused(given: object) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"source": "x", "resize": given}, DataSection)
    gc.collect()
