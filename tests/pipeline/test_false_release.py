"""The false release of an ARM target on x86, and its kin, through the whole pipeline."""

from __future__ import annotations

import json
import platform
import tarfile
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from edgeprune import pipeline, recipe, release, target
from edgeprune.cli.app import main
from edgeprune.errors import DeviceError, GateError

X86 = platform.machine() in ("x86_64", "AMD64")


def unpacked(bundle: Path, folder: Path) -> Path:
    with tarfile.open(bundle) as archive:
        archive.extractall(folder, filter="data")
    (found,) = (path.parent for path in folder.rglob("manifest.json"))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not X86, reason="the pre-check is for x86 machines")
def test_an_arm_target_on_this_machine_is_pre_checked_and_never_released(tiny: recipe.Recipe, tmp_path: Path) -> None:
    tiny, pi5 = pipeline.override(tiny, "budget", speedup=1.3), target.load("raspberry-pi-5")
    with pytest.raises(GateError, match=r"1 of .* gates open, as no device has measured") as ended:
        pipeline.run(tiny, pi5, tmp_path / "run", device="local")
    outcome: pipeline.Outcome = ended.value.outcome  # type: ignore[attr-defined]
    result = outcome.result
    assert ended.value.exit_code == 8 and result["verdict"] == "unverified" and result["unit"] == "modelled ms"
    assert result["claim"]["answer"] == "this x86 machine" and "this machine is x86_64" in result["gates"][0]["message"]
    for path in ("latency/table.jsonl", "validate/measured.json", "plan/feasibility.json", "result.json"):
        text = (tmp_path / "run" / path).read_text("utf-8")
        assert '"latency_ms": {' not in text and '"unit": "ms"' not in text, path
    assert outcome.report is not None and "model, not measured" in outcome.report.read_text("utf-8")
    assert outcome.bundle is not None and outcome.bundle.name == "tiny-raspberry-pi-5-unverified.tar"
    assert [path.name for path in outcome.bundle.parent.glob("*.tar")] == [outcome.bundle.name]
    folder = unpacked(outcome.bundle, tmp_path / "bundle")
    readme = (folder / "README.md").read_text("utf-8")
    assert "NOT VERIFIED: no device has run this" in readme and "nvpmodel" not in readme
    assert "onnxruntime==\n" not in (folder / "requirements.txt").read_text("utf-8")
    assert release.verify(outcome.bundle).state == "unverified"


@pytest.mark.slow
@pytest.mark.skipif(not X86, reason="measures an x86 target")
def test_another_core_is_measured_and_never_released(tiny: recipe.Recipe, tmp_path: Path) -> None:
    """An x86 profile that names its cores, in place of a Raspberry Pi 4 that is called a Raspberry Pi 5."""
    tiny = pipeline.override(tiny, "search", method="uniform")
    tiny = pipeline.override(tiny, "budget", speedup=1.1)
    other = msgspec.structs.replace(target.load("x86-onnxruntime"), cpus=("Intel 8086",))
    with pytest.raises(GateError) as ended:
        pipeline.run(tiny, other, tmp_path / "run")
    outcome: pipeline.Outcome = ended.value.outcome  # type: ignore[attr-defined]
    measured = outcome.result["gates"][0]
    assert measured["name"] == "measurement" and not measured["passed"]
    assert "is Intel 8086, x86-64; what answered is x86_64" in measured["message"]
    if outcome.result["verdict"] == "refused":
        pytest.skip("another gate failed on this busy machine")
    assert outcome.result["verdict"] == "unverified" and outcome.result["unit"] == "ms"
    assert outcome.bundle is not None and outcome.bundle.name == "tiny-x86-onnxruntime-unverified.tar"
    readme = (unpacked(outcome.bundle, tmp_path / "bundle") / "README.md").read_text("utf-8")
    assert f"NOT VERIFIED: no {other.title} has run this" in readme


@pytest.mark.long
@pytest.mark.skipif(not X86, reason="this machine must not be an ARM one")
def test_a_machine_that_is_called_arm_is_asked_itself(
    tiny: recipe.Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")  # what the host believes decides nothing
    with pytest.raises(DeviceError, match="what answered is x86_64") as ended:
        pipeline.plan(tiny, target.load("raspberry-pi-5"), tmp_path / "run", device="local")
    assert ended.value.exit_code == 6 and not (tmp_path / "run" / "plan").exists()


@pytest.mark.long
@pytest.mark.skipif(not X86, reason="this machine must not be an ARM one")
def test_plan_says_that_nothing_will_be_released(tiny: recipe.Recipe, tmp_path: Path) -> None:
    arguments = ["raspberry-pi-5", "plan", tiny.path, "--device", "local", "--run-dir", str(tmp_path / "run")]
    done = CliRunner().invoke(main, [*arguments, "--json"])
    claim = json.loads(done.stdout)["plan"]["claim"]
    assert (claim["verdict"], claim["unit"]) == ("unverified", "modelled ms")
    said = CliRunner().invoke(main, arguments)
    assert "Nothing here will be released: raspberry-pi-5 is cortex-a76, arm64; this machine is x86_64" in said.stdout
