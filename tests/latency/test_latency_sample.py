"""Sampling, prediction and closure on a device whose truth is known."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated import SimulatedDevice

from edgeprune.devices import Timing
from edgeprune.errors import BudgetError, MeasurementError
from edgeprune.graph import DENSE, Configuration
from edgeprune.latency import Patience
from edgeprune.latency.build import ArtifactBuilder
from edgeprune.latency.feasibility import feasibility, judge, rejudged
from edgeprune.latency.predict import Predictor
from edgeprune.latency.profiling import profile, surprising
from edgeprune.latency.sample import extend, settle
from edgeprune.latency.table import Table
from edgeprune.latency.timing import Effort
from edgeprune.latency.variants import draw, floor, options
from edgeprune.recipe import BudgetSection
from edgeprune.search.closure import FURTHER, REFITS, refine
from edgeprune.search.enclosed import Enclosed
from edgeprune.target import Protocol

EFFORT = Effort(profile_runs=4, rounds=6, runs=2, retries=0)


def empty(device: SimulatedDevice) -> Table:
    return Table(device.probe().fingerprint)


def truth(device: SimulatedDevice, maker: ArtifactBuilder, variant: Configuration) -> float:
    """The simulated device's latency of a variant over the dense one's, without noise."""
    found = []
    for which in (variant, DENSE):
        built = maker.build(which, "truth")
        opened = device.load(built.artifact)
        found.append(opened.truth)
        device.unload(opened)
    return found[0] / found[1]


@pytest.fixture(scope="module")
def noisy_table(tmp_path_factory: pytest.TempPathFactory, prepared: Any) -> tuple[ArtifactBuilder, Table]:
    from edgeprune import target as targets
    from edgeprune.latency.build import maker

    folder = tmp_path_factory.mktemp("noisy")
    made = maker(
        prepared.model,
        prepared.structure,
        prepared.example,
        targets.load("x86-onnxruntime"),
        folder,
        float_onnx=prepared.dense,
    )
    device = SimulatedDevice(noise=0.02, drift=0.0005)
    variants = draw(made.structure, made.target.channels, 24, seed=1)
    return made, extend(empty(device), device, made, variants, EFFORT)


@pytest.mark.long
def test_unseen_networks_are_predicted_through_noise_and_drift(noisy_table: tuple[ArtifactBuilder, Table]) -> None:
    made, table = noisy_table
    predictor = Predictor(table, made.structure, made.network)
    device = SimulatedDevice()
    errors = [
        predictor.predict(variant) / predictor.dense / truth(device, made, variant) - 1
        for variant in draw(made.structure, made.target.channels, 20, seed=2)
    ]
    assert float(np.median(np.abs(errors))) < 0.03
    assert float(np.quantile(np.abs(errors), 0.9)) < 0.08


def test_prediction_is_beta_plus_its_layers_and_blocks(noisy_table: tuple[ArtifactBuilder, Table]) -> None:
    """The identity that the search relies on."""
    from edgeprune.graph import width

    made, table = noisy_table
    predictor = Predictor(table, made.structure, made.network)
    for variant in draw(made.structure, made.target.channels, 6, seed=5):
        total = predictor.beta
        gone = {name for block in made.structure.blocks if block.module in variant.removed for name in block.layers}
        for layer in made.structure.layers:
            if layer.name not in gone:
                total += predictor.kernel(
                    layer.name, width(layer.inputs, variant.widths), width(layer.outputs, variant.widths)
                )
        total += sum(
            predictor.block_overhead(b.module) for b in made.structure.blocks if b.module not in variant.removed
        )
        assert total == pytest.approx(predictor.predict(variant), rel=1e-6)
        assert sum(predictor.layers(variant).values()) + predictor.beta == pytest.approx(total, rel=1e-6)


def test_the_matrix_is_the_kernel_at_every_pair(noisy_table: tuple[ArtifactBuilder, Table]) -> None:
    made, table = noisy_table
    predictor = Predictor(table, made.structure, made.network)
    matrix = predictor.matrix("first.conv2", (8, 24, 48), (16, 32))
    assert matrix.shape == (3, 2)
    for i, c_in in enumerate((8, 24, 48)):
        for j, c_out in enumerate((16, 32)):
            assert matrix[i, j] == pytest.approx(predictor.kernel("first.conv2", c_in, c_out))
    assert matrix[2, 1] > matrix[0, 1]


def test_plans_variants_and_widths_are_predicted_alike(noisy_table: tuple[ArtifactBuilder, Table]) -> None:
    made, table = noisy_table
    predictor = Predictor(table, made.structure, made.network)
    plan = made.structure.plan({"first.conv1": range(16)}, ["second"])
    assert predictor.predict(plan) == predictor.predict(Configuration({"first.conv1": 16}, ("second",)))
    assert predictor.predict({"first.conv1": 16}) == predictor.predict(Configuration({"first.conv1": 16}))


@pytest.mark.long
def test_sampling_resumes_and_measures_nothing_twice(made: ArtifactBuilder) -> None:
    device = SimulatedDevice()
    variants = draw(made.structure, made.target.channels, 6, seed=1)
    saved: list[Table] = []
    extend(empty(device), device, made, variants[:4], EFFORT, keep=saved.append)
    before = len(device.measured)
    table = extend(saved[-1], device, made, variants, EFFORT)
    assert (
        len(device.measured) - before == 5
    )  # the anchor and the two that were missing; the anchor and the dense network
    assert len(table.networks[made.network].runs) == 8  # the anchor's too
    assert extend(table, device, made, variants, EFFORT) == table
    assert not device.opened
    assert [path.name for path in made.folder.iterdir()] == ["anchor.onnx"]


@pytest.mark.long
def test_a_slower_device_gives_the_same_table(made: ArtifactBuilder) -> None:
    """Drift is divided out: sampling at half the speed changes neither cells nor ratios."""
    variants = draw(made.structure, made.target.channels, 8, seed=1)
    tables = []
    for factor in (1.0, 2.0):
        device = SimulatedDevice()
        table = extend(empty(device), device, made, variants[:4], EFFORT)
        device.speed = factor
        tables.append(extend(table, device, made, variants, EFFORT))
    for key, cell in tables[0].cells.items():
        assert tables[1].cells[key].median == pytest.approx(cell.median, rel=1e-6)
    ratios = [[run.ratio for run in table.networks[made.network].runs] for table in tables]
    assert ratios[0] == pytest.approx(ratios[1], rel=1e-6)


@pytest.mark.long
def test_a_device_too_noisy_to_measure_gives_a_table_that_says_so_and_no_error(made: ArtifactBuilder) -> None:
    """Every round is off by several times: nothing can be told, and what cannot be told does not count."""
    device, said = SimulatedDevice(noise=20), list[str]()
    found = profile(
        empty(device), device, made, 8, 4, EFFORT, patience=Patience(0.01, said.append), progress=lambda *_: None
    )
    runs = found.table.networks[made.network].runs
    assert all(run.spread <= 0.5 for run in runs)
    assert "good to" in said[0] and "Ctrl-C keeps what is good" in said[0]
    assert found.good or "Closure measures every network" in found.verdict
    assert found.predictor.predict(DENSE) > 0


@pytest.mark.long
def test_patience_narrows_the_intervals_of_a_noisy_device(made: ArtifactBuilder) -> None:
    """The same noise, with and without time to measure again: more rounds, all of them together."""
    hasty, patient = (SimulatedDevice(noise=0.6, seed=2) for _ in range(2))
    variants = draw(made.structure, made.target.channels, 6, seed=1)
    wait, said = Patience(20.0), list[str]()
    wait.say = said.append
    tables = [
        extend(empty(hasty), hasty, made, variants, EFFORT),
        extend(empty(patient), patient, made, variants, EFFORT, patience=wait),
    ]
    spreads, errors = [], []
    for table in tables:
        runs = [run for run in table.networks[made.network].runs if run.widths or run.removed]
        spreads.append(max(run.spread for run in runs))
        true = np.array([truth(hasty, made, Configuration(run.widths, run.removed)) for run in runs])
        errors.append(float(np.abs(np.array([run.ratio for run in runs]) / true - 1).max()))
    assert spreads[1] <= EFFORT.max_spread < spreads[0]
    assert errors[1] <= EFFORT.max_spread
    assert said and 0 < wait.spent <= 25


@pytest.mark.long
def test_a_table_that_errs_more_than_asked_is_extended_then_said_to_closure(made: ArtifactBuilder) -> None:
    device, said = SimulatedDevice(noise=0.02), list[str]()
    found = profile(empty(device), device, made, 2, 4, EFFORT, max_error=1e-4, patience=Patience(3.0, said.append))
    assert not found.good and "more than the 0 % asked for" in found.verdict and "Closure" in found.verdict
    assert any("networks more" in line for line in said)
    assert found.networks > 2 + 4 + 2
    content = profile(empty(device), device, made, 16, 4, EFFORT, max_error=0.5)
    assert content.good and content.errors.median < 0.05


@pytest.mark.long
def test_what_disturbs_for_a_while_costs_time_but_no_table(made: ArtifactBuilder) -> None:
    """Every network of the first pass is too noisy; then the device is left alone."""
    device = SimulatedDevice(noise=20)
    said: list[str] = []

    def calm(done: int, _: int, reason: str) -> None:
        said.append(reason)
        device.noise = 0.0 if len(said) == 2 else device.noise

    variants = draw(made.structure, made.target.channels, 8, seed=1)
    table = extend(empty(device), device, made, variants, EFFORT, calm)
    assert "good to" in said[0] and "good to" not in said[-1]
    measured = table.networks[made.network].runs
    assert len(measured) > 4
    for run in measured:
        assert run.ratio == pytest.approx(truth(device, made, Configuration(run.widths, run.removed)), rel=0.25)


def test_an_unknown_network_is_refused(made: ArtifactBuilder) -> None:
    with pytest.raises(MeasurementError, match="does not know this network"):
        Predictor(Table({}), made.structure, made.network)


@pytest.mark.long
def test_profile_tells_its_error_and_beats_counting_macs(made: ArtifactBuilder) -> None:
    device = SimulatedDevice(noise=0.01)
    done: list[tuple[int, int]] = []
    found = profile(
        empty(device), device, made, 16, 8, EFFORT, progress=lambda i, n, _: done.append((i, n)), keep=lambda _: None
    )
    assert found.errors.count == len(found.measured) >= 6  # equal draws are measured once
    assert found.errors.median < 0.04 < found.by_macs.p90
    assert done[-1][0] <= 24
    assert found.networks >= 20


def uniform(maker: ArtifactBuilder) -> Any:
    """The simplest solver: the largest uniform fraction that is predicted to fit."""
    allowed = options(maker.structure, maker.target.channels)

    def solve(predictor: Predictor, latency: float) -> Configuration:
        best = None
        for fraction in np.linspace(0.02, 1, 150):
            wanted = {name: max(w[0], fraction * w[-1]) for name, w in allowed.items()}
            widths = {name: max(u for u in allowed[name] if u <= wanted[name]) for name in allowed}
            if predictor.predict(Configuration(widths)) <= latency:
                best = Configuration(widths)
        if best is None:
            raise BudgetError("no width fits.")
        return best

    return solve


@pytest.mark.long
def test_closure_ends_within_the_budget_as_measured(noisy_table: tuple[ArtifactBuilder, Table]) -> None:
    made, table = noisy_table
    device = SimulatedDevice(noise=0.01, drift=0.001, seed=5)
    lowest = truth(device, made, floor(made.structure, made.target.channels, blocks=False))
    budget = lowest + 0.6 * (1 - lowest)
    told = list[tuple[int, float]]()
    closed = refine(uniform(made), table, device, made, budget, effort=EFFORT, told=lambda *given: told.append(given))
    assert [number for number, _ in told] == list(range(1, len(closed.steps) + 1))
    assert told[0][1] == pytest.approx(closed.steps[0].measured / budget, rel=0.1)
    real = truth(device, made, closed.variant)
    assert closed.ratio <= budget and real <= budget * 1.005
    assert closed.of_budget > 0.85  # this coarse solver has few networks to choose from
    assert closed.within == (closed.of_budget >= 0.97)  # the gate's room is smaller on this device
    runs = closed.table.networks[made.network].runs
    assert len(runs) > len(table.networks[made.network].runs)
    assert not closed.predictor.unmeasured(closed.variant)  # the lazy table filled the cells that the answer uses


def test_a_disturbed_measurement_surprises_and_is_settled(noisy_table: tuple[ArtifactBuilder, Table]) -> None:
    made, table = noisy_table
    device = SimulatedDevice(noise=0.01, seed=9)
    good = next(run for run in table.networks[made.network].runs if run.widths and 0.5 < run.ratio < 0.9)
    disturbed = table.with_runs(made.network, [dataclasses.replace(good, ratio=1.25 * good.ratio)])
    predictor = Predictor(disturbed, made.structure, made.network)
    found = surprising(predictor, disturbed, made)
    assert found[0].widths == good.widths  # it is the most surprising of all
    settled = settle(disturbed, device, made, found[:1], EFFORT)
    now = next(run for run in settled.networks[made.network].runs if run.key == good.key)
    assert now.ratio == pytest.approx(truth(device, made, found[0]), rel=0.03)
    assert len(settled.networks[made.network].runs) == len(table.networks[made.network].runs)


def test_what_is_asked_for_is_enclosed_from_both_sides() -> None:
    """Answers in steps of 0.05, a tenth slower than asked for: the best of them is asked for in a few rounds."""
    search, asked, seen = Enclosed(), 0.49, list[float]()
    for _ in range(8):
        measured = 1.1 * (asked // 0.05) * 0.05
        seen.append(measured)
        asked = search.after(asked, measured, 0.49)
        assert search.below < asked < search.above
    assert max(value for value in seen if value <= 0.49) == pytest.approx(1.1 * 0.40)


@pytest.mark.parametrize(("share", "repeated"), [(0.91, False), (0.97, True)])
def test_only_a_network_that_may_be_taken_is_confirmed_again_and_again(
    noisy_table: tuple[ArtifactBuilder, Table], share: float, repeated: bool
) -> None:
    """On a device that is never sure, a network clearly faster than it need be is not measured until sure."""
    made, table = noisy_table
    variant = floor(made.structure, made.target.channels, blocks=False)
    device = SimulatedDevice(noise=0.04, seed=5)
    budget = truth(device, made, variant) / share
    refine(lambda *_: variant, table, device, made, budget, effort=EFFORT, rounds=1, patience=Patience(1000))
    confirmed = sum(artifact.files == device.measured[-1].files for artifact in device.measured) - 1
    assert (confirmed > 3) == repeated


@pytest.mark.long
def test_the_more_networks_were_tried_the_less_near_to_the_budget_one_has_to_be(
    noisy_table: tuple[ArtifactBuilder, Table],
) -> None:
    """The best takes 0.97 of the budget, and no other does: that is enough once five were tried, not before."""
    made, table = noisy_table
    device = SimulatedDevice()
    near, others = Configuration({"first.conv1": 16}), [Configuration({"first.conv1": width}) for width in range(4, 12)]
    budget = truth(device, made, near) / 0.97
    told, answers = list[int](), iter([near, *others])
    closed = refine(
        lambda *_: next(answers), table, device, made, budget, effort=EFFORT, told=lambda number, _: told.append(number)
    )
    assert closed.variant == near and closed.within
    assert REFITS + 1 < len(told) < len(others)
    short = iter([near, *others])
    assert (
        len(refine(lambda *_: next(short), table, device, made, budget, effort=EFFORT, rounds=REFITS).steps) == REFITS
    )


def test_closure_goes_on_while_the_best_leaves_time_unused(noisy_table: tuple[ArtifactBuilder, Table]) -> None:
    """Only a narrow window of what is asked for gives the network that uses the budget; the rounds end before it."""
    made, table = noisy_table
    device = SimulatedDevice()
    fast, near, slow = (Configuration({"first.conv1": width}) for width in (8, 16, 24))
    budget = truth(device, made, near) / 0.985
    asked = list[float]()

    def solve(predictor: Predictor, latency: float) -> Configuration:
        asked.append(latency / predictor.dense)
        return fast if asked[-1] < 0.93 * budget else near if asked[-1] < 0.936 * budget else slow

    rounds = REFITS + 2
    closed = refine(solve, table, device, made, budget, effort=EFFORT, rounds=rounds, patience=Patience(1000))
    assert closed.variant == near and closed.within
    assert rounds < len(asked) <= rounds + FURTHER
    assert near not in [solve(closed.predictor, share * closed.predictor.dense) for share in asked[:rounds]]


class Lucky(SimulatedDevice):
    """The first measurement under the release's protocol finds the network a tenth faster than it is."""

    def __init__(self, protocol: Protocol) -> None:
        super().__init__()
        self.protocol, self.lucky = protocol, 1

    def measure(self, loaded: Sequence[Any], protocol: Protocol) -> list[Timing]:
        found = super().measure(loaded, protocol)
        if protocol == self.protocol and self.lucky:
            self.lucky -= 1
            found[-1] = dataclasses.replace(found[-1], median=0.9 * found[-1].median)
        return found


