"""Signatures: made by OpenSSL's keys too, bound to every file, and refused when anything about them is wrong."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgeprune import release
from edgeprune.errors import BundleError, MissingDependency, UsageError
from edgeprune.release import archive, signature

pytest.importorskip("cryptography")
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519


def write_pair(folder, name, private=None):
    private = private or ed25519.Ed25519PrivateKey.generate()
    key, public = folder / f"{name}.key", folder / f"{name}.pub"
    pkcs8, clear = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, pkcs8, clear))
    info = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(private.public_key().public_bytes(serialization.Encoding.PEM, info))
    return key, public


@pytest.fixture
def pair(tmp_path):
    return write_pair(tmp_path, "mine")


@pytest.fixture
def signed(made, pair, tmp_path):
    run, result = made
    return release.sign(release.bundle(run, result, tmp_path), pair[0])


def check(path, key=None):
    return {item.name: item for item in release.verify(path, key=key, rerun=False).checks}["signature"]


def test_signed_and_checked(signed, pair):
    found = check(signed, pair[1])
    assert found.passed
    assert "signed by" in found.message
    without = check(signed)
    assert not without.passed  # whole, but by whom?
    assert "--key" in without.message


def test_signing_is_deterministic_and_can_be_repeated(signed, pair):
    before = signed.read_bytes()
    release.sign(signed, pair[0])
    assert signed.read_bytes() == before


def test_another_key_is_refused(signed, tmp_path):
    _, other = write_pair(tmp_path, "other")
    with pytest.raises(BundleError, match="another key"):
        check(signed, other)


def test_unsigned_is_refused_where_a_key_is_given(made, pair, tmp_path):
    run, result = made
    with pytest.raises(BundleError, match="not signed"):
        check(release.bundle(run, result, tmp_path / "unsigned.tar"), pair[1])


def test_altered_files_with_hashes_put_right_break_the_signature(signed, pair, tmp_path):
    found = archive.read(signed)
    members = {name: found.read(name) for name in found.members}
    members["README.md"] += b"trust me\n"
    sums = dict(reversed(line.split("  ")) for line in members["SHA256SUMS"].decode().splitlines())
    manifest = json.loads(members["manifest.json"])
    manifest["files"]["README.md"]["sha256"] = hashlib.sha256(members["README.md"]).hexdigest()
    members["manifest.json"] = (json.dumps(manifest) + "\n").encode()
    for name in ("README.md", "manifest.json"):
        sums[name] = hashlib.sha256(members[name]).hexdigest()
    members["SHA256SUMS"] = "".join(f"{sums[name]}  {name}\n" for name in sorted(sums)).encode()
    altered = archive.write(tmp_path / "altered.tar", members)
    for key in (None, pair[1]):
        with pytest.raises(BundleError, match="not a signature of these files"):
            check(altered, key)


@pytest.mark.long
def test_every_byte_of_the_signature_counts(signed, tmp_path):
    member = archive.read(signed).members[signature.MEMBER]
    data = signed.read_bytes()
    damaged = tmp_path / "damaged.tar"
    for place in range(member.offset, member.offset + member.size):
        flipped = bytearray(data)
        flipped[place] ^= 4
        damaged.write_bytes(flipped)
        with pytest.raises(BundleError, match="SIGNATURE"):
            check(damaged)


def test_a_signature_by_a_key_of_ones_own_choice_is_not_trusted(signed, pair, tmp_path):
    forger = ed25519.Ed25519PrivateKey.generate()
    found = archive.read(signed)
    members = {name: found.read(name) for name in found.members}
    fields = json.loads(members[signature.MEMBER])
    fields["public_key"] = base64.b64encode(forger.public_key().public_bytes_raw()).decode()
    fields["signature"] = base64.b64encode(forger.sign(members["SHA256SUMS"])).decode()
    members[signature.MEMBER] = (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()
    with pytest.raises(BundleError, match="another key"):
        check(archive.write(tmp_path / "forged.tar", members), pair[1])


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_the_commands_that_the_messages_give_make_keys_that_work(made, tmp_path):
    for remedy in (signature.MAKE_KEY, signature.MAKE_PUBLIC):
        subprocess.run(remedy.removeprefix("Make one with: ").split(), cwd=tmp_path, check=True, capture_output=True)
    run, result = made
    bundle = release.sign(release.bundle(run, result, tmp_path), tmp_path / "release.key")
    assert check(bundle, tmp_path / "release.pub").passed


def test_bad_keys_are_refused_before_work_is_done(tmp_path):
    wrong = tmp_path / "wrong.key"
    wrong.write_text("no key")
    curve, _ = write_pair(tmp_path, "curve", ec.generate_private_key(ec.SECP256K1()))
    for path in (wrong, curve, tmp_path / "missing.key", tmp_path):
        with pytest.raises(UsageError) as caught:
            release.check_key(path)
        assert "openssl genpkey" in caught.value.remedy


def test_without_cryptography_it_says_what_to_install(signed, pair, monkeypatch):
    monkeypatch.setattr(signature, "installed", lambda: False)
    assert "pip install" in check(signed).message
    with pytest.raises(MissingDependency, match="cryptography"):
        check(signed, pair[1])


@pytest.fixture
def bundle(made, tmp_path):
    run, result = made
    return release.bundle(run, result, tmp_path)


def holder(folder, key, *, printed="raw"):
    """A command that holds a key, as a token's own does."""
    script = folder / f"holder-{printed}.py"
    script.write_text(
        "import base64, sys\nfrom pathlib import Path\n"
        "from cryptography.hazmat.primitives.serialization import load_pem_private_key\n"
        f"key = load_pem_private_key(Path({str(key)!r}).read_bytes(), None)\n"
        "made = key.sign(Path(sys.argv[1]).read_bytes())\n"
        f"sys.stdout.buffer.write(made if {printed!r} == 'raw' else base64.encodebytes(made))\n"
    )
    return f"{sys.executable} {script} {{file}}"


