"""A recipe's values are finite and possible, and a refusal names the key in a line that can be read."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgeprune import recipe
from edgeprune.errors import RecipeError
from edgeprune.pipeline import toml_value
from edgeprune.runtimes import DIALECTS

BASE = {
    "model": 'factory = "a:b"\ninput = [3, 8, 8]\n',
    "data": 'source = "x"\n',
    "budget": "speedup = 2.0\n",
    "search": "",
    "recover": "",
    "quantize": "",
}


def load(folder: Path, section: str = "", line: str = "") -> recipe.Recipe:
    parts = {**BASE, "budget": "" if line.startswith(("speedup", "latency_ms")) else BASE["budget"]}
    if line.startswith("input"):
        parts["model"] = 'factory = "a:b"\n'
    text = "\n".join(f"[{name}]\n{body}{line if name == section else ''}\n" for name, body in parts.items())
    (folder / "r.toml").write_text(text)
    return recipe.load(folder / "r.toml")


FLOATS = [
    ("data", "scale"),
    ("budget", "speedup"),
    ("budget", "latency_ms"),
    ("budget", "max_drop"),
    ("budget", "confidence"),
    ("search", "time_limit"),
    ("recover", "epochs"),
    ("recover", "lr"),
    ("recover", "momentum"),
    ("recover", "weight_decay"),
    ("recover", "warmup"),
    ("recover", "ema"),
    ("recover", "distill_weight"),
    ("recover", "label_weight"),
    ("recover", "temperature"),
    ("recover", "temperature_end"),
    ("recover", "hours"),
    ("recover", "clip"),
    ("recover", "trainer_hours"),
    ("recover", "sparsity_epochs"),
    ("recover", "sparsity_strength"),
    ("quantize", "percentile"),
    ("quantize", "qat_epochs"),
    ("quantize", "qat_lr"),
]


def test_every_float_of_a_recipe_is_in_this_list() -> None:
    import msgspec

    given = {
        (section.name, field.name)
        for section in msgspec.structs.fields(recipe.Recipe)
        if section.name in BASE
        for field in msgspec.structs.fields(section.type)
        if "float" in str(field.type).replace("Literal", "") and field.name not in ("precision", "fallback")
    }
    assert given - {("data", "mean"), ("data", "std"), ("recover", "distill")} <= set(FLOATS)


@pytest.mark.parametrize(("section", "key"), FLOATS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e300", "-1e300", "1" + "0" * 299 + ".0"])
def test_no_float_may_be_endless_or_absurd(tmp_path: Path, section: str, key: str, value: str) -> None:
    with pytest.raises(RecipeError, match=rf"\[{section}\] {key}") as refused:
        load(tmp_path, section, f"{key} = {value}")
    assert len(str(refused.value).replace(str(tmp_path), "")) < 250, "never 300 digits"


@pytest.mark.parametrize(
    ("section", "line", "named"),
    [
        ("data", "test = -5", "test"),
        ("data", "resize = 100000", "resize"),
        ("data", "crop = [8]", "crop"),
        ("data", "crop = -1", "crop"),
        ("data", "mean = [nan]", "mean"),
        ("data", "std = [0.0]", "std"),
        ("data", "std = [inf]", "std"),
        ("data", "workers = 1000000", "workers"),
        ("data", "calibration = 99999999999", "calibration"),
        ("model", "input = [3, 100000, 100000]", "input"),
        ("search", "seed = -1", "seed"),
        ("search", "rounds = 1000000000", "rounds"),
        ("recover", 'distill = "kd"', "distill"),
        ("recover", "distill = { kl = -1.0 }", "distill"),
        ("recover", "distill = { kl = nan }", "distill"),
        ("recover", "distill = { logits = 1.0 }", "distill"),
        ("recover", 'device = "gpu"', "device"),
        ("quantize", "percentile = 40", "percentile"),
        ("quantize", "layers = { a = { range = [1, -1] } }", "range is"),
        ("quantize", "layers = { a = { range = [0, 0] } }", "range is"),
        ("quantize", "layers = { a = { range = [nan, 1] } }", "layers"),
        ("quantize", "layers = { a = { range = [0, inf] } }", "layers"),
    ],
)
def test_impossible_values_are_refused_with_their_key(tmp_path: Path, section: str, line: str, named: str) -> None:
    with pytest.raises(RecipeError, match=rf"\[{section}.*{named}"):
        load(tmp_path, section, line)


@pytest.mark.parametrize(
    ("section", "line"),
    [
        ("data", "resize = [20, 30]\ncrop = [8, 8]"),
        ("recover", "epochs = 0"),
        ("recover", "distill = { kl = 1, features = 0.5 }"),
        ("recover", "lr = 1e-6"),
        ("budget", "latency_ms = 0.001"),
        ("quantize", "percentile = 100"),
        ("quantize", "layers = { a = { range = [-1, 1] } }"),
    ],
)
def test_possible_values_stay_possible(tmp_path: Path, section: str, line: str) -> None:
    load(tmp_path, section, line)


@pytest.mark.parametrize("text", ["x = " + "[" * 5000, "x = " + "9" * 5000, "\xff", "x" * 3_000_000])
def test_no_text_ends_in_anything_but_a_recipe_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.toml").write_text(text, "latin-1")
    with pytest.raises(RecipeError) as refused:
        recipe.load(tmp_path / "r.toml")
    assert len(str(refused.value)) < 600


@pytest.mark.long
def test_names_of_layers_are_checked_before_any_work(tmp_path: Path) -> None:
    from edgeprune.model import export_onnx
    from edgeprune.pipeline.stages import check_layers

    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()

    def check(line: str, dialect: str = "openvino") -> None:
        options = load(tmp_path, "quantize", line).quantize
        check_layers(
            options, lambda path: export_onnx(network, torch.zeros(1, 3, 8, 8), path), lambda: DIALECTS[dialect]
        )

    check('layers = { "0" = { precision = "float" }, "3" = { method = "mse" } }')
    with pytest.raises(RecipeError, match=r"\[quantize\.layers\] no layer is called 'conv'"):
        check("layers = { conv = { precision = 'float' } }")
    check('layers = { "3" = { precision = "int8-weights" } }')
    check("weights = 'int4'\nweights_from = 100")
    for line, dialect, says in (
        ("weights = 'int4'", "openvino", "changes nothing"),
        ("weights = 'int4'\nweights_from = 100", "ort-arm64", "is not given weights alone"),
        ("weights = 'int4'\nweights_from = 100\nqat_epochs = 1", "openvino", "do not go together"),
        ('layers = { "0" = { precision = "int8-weights" } }', "openvino", "only linear layers have a kernel"),
    ):
        with pytest.raises(RecipeError, match=says):
            check(line, dialect)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"recover": recipe.RecoverSection(lr=float("nan"))}, "lr"),
        ({"recover": recipe.RecoverSection(batch=0)}, r"\[recover\] batch: expected `int` >= 1"),
        ({"budget": recipe.BudgetSection()}, "exactly one of speedup and latency_ms"),
        (
            {"search": recipe.SearchSection(method="joined")},
            r"\[search\] method is 'joined'; it may be joint, learned, uniform",
        ),
        ({"export": recipe.ExportSection(output="max")}, r"\[export\] output is 'max'; it may be argmax, nms, softmax"),
        ({"data": recipe.DataSection(source=object())}, "no recipe can have"),
    ],
)
def test_a_recipe_that_python_made_is_held_to_the_same_as_a_file(tmp_path: Path, sections: Any, message: str) -> None:
    import msgspec

    import edgeprune

    made = msgspec.structs.replace(load(tmp_path), **sections)
    with pytest.raises(RecipeError, match=message):
        edgeprune.compress(made, "intel-cpu", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_paths_and_numbers_of_numpy_are_taken(tmp_path: Path) -> None:
    import msgspec
    import numpy as np

    data = recipe.DataSection(source=tmp_path, calibration=np.int64(32), scale=torch.tensor(0.5))  # type: ignore[arg-type]
    found = recipe.of_python(msgspec.structs.replace(load(tmp_path), data=data), "recipe")
    assert found.data.source == str(tmp_path) and found.data.calibration == 32 and found.data.scale == 0.5


def test_any_text_and_key_of_a_recipe_is_locked_as_it_is() -> None:
    given = {"text": 'two\nlines, a\ttab, "quotes", \\, \x7f, \x01, \u00fc', 'a "key"': [1, {"b\n": True}]}
    assert tomllib.loads(f"value = {toml_value(given)}") == {"value": given}