@pytest.mark.long
def test_a_network_that_was_lucky_once_is_not_taken(noisy_table: tuple[ArtifactBuilder, Table]) -> None:
    """The winner's curse: of the networks within the budget, the one of least loss was measured too fast."""
    made, table = noisy_table
    slow, fast = Configuration({"first.conv1": 16}), Configuration({"first.conv1": 8})
    device = Lucky(made.target.protocol)
    budget = 0.97 * truth(device, made, slow)
    assert truth(device, made, fast) < budget
    answers = iter([slow, fast] * 4)
    closed = refine(
        lambda *_: next(answers), table, device, made, budget, effort=EFFORT, rounds=4, patience=Patience(1000),
        loss=lambda variant: -sum(variant.widths.values()),
    )  # fmt: skip
    assert not device.lucky and closed.variant == fast
    assert closed.ratio == pytest.approx(truth(device, made, fast), rel=1e-3)
    assert closed.steps[0].measured == pytest.approx(truth(device, made, slow), rel=1e-3)  # all of its measurements
    ratios = [one.networks["pruned_int8"].median / one.networks["dense_int8"].median for one in closed.judged]
    assert ratios and np.median(ratios) == pytest.approx(closed.ratio)  # of the network that was taken


def test_where_luck_was_the_only_one_within_the_budget_the_rounds_begin_again(
    noisy_table: tuple[ArtifactBuilder, Table],
) -> None:
    made, table = noisy_table
    slow, fast = Configuration({"first.conv1": 16}), Configuration({"first.conv1": 8})
    device = Lucky(made.target.protocol)
    budget = 0.97 * truth(device, made, slow)
    answers, asked = iter([slow] * 4 + [fast]), list[float]()

    def solve(predictor: Predictor, latency: float) -> Configuration:
        asked.append(latency / predictor.dense)
        return next(answers, fast)

    closed = refine(solve, table, device, made, budget, effort=EFFORT, rounds=4, patience=Patience(1000))
    assert not device.lucky and closed.variant == fast
    assert asked[4] < 0.98 * asked[0]  # less than what gave the slow one


