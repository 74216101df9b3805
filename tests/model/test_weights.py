"""Checkpoints as people have them: what torch would load is loaded and said, what is not the network's is refused."""

from __future__ import annotations

import collections
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from edgeprune import model
from edgeprune.errors import ModelError
from edgeprune.model.weights import assign, read_checkpoint
from edgeprune.recipe import BudgetSection, DataSection, ModelSection, Recipe

State = dict[str, torch.Tensor]


def make() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def trained() -> State:
    state = make().state_dict()
    return {key: value + 1 if value.is_floating_point() else value + 7 for key, value in state.items()}


def loaded(path: Path, key: str = "") -> tuple[State, list[str]]:
    """What a network holds afterwards, and what was said."""
    network, found = make(), read_checkpoint(path, key)
    notes = [*found.notes, *assign(network, found.state, path.name)]
    return network.state_dict(), notes


def under(prefix: str) -> Callable[[State], State]:
    return lambda state: {prefix + key: value for key, value in state.items()}


ZERO = {key: value * 0 for key, value in trained().items()}


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda s: s, None),
        (collections.OrderedDict, None),
        (under("module."), "'module.' was taken off"),
        (under("_orig_mod."), "'_orig_mod.' was taken off"),
        (under("module._orig_mod."), "'_orig_mod.' and 'module.' was taken off"),
        (under("model.net."), "'model.' and 'net.' was taken off"),
        (under("student_backbone."), "'student_backbone.' was taken off"),
        (lambda s: {k.replace("0.", "0._orig_mod.", 1): v for k, v in s.items()}, "'_orig_mod.' was taken off"),
        (lambda s: {**under("module.")(s), "n_averaged": torch.tensor(3)}, "n_averaged of torch's AveragedModel"),
        (lambda s: {"state_dict": s, "epoch": 3}, None),
        (lambda s: {"net": s, "acc": torch.tensor(95.0), "best": torch.tensor(1.0)}, None),
        (lambda s: {"model": {"state_dict": under("module.")(s)}, "args": {"lr": 0.1}}, "'module.' was taken off"),
        (lambda s: {"my_own": s, "step": 1}, None),
        (
            lambda s: {"state_dict": s, "state_dict_ema": ZERO},
            "'state_dict' was taken; 'state_dict_ema' beside it was not",
        ),
        (lambda s: {"ema": ZERO, "net": s}, "'net' was taken; 'ema' beside it was not"),
        (lambda s: {"mine": s, "model_ema": ZERO}, "'mine' was taken; 'model_ema' beside"),
        (lambda s: {"model": s, "optimizer": {"state": {0: {"m": torch.ones(3)}}, "param_groups": [{"lr": 1}]}}, None),
    ],
)
def test_what_holds_the_weights_is_found_and_said(
    tmp_path: Path, wrap: Callable[[State], Any], said: str | None
) -> None:
    torch.save(wrap(trained()), tmp_path / "w.pt")
    state, notes = loaded(tmp_path / "w.pt")
    for key, value in trained().items():
        assert torch.equal(state[key], value)
    assert said in " ".join(notes) if said else notes == []


def test_a_moving_average_is_taken_when_it_is_asked_for(tmp_path: Path) -> None:
    torch.save({"state_dict": ZERO, "ema": {"shadow": trained()}}, tmp_path / "w.pt")
    assert torch.equal(loaded(tmp_path / "w.pt", "ema.shadow")[0]["0.weight"], trained()["0.weight"])
    with pytest.raises(ModelError, match=r"has no 'emma'[\s\S]*It holds state_dict, ema"):
        loaded(tmp_path / "w.pt", "emma")
    torch.save({"teacher": ZERO, "student": trained()}, tmp_path / "two.pt")
    with pytest.raises(ModelError, match=r'several sets of weights: teacher, student[\s\S]*weights_key = "teacher"'):
        loaded(tmp_path / "two.pt")


def test_old_checkpoints_and_tied_names_are_filled_in_as_torch_does(tmp_path: Path) -> None:
    old = {key: value for key, value in trained().items() if "num_batches" not in key}
    save_file(old, tmp_path / "w.safetensors")
    state, notes = loaded(tmp_path / "w.safetensors")
    assert (state["1.num_batches_tracked"], len(notes)) == (0, 1)
    assert torch.equal(state["1.running_var"], trained()["1.running_var"])
    tied = make()
    tied.add_module("again", tied[0])
    notes = assign(tied, trained(), "w")
    assert torch.equal(tied.again.weight, trained()["0.weight"])
    assert "again.weight was filled in from 0.weight" in " ".join(notes)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool, torch.complex64, torch.int64])
