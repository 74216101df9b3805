"""What was measured is what is released: one cheap real run, then files damaged and swapped behind its back."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeprune import files, pipeline, recipe, release
from edgeprune.config import read_toml
from edgeprune.errors import BudgetError, DataError, EdgepruneError, MeasurementError, RunError, TargetError
from edgeprune.pipeline import override
from edgeprune.pipeline.rundir import RunDirectory
from edgeprune.stage import NAMES as STAGES
from edgeprune.target import Target

pytestmark = pytest.mark.slow
sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))
from cli_project import NETWORK, QUICK, RECIPE, pixels  # noqa: E402


class Project:
    """A folder with a recipe, a network, images and a target, and a run that ended in a release."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "runs" / "tiny-quick"
        for name, text in (("recipe.toml", RECIPE), ("net.py", NETWORK), ("quick/profile.toml", QUICK)):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        rng = np.random.default_rng(0)
        arrays = {}
        for split, count in (("train", 200), ("test", 60)):
            arrays[f"{split}_labels"] = rng.integers(0, 4, count)
            arrays[f"{split}_images"] = pixels(arrays[f"{split}_labels"], count)
        np.savez(folder / "data.npz", classes=np.array(["ant", "bee", "cat", "dog"]), **arrays)

    @property
    def recipe(self) -> recipe.Recipe:
        return recipe.load(self.folder / "recipe.toml")

    def go(self, changed: recipe.Recipe | None = None, **options: str) -> tuple[pipeline.Outcome, list[str]]:
        """Run everything; the outcome, and the lines that were said. A machine too busy to measure is tried again."""
        for attempt in range(4):
            said: list[str] = []
            try:
                outcome = pipeline.run(
                    changed or self.recipe,
                    read_toml(self.folder / "quick" / "profile.toml", Target, TargetError),
                    self.run,
                    events=lambda event, said=said: said.append(event.message) if event.kind == "line" else None,  # type: ignore[misc]
                    **options,  # type: ignore[arg-type]
                )
                return outcome, said
            except MeasurementError:
                if attempt == 3:
                    raise
        raise AssertionError

    def claims(self) -> list[str]:
        """What stands in the run directory that says how good the run was."""
        tars = [f"release/{path.name}" for path in (self.run / "release").glob("*.tar")]
        return [*tars, *(name for name in ("result.json", "report.html") if (self.run / name).exists())]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """The run; made once, copied for each test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPRUNE_CACHE", str(tmp_path_factory.getbasetemp() / "edgeprune-cache"))
        made = Project(tmp_path_factory.mktemp("released"))
        patch.setenv("EDGEPRUNE_TARGETS", str(made.folder))  # verify finds a target by its name
        try:
            made.go()
        except MeasurementError as noisy:
            pytest.skip(f"this machine is too busy to measure on: {noisy.message}")
        yield made


@pytest.fixture
def project(released: Project) -> Iterator[Project]:
    """The released run, put back as it was afterwards."""
    kept = released.run.with_name("kept")
    shutil.copytree(released.run, kept)
    yield released
    shutil.rmtree(released.run)
    kept.rename(released.run)
    (released.folder / "recipe.toml").write_text(RECIPE)


ALL = ["release/tiny-quick.tar", "result.json", "report.html"]


def in_bundle(project: Project, name: str) -> bytes:
    with tarfile.open(project.run / "release" / "tiny-quick.tar") as tar:
        member = tar.extractfile(name)
        assert member is not None
        return member.read()


def test_the_whole_chain_is_written_down_and_nothing_is_done_twice(project: Project) -> None:
    assert project.claims() == ALL
    measured = json.loads((project.run / "validate" / "measured.json").read_text())
    for name in (
        *("artifacts/pruned-int8.onnx", "artifacts/dense-fp32.onnx", "quantize/pruned-int8.onnx", "search/plan.json"),
        *("validate/samples.npz", "validate/preprocessing.json", "validate/labels.json", "recover/weights.safetensors"),
    ):
        assert measured["sha256"][name] == files.sha256(project.run / name)
    assert measured["data"]
    built = json.loads((project.run / "artifacts" / "artifacts.json").read_text())["pruned-int8"]
    assert built["source"] == measured["sha256"]["quantize/pruned-int8.onnx"]
    assert not list(project.run.rglob("checkpoint.pt")) and not list(project.run.rglob(".key"))
    again, said = project.go()
    assert all(stage["reused"] for stage in again.result["stages"])
    assert not [line for line in said if "again" in line or "before" in line]
    assert project.claims() == ALL


def test_an_artifact_swapped_behind_its_back_is_not_released(project: Project) -> None:
    """The dense artifact in the place of the pruned one: faster nowhere, and it was never measured as such."""
    true, artifacts = in_bundle(project, "artifact/pruned-int8.onnx"), project.run / "artifacts"
    shutil.copy(artifacts / "dense-int8.onnx", artifacts / "pruned-int8.onnx")
    shutil.rmtree(project.run / "release")
    _, said = project.go()
    assert any("pruned-int8.onnx has been changed" in line for line in said)
    assert in_bundle(project, "artifact/pruned-int8.onnx") == true
    assert files.sha256(true) == files.sha256(artifacts / "pruned-int8.onnx")


@pytest.mark.parametrize("name", ["artifacts/pruned-int8.onnx", "validate/samples.npz", "validate/preprocessing.json"])
def test_a_truncated_file_is_made_again(project: Project, name: str) -> None:
    path = project.run / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    outcome, said = project.go()
    assert any(f"{path.name} has been changed" in line for line in said)
    assert outcome.bundle is not None
    assert all(check.passed for check in release.verify(outcome.bundle).checks if check.name != "signature")


def test_every_damage_to_any_file_of_a_stage_is_found(project: Project) -> None:
    keys = {
        name: json.loads((project.run / name / "stage.json").read_text())["key"] for name in STAGES if name != "release"
    }
    tried = 0
    for name, key in keys.items():
        for path in [path for path in (project.run / name).rglob("*") if path.is_file()]:
            whole = path.read_bytes()
            for damaged in (whole[:-1], whole[:-1] + bytes([whole[-1] ^ 1]), b"", None):
                path.unlink() if damaged is None else path.write_bytes(damaged)
                with RunDirectory(project.run) as run:
                    assert run.state(name, key).fault, path
                tried += 1
            path.write_bytes(whole)
        with RunDirectory(project.run) as run:
            assert run.is_whole(name, key)
    assert tried > 80


def test_weights_that_were_put_there_by_hand_are_never_passed_off_with_the_old_accuracy(project: Project) -> None:
    path = project.run / "recover" / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-400:] = bytes(400)
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"weights\.safetensors has been changed") as refused:
        project.go()
    assert "--from prune" in refused.value.remedy
    assert project.claims() == []
    assert path.read_bytes() == bytes(data), "nothing is overwritten: it can be put back"


def test_a_run_that_is_refused_leaves_no_earlier_release_that_looks_current(project: Project) -> None:
    with pytest.raises(BudgetError):
        project.go(override(project.recipe, "budget", speedup=1000.0))
    assert project.claims() == []
    assert (project.run / "earlier" / "release" / "tiny-quick.tar").is_file()


def test_a_failed_gate_leaves_no_earlier_bundle(project: Project) -> None:
    measured = project.run / "validate" / "measured.json"
    assert measured.is_file()
    with pytest.raises(EdgepruneError):
        project.go(override(project.recipe, "budget", max_bytes=10))
    assert not list((project.run / "release").glob("*.tar"))
    if (project.run / "result.json").is_file():
        assert json.loads((project.run / "result.json").read_text())["verdict"] != "release"


def test_a_run_that_ends_before_its_first_stage_leaves_no_release_either(project: Project) -> None:
    data = project.folder / "data.npz"
    whole = data.read_bytes()
    data.write_bytes(b"no images")
    try:
        with pytest.raises(DataError):
            project.go()
    finally:
        data.write_bytes(whole)
    assert project.claims() == []


def test_another_name_leaves_one_bundle(project: Project) -> None:
    (project.folder / "recipe.toml").write_text(RECIPE.replace('"tiny"', '"other"'))
    project.go()
    assert [path.name for path in (project.run / "release").iterdir()] == ["other-quick.tar"]