def test_closure_below_the_floor_says_so(noisy_table: tuple[ArtifactBuilder, Table]) -> None:
    made, table = noisy_table

    def stubborn(predictor: Predictor, latency: float) -> Configuration:
        return Configuration({"first.conv1": 8})

    with pytest.raises(BudgetError, match="the budget is"):
        refine(stubborn, table, SimulatedDevice(), made, 0.1, effort=EFFORT, rounds=3)


@pytest.mark.parametrize(("speedup", "reach"), [(1.05, "channels"), (50.0, "no")])
def test_feasibility_answers_before_any_training(made: ArtifactBuilder, speedup: float, reach: str) -> None:
    found = feasibility(made, SimulatedDevice(), BudgetSection(speedup=speedup), effort=EFFORT)
    assert found.reach == reach and found.possible == (reach != "no")
    assert found.message.startswith("Yes" if found.possible else "No")
    assert found.dense_int8 > found.floor > (found.floor_with_blocks or 0) > 0
    assert found.dense_int8 / found.max_speedup == pytest.approx(found.floor_with_blocks)
    assert sum(layer.time for layer in found.layers) == pytest.approx(found.dense_int8)
    assert found.layers[0].time >= found.layers[-1].time
    if not found.possible:
        assert "Ask for at most" in found.remedy