@pytest.mark.parametrize("printed", ["raw", "base64"])
def test_a_key_that_is_in_no_file_signs_by_its_command(bundle, pair, tmp_path, printed):
    by_file = release.sign(Path(shutil.copy(bundle, tmp_path / "by-file.tar")), pair[0]).read_bytes()
    assert release.sign_by(bundle, pair[1], holder(tmp_path, pair[0], printed=printed)).read_bytes() == by_file
    assert check(bundle, pair[1]).passed


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("true", "where the file goes"),
        ("'", "is no command"),
        ("no-such-command {file}", "cannot sign"),
        ("false {file}", r"failed \(exit code 1\)"),
        ("sh -c 'echo the token is locked >&2; exit 3' {file}", "the token is locked"),
        ("cat {file}", "no ed25519 signature"),
        ("head -c 64 {file}", "not a signature of"),
    ],
)
def test_a_command_that_does_not_sign_leaves_the_bundle_as_it_was(bundle, pair, command, message):
    before = bundle.read_bytes()
    with pytest.raises(UsageError, match=message):
        release.sign_by(bundle, pair[1], command)
    assert bundle.read_bytes() == before


def test_a_command_with_another_key_is_refused(bundle, pair, tmp_path):
    other, public = write_pair(tmp_path, "other")
    with pytest.raises(UsageError, match="not a signature of"):
        release.sign_by(bundle, pair[1], holder(tmp_path, other))
    both = tmp_path / "both.pub"
    both.write_bytes(pair[1].read_bytes() + public.read_bytes())
    with pytest.raises(UsageError, match="2 ed25519 keys; one is wanted"):
        release.sign_by(bundle, both, holder(tmp_path, other))


def test_the_command_sign(bundle, pair, tmp_path, capsys):
    from edgeprune.cli import main

    def go(*words):
        with pytest.raises(SystemExit) as ended:
            main(["sign", str(bundle), *map(str, words)])
        return ended.value.code, capsys.readouterr()

    code, said = go("--key", pair[0])
    assert code == 0 and said.out.startswith("Signed: ")
    assert go("--public", pair[1], "--command", holder(tmp_path, pair[0]), "--json")[0] == 0
    for words in ((), ("--public", pair[1]), ("--key", pair[0], "--command", "x"), ("--command", "x {file}")):
        assert go(*words)[0] == 2
    bundle.write_bytes(bundle.read_bytes()[:-1])
    assert go("--key", pair[0])[0] == 10
