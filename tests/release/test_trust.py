"""Keys that follow each other, what is revoked, and where a bundle says that it comes from."""

from __future__ import annotations

import hashlib
import json

import pytest
from click.testing import CliRunner

from edgeprune import release
from edgeprune.cli import main
from edgeprune.errors import BundleError, UsageError
from edgeprune.release import archive
from edgeprune.release.bundle import dump

pytest.importorskip("cryptography")
from test_signature import write_pair
from test_verify import contents, rewritten


@pytest.fixture
def pair(tmp_path):
    return write_pair(tmp_path, "mine")


@pytest.fixture
def bundle(made, pair, tmp_path):
    run, result = made
    return release.sign(release.bundle(run, result, tmp_path), pair[0])


def revoked(folder, text):
    (folder / "revoked.toml").write_text(text)
    return release.load_revoked(folder / "revoked.toml")


def digest_of(public):
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    return hashlib.sha256(load_pem_public_key(public.read_bytes()).public_bytes_raw()).hexdigest()


def test_an_old_and_a_new_key_are_both_good_while_one_follows_the_other(bundle, pair, tmp_path):
    new_key, new = write_pair(tmp_path, "new")
    ring = tmp_path / "ring.pub"
    ring.write_bytes(b"# old\n" + pair[1].read_bytes() + b"# new\n" + new.read_bytes())
    assert release.verify(bundle, key=ring, rerun=False).state == "authentic"
    release.sign(bundle, new_key)
    found = release.verify(bundle, key=ring, rerun=False)
    assert found.state == "authentic" and digest_of(new)[:16] in found.summary
    with pytest.raises(BundleError, match="signed by another key"):
        release.verify(bundle, key=pair[1], rerun=False)


@pytest.mark.parametrize("digits", [16, 64])
def test_a_revoked_key_is_bad_whoever_asks(bundle, pair, tmp_path, digits):
    listed = revoked(tmp_path, f'[[key]]\nsha256 = "{digest_of(pair[1])[:digits]}"\nreason = "stolen"\n')
    for key in (None, pair[1]):
        with pytest.raises(BundleError, match=r"the key that signed it .* is revoked by .*revoked\.toml: stolen"):
            release.verify(bundle, key=key, rerun=False, revoked=listed)
    called = CliRunner().invoke(
        main, ["verify", str(bundle), "--no-rerun", "--key", str(pair[1]), "--revoked", str(tmp_path / "revoked.toml")]
    )
    assert called.exit_code == 10 and "stolen" in called.stderr and "BAD" in called.stdout
    other = revoked(tmp_path, f'[[key]]\nsha256 = "{"0" * 16}"\n')
    assert release.verify(bundle, key=pair[1], rerun=False, revoked=other).state == "authentic"


def test_a_revoked_bundle_is_bad_signed_or_not(made, tmp_path):
    run, result = made
    path = release.bundle(run, result, tmp_path)
    sums = hashlib.sha256(contents(path)["SHA256SUMS"]).hexdigest()
    shown = {check.name: check for check in release.verify(path, rerun=False).checks}["integrity"].message
    assert sums[:16] in shown
    with pytest.raises(BundleError, match=r"it .* is revoked"):
        release.verify(path, rerun=False, revoked=revoked(tmp_path, f'[[bundle]]\nsha256 = "{sums[:16]}"\n'))


def test_a_policy_names_a_list_too(bundle, pair, tmp_path):
    (tmp_path / "policy.toml").write_text('[signature]\nkeys = ["mine.pub"]\nrevoked = "revoked.toml"\n')
    revoked(tmp_path, f'[[key]]\nsha256 = "{digest_of(pair[1])}"\n')
    called = CliRunner().invoke(main, ["verify", str(bundle), "--no-rerun", "--policy", str(tmp_path / "policy.toml")])
    assert called.exit_code == 10 and "is revoked" in called.stderr


@pytest.mark.parametrize("text", ["[[key]]\n", '[[key]]\nsha256 = "abc"\n', "[[keys]]\n", "key = 1\n", "\0"])
def test_a_list_that_cannot_be_read_is_an_error_and_not_an_empty_list(tmp_path, text):
    with pytest.raises(UsageError, match=r"revoked\.toml"):
        revoked(tmp_path, text)
    with pytest.raises(UsageError):
        release.load_revoked(tmp_path / "gone.toml")


def test_the_provenance_is_an_in_toto_statement_of_this_artifact(bundle):
    members = contents(bundle)
    found = json.loads(members["provenance.json"])
    assert found["_type"] == "https://in-toto.io/Statement/v1"
    assert found["predicateType"] == "https://slsa.dev/provenance/v1"
    named = {one["name"]: one["digest"]["sha256"] for one in found["subject"]}
    assert named == {n: hashlib.sha256(data).hexdigest() for n, data in members.items() if n.startswith("artifact/")}
    definition, details = (found["predicate"][key] for key in ("buildDefinition", "runDetails"))
    assert definition["externalParameters"]["recipe"] == json.loads(members["result.json"])["recipe"]
    assert {"uri": "pkg:pypi/torch@2.13.0"} in definition["resolvedDependencies"]
    assert details["metadata"]["finishedOn"] == "2026-11-22T10:00:00Z"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s["subject"][0]["digest"].update(sha256="0" * 64), "another sha256"),
        (lambda s: s["subject"].append(s["subject"][0]), "other files"),
        (lambda s: s.update(predicateType="https://slsa.dev/provenance/v0.2"), "is no provenance"),
        (lambda s: s["predicate"]["buildDefinition"]["externalParameters"].update(target="x"), "another target"),
        (lambda s: s["predicate"]["buildDefinition"].update(resolvedDependencies=[]), "other sources"),
        (lambda s: s.update(subject=None), "is no provenance"),
    ],
)
def test_a_provenance_that_contradicts_the_bundle_is_bad(bundle, tmp_path, change, says):
    statement = json.loads(contents(bundle)["provenance.json"])
    change(statement)
    members = {**contents(bundle), "provenance.json": dump(statement)}
    del members["SIGNATURE"]
    manifest = json.loads(members["manifest.json"])
    data = members["provenance.json"]
    manifest["files"]["provenance.json"] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    members["manifest.json"] = dump(manifest)
    names = sorted(set(members) - {"SHA256SUMS"})
    members["SHA256SUMS"] = "".join(f"{hashlib.sha256(members[n]).hexdigest()}  {n}\n" for n in names).encode()
    with pytest.raises(BundleError, match=says):
        release.verify(archive.write(tmp_path / "b.tar", members), rerun=False)


def test_a_bundle_from_before_there_was_one_is_still_whole(bundle, tmp_path):
    members = json.loads(contents(bundle)["manifest.json"])
    del members["files"]["provenance.json"]
    old = rewritten(bundle, tmp_path / "b.tar", provenance__json=None, manifest__json=dump(members), SIGNATURE=None)
    assert release.verify(old, rerun=False).state == "intact"
