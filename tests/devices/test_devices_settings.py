"""The cache and the environment: private, whole, and looked at before use."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from edgeprune import devices, target
from edgeprune.devices import Artifact, book, package, settings
from edgeprune.devices.agent import store
from edgeprune.devices.ssh import Ssh
from edgeprune.errors import DeviceError, TargetError, UsageError


@pytest.mark.parametrize("damage", [b"", b"not an archive", None])
def test_an_agent_that_is_not_the_agent_is_written_again(damage: bytes | None) -> None:
    path, digest = package.agent()
    good = path.read_bytes()
    if damage is None:  # another archive, which would be run
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("__main__.py", "raise SystemExit(7)")
    else:
        path.write_bytes(damage)
    assert package.agent() == (path, digest) and path.read_bytes() == good


def test_a_link_in_its_place_is_replaced(tmp_path: Path) -> None:
    path, _ = package.agent()
    (tmp_path / "mine").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(tmp_path / "mine")
    package.agent()
    assert not path.is_symlink()


def test_the_cache_is_for_its_owner_alone() -> None:
    cache = settings.cache()
    cache.mkdir(exist_ok=True)
    cache.chmod(0o777)
    path, _ = package.agent()
    for folder in (cache, path.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_cache_of_someone_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(DeviceError, match="belongs to someone else"):
        settings.private(tmp_path)


@pytest.mark.parametrize("named", ["{tmp}/file", "{tmp}/file/below", "/proc/nothing/here", "{tmp}/" + "a" * 300])
def test_a_cache_that_cannot_be(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEPRUNE_CACHE", named.format(tmp=tmp_path))
    with pytest.raises(DeviceError):
        package.agent()


def test_without_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: object) -> None:
        raise KeyError("getpwuid(): uid not found")

    for name in ("HOME", "EDGEPRUNE_CACHE", "EDGEPRUNE_DEVICES", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "LOGNAME",
                 "USER", "LNAME", "USERNAME"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert settings.cache().name == f"edgeprune-{os.getuid()}" and book.read() == {}
    assert settings.who().startswith(f"user {os.getuid()}@")


@pytest.mark.parametrize("given", ["ssh 'x", "  ", "a\0b"[:1] + '"'])
def test_a_command_that_is_none(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPRUNE_SSH_COMMAND", given)
    with pytest.raises(UsageError, match="EDGEPRUNE_SSH_COMMAND"):
        settings.ssh_command()


LEFT = """
import os, sys, time
from edgeprune.devices.settings import Scratch
folder = Scratch("ssh-")
print(folder.path, flush=True)
time.sleep(60)
"""


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout
    process.stdout.close()


def test_a_killed_process_leaves_no_folder_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    started = [
        subprocess.Popen([sys.executable, "-c", LEFT], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    dead, living = (Path(one.stdout.readline().strip()) for one in started if one.stdout)
    end(started[0])
    monkeypatch.setattr(settings.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(settings, "_SWEPT", [])
    (tmp_path / "edgeprune-notes").mkdir()  # nobody's
    with settings.Scratch() as mine:
        assert mine.is_dir() and living.is_dir() and not dead.exists()
    assert not mine.exists() and (tmp_path / "edgeprune-notes").is_dir()
    end(started[1])


def test_a_way_that_cannot_be_taken_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("EDGEPRUNE_SSH_COMMAND", "/no/ssh")
    Ssh("board").close()
    assert list(tmp_path.iterdir()) == []


def test_threads_beyond_every_machine_are_refused(tmp_path: Path) -> None:
    profile = (Path(target.load("intel-cpu").folder) / "profile.toml").read_text("utf-8")
    (tmp_path / "intel-cpu").mkdir()
    (tmp_path / "intel-cpu" / "profile.toml").write_text(profile.replace("threads = 1", "threads = 1000000"))
    with pytest.raises(TargetError, match="threads"):
        target.load("intel-cpu", [tmp_path])


def blob(home: Path, name: str, size: int, age_s: float = 0.0) -> Path:
    path = home / "blobs" / name
    path.write_bytes(bytes(size))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_a_file_larger_than_the_store_is_kept_until_it_is_loaded(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(store, "LIMIT_BYTES", 100)
    monkeypatch.setattr(store.Store.prune, "__defaults__", (100,))
    here = store.Store(str(tmp_path), "me")
    data = {name: bytes(500) + name.encode() for name in ("bin", "xml")}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in data.items()}
    assert here.missing(list(digests.values())) == list(digests.values())
    for name, content in data.items():
        (tmp_path / "incoming" / name).write_bytes(content)
        here.adopt(name, digests[name])
    assert all(Path(here.blob(digest)).is_file() for digest in digests.values())
    here.missing([])  # others are asked for
    here.prune()
    assert len(list((tmp_path / "blobs").iterdir())) == 1  # the newest
    here.close()


def test_what_a_living_agent_holds_is_not_pruned_whatever_the_clock_says(tmp_path: Path) -> None:
    one, other = store.Store(str(tmp_path), "one"), store.Store(str(tmp_path), "other")
    for name in ("jobs/abc-one", "jobs/abc-other", "jobs/abc-dead", "outgoing/r-one.npz", "outgoing/r-dead.npz",
                 "incoming/x.part"):  # fmt: skip
        path = tmp_path / name
        path.mkdir() if name.startswith("jobs") else path.write_bytes(b"x")
        os.utime(path, (0, 0))  # the clock has jumped by half a century since
    assert sorted(one.alive()) == ["one", "other"]
    other.prune()
    left = {str(path.relative_to(tmp_path)) for part in ("jobs", "outgoing", "incoming")
            for path in (tmp_path / part).iterdir()}  # fmt: skip
    assert left == {"jobs/abc-one", "jobs/abc-other", "outgoing/r-one.npz", "incoming/x.part"}
    one.close()
    other.prune()
    assert {path.name for path in (tmp_path / "jobs").iterdir()} == {"abc-other"}
    assert not list((tmp_path / "incoming").iterdir())
    other.close()


@pytest.mark.long
def test_an_agent_leaves_nothing_of_its_own(ort: target.Target, int8_artifact: Artifact) -> None:
    home = settings.cache() / "agent"
    with devices.connect(ort) as device:
        loaded = device.load(int8_artifact)
        device.measure([loaded], ort.protocol)
        device.profile(loaded, 2)
        assert list((home / "jobs").iterdir()) and list((home / "outgoing").glob("samples-*"))
    assert not list((home / "jobs").iterdir()) and not list((home / "outgoing").iterdir())
