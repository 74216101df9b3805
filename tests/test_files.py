"""The file layer: whole or not at all, never through a link, bounded reading, and no partial file left behind."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edgeprune import files
from edgeprune.errors import DataError, RunError, TargetError

ROOT = Path(__file__).resolve().parent.parent


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if files.is_partial(path.name))


def test_a_file_is_written_whole_with_its_suffix_and_plain_permissions(tmp_path):
    path = tmp_path / "model.onnx"
    with files.replacing(path) as partial:
        assert partial.suffix == ".onnx"
        assert partial.parent == tmp_path
        partial.write_bytes(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o666 & ~os.umask(os.umask(0o22) or 0o22)
    assert leftovers(tmp_path) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})
    with pytest.raises(ZeroDivisionError), files.replacing(path) as partial:
        partial.write_bytes(b"half")
        raise ZeroDivisionError
    assert json.loads(path.read_text()) == {"old": 1}
    assert leftovers(tmp_path) == []


def test_a_full_disk_is_an_oserror_and_leaves_nothing(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    files.write_text(tmp_path / "a", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert leftovers(tmp_path) == []


def test_everything_is_on_the_disk_before_the_name_is_given(tmp_path, monkeypatch):
    """The file, then the rename, then the folder: in this order, or a power cut leaves an empty file."""
    done = []
    fsync, rename = os.fsync, Path.replace

    def note_fsync(handle):
        done.append(("fsync", "folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file"))  # noqa: PTH112
        fsync(handle)

    def note_rename(self, to):
        done.append(("rename", Path(to).name))
        return rename(self, to)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_rename)
    files.write_text(tmp_path / "a", "x")
    assert done == [("fsync", "file"), ("rename", "a"), ("fsync", "folder")]


def test_a_link_is_replaced_and_never_written_through(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "a.json"
    victim.write_text("precious")
    path.symlink_to(victim)
    for old in (".part", ".tmp"):
        (tmp_path / f"a.json{old}").symlink_to(victim)
    files.write_text(path, "new")
    assert victim.read_text() == "precious"
    assert not path.is_symlink()
    assert path.read_text() == "new"


def test_what_a_killed_writer_left_is_swept_and_a_living_one_is_left_alone(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from edgeprune import files\n"
        "with files.replacing(Path(sys.argv[1])) as partial:\n"
        "    partial.write_bytes(b'half'); print('ready', flush=True); time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script, str(tmp_path / "a.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        files.write_text(tmp_path / "a.json", "mine")
        alive = leftovers(tmp_path)
        writer.send_signal(signal.SIGKILL)
    assert len(alive) == 1
    assert leftovers(tmp_path) == alive
    files.write_text(tmp_path / "b.json", "another file")
    assert leftovers(tmp_path) == alive
    files.write_text(tmp_path / "a.json", "mine")
    assert leftovers(tmp_path) == []


def test_a_very_long_name_can_be_written(tmp_path):
    path = tmp_path / ("ä" * 120 + ".json")
    files.write_text(path, "x")
    assert path.read_text() == "x"


def test_plain_data_of_numpy_is_written_as_json(tmp_path):
    files.write_json(tmp_path / "a", {"n": np.float32(0.5), "v": np.arange(3), "p": tmp_path, "s": {2, 1}})
    assert json.loads((tmp_path / "a").read_text()) == {"n": 0.5, "v": [0, 1, 2], "p": str(tmp_path), "s": [1, 2]}


JSON = {
    "empty": b"",
    "half": b'{"a": ',
    "deep, beyond the parser": b"[" * 100_000,
    "deep and closed": b"[" * 500 + b"]" * 500,
    "digits": b"1" * 5000,
    "not UTF-8": b'"\xff"',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
}
TOML = {
    "half": b"[a",
    "deep": b"a = " + b"[" * 100_000,
    "deep and closed": b"a = " + b"[" * 500 + b"]" * 500,
    "deep by dots": b".".join([b"a"] * 5000) + b" = 1",
    "digits": b"a = " + b"1" * 5000,
    "not UTF-8": b'a = "\xff"',
}


@pytest.mark.parametrize("text", JSON.values(), ids=JSON)
def test_bad_json_is_the_callers_error(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    with pytest.raises(DataError, match=r"not valid JSON|nested too deeply") as caught:
        files.read_json(path, DataError, "Mend it.")
    assert str(path) in caught.value.message
    assert caught.value.remedy == "Mend it."
    assert len(caught.value.message) < 500 + len(str(path))


@pytest.mark.parametrize("text", TOML.values(), ids=TOML)
def test_bad_toml_is_the_callers_error(tmp_path, text):
    path = tmp_path / "a.toml"
    path.write_bytes(text)
    with pytest.raises(TargetError, match=r"not valid TOML|nested too deeply"):
        files.read_toml(path, TargetError)


def test_good_files_are_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, {"b": null}]}')
    (tmp_path / "a.toml").write_text("[a]\nb = 1\n")
    assert files.read_json(tmp_path / "a.json", RunError) == {"a": [1, {"b": None}]}
    assert files.read_toml(tmp_path / "a.toml", RunError) == {"a": {"b": 1}}
    assert files.parse_json("[" * files.DEPTH + "]" * files.DEPTH, RunError, "x") is not None


def test_what_is_no_plain_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    began = time.monotonic()
    for path, why in (
        (tmp_path / "pipe", "not a plain file"),
        (tmp_path, "Is a directory"),
        (Path("/dev/zero"), "not a plain file"),
        (tmp_path / "loop", "symbolic links"),
        (Path("a\0b"), "null"),
        (tmp_path / ("x" * 300), "too long"),
        (tmp_path / "none", "no such file"),
        (Path("/dev/null/x"), "no such file"),
    ):
        with pytest.raises(RunError, match=why):
            files.read_json(path, RunError)
    assert time.monotonic() - began < 5


def test_a_file_over_the_limit_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 101)
    assert len(files.read(tmp_path / "a", RunError, limit=101)) == 101
    with pytest.raises(RunError, match="larger than 100 bytes"):
        files.read(tmp_path / "a", RunError, limit=100)


def test_sha256_of_a_file_bytes_and_pieces_is_hashlibs(tmp_path):
    (tmp_path / "a").write_bytes(b"abc" * 1000)
    wanted = hashlib.sha256(b"abc" * 1000).hexdigest()
    assert files.sha256(tmp_path / "a") == wanted
    assert files.sha256(b"abc" * 1000) == wanted
    assert files.sha256(b"abc" for _ in range(1000)) == wanted


OWN = ("json.loads(", "json.load(", "tomllib", "mkstemp", '.part"', "os.replace(")
KNOWN = {
    # lines of a wire, folders that are installed, the program that runs on devices
    *(
        "devices/link.py",
        "devices/device.py",
        "devices/ssh.py",
        "devices/emulation/board.py",
        "devices/emulation/emulator.py",
    ),
    *("release/device/run.py", "quantize/check/check.py", "model/data.py", "model/network.py"),
    *("workload/sources/coco.py", "release/verify.py", "model/sources.py", "pipeline/rundir.py"),
}


def test_the_package_reads_and_writes_in_one_place():
    """No room but the device's agent (which runs alone) has its own atomic writer, JSON or TOML reader."""
    package = ROOT / "edgeprune"
    texts = {str(path.relative_to(package)): path.read_text("utf-8") for path in package.rglob("*.py")}
    found = {name for name, text in texts.items() if any(word in text for word in OWN)}
    agent = {name for name in found if name.startswith("devices/agent/")}
    assert found - agent - {"files.py"} <= KNOWN