def test_a_budget_between_the_floors_needs_blocks(made: ArtifactBuilder) -> None:
    first = feasibility(made, SimulatedDevice(), BudgetSection(speedup=1.01), effort=EFFORT)
    between = first.dense_int8 / ((first.floor + (first.floor_with_blocks or 0)) / 2)
    found = feasibility(made, SimulatedDevice(), BudgetSection(speedup=between), effort=EFFORT)
    assert found.reach == "blocks" and "Removing residual blocks" in found.remedy
    forbidden = feasibility(made, SimulatedDevice(), BudgetSection(speedup=between), blocks=False, effort=EFFORT)
    assert forbidden.reach == "no" and "blocks = true" in forbidden.remedy


def test_an_absolute_budget_is_taken_as_it_is(made: ArtifactBuilder) -> None:
    found = feasibility(made, SimulatedDevice(), BudgetSection(latency_ms=1000.0), effort=EFFORT)
    assert found.reach == "channels" and found.budget == 1000.0 and found.speedup < 1


def test_tables_of_sampling_survive_a_file(noisy_table: tuple[ArtifactBuilder, Table], tmp_path: Path) -> None:
    made, table = noisy_table
    table.save(tmp_path / "t.jsonl")
    again = Table.load(tmp_path / "t.jsonl", table.fingerprint, "ms")
    variant = draw(made.structure, made.target.channels, 1, seed=9)[0]
    one, two = (Predictor(t, made.structure, made.network).predict(variant) for t in (table, again))
    assert one == pytest.approx(two, rel=1e-3)


