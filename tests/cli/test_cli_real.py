"""The command line with the real pipeline, runtime and files: interrupted, resumed, signed, verified; and bad input."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

EDGEPRUNE = [sys.executable, "-m", "edgeprune.cli", "--targets", "targets"]
ROOT = Path(__file__).resolve().parents[2]


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "EDGEPRUNE_CACHE": str(Path("cache").absolute())}


def call(*arguments, **options):
    command = [*EDGEPRUNE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=1100, **options)


@pytest.mark.slow
def test_interrupted_resumed_signed_and_verified(project):
    pytest.importorskip("cryptography")
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", "release.key"], check=True)
    subprocess.run(["openssl", "pkey", "-in", "release.key", "-pubout", "-out", "release.pub"], check=True)
    command = [*EDGEPRUNE, "quick", "run", "recipe.toml", "--sign", "release.key"]
    # A background job's SIGINT is ignored, and that is inherited; a user at a terminal has the default.
    hears = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment(), **hears) as first:
        for line in first.stderr:
            if line.startswith("search"):
                first.send_signal(signal.SIGINT)
                break
        rest = first.stderr.read()
    assert first.returncode == 130, rest
    assert "Interrupted. What is finished is kept; resume with the same command." in rest
    assert "Traceback" not in rest
    assert not list(Path("runs").rglob("*.tar"))

    second = call(*command[len(EDGEPRUNE) :], "--json")
    assert second.returncode == 0, second.stderr
    outcome = json.loads(second.stdout)
    assert "graph      kept" in second.stderr
    assert outcome["result"]["verdict"] == "release"
    assert Path(outcome["report"]).stat().st_size > 10_000

    bundle = Path(outcome["bundle"])
    good = call("verify", bundle, "--key", "release.pub")
    assert good.returncode == 0, good.stderr
    assert "signed by release.pub" in good.stdout
    assert "the same class on 100 %" in good.stdout
    data = bytearray(bundle.read_bytes())
    data[len(data) // 2] ^= 1
    bundle.write_bytes(data)
    bad = call("verify", bundle)
    assert bad.returncode == 10
    assert "damaged" in bad.stderr or "altered" in bad.stderr


def broken_weights(kind):
    import torch
    from safetensors.torch import save_file

    sys.path.insert(0, ".")
    try:
        sys.modules.pop("net", None)
        state = __import__("net").net().state_dict()
    finally:
        sys.path.remove(".")
    if kind == "shape":
        state["0.weight"] = torch.zeros(8, 3, 3, 3)
    if kind == "nan":
        state["0.weight"][0] = float("nan")
    if kind == "pickle":
        Path("weights.pt").write_bytes(pickle.dumps(Path("code")))
        return "weights.pt"
    save_file(state, "weights.safetensors")
    return "weights.safetensors"


def set_weights(name):
    text = Path("recipe.toml").read_text()
    Path("recipe.toml").write_text(text.replace("input = [3", f'weights = "{name}"\ninput = [3'))


def set_source(name):
    Path("recipe.toml").write_text(Path("recipe.toml").read_text().replace("data.npz", name))


def labels_out_of_range():
    with np.load("data.npz") as stored:
        arrays = dict(stored)
    del arrays["classes"]
    arrays["test_labels"][3] = 9
    np.savez("data.npz", **arrays)


def empty_folder():
    Path("images").mkdir()
    set_source("images")


def corrupt_image():
    from PIL import Image

    for split in ("train", "test"):
        for name in ("a", "b"):
            folder = Path("images") / split / name
            folder.mkdir(parents=True)
            for k in range(60):
                Image.new("RGB", (16, 16), (k, 0, 0)).save(folder / f"{k:02d}.png")
    Path("images/test/a/00.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    set_source("images")


BAD = {
    "missing weights": (lambda: set_weights("nowhere.safetensors"), 3, "nowhere.safetensors"),
    "another shape": (lambda: set_weights(broken_weights("shape")), 3, "0.weight"),
    "NaN": (lambda: set_weights(broken_weights("nan")), 3, "0.weight"),
    "pickle": (lambda: set_weights(broken_weights("pickle")), 3, "weights.pt"),
    "no data": (lambda: set_source("nowhere"), 3, "nowhere"),
    "empty folder": (empty_folder, 3, "images"),
    "corrupt image": (corrupt_image, 3, "00.png"),
    "labels": (labels_out_of_range, 3, "9"),
    "no factory": (lambda: Path("net.py").write_text("x = 1\n"), 3, "net"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_one_clear_message_and_leaves_nothing_half_written(edgeprune_command, project, kind):
    prepare, code, says = BAD[kind]
    prepare()
    done = edgeprune_command("--targets", "targets", "quick", "run", "recipe.toml", "--quiet")
    assert done.exit_code == code, done.stderr
    assert done.stderr.startswith("Error: ")
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 3
    assert not list(Path().rglob("*.part")) and not list(Path("runs").rglob("result.json"))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk(edgeprune_command, project, tmp_path):
    """A run on a file system of 64 KiB, which is then made larger: the same command goes on."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no small file system can be mounted here")
    try:
        command = ["--targets", "targets", "quick", "plan", "recipe.toml", "--quiet", "--run-dir", str(place / "run")]
        done = edgeprune_command(*command)
        assert done.exit_code == 11, done.stderr
        assert "the disk is full" in done.stderr
        assert "again" in done.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
        again = edgeprune_command(*command)
        assert again.exit_code == 0, again.stderr
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
def test_two_runs_in_one_directory_at_once(edgeprune_command, project):
    arguments = [*EDGEPRUNE, "quick", "run", "recipe.toml"]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, env=environment()) as first:
        try:
            assert first.stderr.readline()
            time.sleep(0.2)
            done = edgeprune_command("--targets", "targets", "quick", "run", "recipe.toml", "--quiet")
        finally:
            first.send_signal(signal.SIGINT)
            first.stderr.read()
    assert done.exit_code == 11, done.stderr
    assert "in use" in done.stderr
