"""torch's table of ONNX functions is made once for all of our exports, and for nobody else's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._export import utils
from torch.onnx._internal.exporter import _registration

from edgeprune.model import registry
from edgeprune.model.export import export_onnx

NETWORK = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))


def test_it_is_made_once_and_torch_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[Any]()
    kept = vars(_registration.ONNXRegistry)["from_torchlib"].__func__

    def counted(cls: Any, *given: Any, **named: Any) -> Any:
        made.append(given)
        return kept(cls, *given, **named)

    monkeypatch.setattr(_registration.ONNXRegistry, "from_torchlib", classmethod(counted))
    patched = vars(_registration.ONNXRegistry)["from_torchlib"]
    example = torch.zeros(1, 3, 8, 8)
    found = [export_onnx(NETWORK.eval(), example, tmp_path / f"{n}.onnx").SerializeToString() for n in range(3)]
    assert len(made) == 1 and len(set(found)) == 1
    assert vars(_registration.ONNXRegistry)["from_torchlib"] is patched
    with pytest.raises(ValueError, match="oops"), registry.one_registry():
        raise ValueError("oops")
    assert vars(_registration.ONNXRegistry)["from_torchlib"] is patched


def test_another_torch_exports_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(_registration, "ONNXRegistry")
    monkeypatch.delattr(utils, "_materialize_cpp_cia_ops")
    with registry.one_registry():
        assert not hasattr(_registration, "ONNXRegistry") and not hasattr(utils, "_materialize_cpp_cia_ops")


def test_operators_are_asked_for_once_an_export(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()
    monkeypatch.setattr(utils, "_materialize_cpp_cia_ops", lambda: asked.append(1))
    for _ in range(2):  # a library of the user's own may bring more in between
        with registry.one_registry():
            utils._materialize_cpp_cia_ops()
            utils._materialize_cpp_cia_ops()
    assert len(asked) == 2