@pytest.mark.long
def test_of_the_networks_within_the_budget_the_one_of_least_loss_is_taken(
    noisy_table: tuple[ArtifactBuilder, Table],
) -> None:
    made, table = noisy_table
    narrow, wide = Configuration({"first.conv1": 8}), Configuration({"first.conv1": 16})
    answers = iter([narrow, wide] * 3)

    def closed(loss: Callable[[Configuration], float] | None) -> Configuration:
        nonlocal answers
        answers = iter([narrow, wide] * 3)
        return refine(
            lambda predictor, latency: next(answers), table, SimulatedDevice(), made, 1.5, effort=EFFORT, rounds=4,
            loss=loss,
        ).variant  # fmt: skip

    assert closed(None) == closed(lambda variant: -sum(variant.widths.values())) == wide
    assert closed(lambda variant: sum(variant.widths.values())) == narrow


@pytest.mark.long
def test_a_network_too_near_to_the_budget_is_taken_only_where_no_other_fits(
    noisy_table: tuple[ArtifactBuilder, Table],
) -> None:
    made, table = noisy_table
    device = SimulatedDevice()
    near, room = Configuration({"first.conv1": 16}), Configuration({"first.conv1": 8})
    dearest = truth(device, made, near) / 0.997  # so that `near` takes 0.997 of the budget

    def closed(*given: Configuration) -> Configuration:
        answers = iter(given * 4)
        return refine(
            lambda predictor, latency: next(answers), table, device, made, dearest, effort=EFFORT, rounds=4
        ).variant

    assert closed(near, room) == room
    assert closed(near) == near


