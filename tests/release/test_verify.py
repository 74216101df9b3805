"""`verify`: one flipped byte anywhere is found and named; nothing hostile is unpacked; the samples run again."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import json
import re
import tarfile
import tracemalloc
import zipfile

import numpy as np
import onnx
import pytest

from edgeprune import files, release, target
from edgeprune.errors import BundleError, TargetError, UsageError
from edgeprune.release import archive
from edgeprune.release.bundle import dump
from edgeprune.release.evidence import REQUIRED


@pytest.fixture(scope="module")
def bundle(made, tmp_path_factory):
    run, result = made
    return release.bundle(run, result, tmp_path_factory.mktemp("out"))


def sums(members):
    names = sorted(set(members) - {"SHA256SUMS", "SIGNATURE", "model.sig"})
    return "".join(f"{hashlib.sha256(members[name]).hexdigest()}  {name}\n" for name in names).encode()


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
        reproved(members)
        manifest = json.loads(members["manifest.json"])
        for name in manifest["files"]:
            if name in members:
                digest = hashlib.sha256(members[name]).hexdigest()
                manifest["files"][name] = {"sha256": digest, "bytes": len(members[name])}
        members["manifest.json"] = dump(manifest)
        members["SHA256SUMS"] = sums(members)
    return archive.write(out, members)


def reproved(members):
    """The provenance of these members, as far as they can be read."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        statement, result = json.loads(members["provenance.json"]), json.loads(members["result.json"])
        details = statement["predicate"]["runDetails"]
        for one in [*statement["subject"], *details["byproducts"]]:
            one["digest"]["sha256"] = hashlib.sha256(members[one["name"]]).hexdigest()
        statement["predicate"]["buildDefinition"]["externalParameters"]["recipe"] = result["recipe"]
        members["provenance.json"] = dump(statement)


def with_manifest(path, out, change, *, both=True):
    """The bundle with another manifest, and another result.json that says the same."""
    found = contents(path)
    manifest, result = json.loads(found["manifest.json"]), json.loads(found["result.json"])
    change(manifest)
    if both:
        result.update({key: manifest[key] for key in ("gates", "proof", "verdict", "unit", "name") if key in manifest})
    return rewritten(path, out, manifest__json=dump(manifest), result__json=dump(result))


def with_result(path, out, change):
    """The bundle with other figures, in result.json and in the manifest alike."""
    found = contents(path)
    manifest, result = json.loads(found["manifest.json"]), json.loads(found["result.json"])
    change(result)
    for key in ("name", "unit", "runtime", "device", "verdict", "gates", "proof", "evidence"):
        if key in result:
            manifest[key] = result[key]
    manifest["figures"] = {key: result.get(key) for key in manifest["figures"]}
    return rewritten(path, out, manifest__json=json.dumps(manifest).encode(), result__json=json.dumps(result).encode())


@pytest.mark.long
def test_a_good_bundle_and_its_samples_again(bundle):
    found = release.verify(bundle)
    checks = {item.name: item for item in found.checks}
    assert checks["integrity"].passed
    assert checks["evidence"].passed
    assert checks["samples"].passed, checks["samples"].message
    assert "the same class on 100 %" in checks["samples"].message
    assert not checks["signature"].passed  # not signed, and says so
    assert found.state == "intact" and not found.to_dict()["good"]
    assert found.summary == "INTACT, NOT AUTHENTICATED (samples rerun here)"


