"""A fleet: boards of one kind measure a table together, and take each other's place when one drops."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from simulated import SimulatedDevice
from test_latency_sample import EFFORT, empty, truth

from edgeprune.devices import Fleet, Timing
from edgeprune.devices.types import Probe
from edgeprune.errors import DeviceUnreachable, JobFailed, TargetError
from edgeprune.graph import DENSE
from edgeprune.latency.build import ArtifactBuilder
from edgeprune.latency.profiling import profile
from edgeprune.latency.sample import extend
from edgeprune.latency.variants import draw
from edgeprune.target import Protocol


class Board(SimulatedDevice):
    """A simulated device that dies after `lives` measurements, and can be slower than others of its kind."""

    def __init__(self, lives: int = 10**6, slower: float = 1.0, kernel: str = "6.1", noise: float = 0.0) -> None:
        super().__init__(noise=noise)
        self.lives, self.slower, self.kernel = lives, slower, kernel
        self.threads: set[str] = set()
        self.left = False

    def __exit__(self, *exc: object) -> None:
        self.left = True

    def probe(self) -> Probe:
        self._lives(0)
        found = super().probe()
        return Probe({**found.fingerprint, "kernel": self.kernel}, {"where": "a simulated board"})

    def measure(self, loaded: Sequence[Any], protocol: Protocol) -> list[Timing]:
        self.threads.add(threading.current_thread().name)
        self._lives(1)
        return super().measure(loaded, protocol)

    def _now(self) -> float:
        return self.slower * super()._now()

    def _lives(self, fewer: int) -> None:
        self.lives -= fewer
        if self.lives < 0:
            raise DeviceUnreachable("it does not answer.")


@pytest.mark.long
def test_two_boards_share_a_table_and_it_is_the_one_of_each(made: ArtifactBuilder) -> None:
    boards = {"a": Board(), "b": Board()}
    variants = draw(made.structure, made.target.channels, 12, seed=1)
    with Fleet(boards) as fleet:
        table = extend(empty(fleet), fleet, made, variants, EFFORT)
        pieces = {one.name: one.pieces for one in fleet.states}
    alone = extend(empty(Board()), Board(), made, variants, EFFORT)
    assert sum(pieces.values()) == 4 and min(pieces.values()) >= 1, pieces  # 12 networks: 3 a board, twice
    runs = [{run.key: run.ratio for run in one.networks[made.network].runs} for one in (table, alone)]
    assert runs[0].keys() == runs[1].keys() and len(runs[0]) >= 12
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)
    assert boards["a"].threads == {"board a_0"} and boards["b"].threads == {"board b_0"}
    assert all(board.left and not board.opened for board in boards.values())  # nothing stays open


@pytest.mark.long
@pytest.mark.parametrize("first", [True, False])
def test_one_board_drops_and_the_table_ends_on_the_other(made: ArtifactBuilder, first: bool) -> None:
    """The leading one, in the middle of shared work; or the other one."""
    boards = {"a": Board(lives=3 if first else 10**6), "b": Board(lives=10**6 if first else 0)}
    dead = "a" if first else "b"
    variants = draw(made.structure, made.target.channels, 12, seed=0)
    with Fleet(boards) as fleet:
        found = profile(empty(fleet), fleet, made, 12, 4, EFFORT)
        states = {one.name: one for one in fleet.states}
        assert list(fleet.boards) == ["b" if first else "a"] == [fleet.lead]
    assert "does not answer" in states[dead].gone and boards[dead].left
    runs = {run.key: run.ratio for run in found.table.networks[made.network].runs}
    assert len(runs) >= 16
    for variant in variants[:4]:
        ratio = runs[variant.key]
        assert ratio == pytest.approx(truth(SimulatedDevice(), made, variant), rel=1e-3)


@pytest.mark.long
def test_the_last_board_is_the_fleet(made: ArtifactBuilder) -> None:
    with Fleet({"a": Board(lives=2), "b": Board(lives=2)}) as fleet, pytest.raises(DeviceUnreachable, match="answer"):
        extend(empty(fleet), fleet, made, draw(made.structure, made.target.channels, 40, seed=1), EFFORT)


def test_a_board_that_is_away_from_the_start_is_left_out(made: ArtifactBuilder) -> None:
    with Fleet({"a": Board(lives=-1), "b": Board()}) as fleet:
        assert fleet.lead == "b" and [bool(one.gone) for one in fleet.states] == [True, False]
        extend(empty(fleet), fleet, made, [DENSE], EFFORT)
    with pytest.raises(DeviceUnreachable), Fleet({"a": Board(lives=-1), "b": Board(lives=-1)}):
        pass


def test_another_kernel_is_another_kind(made: ArtifactBuilder) -> None:
    boards = {"a": Board(), "b": Board(kernel="5.4")}
    with pytest.raises(TargetError, match=r"kernel is '6\.1' on a and '5\.4' on b"), Fleet(boards):
        pass
    assert all(board.left for board in boards.values())


@pytest.mark.long
def test_another_speed_grade_is_set_aside(made: ArtifactBuilder) -> None:
    """Its ratios are its own anchor's, so what it gave before it was known does no harm."""
    boards = {"a": Board(), "b": Board(slower=1.3)}
    variants = draw(made.structure, made.target.channels, 24, seed=1)
    with Fleet(boards) as fleet:
        table = extend(empty(fleet), fleet, made, variants, EFFORT)
        (aside,) = [one for one in fleet.states if one.gone]
    assert aside.name == "b" and "30 % slower" in aside.gone
    alone = extend(empty(Board()), Board(), made, variants, EFFORT)
    runs = [{run.key: run.ratio for run in one.networks[made.network].runs} for one in (table, alone)]
    assert runs[0] == pytest.approx(runs[1], rel=1e-3)


