"""`edgeprune verify --policy`: each rule holds or is named, and the exit code says so."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from click.testing import CliRunner

from edgeprune import release
from edgeprune.cli import main

pytest.importorskip("cryptography")
from test_signature import write_pair

MEASURED = datetime(2026, 11, 22, 10, tzinfo=UTC)
ASKED = """
[signature]
keys = ["other.pub", "release.pub"]
[evidence]
level = "device"
days = 36500
samples = true
[gates]
accuracy = { max = 1.0 }
latency = { min = 0.0001 }
[bundle]
targets = ["intel-cpu", "x86-onnxruntime"]
edgeprune = ">=0.1"
max_bytes = 1_000_000
"""


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    write_pair(folder, "other")
    return folder, write_pair(folder, "release")[0]


@pytest.fixture(scope="module")
def signed(made, keys, tmp_path_factory):
    run, result = made
    return release.sign(release.bundle(run, result, tmp_path_factory.mktemp("signed")), keys[1])


def verify(bundle, folder, text, *more):
    (folder / "policy.toml").write_text(text)
    arguments = ["verify", str(bundle), "--policy", str(folder / "policy.toml"), *more]
    return CliRunner().invoke(main, arguments, prog_name="edgeprune")


@pytest.mark.long
def test_all_rules_hold(signed, keys):
    done = verify(signed, keys[0], ASKED, "--json")
    assert done.exit_code == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)
    assert found["state"] == "good" and found["policy"]["held"]
    names = [rule["name"].removeprefix("policy: ") for rule in found["policy"]["rules"]]
    assert names == ["signature", "evidence", "age", "samples", "accuracy", "latency", "target", "edgeprune", "bytes"]


@pytest.mark.parametrize(
    ("asked", "instead", "says"),
    [
        ('["other.pub", "release.pub"]', '["other.pub"]', "signature: none of the policy's keys has signed it"),
        ("days = 36500", "days = 0.000001", "age: measured"),
        ("max = 1.0", "max = 0.0001", "accuracy:"),
        ('targets = ["intel-cpu", "x86-onnxruntime"]', 'targets = ["raspberry-pi-5"]', "target: for"),
        ('">=0.1"', '">=99"', "edgeprune: made by edgeprune"),
        ("1_000_000", "10", "bytes:"),
    ],
)
def test_each_broken_rule_is_named(signed, keys, asked, instead, says):
    assert asked in ASKED
    done = verify(signed, keys[0], ASKED.replace(asked, instead).replace("samples = true", ""), "--no-rerun")
    assert done.exit_code == 14, done.stderr + done.stdout
    assert f"policy: {says}" in done.stderr and "POLICY BROKEN" in done.stdout


def test_samples_that_were_not_rerun_break_a_policy_that_asks_for_them(signed, keys):
    done = verify(signed, keys[0], ASKED, "--no-rerun")
    assert done.exit_code == 14 and "policy: samples: not rerun" in done.stderr


def test_without_rules_on_signatures_verify_goes_on_asking(made, keys, tmp_path):
    plain = release.bundle(*made, tmp_path)
    assert verify(plain, keys[0], "[evidence]\nlevel = 'device'\n", "--no-rerun").exit_code == 12
    assert verify(plain, keys[0], ASKED.replace("samples = true", ""), "--no-rerun").exit_code == 14


def test_strict_asks_for_more_than_a_policy_that_asks_for_less(signed, keys):
    asked = ASKED.replace("samples = true", "")
    assert verify(signed, keys[0], asked, "--no-rerun").exit_code == 0
    assert verify(signed, keys[0], asked, "--no-rerun", "--strict").exit_code == 12


def test_age_counts_from_the_last_measurement(made, tmp_path):
    found = release.contents(release.bundle(*made, tmp_path), rerun=False)
    policy = release.Policy(evidence=release.Policy().evidence.__class__(days=30))

    def age(today):
        return next(rule for rule in release.hold(found, policy, today) if rule.name == "policy: age")

    assert age(MEASURED.replace(month=12, day=20)).passed
    assert not age(MEASURED.replace(month=12, day=23)).passed
    assert "in the future" in age(MEASURED.replace(day=1)).message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[gates]\nacuracy = { max = 1 }\n", "no gate is called 'acuracy'"),
        ("[gates]\naccuracy = { most = 1 }\n", "unknown key"),
        ("[gates]\naccuracy = { max = nan }\n", "not finite"),
        ("[bundle]\nruntime = 'new'\n", "no version specifier"),
        ("[evidence]\nlevel = 'rumour'\n", "rumour"),
        ("[signature]\nkeys = ['none.pub']\n", "none.pub"),
        ("signature = [", "not valid TOML"),
    ],
)
def test_a_wrong_policy_is_the_users_to_mend(signed, keys, text, says):
    done = verify(signed, keys[0], text, "--no-rerun")
    assert done.exit_code == 2, done.stderr
    assert says in done.stderr