@pytest.mark.parametrize(("spread", "unsure"), [(0.0, False), (0.04, False), (0.3, True)])
def test_a_no_within_the_noise_of_its_latencies_says_so(spread: float, unsure: bool) -> None:
    reach, message, remedy = judge(1 / 1.5, 1 / 1.3, None, True, False, 10.0, "ms", spread=spread)
    assert reach == "no" and "7.692 ms (1.30x" in message
    assert ("leaves the answer open" in message) == unsure == remedy.startswith("Plan again on a quieter device")
    assert ("good to" in message) == (spread > 0) and "sk for at most 1.27x" in remedy


def test_a_no_within_the_noise_is_measured_again_first(made: ArtifactBuilder, monkeypatch: pytest.MonkeyPatch) -> None:
    once, more = SimulatedDevice(noise=0.1), SimulatedDevice(noise=0.1)
    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[judge.__module__], "AGAIN", 0)
        clear = feasibility(made, once, BudgetSection(speedup=50.0), effort=EFFORT)
        assert not clear.possible and not clear.unsure  # no noise makes that a yes
        at_floor = BudgetSection(speedup=clear.max_speedup)
        found = feasibility(made, SimulatedDevice(noise=0.1), at_floor, effort=EFFORT)
    assert not found.possible and found.unsure and "leaves the answer open" in found.message
    far = rejudged(found, made.structure, BudgetSection(speedup=50.0))
    assert not far.unsure and "open" not in far.message
    feasibility(made, more, at_floor, effort=EFFORT)
    assert len(more.measured) > len(once.measured)
