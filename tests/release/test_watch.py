"""run.py --check: another runtime, a slower clock, and examples that are not as the test examples were."""

from __future__ import annotations

import json

import numpy as np
import pytest
from finished_run import SHAPE
from test_bundle import on_device, unpack

from edgeprune import files
from edgeprune.errors import BundleError
from edgeprune.release import statistics, verify
from edgeprune.release.bundle import bundle
from edgeprune.release.device import check


def examples(count, seed=0, mean=0.0, spread=1.0):
    """Each with a brightness of its own, as pictures have."""
    random = np.random.default_rng(seed)
    own = random.normal(0, 0.3, (count, 1, 1, 1))
    return (mean + own + spread * random.standard_normal((count, *SHAPE))).astype(np.float32)


def outputs(count, seed=0, shares=(0.25, 0.25, 0.25, 0.25)):
    random = np.random.default_rng(seed)
    answers = random.choice(len(shares), count, p=shares)
    return [(np.eye(len(shares))[answers] * 5 + random.normal(0, 0.5, (count, len(shares)))).astype(np.float32)]


def odd(found):
    return {what for what, state, _ in found if state == "odd"}


@pytest.fixture(scope="module")
def stored():
    """As it travels: through JSON."""
    return json.loads(json.dumps(statistics({"input": examples(256)}, outputs(256), True)))


@pytest.mark.long
@pytest.mark.parametrize("count", [20, 100, 1000])
def test_examples_of_the_same_source_are_not_drift(stored, count):
    """A chance in 10,000 a test; 40 sets of each size."""
    wrong = [odd(check.drift(stored, {"input": examples(count, s)}, outputs(count, s))) for s in range(1, 41)]
    assert not any(wrong), wrong


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"mean": 1.0}, "input 'input'"),  # brighter
        ({"spread": 0.5}, "input 'input'"),  # less contrast
        ({"spread": 255.0}, "input 'input'"),  # a scale that was forgotten
        ({"shares": (0.85, 0.05, 0.05, 0.05)}, "classes"),
    ],
)
def test_drift_is_told(stored, change, what):
    shares = {"shares": change.pop("shares")} if "shares" in change else {}
    found = check.drift(stored, {"input": examples(100, 5, **change)}, outputs(100, 5, **shares))
    assert what in odd(found), found


def test_what_is_not_finite_is_odd_and_few_are_too_few(stored):
    broken = examples(40)
    broken[3, 0, 0, 0] = np.nan
    assert "input 'input'" in odd(check.drift(stored, {"input": broken}, outputs(40)))
    ((what, state, words),) = check.drift(stored, {"input": examples(19)}, outputs(19))
    assert (what, state) == ("drift", "unknown") and "19 examples" in words


def test_classes_that_the_artifact_gives_by_itself(stored):
    """[export] output = "argmax": numbers in place of scores."""
    numbers = [outputs(256)[0].argmax(1)]
    assert statistics({"input": examples(256)}, numbers, True)["classes"] == stored["classes"]
    assert check.classes([np.zeros((4, 1))]) is None and check.classes([np.zeros(4, np.float32)]) is None


def test_tails_are_the_binomial_s():
    from scipy.stats import binom

    for count, of, chance in ((3, 20, 0.02), (60, 100, 0.5), (1, 5, 0.1)):
        assert check._tail(count, of, chance) == pytest.approx(float(binom.sf(count - 1, of, chance)), rel=1e-9)


