"""When a validation is repeated: too near to tell, at odds with the search, beside other work, too rough."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest

from edgeprune import validate
from edgeprune.devices import Timing
from edgeprune.pipeline import validations
from edgeprune.pipeline.rundir import RunDirectory, write_json
from edgeprune.recipe import BudgetSection
from edgeprune.result import Latency

NAMES = ("dense-fp32", "dense-int8", "pruned-fp32", "pruned-int8")


def timing(median, spread=0.002, others=0.0):
    rounds = (median,) * 24
    return Timing(median, median, median, median, median, spread, 24, rounds, others=others)


class Device:
    """Gives one measurement after the other: (pruned INT8, others[, spread]), dense INT8 takes 1 ms."""

    def __init__(self, *planned):
        self.planned, self.count = list(planned), 0

    def measure(self, loaded, protocol):
        pruned, others, *spread = self.planned[min(self.count, len(self.planned) - 1)]
        self.count += 1
        return [timing(median, *(spread or [0.002]), others) for median in (3.0, 1.0, 1.5, pruned)]

    def probe(self):
        return SimpleNamespace(state={})


class Told:
    def __init__(self):
        self.lines = []

    def say(self, stage, line):
        self.lines.append(line)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    monkeypatch.setattr(validations, "digests", lambda artifacts: {})

    def run(device, earlier=(), patience=100.0, twice=False, unit="ms"):
        recipe = SimpleNamespace(measure=SimpleNamespace(patience=patience), budget=BudgetSection(speedup=2.0))
        bench = SimpleNamespace(
            device=device, target=SimpleNamespace(protocol=SimpleNamespace(unit=unit, max_spread=0.15))
        )
        told = Told()
        monkeypatch.setattr(validations, "searched", lambda run: tuple(searched(ratio) for ratio in earlier))
        with RunDirectory(tmp_path / "run") as directory:
            loaded = dict.fromkeys(NAMES)
            measure = validations.Measuring(recipe, bench, directory, told, {}, loaded, {})
            kept = (measure.later(*measure()) if twice else measure())[1]
        return [one.networks["pruned_int8"].median for one in kept], told.lines

    return run


def searched(ratio):
    found = {"dense_int8": 1.0, "pruned_int8": ratio}
    return validate.entry({name: Latency(median=one, spread=0.002, rounds=(one,) * 24) for name, one in found.items()})


def test_a_quiet_one_that_says_what_the_search_said_is_enough(measured):
    assert measured(Device((0.45, 0.0)), [0.452]) == ([0.45], [])


def test_one_that_says_something_else_is_repeated_until_they_agree_or_three_times(measured):
    kept, told = measured(Device((0.41, 0.1), (0.475, 0.0), (0.476, 0.0)), [0.475, 0.477])
    assert kept[:3] == [0.41, 0.475, 0.476] and len(kept) <= 1 + validations.REPEATS
    assert told[0].startswith("82.0 % of the latency budget, where the search had measured 95.2 %")


def test_the_search_has_the_last_word_nowhere(measured):
    assert len(measured(Device((0.35, 0.0)), [0.475], patience=0.0)[0]) == 1 + validations.REPEATS


def test_beside_other_work_it_waits_for_a_quiet_moment_while_there_is_patience(measured):
    kept, told = measured(Device((0.45, 0.5), (0.45, 0.5), (0.44, 0.0)))
    assert kept == [0.45, 0.45, 0.44] and told[0] == "other work takes 50 % of the device's CPUs: measuring once more"


def test_a_run_measures_at_two_moments_and_a_clock_that_repeats_itself_at_one(measured):
    assert measured(Device((0.45, 0.0), (0.451, 0.0)), twice=True)[0] == [0.45, 0.451]


def test_repeats_are_the_stage_s_and_not_a_moment_s(measured):
    assert len(measured(Device((0.45, 0.5)), twice=True)[0]) == 2 + validations.REPEATS


def test_counted_instructions_are_counted_once(measured):
    assert measured(Device((0.45, 0.0)), twice=True, unit="instructions")[0] == [0.45]


def test_without_patience_it_takes_what_it_got(measured):
    assert measured(Device((0.45, 0.5)), patience=0.0) == ([0.45], [])


def test_it_gives_up_on_a_device_that_is_never_quiet(measured):
    assert len(measured(Device((0.45, 0.5)))[0]) == 1 + validations.REPEATS


def test_a_rough_figure_is_measured_again(measured):
    kept, told = measured(Device((0.40, 0.0, 0.12), (0.40, 0.0, 0.12)))
    assert 1 < len(kept) <= 1 + validations.REPEATS and "good to" in told[0]


@pytest.mark.parametrize("floats, known", [([], 2), (["conv1"], 2), (["conv2"], 0)])
def test_what_the_search_measured_is_only_of_this_network_where_it_knew_its_layers_in_float(tmp_path, floats, known):
    import msgspec

    judged = msgspec.to_builtins([searched(0.45), searched(0.46)])
    with RunDirectory(tmp_path / "run") as run, contextlib.suppress(FileExistsError):
        for stage, name, content in (
            ("search", "search.json", {"closure": {"judged": judged}}),
            ("quantize", "precision.json", {"float": floats}),
            ("dense", "precision.json", {"float": ["conv1"]}),
        ):
            run.folder(stage).mkdir(parents=True, exist_ok=True)
            write_json(run.folder(stage) / name, content)
        found = validations.searched(run)
    assert len(found) == known and all(one.networks["dense_int8"].median == 1.0 for one in found)
