"""The solver against brute force, and on programs of real size."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeprune.errors import BudgetError
from edgeprune.search import factors
from edgeprune.search.program import ChannelGroup, Program, RemovableBlock, kernel
from edgeprune.search.solve import floor, reduce, solve

_spec = importlib.util.spec_from_file_location("search_programs", Path(__file__).parent / "programs.py")
assert _spec is not None and _spec.loader is not None
programs = importlib.util.module_from_spec(_spec)
sys.modules["search_programs"] = programs
_spec.loader.exec_module(programs)


def _brute(program: Program, budget: float, limit: float = float("inf")) -> float:
    totals = (program.totals(choice) for choice in programs.every_choice(program))
    return min((t.loss for t in totals if t.ms <= budget and t.bytes <= limit), default=float("inf"))


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_equals_brute_force(first: int) -> None:
    for seed in range(first, first + 20):
        program = programs.random_program(seed)
        least = min(program.totals(choice).ms for choice in programs.every_choice(program))
        assert floor(program) == pytest.approx(least, rel=1e-9)
        dense = program.totals(program.dense()).ms
        budget = least + np.random.default_rng(seed + 1000).uniform(0.02, 0.9) * max(dense - least, 1e-3)
        answer = solve(program, [budget])[0]
        best = _brute(program, budget)
        assert answer.loss <= best * (1 + 1e-4) + 1e-12, seed
        assert answer.loss >= best - 1e-9, seed
        assert answer.ms <= budget * (1 + 1e-9)
        assert answer.bound <= best + 1e-9, f"seed {seed}: the bound is no bound"
        assert answer.gap <= 1e-4


@pytest.mark.parametrize("seed", range(0, 60, 3))
def test_bytes_row(seed: int) -> None:
    program = programs.random_program(seed)
    sizes = sorted(program.totals(choice).bytes for choice in programs.every_choice(program))
    limit = sizes[len(sizes) // 2]
    budget = program.totals(program.dense()).ms
    answer = solve(program, [budget], max_bytes=limit)[0]
    assert answer.bytes <= limit
    assert answer.loss == pytest.approx(_brute(program, budget, limit), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("seed", range(60))
def test_budget_and_bytes_together(seed: int) -> None:
    """Both rows tight: the answer is the best of all, and its bound is one."""
    program = programs.random_program(seed)
    totals = [program.totals(choice) for choice in programs.every_choice(program)]
    wanted = sorted(totals, key=lambda t: t.ms / totals[-1].ms + t.bytes / max(totals[-1].bytes, 1.0))[len(totals) // 3]
    answer = solve(program, [wanted.ms * 1.0001], max_bytes=wanted.bytes + 0.5)[0]
    best = min(t.loss for t in totals if t.ms <= wanted.ms * 1.0001 and t.bytes <= wanted.bytes + 0.5)
    assert answer.bytes <= wanted.bytes + 0.5
    assert best - 1e-9 <= answer.loss <= best * (1 + 1e-4) + 1e-12
    assert answer.bound <= best + 1e-9


def test_a_limit_under_the_smallest_network_is_refused() -> None:
    program = programs.random_program(3)
    least = min(program.totals(choice).bytes for choice in programs.every_choice(program))
    with pytest.raises(BudgetError, match="max_bytes"):
        solve(program, [program.totals(program.dense()).ms], max_bytes=0.9 * least)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_without_elimination_highs_alone_agrees(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    program = programs.random_program(seed)
    budget = 0.5 * (floor(program) + program.totals(program.dense()).ms)
    with_elimination = solve(program, [budget])[0]
    monkeypatch.setattr(factors, "CLIQUE_LIMIT", 0)
    direct = solve(program, [budget])[0]
    assert direct.method == "highs"
    assert direct.loss == pytest.approx(with_elimination.loss, rel=1e-4, abs=1e-9)


def test_min_marginals_are_exact() -> None:
    for seed in range(40):
        program = programs.random_program(seed)
        network = factors.build(program)
        relaxed = factors.minimise(network, 0.7)
        marginals = factors.min_marginals(network, relaxed)
        values = {}
        for choice in programs.every_choice(program):
            totals = program.totals(choice)
            value = totals.loss + 0.7 * (totals.ms - program.beta)
            for v, group in enumerate(program.groups):
                state = (
                    group.widths.index(choice.widths[group.name]) if group.name in choice.widths else len(group.widths)
                )
                values[v, state] = min(values.get((v, state), np.inf), value)
        for (v, state), value in values.items():
            assert marginals[v][state] == pytest.approx(value, rel=1e-9, abs=1e-9), (seed, v, state)


@pytest.mark.long
def test_front_is_monotone_and_in_order() -> None:
    program = programs.resnet50(64)
    dense = program.totals(program.dense()).ms
    budgets = [dense / s for s in (3.0, 1.2, 2.0, 1.5)]
    front = solve(program, budgets)
    assert [item.budget for item in front] == budgets
    losses = [item.loss for item in sorted(front, key=lambda item: item.budget)]
    assert losses == sorted(losses, reverse=True)


def test_plateaus_are_dropped_and_only_they() -> None:
    group = ChannelGroup("g", (8, 16, 24, 32), (3.0, 2.0, 1.0, 0.0))
    times = np.array([1.0, 1.0, 2.0, 2.0])
    program = Program((group,), (kernel("k", ("g",), times),))
    assert reduce(program).groups[0].widths == (16, 32)
    assert solve(program, [1.5])[0].choice.widths == {"g": 16}
    assert solve(program, [2.0])[0].choice.widths == {"g": 32}


def test_input_and_output_channels_count_together() -> None:
    """Halving both sides of one kernel quarters it: a frozen c_in does not see that."""
    groups = tuple(ChannelGroup(name, (8, 16), (1.0, 0.0)) for name in "ab")
    program = Program(groups, (kernel("k", ("a", "b"), np.outer([1, 2], [1, 2]) / 4.0),))
    assert solve(program, [0.25])[0].choice.widths == {"a": 8, "b": 8}
    assert solve(program, [0.5])[0].loss == 1.0


def test_a_removed_block_takes_its_group_along() -> None:
    groups = (ChannelGroup("s", (16,), (0.0,)), ChannelGroup("i", (8, 16), (0.5, 0.0), "b"))
    kernels = (
        kernel("one", ("s", "i"), np.array([[1.0, 2.0]]), "b"),
        kernel("add", ("s",), np.array([0.25]), "b"),
        kernel("head", ("s",), np.array([1.0])),
    )
    program = Program(groups, kernels, (RemovableBlock("b", 2.0),), beta=0.1)
    assert solve(program, [3.35])[0].choice == program.dense()
    assert solve(program, [2.4])[0].choice.widths == {"s": 16, "i": 8}
    answer = solve(program, [1.2])[0]
    assert answer.choice.removed == ("b",) and "i" not in answer.choice.widths
    assert answer.ms == pytest.approx(1.1)


def test_a_budget_below_the_floor_is_refused_with_the_floor() -> None:
    program = programs.resnet50(64)
    least = floor(program)
    with pytest.raises(BudgetError, match="below the floor") as caught:
        solve(program, [0.99 * least])
    assert f"{least:.4g} ms" in caught.value.message and "at least" in caught.value.remedy
    rigid = replace(program, blocks=tuple(RemovableBlock(block.name, float("inf")) for block in program.blocks))
    assert floor(rigid) > least
    with pytest.raises(BudgetError, match="blocks = true"):
        solve(
            replace(
                program,
                blocks=(),
                groups=tuple(replace(g, block="") for g in program.groups),
                kernels=tuple(replace(k, block="") for k in program.kernels),
            ),
            [least],
        )


def test_contradictions_are_refused() -> None:
    group = ChannelGroup("g", (8, 16), (1.0, 0.0))
    with pytest.raises(ValueError, match="shape"):
        Program((group,), (kernel("k", ("g",), np.ones(3)),)).check()
    with pytest.raises(ValueError, match="unknown"):
        Program((group,), (kernel("k", ("h",), np.ones(2)),)).check()
    with pytest.raises(ValueError, match="finite"):
        Program((group,), (kernel("k", ("g",), np.array([1.0, np.nan])),)).check()
    with pytest.raises(ValueError, match="ascend"):
        Program((ChannelGroup("g", (16, 8), (0.0, 1.0)),), ()).check()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "step"), [("resnet50", 32), ("mobilenet_v2", 8)])
def test_real_sizes_within_a_minute(name: str, step: int) -> None:
    program = getattr(programs, name)(step)
    dense = program.totals(program.dense()).ms
    for answer in solve(program, [dense / 1.5, dense / 2.5], seconds=60):
        assert answer.gap <= 1e-4
        assert answer.seconds <= 60
