"""The solver, measured: brute force on small programs, gap and time at real sizes, also with a limit on
bytes, and what c_in frozen would cost.

    python benchmarks/solver.py [--out benchmarks/results/solver.json]

Needs no runtime. Times are of one thread; the latency tables are synthetic (a roofline with steps of 16
outputs and 4 inputs, 5 % noise), the sizes those of the real networks.
"""

from __future__ import annotations

import argparse
import importlib.util
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, ROOT, save

from edgeprune.search.program import Kernel, KernelPrecision, Program
from edgeprune.search.solve import floor, solve

SIZES = (
    ("resnet50", 64),
    ("resnet50", 32),
    ("resnet50", 16),
    ("resnet50", 8),
    ("mobilenet_v2", 16),
    ("mobilenet_v2", 8),
)
SPEEDUPS = (1.25, 1.5, 2.0, 2.5, 3.0)


def load_programs() -> Any:
    """The generators that the tests use."""
    spec = importlib.util.spec_from_file_location("search_programs", ROOT / "tests/search/programs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["search_programs"] = module
    spec.loader.exec_module(module)
    return module


def brute_force(programs: Any, count: int) -> dict[str, Any]:
    """How many of `count` random programs are solved to the true optimum."""
    equal, worst, valid = 0, 0.0, 0
    for seed in range(count):
        program = programs.random_program(seed)
        totals = [program.totals(choice) for choice in programs.every_choice(program)]
        least, dense = min(t.ms for t in totals), program.totals(program.dense()).ms
        budget = least + np.random.default_rng(seed + 1000).uniform(0.02, 0.9) * max(dense - least, 1e-3)
        best = min(t.loss for t in totals if t.ms <= budget)
        answer = solve(program, [budget])[0]
        difference = (answer.loss - best) / max(best, 1e-12) if answer.loss > best else 0.0
        equal += int(difference <= 1e-4)
        valid += int(answer.bound <= best + 1e-9)
        worst = max(worst, difference)
    return {"programs": count, "equal": equal, "valid_bounds": valid, "worst_relative_excess": worst}


def sizes(programs: Any, limit: float) -> list[dict[str, Any]]:
    """Gap and seconds for programs of the size of known networks."""
    found = []
    for name, step in SIZES:
        program = getattr(programs, name)(step)
        dense = program.totals(program.dense()).ms
        for speedup in SPEEDUPS:
            answer = solve(program, [dense / speedup], seconds=limit)[0]
            found.append(
                {
                    "network": name,
                    "step": step,
                    "options": answer.options[0],
                    "left_for_highs": answer.options[1],
                    "speedup": speedup,
                    "loss": answer.loss,
                    "gap": answer.gap,
                    "seconds": answer.seconds,
                    "of_budget": answer.ms * speedup / dense,
                    "removed": len(answer.choice.removed),
                    "method": answer.method,
                }
            )
            print(f"{name} step {step} {speedup}x: gap {answer.gap:.1e} in {answer.seconds:.1f} s", flush=True)
    return found


def limits(programs: Any, limit: float) -> list[dict[str, Any]]:
    """Gap and seconds at 1.5x when the bytes of the answer without a limit (c_in * c_out a kernel) must shrink too."""
    found = []
    for name, step in (("resnet50", 64), ("resnet50", 16), ("mobilenet_v2", 8)):
        program = weighed(getattr(programs, name)(step))
        budget = program.totals(program.dense()).ms / 1.5
        free = solve(program, [budget], seconds=limit)[0]
        for share in (1.0, 0.8, 0.6, 0.4):
            answer = solve(program, [budget], max_bytes=share * free.bytes, seconds=limit)[0]
            row = {"network": name, "step": step, "of_bytes": share, "loss": answer.loss, "gap": answer.gap}
            found.append({**row, "seconds": answer.seconds, "of_limit": answer.bytes / (share * free.bytes)})
            print(f"{name} step {step}, {share:.0%} of the bytes: gap {answer.gap:.1e}, {answer.seconds:.1f} s")
    return found


def weighed(program: Program) -> Program:
    """The program with the product of its groups' widths as each kernel's bytes."""
    widths = {group.name: np.array(group.widths, dtype=np.float64) for group in program.groups}

    def with_bytes(item: Kernel) -> Kernel:
        size = np.ones(())
        for name in item.groups:
            size = np.multiply.outer(size, widths[name])
        return replace(item, precisions=tuple(replace(way, bytes=size) for way in item.precisions))

    return replace(program, kernels=tuple(with_bytes(item) for item in program.kernels))


def frozen_inputs(program: Program) -> Program:
    """The same program as methods that look at one layer at a time see it: every kernel reads its dense input width."""
    kernels = []
    for item in program.kernels:
        if len(item.groups) < 2:
            kernels.append(item)
            continue
        way = item.precisions[0]
        seen = np.broadcast_to(way.ms[-1:, :], way.ms.shape).copy()  # axis 0 is the input group, its last option dense
        kernels.append(Kernel(item.name, item.groups, (KernelPrecision(way.name, seen),), item.block))
    return replace(program, kernels=tuple(kernels))


def ablations(programs: Any) -> list[dict[str, Any]]:
    """Loss at equal true latency: the exact program, c_in frozen, without blocks, blocks alone."""
    rows = []
    for name, step in (("resnet50", 32), ("mobilenet_v2", 8)):
        program = getattr(programs, name)(step)
        dense = program.totals(program.dense()).ms
        for speedup in (1.5, 2.0, 2.5):
            budget = dense / speedup
            row: dict[str, Any] = {"network": name, "speedup": speedup, "exact": solve(program, [budget])[0].loss}
            rigid = replace(program, blocks=tuple(replace(b, loss=float("inf")) for b in program.blocks))
            only = replace(
                program,
                groups=tuple(replace(g, widths=g.widths[-1:], losses=g.losses[-1:]) for g in program.groups),
                kernels=tuple(_whole(item) for item in program.kernels),
            )
            row["without_blocks"] = _loss(rigid, budget)
            row["blocks_alone"] = _loss(only, budget)
            blind = frozen_inputs(program)
            naive = _try(blind, budget)
            row["c_in_frozen_same_budget"] = None
            if naive is not None:
                totals = program.totals(naive)
                row["c_in_frozen_same_budget"] = {
                    "loss": totals.loss,
                    "lands_at": totals.ms / dense,
                    "asked": 1 / speedup,
                }
            row["c_in_frozen_equal_latency"] = _equal_latency(program, blind, budget)
            rows.append(row)
            print(row, flush=True)
    return rows


def _whole(item: Kernel) -> Kernel:
    cell = tuple(slice(-1, None) for _ in item.groups)
    return replace(item, precisions=tuple(replace(way, ms=way.ms[cell]) for way in item.precisions))


def _try(program: Program, budget: float) -> Any:
    return solve(program, [budget])[0].choice if budget >= floor(program) else None


def _loss(program: Program, budget: float) -> float | None:
    choice = _try(program, budget)
    return None if choice is None else program.totals(choice).loss


def _equal_latency(program: Program, blind: Program, budget: float) -> float | None:
    """The blind program's best loss over all of its own budgets whose answers truly fit."""
    best = None
    for own in np.linspace(max(floor(blind), budget) * 1.0001, blind.totals(blind.dense()).ms, 16):
        choice = _try(blind, float(own))
        if choice is not None and program.totals(choice).ms <= budget:
            loss = program.totals(choice).loss
            best = loss if best is None else min(best, loss)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "solver.json")
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for one solve")
    options = parser.parse_args()
    programs = load_programs()
    start = time.perf_counter()
    result = {
        "brute_force": brute_force(programs, options.programs),
        "sizes": sizes(programs, options.limit),
        "limits": limits(programs, options.limit),
        "ablations": ablations(programs),
        "machine": platform.processor() or platform.machine(),
        "seconds": 0.0,
    }
    result["seconds"] = time.perf_counter() - start
    save(options.out, result)


if __name__ == "__main__":
    main()
