"""The dense network is captured once a run: its structure, its tape and its float graph come from that one capture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_run import network, run_of


def captured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The parameters of each network that torch.export captures from here on."""
    found: list[int] = []
    export = torch.export.export

    def counted(model: torch.nn.Module, *args: Any, **options: Any) -> Any:
        found.append(sum(parameter.numel() for parameter in model.parameters()))
        return export(model, *args, **options)

    monkeypatch.setattr(torch.export, "export", counted)
    return found


@pytest.mark.long
def test_structure_tape_and_float_graph_share_a_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, dense = captured(monkeypatch), sum(parameter.numel() for parameter in network().parameters())
    with run_of(tmp_path, quantize={"layers": {"0": {"precision": "float"}}}) as context:
        from edgeprune.pipeline.stages import check_layers

        check_layers(
            context.recipe.quantize,
            lambda path: context.subject.export(context.subject.model, path),
            lambda: context.bench.dialect,
        )
        first = context.subject.export(context.subject.model, tmp_path / "first.onnx")
        assert context.subject.session.tape.batch > 1 and context.subject.structure.groups
        again = context.subject.export(context.subject.model, tmp_path / "again.onnx")
    assert found.count(dense) == 1
    assert first == again and (tmp_path / "first.onnx").read_bytes() == (tmp_path / "again.onnx").read_bytes()
