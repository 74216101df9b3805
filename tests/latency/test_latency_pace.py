"""A device of two paces: what is timed at the slower one does not count where the faster one comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from simulated import SimulatedDevice

from edgeprune.devices.types import Timing
from edgeprune.graph import DENSE, Configuration
from edgeprune.latency.build import ArtifactBuilder
from edgeprune.latency.predict import Predictor
from edgeprune.latency.profiling import profile
from edgeprune.latency.rounds import Measured, Pace
from edgeprune.latency.sample import extend
from edgeprune.latency.table import Table
from edgeprune.latency.timing import Effort
from edgeprune.latency.variants import draw, half, options
from edgeprune.search.closure import refine
from edgeprune.target import Protocol

EFFORT = Effort(profile_runs=4, rounds=8, runs=2, retries=0)


class TwoPaces(SimulatedDevice):
    """At the slower pace every network takes a fifth and 0.02 ms more: small ones lose more than large ones."""

    def __init__(self, slow: Callable[[int], bool]) -> None:
        super().__init__(noise=0.002, seed=3)
        self.slow, self.calls = slow, 0

    def measure(self, loaded: Sequence[Any], protocol: Protocol) -> list[Timing]:
        self.calls += 1
        if not self.slow(self.calls):
            return super().measure(loaded, protocol)
        rounds = [[1.2 * one.truth + 0.02 for _ in range(protocol.rounds)] for one in loaded]
        self.measured += [one.artifact for one in loaded]
        return [self._timing(found) for found in rounds]


def ratios(made: ArtifactBuilder, device: TwoPaces, variants: Sequence[Configuration]) -> tuple[np.ndarray, np.ndarray]:
    """Of each variant, over the dense one: as the table has it, and at the device's faster pace."""
    table = extend(Table(device.probe().fingerprint), device, made, variants, EFFORT)
    anchor = half(made.structure, made.target.channels).widths
    runs = [run for run in table.networks[made.network].runs if run.removed or run.widths not in ({}, anchor)]
    opened = [device.load(made.build(DENSE, "dense").artifact)]
    opened += [
        device.load(made.build(Configuration(run.widths, run.removed), f"r{i}").artifact) for i, run in enumerate(runs)
    ]
    truths = np.array([one.truth for one in opened])
    for one in opened:
        device.unload(one)
    return np.array([run.ratio for run in runs]), truths[1:] / truths[0]


@pytest.mark.long
@pytest.mark.parametrize("slow", [lambda call: call % 8 >= 3, lambda call: call < 4, lambda call: call in (3, 5)])
def test_the_faster_pace_counts(made: ArtifactBuilder, slow: Callable[[int], bool]) -> None:
    found, true = ratios(made, TwoPaces(slow), draw(made.structure, made.target.channels, 16, seed=4))
    assert len(found) == 15  # one of those drawn is the dense one
    assert found == pytest.approx(true, rel=0.02)


@pytest.mark.long
def test_a_pace_that_does_not_come_back_is_not_waited_for(made: ArtifactBuilder) -> None:
    device = TwoPaces(lambda call: call > 2)
    variants = draw(made.structure, made.target.channels, 16, seed=4)
    found, true = ratios(made, device, variants)
    assert len(found) == 15 and device.calls < 40
    assert found == pytest.approx(true, rel=0.35)  # those of the slower pace are what they were


def test_a_network_counts_its_rounds_at_the_pace() -> None:
    pace = Pace()
    anchor, rounds = (1.0, 1.4) * 12, (0.4, 0.63) * 12
    mixed = Measured(None, (), rounds, anchor)  # type: ignore[arg-type]
    slow = Measured(None, (), (0.63,) * 24, (1.4,) * 24)  # type: ignore[arg-type]
    assert slow.at_pace and slow.ratio == pytest.approx(0.45)  # no other pace is known
    (mixed,) = pace.mark([mixed])
    assert mixed.ratio == pytest.approx(0.4) and mixed.spread == pytest.approx(0.0, abs=1e-9)
    slow = pace.known(slow)
    assert pace.fastest == 1.0 and not slow.at_pace and slow.ratio == pytest.approx(0.45)
    assert slow.and_again(mixed).at_pace and slow.and_again(mixed).ratio == pytest.approx(0.4)


