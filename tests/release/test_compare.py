"""`edgeprune compare` on bundles of a tiny network that really runs: the same again, worse, slower."""

from __future__ import annotations

import copy
import json
import shutil
import xml.etree.ElementTree as ElementTree

import msgspec
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from finished_run import judge, make, tiny_onnx
from onnx import helper

from edgeprune import devices, files, release, result, runtimes, target, validate
from edgeprune.cli import main
from edgeprune.compare.aspects import Tolerance
from edgeprune.compare.timed import judged
from edgeprune.errors import BundleError
from edgeprune.release.bundle import dump
from edgeprune.workload import Proportion, Score

EXAMPLES = 2000
IDS = np.arange(EXAMPLES, dtype=np.uint64) * 7919


QUICK = """
name = "quick"
title = "ONNX Runtime here, measured in a hurry"
family = "x86"
runtime = "onnxruntime"
dialect = "ort-x86"
cpus = ["any"]
[protocol]
warmup_runs = 3
runs = 20
rounds = 24
max_spread = 50.0
"""


@pytest.fixture(scope="module", autouse=True)
def targets(tmp_path_factory):
    """A target whose measurements count on a busy machine too."""
    folder = tmp_path_factory.mktemp("targets")
    (folder / "quick").mkdir()
    (folder / "quick" / "profile.toml").write_text(QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEPRUNE_TARGETS", str(folder))
        patch.setenv("EDGEPRUNE_CACHE", str(tmp_path_factory.getbasetemp() / "edgeprune-cache"))
        yield


@pytest.fixture(scope="module")
def onnx_made(targets, tmp_path_factory):
    """(run, result)."""
    return make(tmp_path_factory.mktemp("compared"), target.load("quick"))


def answers(wrong: int, seed: int = 0) -> np.ndarray:
    right = np.ones(EXAMPLES, bool)
    right[np.random.default_rng(seed).permutation(EXAMPLES)[:wrong]] = False
    return right


def bundle(made, folder, right=None, artifact=None, **changes):
    """The bundle of `made`, with these answers to single examples, or with another artifact."""
    run, result_ = made[0], copy.deepcopy(made[1])
    copied = folder / "run"
    shutil.copytree(run, copied)
    if right is not None:
        statistics = Proportion.of(right)
        score = Score.of("top-1", "points", True, statistics, 0)
        validate.Answers.of(IDS, score).save(copied / "validate" / "answers.npz")
        dense = Score.of("top-1", "points", True, Proportion.of(answers(0)), 0)
        network = result_["pruned_int8"]
        network |= {"accuracy": float(right.mean()), "correct": int(right.sum()), "images": EXAMPLES}
        network["score"] |= {"value": score.value, "low": score.low, "high": score.high}
        result_["dense_fp32"] |= {"accuracy": 1.0, "correct": EXAMPLES, "images": EXAMPLES}
        result_["dense_fp32"]["score"] |= {"value": 100.0, "low": 99.0, "high": 100.0, "examples": EXAMPLES}
        result_["comparison"] = msgspec.to_builtins(validate.comparison(score, dense, 0.95))
        for name, value in (("dense_fp32", 100.0), ("pruned_int8", score.value)):
            result_["sanity"][name] |= {"value": value, "errors": 1 - value / 100}
        result_["budget"]["max_drop"] = result_["recipe"]["budget"]["max_drop"] = 50.0
    if artifact is not None:
        artifact(copied, result_)
    for key, value in changes.items():
        result_[key] = value
    judge(result_)
    hashes = {p.relative_to(copied).as_posix(): files.sha256(p) for p in sorted(copied.rglob("*")) if p.is_file()}
    (copied / "validate" / "measured.json").write_text(json.dumps({"sha256": hashes}))
    (copied / "result.json").write_bytes(dump(result_))
    return release.bundle(copied, result_, folder / "made.tar")


def deeper(run, result_):
    """In place of the artifact: one that computes as much again, many times over."""
    profile = target.load(result_["target"])
    source = tiny_onnx(run / "graph" / "float.onnx")
    network = onnx.load(source)
    nodes = list(network.graph.node)
    last = nodes[-1]
    more, name = [], "output"
    last.output[0] = "deep0"
    for number in range(60):
        name = "output" if number == 59 else f"deep{number + 1}"
        more.append(helper.make_node("Softmax", [f"deep{number}"], [name], name=f"soft{number}"))
    network.graph.node.extend(more)
    onnx.save(network, source)
    shutil.rmtree(run / "artifacts")
    made = runtimes.build(source, run / "artifacts", profile, "pruned-int8", "int8")
    images = np.load(run / "validate" / "samples.npz")["input"]
    with devices.connect(profile) as device:
        (outputs,) = device.infer(device.load(made), images)
    np.savez(run / "validate" / "samples.npz", input=images, output=outputs)
    result_["artifact"]["sha256"] = {path.name: files.sha256(path) for path in made.files.values()}


def command(*arguments, **environment):
    return CliRunner(env=environment).invoke(main, ["compare", *map(str, arguments)], prog_name="edgeprune")


def aspects(done):
    return {one["name"]: one for one in json.loads(done.stdout)["aspects"]}


@pytest.fixture(scope="module")
def old(onnx_made, tmp_path_factory):
    return bundle(onnx_made, tmp_path_factory.mktemp("old"), answers(100))


@pytest.mark.long
def test_the_same_again_is_no_regression(old, onnx_made, tmp_path):
    new = bundle(onnx_made, tmp_path, answers(100, seed=1))  # as many errors, on other examples
    done = command(old, new, "--json", "--max-slower", 50, "--repeats", 3)
    assert done.exit_code == 0, done.stderr
    found = aspects(done)
    assert {name: one["word"] for name, one in found.items()} == {
        "metric": "same", "latency": found["latency"]["word"], "size": "same", "operators": "same", "samples": "same",
        "provenance": "same",
    }  # fmt: skip
    assert found["latency"]["word"] != "unknown" and "3 measurements side by side" in found["latency"]["message"]
    assert found["metric"]["change"] == 0 and found["metric"]["low"] < 0 < found["metric"]["high"]
    assert "byte for byte" in found["provenance"]["message"]


@pytest.mark.long
def test_worse_answers_are_a_regression_and_github_and_junit_say_so(old, onnx_made, tmp_path):
    wrong = answers(100)
    wrong[np.flatnonzero(wrong)[:10]] = False  # 0.5 points: ten more errors, none fewer
    new = bundle(onnx_made, tmp_path, wrong)
    page, report = tmp_path / "page.md", tmp_path / "reports" / "junit.xml"
    done = command(old, new, "--no-rerun", "--junit", report, GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=str(page))
    assert done.exit_code == 13
    assert "REGRESSION" in done.stdout and "0.50 points below the older" in done.stdout
    assert "::error title=tiny on quick%3A metric::top-1 94.50 %25 against 95.00 %25" in done.stderr
    assert "| metric | regression |" in page.read_text()
    suite = ElementTree.parse(report).getroot()[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("6", "1", "2")
    assert suite.find("testcase[@name='metric']/failure") is not None
    allowed = command(old, new, "--no-rerun", "--max-drop", "0.5", "--json")
    assert allowed.exit_code == 0 and aspects(allowed)["metric"]["word"] == "worse"
    assert command(old, new, "--no-rerun", "--max-drop", "0.5", "--strict").exit_code == 13  # latency is not known


@pytest.mark.long
def test_a_slower_artifact_is_a_regression(old, onnx_made, tmp_path):
    new = bundle(onnx_made, tmp_path, answers(100), deeper)
    done = command(old, new, "--json", "--repeats", 3, "--max-larger", 1000)
    assert done.exit_code == 13, done.stdout
    found = aspects(done)
    assert {name for name, one in found.items() if one["word"] == "regression"} == {"latency"}
    assert found["latency"]["low"] > 0.1
    back = command(new, old, "--json", "--repeats", 3)
    assert back.exit_code == 0 and aspects(back)["latency"]["word"] == "better"


def test_bundles_without_answers_are_compared_unpaired(onnx_made, old, tmp_path):
    plain = bundle(onnx_made, tmp_path)
    done = command(old, plain, "--no-rerun", "--json")
    message = aspects(done)["metric"]["message"]
    assert "not paired: one of the bundles has no answers" in message


@pytest.mark.long
def test_what_cannot_be_compared_is_an_error_and_junit_has_it(old, tmp_path):
    report = tmp_path / "junit.xml"
    done = command(old, tmp_path / "none.tar", "--junit", report)
    assert done.exit_code == 2 and "no such bundle" in done.stderr
    assert ElementTree.parse(report).getroot()[0].get("errors") == "1"
    damaged = tmp_path / "damaged.tar"
    damaged.write_bytes(old.read_bytes()[:-3000])
    assert command(old, damaged).exit_code == 10


def test_answers_that_are_not_the_scores_are_refused(onnx_made, tmp_path):
    def other(run, _):
        validate.Answers(IDS, answers(30), None).save(run / "validate" / "answers.npz")

    with pytest.raises(BundleError, match=r"98\.50 % right"):
        release.verify(bundle(onnx_made, tmp_path, answers(100), other), rerun=False)


def test_other_metrics_are_paired_by_the_jackknife():
    """Against the paired bootstrap: the limits are the same to a tenth, and far nearer than without pairs."""
    from edgeprune.tasks import Regression

    random = np.random.default_rng(0)
    targets = random.standard_normal(400)
    noise = random.standard_normal(400)
    one = (targets + 0.5 * noise)[:, None], (targets + 0.52 * noise + 0.05 * random.standard_normal(400))[:, None]
    task = Regression()
    wanted = [t[None].astype(np.float32) for t in targets]
    scores = [task.score((given.astype(np.float32),), wanted) for given in one]
    ids = np.arange(400, dtype=np.uint64)
    plain = [result.ScoreInfo(**{k: v for k, v in score.to_dict().items() if k != "confidence"}) for score in scores]
    found, why = validate.on_the_same(
        validate.Answers.of(ids, scores[1]), validate.Answers.of(ids, scores[0]), (plain[1], plain[0]), 0.95
    )
    assert not why
    exact = validate.comparison(scores[1], scores[0], 0.95)
    assert found.drop == pytest.approx(exact.drop)
    assert found.high - found.drop == pytest.approx(exact.high - exact.drop, rel=0.15)
    loose, why = validate.on_the_same(None, None, (plain[1], plain[0]), 0.95)
    assert "not paired" in why and loose.high - loose.drop > 3 * (found.high - found.drop)


def test_noise_in_latency_is_told_from_a_regression():
    """500 draws of five measurements with 1 % of noise each: without a change few alarms; 5 % is always found."""
    random = np.random.default_rng(0)

    def share(change):
        words = [
            judged(1 + change + 0.01 * random.standard_normal(5), (1.0, 1.0), "ms", Tolerance()).word
            for _ in range(500)
        ]
        return words.count("regression") / 500

    assert share(0.0) <= 0.05 + 3 * (0.05 * 0.95 / 500) ** 0.5
    assert share(0.05) >= 0.99
