"""An artifact that only a device's key opens: it comes back, the device runs it, forgeries are refused."""

from __future__ import annotations

import tarfile

import pytest
from test_bundle import on_device
from test_signature import write_pair

from edgeprune import cli, release, runtimes, target
from edgeprune.errors import BundleError, MissingDependency, UsageError
from edgeprune.release import archive, encryption

pyrage = pytest.importorskip("pyrage")
pytest.importorskip("cryptography")


@pytest.fixture(scope="module")
def plain(made, tmp_path_factory):
    run, result = made
    return release.bundle(run, result, tmp_path_factory.mktemp("plain"))


@pytest.fixture
def device(tmp_path):
    """(file of the private key, public key), as age-keygen writes it."""
    identity = pyrage.x25519.Identity.generate()
    path = tmp_path / "device.key"
    path.write_text(f"# created: today\n# public key: {identity.to_public()}\n{identity}\n")
    return path, str(identity.to_public())


@pytest.fixture
def encrypted(plain, device, tmp_path):
    return release.encrypt(plain, [device[1]], tmp_path / "encrypted.tar")


def members_of(path):
    found = archive.read(path)
    return {name: found.read(name) for name in found.members}


def files_of(path):
    return {name: data for name, data in members_of(path).items() if name.startswith("artifact/")}


def test_nothing_of_the_artifact_is_readable_and_the_key_gives_back_the_plain_bundle(
    plain, device, encrypted, tmp_path
):
    raw = encrypted.read_bytes()
    for name, content in files_of(plain).items():
        assert content[64:128] not in raw and name not in members_of(encrypted)
    assert release.decrypt(encrypted, device[0], tmp_path / "again.tar").read_bytes() == plain.read_bytes()


@pytest.mark.long
def test_states_with_and_without_the_two_keys(encrypted, device, tmp_path):
    assert release.verify(encrypted).state == "intact"
    assert release.verify(encrypted, identity=device[0]).state == "intact"
    key, public = write_pair(tmp_path, "mine")
    release.sign(encrypted, key)
    found = release.verify(encrypted, key=public)
    assert found.state == "authentic" and "EVIDENCE NOT CHECKED" in found.summary
    assert {check.name: check.passed for check in found.checks}["evidence"] is False
    opened = release.verify(encrypted, key=public, identity=device[0])
    assert opened.state == "good" and opened.bundle == encrypted


@pytest.mark.long
def test_the_device_runs_it_from_memory_with_its_key_alone(encrypted, device, tmp_path):
    root = tmp_path / "there"
    with tarfile.open(encrypted) as tar:
        tar.extractall(root, filter="data")
    done = on_device(root, "--identity", str(device[0]))
    assert done.returncode == 0 and done.stdout.strip().endswith("GOOD"), done.stderr
    left = [path for path in root.rglob("*") if path.is_file() and "artifact" in path.parts]
    assert left and all(path.suffix == ".age" for path in left)
    assert "--identity" in on_device(root).stderr
    other = tmp_path / "other.key"
    other.write_text(str(pyrage.x25519.Identity.generate()))
    for wrong in (other, tmp_path / "missing", root / "README.md"):
        done = on_device(root, "--identity", str(wrong))
        assert done.returncode == 1 and "cannot be decrypted" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.long
def test_another_network_encrypted_for_the_same_device_is_refused(encrypted, device, tmp_path):
    """Everybody can encrypt for a public key; what the manifest does not name is not opened."""
    members = members_of(encrypted)
    name = next(name for name in members if name.endswith(".age"))
    members[name] = pyrage.encrypt(b"other", [pyrage.x25519.Recipient.from_str(device[1])])
    forged = archive.write(
        tmp_path / "forged.tar", encryption._summed({k: v for k, v in members.items() if k != "SHA256SUMS"})
    )
    with pytest.raises(BundleError, match="not the file of the manifest"):
        release.verify(forged, identity=device[0], rerun=False)
    root = tmp_path / "there"
    with tarfile.open(forged) as tar:
        tar.extractall(root, filter="data")
    done = on_device(root, "--identity", str(device[0]))
    assert done.returncode == 1 and "not the file that the manifest names" in done.stderr


def test_damage_is_found(encrypted, device, tmp_path):
    members = members_of(encrypted)
    name = next(name for name in members if name.endswith(".age"))
    cut = {**members, name: members[name][:-1]}
    with pytest.raises(BundleError, match="damaged or altered"):
        release.verify(archive.write(tmp_path / "cut.tar", cut))
    cut.pop("SHA256SUMS")
    resealed = archive.write(tmp_path / "resealed.tar", encryption._summed(cut))
    with pytest.raises(BundleError, match="cannot be decrypted"):
        release.verify(resealed, identity=device[0], rerun=False)
    for content in (
        b"{}",
        b"[",
        b'{"version": 1, "format": "age-encryption.org/v1", "keys": 1, "files": ["artifact/x"]}',
    ):
        odd = {**members, "encrypted.json": content}
        odd.pop("SHA256SUMS")
        with pytest.raises(BundleError, match=r"encrypted\.json"):
            release.verify(archive.write(tmp_path / "odd.tar", encryption._summed(odd)))


def test_what_cannot_be_done_is_said(plain, encrypted, device, tmp_path, monkeypatch):
    out = tmp_path / "out.tar"
    with pytest.raises(UsageError, match="no public key of age"):
        release.encrypt(plain, ["age1nonsense"], out)
    with pytest.raises(BundleError, match="encrypted already"):
        release.encrypt(encrypted, [device[1]], out)
    with pytest.raises(UsageError, match="not encrypted"):
        release.decrypt(plain, device[0], out)
    other = tmp_path / "other.key"
    other.write_text(str(pyrage.x25519.Identity.generate()))
    with pytest.raises(UsageError, match="not encrypted for the key"):
        release.decrypt(encrypted, other, out)
    other.write_text("nonsense")
    with pytest.raises(UsageError, match="no private key of age"):
        release.decrypt(encrypted, other, out)
    with pytest.raises(UsageError, match="which is encrypted"):
        release.contents(encrypted, rerun=False)
    with pytest.raises(UsageError, match="which is encrypted"):
        release.install(encrypted, "local", unsigned=True, profile=target.load("x86-onnxruntime"))
    with monkeypatch.context() as other_runtime:
        other_runtime.setattr(encryption.runtimes, "load", lambda name: runtimes.Runtime(name, "Other", print))
        with pytest.raises(UsageError, match=r"Other keeps .* in the clear"):
            release.encrypt(plain, [device[1]], out)
    assert not runtimes.load("tensorrt").from_memory
    monkeypatch.setattr(encryption, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="pyrage"):
        release.encrypt(plain, [device[1]], out)
    assert not out.exists()


def run(*words):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(word) for word in words])
    return ended.value.code


@pytest.mark.long
def test_the_command_line(plain, device, tmp_path, capsys):
    made, again = tmp_path / "made.tar", tmp_path / "again.tar"
    key, public = write_pair(tmp_path, "mine")
    assert run("encrypt", plain, "--for", device[1], "--out", made) == 0
    assert run("verify", made) == 12
    assert run("sign", made, "--key", key) == 0
    assert run("verify", made, "--key", public) == 0
    assert run("verify", made, "--key", public, "--strict") == 12
    assert "--identity" in capsys.readouterr().err
    assert run("verify", made, "--key", public, "--identity", device[0], "--strict") == 0
    assert run("decrypt", made, "--identity", device[0], "--key", public, "--out", again) == 0
    assert again.read_bytes() == plain.read_bytes()
    assert run("decrypt", made, "--identity", tmp_path / "none", "--out", again) == 2
