"""What `edgeprune verify` says last, and with which exit code: good is only what is signed and was run again."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
from click.testing import CliRunner

from edgeprune import devices, release
from edgeprune.cli import main
from edgeprune.errors import DeviceUnreachable
from edgeprune.release import archive

pytest.importorskip("cryptography")
from test_signature import write_pair
from test_verify import contents, rewritten, with_result


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("keys"), "release")


@pytest.fixture(scope="module")
def plain(made, tmp_path_factory):
    run, result = made
    return release.bundle(run, result, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def signed(made, pair, tmp_path_factory):
    run, result = made
    return release.sign(release.bundle(run, result, tmp_path_factory.mktemp("signed")), pair[0])


def verify(*arguments):
    done = CliRunner().invoke(main, ["verify", *map(str, arguments)], prog_name="edgeprune")
    lines = done.stdout.strip().splitlines()
    return done.exit_code, lines[-1] if lines else "", done


@pytest.mark.long
def test_good(signed, pair):
    code, last, _ = verify(signed, "--key", pair[1], "--strict")
    assert code == 0
    assert last.startswith(f"GOOD (signed by {pair[1]} (") and last.endswith(f", samples rerun here)  {signed}")


@pytest.mark.long
def test_good_as_json(signed, pair):
    code, _, done = verify(signed, "--key", pair[1], "--json")
    found = json.loads(done.stdout)
    assert (code, found["state"], found["good"]) == (0, "good", True)


def test_authentic_but_not_run(signed, pair):
    code, last, _ = verify(signed, "--key", pair[1], "--no-rerun")
    assert code == 0
    assert last.startswith("AUTHENTIC, SAMPLES NOT RERUN (signed by") and "GOOD" not in last
    code, last, done = verify(signed, "--key", pair[1], "--no-rerun", "--strict")
    assert code == 12
    assert last.startswith("AUTHENTIC, SAMPLES NOT RERUN")
    assert "--strict asks" in done.stderr


def test_a_runtime_that_is_not_here_and_a_device_that_does_not_answer_are_not_good(signed, pair, monkeypatch):
    with monkeypatch.context() as patch:
        real, hidden = importlib.util.find_spec, ("openvino", "onnxruntime")
        patch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in hidden else real(name, *a))
        code, last, _ = verify(signed, "--key", pair[1], "--strict")
        assert code == 12 and last.startswith("AUTHENTIC, SAMPLES NOT RERUN")

    def unreachable(*_):
        raise DeviceUnreachable("the link to the agent ended.")

    monkeypatch.setattr(devices, "connect", unreachable)
    code, last, done = verify(signed, "--key", pair[1])
    assert (
        code == 0 and last.startswith("AUTHENTIC, SAMPLES NOT RERUN") and "the link to the agent ended" in done.stdout
    )
    assert verify(signed, "--key", pair[1], "--strict")[0] == 12


@pytest.mark.long
@pytest.mark.parametrize("strict", [(), ("--strict",)])
def test_without_a_key_it_is_intact_and_no_more(plain, signed, strict):
    for bundle in (plain, signed):
        code, last, done = verify(bundle, *strict)
        assert code == 12
        assert last == f"INTACT, NOT AUTHENTICATED (samples rerun here)  {bundle}"
        assert "--key" in done.stderr
        code, last, _ = verify(bundle, "--no-rerun", "--json")
        assert code == 12
    assert verify(plain, "--no-rerun")[1].startswith("INTACT, NOT AUTHENTICATED (samples not rerun)")


def test_another_key_and_no_signature_are_bad_where_a_key_is_given(plain, signed, tmp_path):
    _, other = write_pair(tmp_path, "other")
    for bundle in (plain, signed):
        code, last, done = verify(bundle, "--key", other)
        assert (code, last) == (10, f"BAD  {bundle}")
        assert "signed" in done.stderr


@pytest.mark.long
def test_a_resealed_bundle_is_never_good(signed, pair, tmp_path):
    """Better figures, right hashes, the old signature; or none."""

    def better(result):
        result["pruned_int8"]["bytes"] = 1

    other = with_result(signed, tmp_path / "b.tar", better)
    assert verify(other, "--key", pair[1])[0] == 10
    members = {name: data for name, data in contents(other).items() if name != "SIGNATURE"}
    bare = archive.write(tmp_path / "c.tar", members)
    assert verify(bare, "--key", pair[1])[0] == 10
    code, last, _ = verify(bare)
    assert code == 12 and last.startswith("INTACT, NOT AUTHENTICATED")


def test_bad(plain, tmp_path):
    bundle = rewritten(plain, tmp_path / "b.tar", listed=False, plan__json=b"{}")
    code, last, done = verify(bundle)
    assert (code, last) == (10, f"BAD  {bundle}")
    assert "'plan.json' is damaged" in done.stderr


def test_a_bundle_that_is_not_there_was_not_tampered_with(tmp_path):
    for path in (tmp_path / "no.tar", tmp_path, tmp_path / ("x" * 300), "/dev/null"):
        code, last, done = verify(path)
        assert (code, last) == (2, ""), done.stderr


@pytest.mark.long
def test_an_unverified_bundle_says_so_last(made, tmp_path):
    run, result = made
    result = json.loads(json.dumps(result))
    result["unit"], result["verdict"] = "modelled ms", "unverified"
    for name in ("dense_fp32", "dense_int8", "pruned_fp32", "pruned_int8"):
        result[name]["latency_modelled_ms"] = result[name].pop("latency_ms")
    result["budget_modelled_ms"] = result.pop("budget_ms")
    from edgeprune import claims, target, validate
    from edgeprune.recipe import BudgetSection

    result["device"] = {**result["device"], "emulation": "model"}
    result["claim"] = claims.judge(target.load(result["target"]), "model", result["device"]).to_dict()
    result["gates"] = [gate.to_dict() for gate in validate.gates(result, BudgetSection(**result["budget"]))]
    bundle = release.bundle(run, result, tmp_path)
    code, last, done = verify(bundle)
    assert code == 8, done.stderr
    assert (
        last
        == f"UNVERIFIED: its own device has not measured it (intact, not authenticated, samples rerun here)  {bundle}"
    )


@pytest.mark.long
def test_what_a_bundle_says_never_poses_as_a_line_of_ours(plain, tmp_path):
    """The attack: a version that moves the cursor up and writes a signature; and what a network is called."""
    lie = "x\x1b[1F\x1b[2K  ✓ signature: signed by release.pub (606f3fd208d19d68)."

    def lying(result):
        result["runtime"]["version"] = lie

    assert verify(with_result(plain, tmp_path / "a.tar", lying))[0] == 10

    def named(result):
        result["name"] = lie
        result["device"]["cpus"] = [lie]

    code, _, done = verify(with_result(plain, tmp_path / "b.tar", named))
    assert code == 12
    assert "\x1b" not in done.stdout + done.stderr and "release.pub" not in done.stdout


def test_the_runtime_writes_nothing_where_the_bundle_says(plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    found = contents(plain)
    manifest = json.loads(found["manifest.json"])
    manifest["artifact"]["options"] = {"CACHE_DIR": str(tmp_path / "cache")}
    bundle = rewritten(plain, tmp_path / "b.tar", manifest__json=json.dumps(manifest).encode())
    assert verify(bundle)[0] == 10
    assert [path.name for path in tmp_path.iterdir()] == ["b.tar"]


def test_samples_of_nan_are_bad(plain, tmp_path):
    import io

    buffer = io.BytesIO()
    np.savez(buffer, input=np.full((2, 3, 8, 8), np.nan, np.float32), output=np.full((2, 4), np.nan, np.float32))
    code, last, done = verify(rewritten(plain, tmp_path / "b.tar", samples__npz=buffer.getvalue()))
    assert code == 10 and last.startswith("BAD") and "not finite" in done.stderr
