"""`verify`: one flipped byte anywhere is found and named; nothing hostile is unpacked; the samples run again."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import tarfile

import numpy as np
import pytest

from edgeprune import release, target
from edgeprune.errors import BundleError, TargetError
from edgeprune.release import archive
from edgeprune.release.bundle import dump


@pytest.fixture(scope="module")
def bundle(made, tmp_path_factory):
    run, result = made
    return release.bundle(run, result, tmp_path_factory.mktemp("out"))


def check(path, **options):
    return release.verify(path, **{"rerun": False, **options})


def contents(path):
    found = archive.read(path)
    return {name: found.read(name) for name in found.members}


def rewritten(path, out, listed=True, **changes):
    """The bundle with other contents (None: without that file), its hashes put right again when `listed`."""
    members = {**contents(path), **{name.replace("__", "."): data for name, data in changes.items()}}
    members = {name: data for name, data in members.items() if data is not None}
    if listed:
        manifest = json.loads(members["manifest.json"])
        for name in manifest["files"]:
            if name in members:
                manifest["files"][name]["sha256"] = hashlib.sha256(members[name]).hexdigest()
        members["manifest.json"] = dump(manifest)
        del members["SHA256SUMS"]
        sums = "".join(f"{hashlib.sha256(members[name]).hexdigest()}  {name}\n" for name in sorted(members))
        members["SHA256SUMS"] = sums.encode()
    return archive.write(out, members)


def with_manifest(path, out, change):
    manifest = json.loads(contents(path)["manifest.json"])
    change(manifest)
    return rewritten(path, out, manifest__json=dump(manifest))


def test_a_good_bundle_and_its_samples_again(bundle):
    found = release.verify(bundle)
    checks = {item.name: item for item in found.checks}
    assert checks["integrity"].passed
    assert checks["evidence"].passed
    assert checks["samples"].passed, checks["samples"].message
    assert "the same class on 100%" in checks["samples"].message
    assert not checks["signature"].passed  # not signed, and says so
    assert found.to_dict()["good"]


def test_one_flipped_byte_anywhere_is_found_and_named(bundle, tmp_path):
    data = bundle.read_bytes()
    members = archive.read(bundle).members.values()
    rng = np.random.default_rng(0)
    places = {int(place) for place in rng.integers(0, len(data), 250)}
    for member in members:  # the first and last byte of each file, its header, what fills its last block
        places |= {member.offset - 512, member.offset - 360, member.offset - 1, member.offset}
        places |= {member.offset + member.size - 1, member.offset + member.size}
    damaged = tmp_path / "damaged.tar"
    for place in sorted(places & set(range(len(data)))):
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(rng.integers(0, 8))
        damaged.write_bytes(flipped)
        with pytest.raises(BundleError) as caught:
            check(damaged)
        assert caught.value.exit_code == 10
        inside = [item.name for item in members if item.offset <= place < item.offset + item.size]
        if inside and inside != ["SHA256SUMS"]:
            assert f"'{inside[0]}'" in str(caught.value), (place, str(caught.value))


def test_cut_off_or_longer_is_found(bundle, tmp_path):
    data = bundle.read_bytes()
    damaged = tmp_path / "damaged.tar"
    for other in (data[:-1], data[: len(data) // 2], data[:100], b"", data + b"\0", data + data):
        damaged.write_bytes(other)
        with pytest.raises(BundleError):
            check(damaged)


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_what_is_no_bundle_is_refused(kind, tmp_path):
    with pytest.raises(BundleError):
        check(tmp_path / "no.tar" if kind == "missing" else tmp_path)


def hostile(tmp_path, **fields):
    """A tar archive with one odd member, as Python's tarfile writes it."""
    info = tarfile.TarInfo(fields.pop("name", "x"))
    for key, value in fields.items():
        setattr(info, key, value)
    path = tmp_path / "hostile.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"a" * info.size))
    return path


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "../../etc/passwd", "size": 3},
        {"name": "/etc/passwd", "size": 3},
        {"name": "a/../../b", "size": 3},
        {"name": "link", "type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"name": "link", "type": tarfile.LNKTYPE, "linkname": "manifest.json"},
        {"name": "fifo", "type": tarfile.FIFOTYPE},
        {"name": "folder", "type": tarfile.DIRTYPE},
        {"name": "owned", "size": 3, "uid": 1000},
        {"name": "dated", "size": 3, "mtime": 1},
        {"name": "program", "size": 3, "mode": 0o755},
    ],
    ids=lambda fields: str(fields["name"]),
)
def test_hostile_archives_are_refused_before_anything_is_written(fields, tmp_path):
    path = hostile(tmp_path, **fields)
    with pytest.raises(BundleError):
        check(path)
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_name_twice_is_refused(tmp_path):
    path = tmp_path / "twice.tar"
    one = archive.write(tmp_path / "one.tar", {"a": b"1"}).read_bytes()[: -len(archive.END)]
    path.write_bytes(one + one + archive.END)
    with pytest.raises(BundleError):
        archive.read(path)