@pytest.mark.long
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
    with pytest.raises(UsageError) as caught:  # not there is not tampered with
        check(tmp_path / "no.tar" if kind == "missing" else tmp_path)
    assert caught.value.exit_code == 2


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
        (lambda m: m["gates"].pop(4), "no 'accuracy' gate"),
        (lambda m: m["gates"][6].update(passed=False), "'latency' gate did not pass"),
        (lambda m: m["gates"].append(m["gates"][6]), "stands twice"),
        (lambda m: m["gates"].append({**m["gates"][6], "passed": False}), "stands twice"),
        (lambda m: m["gates"].append({**m["gates"][6], "name": "magic"}), "'magic' is no gate"),
        (lambda m: m["gates"][6].update(limit=1e999), "not finite|differ"),
        (lambda m: m["gates"][6].update(value=float("nan")), "not finite|differ"),
        (lambda m: m["gates"][6].update(value="fast"), "not a manifest"),
        (lambda m: m["gates"].clear(), "not a manifest"),
        (lambda m: m["proof"].update(passed=False), "'proof' gate did not pass"),
        (lambda m: m["proof"].clear(), "'proof' gate did not pass"),
        (lambda m: m.update(verdict="refused"), "no verdict to release"),
        (lambda m: m.update(verdict="unverified"), "'measurement' gate did not pass|no verdict"),
        (lambda m: m.update(version=2), "version 2"),
        (lambda m: m.pop("artifact"), "not a manifest"),
        (lambda m: m["artifact"].update(files=["../run.py"]), "not a manifest"),
        (lambda m: m["artifact"].update(files=["nothing.onnx"]), "is missing"),
        (lambda m: m["artifact"].update(precision="fp32"), "not a manifest"),
        (lambda m: m["artifact"].update(threads=0), "not a manifest"),
        (lambda m: m["artifact"].update(options={"CACHE_DIR": "cache"}), "no option CACHE_DIR"),
        (lambda m: m["artifact"].update(options={"optimized_model_filepath": "x"}), "no option"),
        (lambda m: m["artifact"].update(options=[]), "not a manifest"),
        (lambda m: m["target"].update(name="x\x1b[2K"), "names no target"),
        (lambda m: m["target"].update(colour="red"), "unknown key"),
        (lambda m: m["runtime"].update(version="1  ✓ signature: signed by release.pub"), "not a manifest"),
        (lambda m: m["runtime"].update(name="tensorrt"), "differ|two runtimes"),
        (lambda m: m["files"].pop("plan.json"), "'plan.json' is not listed"),
        (lambda m: m["files"].update({"x": {"sha256": "0" * 64, "bytes": 1}}), "'x' is missing"),
    ],
)
def test_evidence_that_does_not_hold_is_refused_even_with_right_hashes(bundle, tmp_path, change, says):
    with pytest.raises(BundleError, match=says):
        check(with_manifest(bundle, tmp_path / "b.tar", change))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m["gates"][6].update(message="x"), "'gates' in .* differ"),
        (lambda m: m["figures"]["pruned_int8"].update(accuracy=0.999), "'pruned_int8' in .* differ"),
        (lambda m: m["figures"].update(speedup_vs_dense_int8=9.0), "'speedup_vs_dense_int8' in .* differ"),
        (lambda m: m["figures"].pop("dense_int8"), "'dense_int8' in .* differ"),
        (lambda m: m["figures"].update(wonder=1), "'wonder' in .* differ"),
        (lambda m: m["proof"].update(method="faith"), "'proof' in .* differ"),
        (lambda m: m.update(device={"cpus": ["better"]}), "'device' in .* differ"),
        (lambda m: m.update(name="other"), "'name' in .* differ"),
    ],
)
def test_a_manifest_that_says_other_than_the_result_is_refused(bundle, tmp_path, change, says):
    with pytest.raises(BundleError, match=says):
        check(with_manifest(bundle, tmp_path / "b.tar", change, both=False))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r["comparison"].update(high=3.0), "'accuracy' gate did not pass"),
        (lambda r: r["pruned_int8"].update(accuracy=0.9), "does not follow from its counts"),
        (lambda r: r["pruned_int8"]["latency_ms"].update(median=5.0), "did not pass|does not follow|is not the one"),
        (lambda r: r["pruned_int8"]["latency_ms"].update(median=float("nan")), "differ|has no latency_ms"),
        (lambda r: r["pruned_int8"]["latency_ms"].update(median=-1.0), "has no latency_ms"),
        (lambda r: r["pruned_int8"]["latency_ms"].update(median="fast"), "no pruned int8"),
        (lambda r: r.update(speedup_vs_dense_int8=4.0), "does not follow from the latencies"),
        (lambda r: r.update(budget_ms=4.0), "does not follow from the latencies"),
        (lambda r: r["budget"].update(max_drop=50), "not the one that was judged"),
        (
            lambda r: (r["budget"].update(max_drop=float("inf")), r["recipe"]["budget"].update(max_drop=float("inf"))),
            "not finite|differ",
        ),
        (lambda r: r.pop("budget"), "does not have the figures|differ"),
        (lambda r: r.pop("dense_int8"), "no dense_int8"),
        (lambda r: r.update(dense_int8=[]), "no dense int8"),
        (lambda r: r.update(dense_int8=3), "no dense int8"),
        (lambda r: r.update(recipe=None), "does not have the figures"),
        (lambda r: r["proof"].update(passed="yes"), "no proof"),
    ],
)
def test_the_gates_are_computed_again_from_the_figures(bundle, tmp_path, change, says):
    with pytest.raises(BundleError, match=says):
        check(with_result(bundle, tmp_path / "b.tar", change))


