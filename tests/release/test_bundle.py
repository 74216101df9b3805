"""The bundle: same inputs, same bytes; everything in it; and it runs by itself on the device."""

from __future__ import annotations

import ast
import copy
import hashlib
import importlib.util
import json
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pytest

from edgeprune import release, target
from edgeprune.errors import BundleError, GateError, RunError


@pytest.fixture(scope="module")
def bundle(made, tmp_path_factory):
    run, result = made
    return release.bundle(run, result, tmp_path_factory.mktemp("out"))


def unpack(bundle: Path, folder: Path) -> Path:
    with tarfile.open(bundle) as tar:
        tar.extractall(folder, filter="data")
    return folder


def test_same_inputs_same_bytes(made, bundle, tmp_path):
    run, result = made
    again = release.bundle(run, copy.deepcopy(result), tmp_path / "elsewhere.tar")
    assert again.read_bytes() == bundle.read_bytes()
    assert bundle.name == f"tiny-{result['target']}.tar"


def test_everything_is_in_it_and_every_file_is_listed(made, bundle, tmp_path):
    root = unpack(bundle, tmp_path)
    names = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    wanted = {
        "plan.json", "preprocessing.json", "labels.json", "samples.npz", "manifest.json", "sbom.json", "result.json",
        "SHA256SUMS", "LICENSES/edgeprune.txt", "README.md", "run.py", "requirements.txt",
    }  # fmt: skip
    assert wanted <= names
    sums = dict(reversed(line.split("  ")) for line in (root / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == names - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((root / name).read_bytes()).hexdigest() == digest
    manifest = json.loads((root / "manifest.json").read_text())
    assert manifest["target"]["name"] == made[1]["target"]
    assert manifest["sources"].keys() >= {"recipe.lock.toml", "quantize/pruned-fp32.onnx"}
    assert {gate["name"] for gate in manifest["gates"]} >= {"measurement", "proof", "accuracy", "latency", "faster"}
    assert f"artifact/{manifest['artifact']['files'][0]}" in manifest["files"]


def test_what_the_command_line_changed_is_in_the_manifest(made, tmp_path):
    run, result = made
    profile = target.load(result["target"]).to_dict()
    profile["execution"]["threads"] = 2
    root = unpack(release.bundle(run, {**result, "profile": profile}, tmp_path), tmp_path / "unpacked")
    assert json.loads((root / "manifest.json").read_text())["artifact"]["threads"] == 2


def test_the_options_that_the_artifact_needs_are_in_the_manifest(made, tmp_path):
    run, result = made
    listed = run / "artifacts" / "artifacts.json"
    listed.write_text(json.dumps({"pruned-int8": {"options": {"precision": "int8"}}}))
    try:
        root = unpack(release.bundle(run, result, tmp_path), tmp_path / "unpacked")
    finally:
        listed.unlink()
    options = json.loads((root / "manifest.json").read_text())["artifact"]["options"]
    assert options == {**target.load(result["target"]).execution.options, "precision": "int8"}


def test_run_py_works_where_nothing_may_be_written(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path.parent))
    spec = importlib.util.spec_from_file_location("bundle_run", unpack(bundle, tmp_path) / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.home() == str(tmp_path / "built-here")
    assert (tmp_path / "built-here" / "engines").is_dir()
    monkeypatch.setattr(module, "HERE", tmp_path / "README.md")  # a file: no folder can be made in it
    other = Path(module.home())
    assert tmp_path not in other.parents
    assert (other / "engines").is_dir()


def test_bill_of_materials_names_the_measured_runtime(made, bundle, tmp_path):
    document = json.loads((unpack(bundle, tmp_path) / "sbom.json").read_text())
    runtime = made[1]["runtime"]
    component = next(part for part in document["components"] if part["name"] == runtime["name"])
    assert component["version"] == runtime["version"]
    assert component["purl"] == f"pkg:pypi/{runtime['name']}@{runtime['version']}"
    assert component["licenses"]
    model = document["metadata"]["component"]
    (needed,) = [one["dependsOn"] for one in document["dependencies"] if one["ref"] == model["bom-ref"]]
    assert component["purl"] in needed
    for file in model["components"]:
        content = (tmp_path / "artifact" / file["name"]).read_bytes()
        assert file["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}]


def on_device(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run run.py as on the device: no edgeprune on the path."""
    command = [sys.executable, "-I", str(root / "run.py"), *arguments]
    return subprocess.run(command, cwd=root.parent, capture_output=True, text=True, timeout=600)


@pytest.mark.long
def test_runs_by_itself_on_the_device(bundle, tmp_path):
    root = unpack(bundle, tmp_path / "unpacked")
    done = on_device(root)
    assert done.returncode == 0, done.stderr
    assert "6 samples, output: the same class on 100 % of them" in done.stdout
    assert "ms median here" in done.stdout
    assert done.stdout.strip().endswith("GOOD")


@pytest.mark.long
def test_run_py_classifies_a_picture(bundle, tmp_path):
    root = unpack(bundle, tmp_path / "unpacked")
    picture = tmp_path / "picture.npy"
    np.save(picture, np.full((8, 8, 3), 200, np.uint8))
    done = on_device(root, str(picture))
    assert done.returncode == 0, done.stderr
    assert any(label in done.stdout for label in ("ant", "bee", "cat", "dog"))


@pytest.mark.long
def test_run_py_says_when_outputs_are_not_as_made(bundle, tmp_path):
    root = unpack(bundle, tmp_path / "unpacked")
    with np.load(root / "samples.npz") as stored:
        arrays = dict(stored)
    np.savez(root / "samples.npz", input=arrays["input"], output=-arrays["output"])
    done = on_device(root)
    assert done.returncode == 1
    assert "NOT AS MADE" in done.stdout


def with_second(made, **changes):
    """The result of a run whose device optimised the artifact: here the plain graph stands for it."""
    run, result = made
    if result["target"] != "x86-onnxruntime":
        pytest.skip("only ONNX Runtime writes an optimised graph")
    (plain,) = (run / "artifacts").glob("*.onnx")
    (run / "validate" / "pruned-int8-optimised.onnx").write_bytes(plain.read_bytes())
    measured = json.loads((run / "validate" / "measured.json").read_text())
    measured["sha256"]["validate/pruned-int8-optimised.onnx"] = hashlib.sha256(plain.read_bytes()).hexdigest()
    (run / "validate" / "measured.json").write_text(json.dumps(measured))
    facts = {
        "file": "pruned-int8-optimised.onnx",
        "sha256": hashlib.sha256(plain.read_bytes()).hexdigest(),
        "made_on": {
            "machine": platform.machine(), "cpus": ["cortex-a76"], "emulation": "qemu-board-icount",
            "runtime": "onnxruntime", "runtime_version": result["runtime"]["version"],
        },
        "options": {"graph_optimization_level": "disable"},
        "images": 64, "same_bits": 1.0, "unit": "instructions",
        "median": {"plain": 100.0, "optimised": 100.1},
        "load_s": {"plain": 0.4, "optimised": 0.1},
    }  # fmt: skip
    facts["made_on"] |= changes
    return {**result, "artifact": {**result["artifact"], "optimised": facts}}


@pytest.mark.long
def test_the_graph_that_the_device_optimised_travels_along_and_runs(made, tmp_path):
    root = unpack(release.bundle(made[0], with_second(made), tmp_path), tmp_path / "unpacked")
    manifest = json.loads((root / "manifest.json").read_text())
    second = manifest["artifact"]["optimised"]
    assert manifest["files"][f"artifact/{second['file']}"]["sha256"] == second["sha256"]
    readme = " ".join((root / "README.md").read_text().split())
    assert "rewrote it on cortex-a76 (emulated): the same outputs, bit for bit, on 64 images" in readme
    assert "latency +0.10 %, opening it takes 25 % of the plain graph's time" in readme
    done = on_device(root, "--optimised")
    assert done.returncode == 0 and done.stdout.strip().endswith("GOOD"), done.stderr


@pytest.mark.long
def test_the_optimised_graph_of_another_version_is_refused(made, tmp_path):
    result = with_second(made, runtime_version="1.20.0")
    root = unpack(release.bundle(made[0], result, tmp_path), tmp_path / "unpacked")
    done = on_device(root, "--optimised")
    assert done.returncode == 1 and "is for onnxruntime 1.20.0" in done.stderr
    assert on_device(root).returncode == 0


@pytest.mark.long
def test_a_bundle_says_why_it_has_no_optimised_graph(made, bundle, tmp_path):
    run, result = made
    artifact = {**result["artifact"], "optimised": {"missing": "no 64-bit ARM device made it."}}
    root = unpack(release.bundle(run, {**result, "artifact": artifact}, tmp_path), tmp_path / "unpacked")
    assert "no 64-bit ARM device made it." in (root / "README.md").read_text()
    done = on_device(root, "--optimised")
    assert done.returncode == 1 and "no 64-bit ARM device made it." in done.stderr
    done = on_device(unpack(bundle, tmp_path / "other"), "--optimised")
    assert done.returncode == 1 and "one file" in done.stderr


def test_run_py_and_the_agent_are_python_3_8(bundle, tmp_path):
    for path in unpack(bundle, tmp_path).rglob("*.py"):
        ast.parse(path.read_text(), feature_version=(3, 8))


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("artifacts/pruned-int8.*", "export"),
        ("validate/samples.npz", "validate"),
        ("validate/preprocessing.json", "validate"),
        ("validate/labels.json", "validate"),
        ("search/plan.json", "prune"),
        ("quantize/pruned-fp32.onnx", "calibrate"),
    ],
)
def test_no_bundle_of_another_file_than_was_measured(made, tmp_path, name, step):
    run, result = made
    copied = shutil.copytree(run, tmp_path / "run")
    path = sorted(copied.glob(name))[0]
    whole = path.read_bytes()
    for damaged in (whole[:-1], bytes([whole[0] ^ 1]) + whole[1:], b""):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match="is not the file that was measured") as refused:
            release.bundle(copied, result, tmp_path / "out")
        assert str(path) in refused.value.message
        assert f"--from {step}" in refused.value.remedy
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    path.write_bytes(whole)
    assert release.bundle(copied, result, tmp_path / "out").is_file()


@pytest.mark.parametrize("text", ["{}", "[]", '{"sha256": []}', "{", ""])
def test_no_bundle_without_an_account_of_what_was_measured(made, tmp_path, text):
    copied = shutil.copytree(made[0], tmp_path / "run")
    (copied / "validate" / "measured.json").write_text(text)
    with pytest.raises(RunError, match=r"measured\.json"):
        release.bundle(copied, made[1], tmp_path / "out")


@pytest.mark.long
def test_a_bundle_gets_its_name_only_when_it_passes_verify(made, tmp_path):
    run, result = made
    path, checks = release.publish(run, result, tmp_path)
    assert path == tmp_path / f"tiny-{result['target']}.tar"
    assert {check.name for check in checks} >= {"integrity", "evidence", "samples"}
    path.unlink()
    with pytest.raises(GateError, match="does not pass its own verify") as refused:
        release.publish(run, {**result, "proof": {"passed": False}}, tmp_path)
    assert ".part" not in refused.value.message
    assert not list(tmp_path.iterdir())


def test_no_bundle_without_all_gates(made, tmp_path):
    run, result = made
    refused = copy.deepcopy(result)
    next(gate for gate in refused["gates"] if gate["name"] == "accuracy")["passed"] = False
    with pytest.raises(GateError, match="accuracy"):
        release.bundle(run, refused, tmp_path)
    with pytest.raises(GateError):
        release.bundle(run, {**result, "verdict": "refused"}, tmp_path)
    with pytest.raises(GateError, match="no gate"):
        release.bundle(run, {**result, "gates": []}, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["validate/samples.npz", "validate/preprocessing.json", "search/plan.json"])
def test_says_what_is_missing_and_leaves_nothing(made, name, tmp_path):
    run, result = made
    moved = (run / name).rename(run / "away")
    try:
        with pytest.raises(BundleError, match=Path(name).name):
            release.bundle(run, result, tmp_path)
    finally:
        moved.rename(run / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_what_is_published_has_been_run_also_for_a_target_that_is_not_known_by_name(made, tmp_path, monkeypatch):
    from edgeprune.errors import TargetError
    from edgeprune.release import evidence

    run, result = made
    monkeypatch.setattr(evidence, "known_here", lambda manifest: (_ for _ in ()).throw(TargetError("not known")))
    bundle, checks = release.publish(run, result, tmp_path)
    assert next(check for check in checks if check.name == "samples").passed and bundle.is_file()
    bundle.unlink()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GateError, match=r"its samples were not rerun: runtime \w+ is not installed"):
        release.publish(run, result, tmp_path)
    assert not list(tmp_path.iterdir())
