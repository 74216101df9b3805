"""The real path: sampling, prediction and closure on the real runtimes of this machine. Ratios only, never times."""

from __future__ import annotations

from pathlib import Path

import pytest
from latency_net import Prepared
from test_latency_sample import uniform

from edgeprune import devices
from edgeprune import target as targets
from edgeprune.latency import Effort, Predictor, Table, feasibility, maker, quick
from edgeprune.recipe import BudgetSection
from edgeprune.search import refine


@pytest.mark.slow
@pytest.mark.parametrize("name", ["x86-onnxruntime", "intel-cpu"])
def test_a_table_of_a_real_runtime_predicts_and_closes(prepared: Prepared, tmp_path: Path, name: str) -> None:
    if name == "intel-cpu":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    target = targets.load(name)
    made = maker(
        prepared.model, prepared.structure, prepared.example, target, tmp_path / "built", float_onnx=prepared.dense
    )
    with devices.connect(target) as device:
        fingerprint = device.probe().fingerprint
        found = quick(Table(fingerprint), device, made)
        sites = found.table.networks[made.network].sites
        own = {site.layer for site in sites if site.side == "both"}
        assert own == {layer.name for layer in made.structure.layers}  # every kernel name led back to its layer
        assert {site.family.precision for site in sites if site.family.kind == "conv"} <= {"u8.s8.u8", "u8.s8.f32"}
        found.table.save(tmp_path / "table.jsonl")
        again = Table.load(tmp_path / "table.jsonl", device.probe().fingerprint, "ms")
        assert Predictor(again, made.structure, made.network).dense == pytest.approx(found.predictor.dense, rel=1e-3)
        closed = refine(uniform(made), found.table, device, made, 0.9, effort=Effort(rounds=12))
        assert closed.ratio <= 0.9 and closed.steps
        said = feasibility(made, device, BudgetSection(speedup=1.01))
        assert said.dense_int8 > 0 and said.floor <= said.dense_int8 and said.layers