class Neighbours(SimulatedDevice):
    """What else runs on the machine moves the dense network, whose weights do not fit the core's cache, alone."""

    def measure(self, loaded: Sequence[Any], protocol: Protocol) -> list[Timing]:
        timings = super().measure(loaded, protocol)
        slower = 1 + 0.4 * float(self.random.random())
        return [
            self._timing([slower * value for value in timing.rounds]) if one.artifact.name == "dense" else timing
            for one, timing in zip(loaded, timings, strict=True)
        ]


@pytest.mark.long
def test_a_dense_network_that_does_not_repeat_itself_spoils_no_other(made: ArtifactBuilder) -> None:
    """All ratios share one error, that of the dense network when it was measured."""
    device = Neighbours(noise=0.002, seed=5)
    found, true = ratios(made, device, draw(made.structure, made.target.channels, 16, seed=4))
    shared = found / true
    assert shared == pytest.approx(np.median(shared), rel=0.02)
    assert 0.7 < np.median(shared) < 0.99, "the device must have moved the dense network for this test to mean anything"


@pytest.mark.long
def test_a_deadline_in_milliseconds_is_met_whatever_the_dense_network_does(made: ArtifactBuilder) -> None:
    device, steps = Neighbours(noise=0.002, seed=5), made.target.channels
    table = extend(Table(device.probe().fingerprint), device, made, draw(made.structure, steps, 16, seed=4), EFFORT)
    groups, dense = options(made.structure, steps), table.networks[made.network].dense
    shares = np.linspace(0.1, 1, 40)
    narrowed = [{n: max(u for u in w if u <= max(w[0], share * w[-1])) for n, w in groups.items()} for share in shares]
    allowed = [Configuration(widths) for widths in narrowed]

    def widest(predictor: Predictor, latency: float) -> Configuration:
        return max((v for v in allowed if predictor.predict(v) <= latency), key=predictor.predict)

    def milliseconds(variant: Configuration) -> float:
        opened = device.load(made.build(variant, "asked").artifact)
        device.unload(opened)
        return float(opened.truth)

    deadline = 0.6 * milliseconds(DENSE)
    closed = refine(widest, table, device, made, deadline / dense, effort=EFFORT, absolute=True)
    assert milliseconds(closed.variant) < 1.01 * deadline
    wider = allowed[allowed.index(closed.variant) + 1 :]
    fitting = [milliseconds(v) for v in wider if milliseconds(v) < 0.97 * deadline]
    assert max(fitting, default=0.0) < 1.02 * milliseconds(closed.variant), "a slower network would have fitted too"


def test_the_dense_network_of_an_earlier_day_counts_as_much_as_todays() -> None:
    pace = Pace()
    dense = Measured(None, (), (0.8,) * 8, (0.2,) * 8)  # type: ignore[arg-type]
    assert pace.weigh(dense) == pytest.approx(0.25) == pace.weigh(dense)
    resumed = Pace()
    resumed.earlier = resumed.share = 0.36
    assert resumed.weigh(dense) == pytest.approx(0.3) == resumed.weigh(dense)
    assert resumed.known(dense).ratio == pytest.approx(1.2)


@pytest.mark.long
def test_a_table_of_the_slower_pace_is_measured_once_more(made: ArtifactBuilder) -> None:
    device, other = TwoPaces(lambda call: call < 8), TwoPaces(lambda call: False)
    found, alone = (profile(Table(one.probe().fingerprint), one, made, 24, 8, EFFORT) for one in (device, other))
    assert device.calls > other.calls and found.networks == alone.networks
    assert sorted(found.measured) == pytest.approx(sorted(alone.measured), rel=0.02)
    assert found.errors.median < 0.03 and abs(found.errors.bias) < 0.03, (found.errors, alone.errors)
