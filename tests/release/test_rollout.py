"""Releases on a device: verified, tested and switched to there; whatever fails, the one in use stays whole."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import powercut
import pytest

from edgeprune import release, target
from edgeprune.cli import main
from edgeprune.devices.agent import ed25519, selftest, unpack
from edgeprune.devices.agent.rollout import Releases
from edgeprune.devices.agent.wire import Failure
from edgeprune.errors import BundleError, GateError, NotAuthenticated, UsageError
from edgeprune.release import archive, signature
from edgeprune.release.device import run as on_device

ANY = 1e6  # slack: the machine of a test may be as busy as it likes
ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks" / "campaigns"))


@pytest.fixture(scope="module")
def ort(tmp_path_factory):
    """(profile, a released bundle, and another one of the same name) for ONNX Runtime."""
    pytest.importorskip("onnxruntime")
    from finished_run import make

    profile, folder = target.load("x86-onnxruntime"), tmp_path_factory.mktemp("rollout")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPRUNE_CACHE", str(folder / "cache"))
        (folder / "run").mkdir()
        run, result = make(folder / "run", profile)
        first = release.bundle(run, result, folder)
    return profile, first, changed(first, folder / "second.tar", "README.md", lambda data: data + b"\nSecond.\n")


def changed(bundle, to, name, change):
    """The bundle with one member changed and all hashes right again."""
    import bundles

    held = archive.read(bundle)
    members = {one: held.read(one) for one in held.members}
    members[name] = change(members[name])
    return archive.write(to, bundles.reseal(members))


def install(bundle, folder, **more):
    return release.install(bundle, "local", folder=str(folder), slack=ANY, **{"unsigned": True, **more})


def quickly(bundle, folder, **asked):
    """What the device does, with a self-test that passes."""
    releases = Releases(str(folder), "tiny")
    with releases.locked(1):
        return releases.install(unpack.Bundle(str(bundle)), {"unsigned": True, **asked}, lambda place, manifest: {})


def in_use(folder, name="tiny"):
    """What the application would open, and is it whole?"""
    releases = Releases(str(folder), name)
    assert releases.current() and releases.damage(releases.current()) == ""
    return releases.accepted(releases.current())["bundle"]


def sums(bundle):
    return hashlib.sha256(archive.read(bundle).read("SHA256SUMS")).hexdigest()


@pytest.mark.long
def test_installed_switched_and_gone_back(ort, tmp_path):
    profile, first, second = ort
    made = install(first, tmp_path)
    assert made.current.bundle == sums(first) and made.previous is None
    assert made.current.judged and made.current.latency > 0 and "6 samples" in made.current.samples
    assert install(second, tmp_path).previous.bundle == sums(first)
    assert "Second." in (tmp_path / "tiny/current/README.md").read_text()
    done = subprocess.run([sys.executable, "run.py"], cwd=tmp_path / "tiny/current", capture_output=True, text=True)
    assert done.returncode == 0 and "GOOD" in done.stdout
    back = release.rollback(profile, "local", "tiny", str(tmp_path))
    assert back.current.bundle == sums(first) == in_use(tmp_path)
    with pytest.raises(UsageError, match="no release of tiny to go back to"):
        release.rollback(profile, "local", "tiny", str(tmp_path))
    (listed,) = release.installed(profile, "local", folder=str(tmp_path))
    assert listed.name == "tiny" and listed.current.damage == ""


@pytest.mark.long
def test_only_two_releases_are_kept_and_the_same_one_again_keeps_the_way_back(ort, tmp_path):
    _, first, second = ort
    last = {}
    for bundle in (first, second, first, second, second):
        last = quickly(bundle, tmp_path)
    assert (last["current"]["bundle"], last["previous"]["bundle"]) == (sums(second), sums(first))
    assert len(list((tmp_path / "tiny/store").iterdir())) == 2


@pytest.mark.slow
def test_a_release_that_fails_its_self_test_leaves_the_one_in_use(ort, tmp_path):
    import bundles

    profile, first, second = ort
    install(first, tmp_path)
    held = archive.read(second)
    members = {name: held.read(name) for name in held.members}
    bundles.other_weights(members, None)
    other = archive.write(tmp_path / "other.tar", bundles.reseal(members))
    with pytest.raises(GateError, match="does not compute what it did when it was made"):
        install(other, tmp_path)
    with pytest.raises(GateError, match=r"it takes .* ms here and claims"):  # a millionth of its claim is all it may
        release.install(second, "local", folder=str(tmp_path), unsigned=True, slack=1e-6 - 1)
    assert in_use(tmp_path) == sums(first) and len(list((tmp_path / "tiny/store").iterdir())) == 1
    assert release.installed(profile, "local", "tiny", str(tmp_path))[0].previous is None


@pytest.mark.slow
def test_a_release_in_use_that_rots_is_gone_back_from(ort, tmp_path):
    profile, first, second = ort
    install(first, tmp_path)
    install(second, tmp_path)
    assert release.check(profile, "local", "tiny", str(tmp_path), ANY).current.bundle == sums(second)
    path = tmp_path / "tiny/current/artifact/pruned-int8.onnx"
    path.write_bytes(path.read_bytes()[:-9])
    assert "pruned-int8.onnx" in release.installed(profile, "local", "tiny", str(tmp_path))[0].current.damage
    with pytest.raises(GateError, match=r"failed its self-test, and 0001-\w+ is in use again"):
        release.check(profile, "local", "tiny", str(tmp_path), ANY)
    assert in_use(tmp_path) == sums(first)


@pytest.mark.long
def test_a_damaged_release_is_no_way_back(ort, tmp_path):
    """Installing over it keeps the one before it."""
    profile, first, second = ort
    quickly(first, tmp_path)
    quickly(second, tmp_path)
    (tmp_path / "tiny/current/plan.json").write_text("{}")
    assert quickly(second, tmp_path)["previous"]["bundle"] == sums(first)
    third = changed(first, tmp_path / "third.tar", "README.md", lambda data: data + b"Third.")
    (tmp_path / "tiny/current/plan.json").write_text("{}")
    assert quickly(third, tmp_path)["previous"]["bundle"] == sums(first)
    (tmp_path / "tiny/store" / Releases(str(tmp_path), "tiny").current() / "accepted.json").write_text("{")
    found = release.installed(profile, "local", "tiny", str(tmp_path))[0]
    assert found.current.damage == "accepted.json is missing" and found.previous is None


@pytest.mark.long
def test_whom_the_device_trusts(ort, tmp_path):
    pytest.importorskip("cryptography")
    from test_signature import write_pair

    _, first, second = ort
    (key, public), (other_key, other) = write_pair(tmp_path, "mine"), write_pair(tmp_path, "other")
    (mine,), (theirs,) = signature.raw_keys(public), signature.raw_keys(other)
    signed = release.sign(Path(shutil.copy(first, tmp_path / "signed.tar")), key)
    strange = release.sign(Path(shutil.copy(second, tmp_path / "strange.tar")), other_key)
    with pytest.raises(Failure, match="no key says whose"):
        quickly(signed, tmp_path, unsigned=False)
    assert quickly(signed, tmp_path, keys=[mine], unsigned=False)["current"]["signed_by"] == mine
    assert quickly(signed, tmp_path, unsigned=False)["current"]["signed_by"] == mine  # the device knows the key
    for bundle, asked in ((second, {}), (strange, {}), (strange, {"keys": [theirs]}), (signed, {"keys": [theirs]})):
        with pytest.raises(Failure) as refused:  # --unsigned does not go round a key
            quickly(bundle, tmp_path, **asked)
        assert refused.value.kind == "unsigned"
    assert in_use(tmp_path) == sums(first)
    assert quickly(strange, tmp_path, keys=[theirs], new_keys=True)["current"]["bundle"] == sums(second)
    with pytest.raises(Failure, match="takes releases of"):
        quickly(signed, tmp_path)
    (tmp_path / "tiny/trusted.json").write_text("{")
    with pytest.raises(Failure, match="whom to trust is not known"):
        quickly(strange, tmp_path)


@pytest.mark.long
def test_a_signed_bundle_is_installed_by_its_key(ort, tmp_path):
    pytest.importorskip("cryptography")
    from test_signature import write_pair

    _, first, second = ort
    key, public = write_pair(tmp_path, "mine")
    with pytest.raises(NotAuthenticated, match="no key says whose"):
        install(first, tmp_path, unsigned=False)
    signed = release.sign(Path(shutil.copy(first, tmp_path / "signed.tar")), key)
    assert install(signed, tmp_path, key=public, unsigned=False).current.signed_by == signature.raw_keys(public)[0]
    with pytest.raises(NotAuthenticated, match="not signed; tiny takes releases of"):
        install(second, tmp_path)
    with pytest.raises(UsageError, match="--new-key needs the key"):
        install(signed, tmp_path, new_key=True)


def test_the_device_reads_a_bundle_as_strictly_as_the_host(ort, tmp_path):
    """Whatever bit is turned, and all of the host's own reading: the device comes to the same names and bytes."""
    _, first, _ = ort
    held, there = archive.read(first), unpack.Bundle(str(first))
    assert list(held.members) == list(there.members)
    assert all(held.read(name) == b"".join(there.chunks(name)) for name in held.members)
    there.check()
    data, chance = first.read_bytes(), np.random.default_rng(0)
    for place in [*range(0, 512, 37), *chance.integers(0, len(data), 40)]:
        made = bytearray(data)
        made[place] ^= 1 << int(chance.integers(8))
        (tmp_path / "flipped.tar").write_bytes(made)
        with pytest.raises(Failure) as refused:
            unpack.Bundle(str(tmp_path / "flipped.tar")).check()
        assert refused.value.kind == "bundle"
    for cut in (0, 100, 512, len(data) // 2, len(data) - 1):
        (tmp_path / "cut.tar").write_bytes(data[:cut])
        with pytest.raises(Failure):
            unpack.Bundle(str(tmp_path / "cut.tar")).check()


def test_a_name_that_is_a_file_and_a_folder_is_refused(tmp_path):
    archive.write(tmp_path / "both.tar", {"a": b"", "a/b": b""})
    with pytest.raises(Failure, match="a file's name and a folder's"):
        unpack.Bundle(str(tmp_path / "both.tar"))


def test_signatures_are_judged_as_the_library_judges_them():
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    # RFC 8032, 7.1, test 2
    public = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    made = bytes.fromhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert ed25519.verify(public, made, b"\x72") and not ed25519.verify(public, made, b"\x73")
    for number in range(8):
        private = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
        key, message = private.public_key().public_bytes_raw(), b"x" * number
        signature = private.sign(message)
        assert ed25519.verify(key, signature, message)
        for place in (number, 31, 32 + number, 63):
            wrong = bytearray(signature)
            wrong[place] ^= 1
            assert not ed25519.verify(key, bytes(wrong), message)
        greater = int.from_bytes(signature[32:], "little") + ed25519.ORDER  # the same number, spelled otherwise
        assert not ed25519.verify(key, signature[:32] + greater.to_bytes(32, "little"), message)
    assert not ed25519.verify(b"\xff" * 32, signature, message) and not ed25519.verify(b"", b"", b"")


@pytest.mark.parametrize("shape", [(6, 4), (6, 1), (3, 4, 2)])
def test_samples_are_compared_as_run_py_compares_them(shape):
    rng = np.random.default_rng(1)
    for noise in (0.0, 0.1, 3.0, float("nan")):
        expected = rng.standard_normal(shape)
        found = expected + noise * rng.standard_normal(shape)
        assert selftest.compare(found, expected) == on_device.compare(found, expected)
    for changed in (0, 1, 3):  # classes
        classes = np.arange(np.prod(shape)).reshape(shape)
        others = classes + (np.arange(classes.size).reshape(shape) < changed)
        for whole in (classes, classes.ravel()):
            assert selftest.compare(others.reshape(whole.shape), whole) == on_device.compare(
                others.reshape(whole.shape), whole
            )
    assert (selftest.AGREEMENT, selftest.ERROR) == (on_device.AGREEMENT, on_device.ERROR)


def test_a_bundle_cannot_tell_the_runtime_where_to_write(ort, tmp_path):
    """The device asks the same list of options as the host, whoever signed it."""
    profile, first, _ = ort
    manifest = json.loads(archive.read(first).read("manifest.json"))
    manifest["artifact"]["options"] = {"optimized_model_filepath": "/tmp/x"}
    asked = {"timeout_s": 10.0, "home": str(tmp_path), "unit": "", "slack": 0.0}
    ended = []

    class Child:
        def kill(self):
            ended.append(True)

    with pytest.raises(Failure, match="has no option optimized_model_filepath"):
        selftest.of_release(str(tmp_path), manifest, asked, lambda *a: {"version": "1.2"}, Child)
    assert ended == [True] and profile.runtime == "onnxruntime"


@pytest.mark.parametrize("moments", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_a_power_cut_at_any_moment_leaves_one_whole_release(ort, tmp_path, monkeypatch, moments):
    """Both kinds of file systems, installing and going back: the old release or the new one, and the next one works."""
    _, first, second = ort
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # the true disk need not wait: the stand-in is asked instead
    for change, starts in ((powercut.install, (first,)), (powercut.back, (second, first))):
        for bundle in starts:
            powercut.install(bundle, tmp_path / change.__name__)
        shutil.copytree(tmp_path / change.__name__, tmp_path / "counted", symlinks=True)
        changes = powercut.changes(change, second, tmp_path / "counted")
        shutil.rmtree(tmp_path / "counted")
        early = range(max(0, changes - 6))
        chosen = random.Random(3).sample(early, min(moments, len(early)))
        found = set()
        for calls in (*chosen, *range(max(0, changes - 6), changes)):
            shutil.copytree(tmp_path / change.__name__, tmp_path / "disk/before", symlinks=True)
            trees = powercut.cut(change, second, tmp_path / "disk/before", calls)
            assert len(trees) == 2
            for ahead, tree in trees.items():
                after = tmp_path / f"disk/{ahead}"
                powercut.grow(tree, after)
                found.add(in_use(after))
                powercut.install(second, after)
                assert in_use(after) == sums(second) and len(list((after / "tiny/store").iterdir())) <= 2
            shutil.rmtree(tmp_path / "disk")
        assert found == {sums(first), sums(second)}


def test_the_stand_in_loses_a_release_that_was_not_brought_to_the_disk(ort, tmp_path, monkeypatch):
    """Without fsync the very same test finds broken releases: it can fail."""
    _, first, second = ort
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    powercut.install(first, tmp_path / "before")
    shutil.copytree(tmp_path / "before", tmp_path / "counted", symlinks=True)
    changes = powercut.changes(powercut.install, second, tmp_path / "counted")
    monkeypatch.setattr(powercut.Disk, "sync", lambda disk, path: None)
    trees = powercut.cut(powercut.install, second, tmp_path / "before", changes - 1)
    powercut.grow(trees[True], tmp_path / "after")
    releases = Releases(str(tmp_path / "after"), "tiny")
    assert releases.current().startswith("0002") and releases.damage(releases.current())


@pytest.mark.long
def test_odd_names_are_refused(ort, tmp_path):
    _, first, _ = ort
    for name in ("../x", "a b", ".part-x", "x" * 101):
        with pytest.raises(UsageError, match="cannot be a release's name"):
            install(first, tmp_path, name=name)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BundleError):
        install(changed(first, tmp_path / "x.tar", "plan.json", lambda data: b"{"), tmp_path)


def test_a_bundle_that_was_never_measured_is_not_installed(ort, tmp_path, monkeypatch):
    _, first, _ = ort
    from edgeprune.release import rollout

    found = release.verify(first, rerun=False)
    unproved = type(found)(**{**vars(found), "state": "unverified"})
    monkeypatch.setattr(rollout, "verify", lambda *given, **named: unproved)
    with pytest.raises(GateError, match="marked unverified"):
        install(first, tmp_path)


@pytest.mark.long
def test_the_commands(ort, tmp_path, capsys):
    _, first, second = ort

    def go(*words):
        with pytest.raises(SystemExit) as ended:
            main(["device", *map(str, words), "--device", "local", "--folder", str(tmp_path / "there")])
        return ended.value.code, capsys.readouterr()

    assert go("install", first, "--name", "front-door")[0] == 12
    assert go("install", first, "--name", "front-door", "--unsigned", "--slack", "100")[0] == 0
    assert go("install", second, "--name", "front-door", "--unsigned", "--slack", "100")[0] == 0
    code, said = go("status", "--target", "x86-onnxruntime")
    assert code == 0 and "front-door" in said.out and "in use" in said.out and "before it" in said.out
    code, said = go("rollback", "front-door", "--target", "x86-onnxruntime", "--json")
    assert code == 0 and json.loads(said.out)["releases"][0]["current"]["bundle"] == sums(first)
    assert go("rollback", "front-door", "--target", "x86-onnxruntime")[0] == 2
    assert go("status", "--test", "--target", "x86-onnxruntime")[0] == 2
    code, said = go("status")  # this machine's releases say what it is
    assert code == 0 and "front-door" in said.out
    (tmp_path / "there" / "front-door" / "current" / "manifest.json").write_text("{")
    assert release.targets_here(folder=str(tmp_path / "there")) == []
    code, said = go("status")
    assert code == 2 and "no release that can be read lies on this machine" in said.err
    code, said = go("status", "nothing", "--target", "x86-onnxruntime")
    assert code == 0 and "No release is installed" in said.out


def test_a_device_that_only_exists_on_paper_takes_no_release(ort, tmp_path):
    from edgeprune.errors import DeviceError

    profile = msgspec.structs.replace(
        ort[0], connection=msgspec.structs.replace(ort[0].connection, transport="model", address="")
    )
    with pytest.raises(DeviceError, match="no device here"):
        release.installed(profile, "")


@pytest.mark.slow
def test_each_runtime_tests_its_own_artifact(made, tmp_path):
    """The worker opens it with the options and threads of the bundle."""
    run, result = made
    bundle = release.bundle(run, result, tmp_path)
    found = install(bundle, tmp_path / "there")
    assert found.current.judged and "6 samples: the same class on 100 %" in found.current.samples


def test_a_large_bundle_keeps_the_host_informed(tmp_path, monkeypatch):
    """A slow card takes minutes: the agent says that it lives, and syncs a little at a time."""
    archive.write(tmp_path / "large.tar", {"artifact/a.bin": bytes(3 << 20), "artifact/b.bin": bytes(1 << 20)})
    said, synced, whole = [], [], os.fsync
    monkeypatch.setattr(unpack, "ALIVE_S", -1.0)
    monkeypatch.setattr(unpack, "SYNCED", 1)
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(handle), whole(handle)))
    unpack.Bundle(str(tmp_path / "large.tar"), said.append).unpack(str(tmp_path / "there"))
    assert said == [{"event": "alive"}] * 4
    assert len(synced) == 4 + 2 + 2  # each megabyte, each file, each folder
    assert (tmp_path / "there/artifact/a.bin").read_bytes() == bytes(3 << 20)