def test_a_size_that_lies_is_refused(tmp_path):
    path = hostile(tmp_path, name="big", size=3)
    data = bytearray(path.read_bytes())
    info = tarfile.TarInfo("big")
    info.size, info.mode = 8**11 - 1, 0o644  # 8 GiB, says the header
    data[:512] = info.tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(data)
    with pytest.raises(BundleError, match="cut off"):
        archive.read(path)


def test_a_file_that_nobody_lists_is_refused(bundle, tmp_path):
    with pytest.raises(BundleError, match=r"'extra\.sh' is not listed"):
        check(rewritten(bundle, tmp_path / "b.tar", listed=False, extra__sh=b"rm"))


def test_a_file_that_is_missing_is_named(bundle, tmp_path):
    with pytest.raises(BundleError, match=r"'plan\.json' is missing"):
        check(rewritten(bundle, tmp_path / "b.tar", listed=False, plan__json=None))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["gates"].pop(2), "no 'accuracy' gate"),
        (lambda m: m["gates"][3].update(passed=False), "'latency' gate did not pass"),
        (lambda m: m["gates"][3].update(value=99.0), "'latency' gate did not pass"),
        (lambda m: m["gates"][4].update(value=m["gates"][4]["limit"]), "'faster' gate did not pass"),
        (lambda m: m["gates"][2].update(value=None), "'accuracy' gate did not pass"),
        (lambda m: m["proof"].update(passed=False), "no proof"),
        (lambda m: m.update(verdict="refused"), "no verdict|verdict to release"),
        (lambda m: m.update(version=2), "version 2"),
        (lambda m: m.pop("artifact"), "not a manifest"),
        (lambda m: m["artifact"].update(files=["../run.py"]), "is missing"),
        (lambda m: m["artifact"].update(files=["nothing.bin"]), "is missing"),
    ],
)
def test_evidence_that_does_not_hold_is_refused_even_with_right_hashes(bundle, tmp_path, change, says):
    with pytest.raises(BundleError, match=says):
        check(with_manifest(bundle, tmp_path / "b.tar", change))


def test_outputs_that_come_out_differently_are_refused(bundle, tmp_path):
    with np.load(io.BytesIO(contents(bundle)["samples.npz"])) as stored:
        arrays = dict(stored)
    buffer = io.BytesIO()
    np.savez(buffer, input=arrays["input"], output=arrays["output"][::-1])
    other = rewritten(bundle, tmp_path / "b.tar", samples__npz=buffer.getvalue())
    with pytest.raises(BundleError, match="does not compute what it did"):
        release.verify(other)


def test_samples_with_a_pickle_in_them_are_refused(bundle, tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, input=np.array([{}], dtype=object), output=np.zeros(1))
    with pytest.raises(BundleError, match=r"samples\.npz"):
        release.verify(rewritten(bundle, tmp_path / "b.tar", samples__npz=buffer.getvalue()))


def test_an_artifact_that_the_runtime_refuses_is_named(bundle, tmp_path):
    found = contents(bundle)
    name = "artifact/" + json.loads(found["manifest.json"])["artifact"]["files"][0]
    other = tmp_path / "b.tar"
    members = {**found, name: found[name][: len(found[name]) // 2]}
    archive.write(other, members)
    with pytest.raises(BundleError, match=name):
        check(other)
    whole = rewritten(other, tmp_path / "c.tar")  # even if someone puts the hashes right
    with pytest.raises(BundleError, match="does not run"):
        release.verify(whole)


def test_says_so_where_the_runtime_is_missing(bundle, monkeypatch):
    real = importlib.util.find_spec
    hidden = ("openvino", "onnxruntime")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in hidden else real(name, *a))
    samples = release.verify(bundle).checks[-1]
    assert not samples.passed
    assert "not rerun" in samples.message
    assert "is not installed" in samples.message


def test_says_so_where_the_target_is_not_known(bundle, monkeypatch):
    def unknown(name):
        raise TargetError("unknown")

    monkeypatch.setattr(target, "load", unknown)
    samples = release.verify(bundle).checks[-1]
    assert not samples.passed
    assert "--targets" in samples.message