@pytest.mark.parametrize("name", [*REQUIRED, "artifact"])
def test_no_part_may_be_missing(bundle, tmp_path, name):
    found = contents(bundle)
    name = next(member for member in found if member.startswith(name))
    members = {key: data for key, data in found.items() if key != name}
    if name == "manifest.json":
        other = rewritten(bundle, tmp_path / "b.tar", listed=False, manifest__json=None)
    else:
        manifest = json.loads(found["manifest.json"])
        del manifest["files"][name]
        members["manifest.json"] = dump(manifest)
        members["SHA256SUMS"] = sums(members)
        other = archive.write(tmp_path / "b.tar", members)
    with pytest.raises(BundleError, match=f"'{name}' is missing"):
        check(other)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("preprocessing.json", b'{"resize": 0, "cr', "not valid JSON"),
        ("preprocessing.json", b"{}", "not preprocessing"),
        ("preprocessing.json", b'{"scale": 1, "mean": [0], "std": [0]}', "not preprocessing"),
        ("preprocessing.json", b'{"scale": NaN, "mean": [0], "std": [1]}', "not preprocessing"),
        ("plan.json", b"[]", "not what it should be"),
        ("plan.json", b"[" * 100_000, "nested too deeply|not valid JSON"),
        ("labels.json", b'{"a": 1}', "not what it should be"),
        ("sbom.json", b"{}", "no bill of materials"),
        ("sbom.json", b'{"bomFormat": "CycloneDX", "metadata": {"component": {"components": []}}}', "another artifact"),
        ("result.json", b"[]", "no result"),
        ("result.json", b"{" * 2_500_000, "too many parts"),
        ("result.json", b" " * (17 << 20), "larger than"),
        ("run.py", b"", "is empty"),
        ("plan.json", b"1" * 5000, "not valid JSON|not what it should be"),
    ],
)
def test_a_part_that_is_none_is_refused(bundle, tmp_path, name, content, says):
    with pytest.raises(BundleError, match=says) as caught:
        check(rewritten(bundle, tmp_path / "b.tar", **{name.replace(".", "__"): content}))
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["numpy.py", "sitecustomize.py", "a/b/c.sh", "agent/x.pth", "artifact/more.onnx"])
def test_what_does_not_belong_is_refused(bundle, tmp_path, name):
    members = {**contents(bundle), name: b"x = 1"}
    manifest = json.loads(members["manifest.json"])
    manifest["files"][name] = {"sha256": hashlib.sha256(b"x = 1").hexdigest(), "bytes": 5}
    members["manifest.json"] = dump(manifest)
    members["SHA256SUMS"] = sums(members)
    with pytest.raises(BundleError, match=f"'{name}' (does not belong|is no part)"):
        check(archive.write(tmp_path / "b.tar", members))