def test_another_kind_of_number_is_refused_and_named(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({**trained(), "0.weight": trained()["0.weight"].to(dtype)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=rf"0\.weight holds {str(dtype)[6:]}; the network wants float32"):
        loaded(tmp_path / "w.safetensors")


def test_a_header_that_lies_about_its_numbers_is_refused(tmp_path: Path) -> None:
    save_file(trained(), tmp_path / "w.safetensors")
    content = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(content.replace(b'"F32"', b'"I32"'))
    with pytest.raises(ModelError, match="holds int32; the network wants float32"):
        loaded(tmp_path / "w.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cast_and_said(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {key: value.to(dtype) if value.is_floating_point() else value for key, value in trained().items()}
    torch.save(state, tmp_path / "w.pt")
    found, notes = loaded(tmp_path / "w.pt")
    assert found["0.weight"].dtype == torch.float32
    torch.testing.assert_close(found["0.weight"], state["0.weight"].float())
    assert notes == [f"[model] weights: w.pt: 8 tensors of {str(dtype)[6:]} became float32"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.weight": None}, r"lacks 0\.weight; 8 of 9 names are right\.[\s\S]*would stay random"),
        ({"head.weight": torch.ones(1)}, r"unknown head\.weight; 9 of 9[\s\S]*for training only"),
        ({"3.weight": torch.ones(9, 4)}, r"3\.weight has the shape \[9, 4\]; the network wants \[2, 4\]"),
        ({"1.num_batches_tracked": torch.tensor(1.5)}, r"num_batches_tracked holds float32; the network wants int64"),
        ({7: torch.ones(1)}, r"the key 7 \(int\), not a tensor's name"),
        ({"epoch": 3}, r"epoch is int, not a tensor[\s\S]*weights_key"),
        ({"0.weight": torch.ones(4, 3, 3, 3).to_sparse()}, "sparse, quantised or empty"),
    ],
)
def test_what_differs_is_named(tmp_path: Path, change: dict[Any, Any], message: str) -> None:
    state = {key: value for key, value in {**trained(), **change}.items() if value is not None}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=message):
        loaded(tmp_path / "w.pt")


def test_weights_of_another_network_are_not_squeezed_in(tmp_path: Path) -> None:
    torch.save({f"encoder.{key}.more": value for key, value in trained().items()}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"lacks 0\.bias[\s\S]*No name is the same"):
        loaded(tmp_path / "w.pt")


@pytest.mark.long
def test_values_that_are_not_finite_are_refused_also_after_a_cast(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build(): return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))"
    )
    recipe = Recipe(
        ModelSection(f"{tmp_path}/net.py:build", (1, 2, 2), str(tmp_path / "w.pt")),
        DataSection("x"),
        BudgetSection(2.0),
    )
    for value, dtype in ((float("nan"), torch.float32), (float("inf"), torch.float16), (1e300, torch.float64)):
        torch.save({"1.weight": torch.full((2, 4), value, dtype=dtype), "1.bias": torch.zeros(2)}, tmp_path / "w.pt")
        with pytest.raises(ModelError, match=r"1\.weight has 8 values that are NaN or infinite"):
            model.load_model(recipe)
    torch.save({"module.1.weight": torch.ones(2, 4).half(), "module.1.bias": torch.zeros(2)}, tmp_path / "w.pt")
    said: list[str] = []
    assert model.load_model(recipe, said.append).get_parameter("1.weight").dtype == torch.float32
    assert len(said) == 2


def test_damage_of_an_archive_is_found(tmp_path: Path) -> None:
    torch.save(trained(), tmp_path / "w.pt")
    good = (tmp_path / "w.pt").read_bytes()
    weights = trained()["0.weight"].numpy().tobytes()
    at = good.index(weights) + 5
    (tmp_path / "w.pt").write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    with pytest.raises(ModelError, match=r"is damaged: the checksum of '.*/data/0' is wrong"):
        loaded(tmp_path / "w.pt")
    (tmp_path / "w.pt").write_bytes(good[: len(good) // 2])
    with pytest.raises(ModelError, match="not a plain state dict"):
        loaded(tmp_path / "w.pt")
    encrypted = bytearray(good)
    for start, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        encrypted[encrypted.index(start) + flags] |= 1
    (tmp_path / "w.pt").write_bytes(bytes(encrypted))
    with pytest.raises(ModelError, match="is an encrypted archive"):
        loaded(tmp_path / "w.pt")
    disks = bytearray(good)
    at = disks.rindex(b"PK\x06\x07") + 16  # of the ZIP64 locator: on how many disks it lies
    disks[at] = 2
    (tmp_path / "w.pt").write_bytes(bytes(disks))
    with pytest.raises(ModelError, match=r"is a damaged archive .*disks"):
        loaded(tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("a.txt", "no weights")
    with pytest.raises(ModelError, match="not a plain state dict"):
        loaded(tmp_path / "w.pt")


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("evil-was-run"),))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x02.",
        b"\x80\x02]r\x00\x00\x00\x00.",
        b"not a pickle",
        pickle.dumps({"0.weight": Evil()}, protocol=2),
        pickle.dumps([1, 2], protocol=2),
        b"\x80\x02" + b"(" * 100_000,
    ],
)
def test_no_stream_ends_in_anything_but_a_model_error(tmp_path: Path, monkeypatch, content: bytes) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("w.pt", "w.safetensors"):
        Path(name).write_bytes(content)
        with pytest.raises(ModelError, match=r"w\.(pt|safetensors)") as refused:
            model.load_weights(Path(name))
        assert len(str(refused.value)) < 700
    assert not Path("evil-was-run").exists()


def test_every_byte_of_a_header_may_be_wrong(tmp_path: Path) -> None:
    """Flipped one at a time: a ModelError, or the weights as they are."""
    stream = io.BytesIO()
    torch.save({"a": torch.ones(2)}, stream, _use_new_zipfile_serialization=False)
    good = stream.getvalue()
    for at in range(0, len(good), 3):
        (tmp_path / "w.pt").write_bytes(good[:at] + bytes([good[at] ^ 0x15]) + good[at + 1 :])
        try:
            model.load_weights(tmp_path / "w.pt")
        except ModelError:
            continue


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    for name, message in ((str(tmp_path), "is a folder"), ("x" * 5000, "no such file"), ("a\0b", "no such file")):
        with pytest.raises(ModelError, match=message) as refused:
            model.load_weights(Path(name))
        assert len(str(refused.value)) < 600
