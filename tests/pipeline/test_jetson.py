"""A Jetson without a Jetson: searched on the model, both flavours made and checked, and a bundle marked unverified."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

import onnx
import pytest
from test_captures import captured

from edgeprune import pipeline, recipe, release, target
from edgeprune.errors import GateError

sys.path.insert(0, str(Path(__file__).parents[1]))
from networks import tiny_resnet

FLAVOURS = {
    "jetson-orin-nano": {"pruned-int8.onnx": 13, "pruned-int8-b.onnx": 19},
    "jetson-xavier-nx": {"pruned-int8.onnx": 13},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FLAVOURS)
def test_a_run_without_a_device_ends_unverified(
    name: str, tiny: recipe.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, dense = captured(monkeypatch), sum(parameter.numel() for parameter in tiny_resnet().parameters())
    tiny, device = pipeline.override(tiny, "budget", speedup=1.3), target.load(name)
    with pytest.raises(GateError, match="1 of 8 gates open, as no device has measured") as ended:
        pipeline.run(tiny, device, tmp_path / "run")
    assert found.count(dense) == 1, "the whole run captures the dense network once"
    outcome: pipeline.Outcome = ended.value.outcome  # type: ignore[attr-defined]
    result = outcome.result
    assert result["verdict"] == "unverified" and result["unit"] == "modelled ms"
    assert result["search"]["measured_ratio"] <= 1 / 1.3
    assert all("latency_ms" not in result[network] for network in ("dense_int8", "pruned_int8"))
    assert outcome.report is not None and "model, not measured" in outcome.report.read_text("utf-8")
    for checks in result["quantize"]["flavours"].values():
        assert not checks["lint"]
        rtx = checks["rtx"]
        assert "skipped" in rtx or (rtx["accepted"] and rtx["int8"] == rtx["intended"] > 0)
    if len(FLAVOURS[name]) > 1:
        assert result["pruned_int8_b"]["images"] == 100

    assert outcome.bundle is not None and outcome.bundle.name == f"tiny-{name}-unverified.tar"
    with tarfile.open(outcome.bundle) as bundle:
        bundle.extractall(tmp_path / "bundle", filter="data")
    (folder,) = (path.parent for path in (tmp_path / "bundle").rglob("manifest.json"))
    opsets = {path.name: onnx.load(path).opset_import[0].version for path in (folder / "artifact").iterdir()}
    assert {file: opsets[file] >= least for file, least in FLAVOURS[name].items()} == dict.fromkeys(
        FLAVOURS[name], True
    )
    assert set(opsets) == set(FLAVOURS[name])
    readme = (folder / "README.md").read_text("utf-8")
    assert "NOT VERIFIED: no device has run this" in readme and "model, not measured" in readme
    assert f"edgeprune {name} run recipe.toml --device mine" in readme
    checked = release.verify(outcome.bundle, rerun=False)
    assert checked.state == "unverified"
    assert (
        checked.summary
        == "UNVERIFIED: its own device has not measured it (intact, not authenticated, samples not rerun)"
    )