def test_a_float_artifact_is_not_called_int8(bundle, tmp_path):
    """The same network in float, resealed: right hashes, right outputs."""
    found = contents(bundle)
    (name, *_) = [one for one in found if one.endswith((".onnx", ".xml")) and one.startswith("artifact/")]
    if name.endswith(".xml"):
        other = re.sub(rb'type="FakeQuantize"', b'type="Relu"', found[name])
    else:
        model = onnx.load_from_string(found[name])
        for node in list(model.graph.node):
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                node.op_type = "Identity"
        other = model.SerializeToString()
    members = rewritten(bundle, tmp_path / "b.tar", **{name.replace(".", "__"): other})
    with pytest.raises(BundleError, match="is called INT8, but"):
        check(members)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 1000,
        b"\x3a\xff\xff\xff\xff\x0f",
        b"\x3a\x02\x0a\xff",
        b"\x08" + b"\x80" * 50,
        b"<xml/>",
        b"<!DOCTYPE a [<!ENTITY b 'c'>]><net>&b;</net>",
    ],
)
def test_an_artifact_that_is_none_is_refused(bundle, tmp_path, content):
    name = next(one for one in contents(bundle) if one.endswith((".onnx", ".xml")))
    with pytest.raises(BundleError, match=r"is no ONNX graph|is called INT8|is no OpenVINO"):
        check(rewritten(bundle, tmp_path / "b.tar", **{name.replace(".", "__"): content}))


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def zipped(content, name="input.npy"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as stored:
        stored.writestr(name, content)
    return buffer.getvalue()


def header(shape, descr="'<f4'"):
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


ONE = np.ones((2, 3, 8, 8), np.float32)
OUT = np.ones((2, 4), np.float32)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        npz(input=ONE),
        npz(output=OUT),
        npz(input=ONE, output=OUT[:1]),
        npz(input=ONE[:0], output=OUT[:0]),
        npz(input=np.float32(1), output=OUT),
        npz(input=ONE, output=OUT * np.nan),
        npz(input=ONE * np.inf, output=OUT),
        npz(input=ONE, output=np.array(["a", "b"])),
        npz(input=ONE, output=OUT, output_x=OUT),
        npz(input=ONE, output=OUT, **{"../x": OUT}),
        npz(input=ONE, output=OUT.astype(complex)),
        npz(input=np.array([{}], dtype=object), output=OUT),
        zipped(header((1 << 40, 1 << 20))),
        zipped(header((-1, 3))),
        zipped(header((2,), "'|O'")),
        zipped(header(("x",))),
        zipped(b"\x93NUMPY\x09\x09"),
        zipped(header((75_000_000,)) + bytes(300_000_000)),
    ],
    ids=range(20),
)
def test_samples_that_are_none_are_refused_though_not_rerun(bundle, tmp_path, content):
    with pytest.raises(BundleError, match=r"samples\.npz"):
        check(rewritten(bundle, tmp_path / "b.tar", samples__npz=content))


@pytest.mark.long
def test_a_bomb_takes_no_memory(bundle, tmp_path):
    """Six megabytes that unpack to six gigabytes: refused by what the directory of the zip says."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as stored,
        stored.open("input.npy", "w", force_zip64=True) as out,
    ):
        out.write(header((1_000_000_000,)))
        for _ in range(400):
            out.write(bytes(1_000_000))
    tracemalloc.start()
    with pytest.raises(BundleError, match="when unpacked"):
        check(rewritten(bundle, tmp_path / "b.tar", samples__npz=buffer.getvalue()))
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()


@pytest.mark.long
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


@pytest.mark.long
def test_an_artifact_that_the_runtime_refuses_is_named(bundle, tmp_path):
    found = contents(bundle)
    name = "artifact/" + json.loads(found["manifest.json"])["artifact"]["files"][-1]
    other = tmp_path / "b.tar"
    members = {**found, name: found[name].replace(b"Flatten", b"Flattex") if name.endswith(".onnx") else b""}
    archive.write(other, members)
    with pytest.raises(BundleError, match=name):
        check(other)
    with pytest.raises(BundleError, match="is not the file that was measured"):  # even if someone puts the hashes right
        check(rewritten(other, tmp_path / "c.tar"))

    def measured(result):  # and says that this was measured
        result["artifact"]["sha256"][name.removeprefix("artifact/")] = files.sha256(members[name])

    whole = with_result(rewritten(other, tmp_path / "c.tar"), tmp_path / "d.tar", measured)
    with pytest.raises(BundleError, match="is of another artifact"):
        check(whole)
    bill = found["sbom.json"].replace(files.sha256(found[name]).encode(), files.sha256(members[name]).encode())
    whole = rewritten(whole, tmp_path / "e.tar", sbom__json=bill)
    assert check(whole).state == "intact"  # its graph is whole; only the runtime can tell
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
