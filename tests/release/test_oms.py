"""OpenSSF Model Signing: by the field's own library, and checked by its own command too."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from edgeprune import release
from edgeprune.errors import BundleError, MissingDependency, UsageError
from edgeprune.release import archive, oms

pytest.importorskip("cryptography")
pytest.importorskip("model_signing")
from cryptography.hazmat.primitives.asymmetric import ec
from test_signature import write_pair
from test_verify import contents, rewritten


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("keys"), "curve", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def signed(made, pair, tmp_path):
    run, result = made
    return release.sign(release.bundle(run, result, tmp_path), pair[0])


def state(path, key=None, revoked=None):
    return release.verify(path, key=key, rerun=False, revoked=revoked)


def test_signed_beside_ed25519_and_checked_by_either_key(signed, pair, tmp_path):
    assert set(contents(signed)) >= {"model.sig", "SHA256SUMS"} and "SIGNATURE" not in contents(signed)
    found = state(signed, pair[1])
    assert found.state == "authentic" and "OpenSSF Model Signing" in found.summary
    assert state(signed).state == "intact"
    key, public = write_pair(tmp_path, "ours")
    both = release.sign(signed, key)
    assert set(contents(both)) >= {"model.sig", "SIGNATURE"}
    for one in (pair[1], public):
        assert state(both, one).state == "authentic"
    ring = tmp_path / "ring.pub"
    ring.write_bytes(public.read_bytes() + pair[1].read_bytes())
    assert state(signed, ring).state == "authentic"


def test_what_is_not_signed_by_the_given_key_is_bad(signed, pair, tmp_path):
    _, other = write_pair(tmp_path, "other", ec.generate_private_key(ec.SECP256R1()))
    _, ours = write_pair(tmp_path, "ours")
    with pytest.raises(BundleError, match="not a signature of these files by a key that was given"):
        state(signed, other)
    with pytest.raises(BundleError, match="signed by another key"):
        state(signed, ours)
    with pytest.raises(BundleError, match="not a signature of these files"):
        state(rewritten(signed, tmp_path / "b.tar", README__md=b"trust me\n"), pair[1])
    (tmp_path / "revoked.toml").write_text(f'[[key]]\nsha256 = "{oms.stated(archive.read(signed))}"\n')
    with pytest.raises(BundleError, match="is revoked"):
        state(signed, pair[1], release.load_revoked(tmp_path / "revoked.toml"))


@pytest.mark.parametrize("raw", [b"", b"{}", b"[]", b"{" * 1000, b'{"dsseEnvelope": {"payload": 1}}'])
def test_a_damaged_signature_is_one_error(signed, pair, tmp_path, raw):
    members = {**contents(signed), "model.sig": raw}
    path = archive.write(tmp_path / "b.tar", members)
    with pytest.raises(BundleError, match=r"model\.sig"):
        state(path, pair[1])


def test_keys_of_other_curves_and_a_missing_library_are_said_before_any_work(tmp_path, pair, monkeypatch):
    curve, _ = write_pair(tmp_path, "odd", ec.generate_private_key(ec.SECP256K1()))
    with pytest.raises(UsageError, match="P-256"):
        release.check_key(curve)
    release.check_key(pair[0])
    monkeypatch.setattr(oms, "installed", lambda: False)
    with pytest.raises(MissingDependency, match="model-signing"):
        release.check_key(pair[0])


@pytest.mark.slow
def test_the_fields_own_command_checks_it_without_edgeprune(signed, pair, tmp_path):
    with tarfile.open(signed) as tar:
        tar.extractall(tmp_path / "x", filter="data")
    command = [str(Path(sys.executable).with_name("model_signing")), "verify", "key", ".", "--signature", "model.sig"]
    command += ["--ignore-paths", "SIGNATURE", "--public_key", str(pair[1])]
    done = subprocess.run(command, cwd=tmp_path / "x", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (tmp_path / "x" / "plan.json").write_text("{}")
    assert subprocess.run(command, cwd=tmp_path / "x", capture_output=True, check=False).returncode != 0