def test_what_fails_for_another_reason_ends_it_and_nothing_hangs() -> None:
    failed = threading.Event()

    def work(name: str, board: Any, piece: int) -> int:
        if name == "b":
            failed.set()
            raise JobFailed("out of memory.")
        failed.wait(60)
        return piece

    with Fleet({"a": Board(), "b": Board()}) as fleet, pytest.raises(JobFailed, match="out of memory"):
        list(fleet.share(range(9), work))
    assert failed.is_set()


def test_pieces_of_a_dropped_board_are_done_by_the_other() -> None:
    """Also the last piece, while the other board has nothing left to do and waits."""
    started, done = threading.Event(), list[int]()

    def work(name: str, board: Any, piece: int) -> int:
        if name == "b":
            started.set()
            while len(done) < 4:
                time.sleep(0.01)
            raise DeviceUnreachable("gone.")
        started.wait(60)
        done.append(piece)
        return piece

    with Fleet({"a": Board(), "b": Board()}) as fleet:
        found = [piece for _, piece in fleet.share(range(5), work)]
        assert sorted(found) == [0, 1, 2, 3, 4] and fleet.lead == "a"


def test_an_artifact_is_opened_again_on_the_board_that_takes_over(made: ArtifactBuilder) -> None:
    built = made.build(DENSE, "dense")
    boards = {"a": Board(lives=1), "b": Board()}
    with Fleet(boards) as fleet:
        loaded = fleet.load(built.artifact)
        protocol = made.target.protocol
        (first,) = fleet.measure([loaded], protocol)
        (second,) = fleet.measure([loaded], protocol)
        assert fleet.lead == "b" and len(boards["b"].opened) == 1
        assert first.median == pytest.approx(second.median)
        fleet.unload(loaded)
        assert not boards["b"].opened
    assert np.isfinite(first.median)


def test_the_dense_network_is_measured_by_all_boards_and_brought_to_the_first_one_s_pace(made: ArtifactBuilder) -> None:
    """12 % apart is one grade: the table's latency is the first board's, its ratios those of both."""
    boards = {"a": Board(), "b": Board(slower=1.12)}
    with Fleet(boards) as fleet:
        table = extend(empty(fleet), fleet, made, [], EFFORT)
    alone = extend(empty(Board()), Board(), made, [], EFFORT)
    both, one = (found.networks[made.network] for found in (table, alone))
    assert both.dense == pytest.approx(one.dense, rel=1e-6) and both.profiler_cost == pytest.approx(one.profiler_cost)
    assert [run.ratio for run in both.runs] == pytest.approx([run.ratio for run in one.runs], rel=1e-6)
    assert boards["b"].measured and len(boards["a"].measured) == len(boards["b"].measured)
    assert {key: cell.median for key, cell in table.cells.items()} == pytest.approx(
        {key: cell.median for key, cell in alone.cells.items()}, rel=1e-6
    )


def test_a_board_that_dies_in_the_first_measurement_is_missed_by_nobody(made: ArtifactBuilder) -> None:
    with Fleet({"a": Board(lives=0), "b": Board()}) as fleet:
        table = extend(empty(fleet), fleet, made, [], EFFORT)
        assert fleet.lead == "b"
    alone = extend(empty(Board()), Board(), made, [], EFFORT)
    assert table.networks[made.network].dense == pytest.approx(alone.networks[made.network].dense)
