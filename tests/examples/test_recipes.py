"""The recipes of the examples are what they say: they load, their networks too, and their weights are small."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch
from example_code import EXAMPLES, ROOT, trained

from edgeprune import recipe, target

RECIPES = sorted(path for path in EXAMPLES.glob("*/*.toml") if path.parent.name != "cifar10")
SMALL = {
    "detection": ("detector", "detector", "detector.safetensors", (10, 12, 12)),
    "segmentation": ("unet", "unet", "unet.safetensors", (7, 48, 48)),
    "keywords": ("dscnn", "dscnn", "dscnn.safetensors", (10,)),
    "restoration": ("upscaler", "upscaler", "upscaler.safetensors", (3, 64, 64)),
}


def test_there_are_six():
    names = {path.parent.name for path in RECIPES}
    assert names >= {"detection", "segmentation", "keywords", "text", "restoration", "transfer"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_recipe_loads_and_names_files_that_are_there(path: Path):
    made = recipe.load(path)
    for spec in (made.model.factory, made.data.source):
        file, _, name = spec.partition(":")
        assert f"def {name}(" in (ROOT / file).read_text("utf-8")
    if made.model.weights and (ROOT / made.model.weights).exists():
        assert (ROOT / made.model.weights).stat().st_size < 2**20
    assert tomllib.loads(path.read_text("utf-8"))["task"]["kind"]
    for name in ("intel-cpu", "x86-onnxruntime", "raspberry-pi-5"):
        assert target.load(name)


@pytest.mark.parametrize("name", SMALL)
def test_the_network_takes_its_weights(name: str):
    file, factory, weights, shape = SMALL[name]
    network = trained(f"{name}/{file}", factory, f"{name}/{weights}")
    made = recipe.load(EXAMPLES / name / "recipe.toml")
    with torch.inference_mode():
        assert tuple(network(torch.rand(2, *made.model.input)).shape) == (2, *shape)