def test_runtime_and_clock():
    manifest = {
        "runtime": {"name": "onnxruntime", "version": "1.20"}, "unit": "ms",
        "figures": {"pruned_int8": {"latency_ms": {"median": 1.0}}},
    }  # fmt: skip
    result = {"state": {"before": {"frequencies_khz": {"cpu0": 2_400_000}}}}
    assert check.runtime(manifest, "1.20")[1] == "ok" and check.runtime(manifest, "1.21")[1] == "odd"
    quiet = {"frequencies_khz": {"cpu0": 2_400_000}, "load": "0.1", "cpus": 4, "throttled": 0}
    assert not odd(check.clock(manifest, result, 1.1, quiet))
    slow = check.clock(manifest, result, 1.4, {**quiet, "frequencies_khz": {"cpu0": 1_500_000}, "throttled": 4})
    assert odd(slow) == {"latency", "clock", "throttling"} and "1500 MHz, was 2400" in str(slow)
    assert "the machine is busy" in str(check.clock(manifest, result, 1.4, {**quiet, "load": "3.9"}))
    counted = {**manifest, "unit": "instructions"}
    assert [state for _, state, _ in check.clock(counted, {}, 9.0, {})] == ["unknown"]


@pytest.fixture
def watched(made, tmp_path):
    """An unpacked bundle with statistics of its own network; its latency is whatever it is here."""
    run, result = made
    with np.load(run / "validate" / "samples.npz") as packed:
        expected = packed["output"]
    many = examples(200)
    told = statistics({"input": many}, [np.repeat(expected, 40, axis=0)[:200]], False)
    told["outputs"]["output"] |= {
        "low": -1e9,
        "high": 1e9,
        "mean": [-1e9, *[0] * 5, 1e9],
        "deviation": [0, *[1] * 5, 1e9],
    }
    (run / "validate" / "selftest.json").write_text(json.dumps(told))
    measured = json.loads((run / "validate" / "measured.json").read_text())
    measured["sha256"]["validate/selftest.json"] = files.sha256(run / "validate" / "selftest.json")
    (run / "validate" / "measured.json").write_text(json.dumps(measured))
    yield bundle(run, result, tmp_path / "out")
    (run / "validate" / "selftest.json").unlink()


@pytest.mark.long
def test_on_the_device(watched, tmp_path):
    """Each file is one example, as the network takes it."""
    assert verify(watched).checks[2].passed
    root = unpack(watched, tmp_path / "unpacked")
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["figures"]["pruned_int8"]["latency_ms"]["median"] = 1e6  # whatever else runs here
    (root / "manifest.json").write_text(json.dumps(manifest))
    paths = []
    for name, many in (("new", examples(30, 7)), ("bright", examples(30, 7, mean=2.0))):
        for number, one in enumerate(many):
            paths.append(tmp_path / f"{name}-{number}.npz")
            np.savez(paths[-1], input=one)
    done = on_device(root, "--check", *map(str, paths[:30]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "= runtime" in done.stdout and "= input 'input'" in done.stdout and done.stdout.strip().endswith("AS IT WAS")
    done = on_device(root, "--check", *map(str, paths[30:]))
    assert done.returncode == 3 and "! input 'input'" in done.stdout, done.stdout + done.stderr
    manifest["runtime"]["version"] = "0.1"
    (root / "manifest.json").write_text(json.dumps(manifest))
    done = on_device(root, "--check")
    assert done.returncode == 3 and "0.1 when it was measured" in done.stdout and ". drift: no FILEs" in done.stdout
    np.savez(tmp_path / "odd.npz", input=np.zeros((3, 4, 4), np.float32))
    done = on_device(root, "--check", str(tmp_path / "odd.npz"))
    assert done.returncode == 1 and "the network takes" in done.stderr and "Traceback" not in done.stderr


def test_statistics_that_are_none_are_a_bad_bundle(made, watched, tmp_path):
    run, result = made
    (run / "validate" / "selftest.json").write_text("[]")
    measured = json.loads((run / "validate" / "measured.json").read_text())
    measured["sha256"]["validate/selftest.json"] = files.sha256(run / "validate" / "selftest.json")
    (run / "validate" / "measured.json").write_text(json.dumps(measured))
    with pytest.raises(BundleError, match=r"selftest\.json"):
        verify(bundle(run, result, tmp_path / "bad"), rerun=False)
