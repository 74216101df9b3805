"""The shipped calibration recipes are valid, and say what the defaults are."""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import pytest

from edgeprune.recipe import QuantizeSection

FOLDER = Path(__file__).resolve().parents[2] / "calibration"


@pytest.mark.parametrize("family", ["intel", "x86", "arm", "nvidia"])
def test_a_recipe_for_each_family_is_valid(family: str) -> None:
    data = tomllib.loads((FOLDER / f"{family}.toml").read_text())
    assert msgspec.convert(data["quantize"], QuantizeSection) == QuantizeSection()
