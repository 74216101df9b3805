"""How many images each part of calibration looks at: as many as its method wants, within a budget of arithmetic.

Ranges always come from all images. What compares candidates, equalises, corrects and reports looks at each image
several times; on large networks a few of them hold as many values as many of a small one.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import onnx

from edgeprune.quantize.view import View, attribute

Effort = Literal["fast", "default", "best"]

GIGA_MACS: dict[str, float] = {"fast": 40.0, "default": 120.0, "best": 4000.0}  # of one part; some 40 a second and core
SPARE = 50.0 / 120.0  # of that is spent on more images than a part needs: small networks see many, large ones few
LEAST = 4  # images, whatever they cost
LARGE = 3e8  # multiply-accumulates of an image from which both cores of a small machine are worth their overhead
LOOK_S, FREE = 0.2, 0.5  # seconds that other work is watched for, and the idle share of a core that is free
PER_VALUE = 40  # multiply-accumulates that reading or writing one value costs as much as


def affordable(view: View, limit: int, wish: int | tuple[int, int], passes: float, effort: Effort) -> int:
    """How many of `limit` images a part looks at that runs the network `passes` times for each.

    Args:
        wish: how many it wants by default, or how many it needs and how many it gains from; "best" takes twice as many.
    """
    needed, gained = wish if isinstance(wish, tuple) else (wish, wish)
    within = GIGA_MACS[effort] * 1e9 / max(passes * work(view), 1.0)
    wanted = max(needed, min(gained, int(SPARE * within)))
    wanted = min(limit, 2 * wanted if effort == "best" else wanted)
    return max(min(wanted, LEAST), min(wanted, int(within)))


def threads(view: View) -> int:
    """Threads that ONNX Runtime analyses the graph with: one for a small network."""
    return min(os.cpu_count() or 1, 4) if work(view) > LARGE else 1


@contextlib.contextmanager
def uncrowded(view: View | None = None) -> Iterator[None]:
    """Let torch compute on no more threads than there are cores that others leave free, and one for a small network.

    The threads of an operator wait for each other at its end. Beside a busy process one of them waits for its turn each
    time: FastestDet's calibration, of some 10^5 small operators, took over 280 s of CPU so, and 15 with one thread.
    OMP_NUM_THREADS has the last word.
    """
    import torch

    before = torch.get_num_threads()
    most = min(before, threads(view)) if view is not None else before
    if "OMP_NUM_THREADS" not in os.environ and before > 1:
        torch.set_num_threads(min(most, free_cores()) if most > 1 else 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def free_cores() -> int:
    """How many of the cores that this process may use others leave alone at present; at least 1."""
    before = _idle()
    time.sleep(LOOK_S)
    after, ticks = _idle(), LOOK_S * os.sysconf("SC_CLK_TCK")
    return max(1, sum(after[core] - before.get(core, 0) >= FREE * ticks for core in after)) if after else _allowed()


def _idle() -> dict[int, int]:
    """Clock ticks that each allowed core has been idle since the start (proc(5), /proc/stat); empty: unknown."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
    found = {}
    with contextlib.suppress(OSError, ValueError, IndexError), Path("/proc/stat").open(encoding="ascii") as stream:
        for line in stream:
            name, *ticks = line.split()
            if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in mine:
                found[int(name[3:])] = int(ticks[3]) + int(ticks[4])
    return found


def _allowed() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def work(view: View) -> float:
    """Multiply-accumulates of one run of the graph, moving values counted too."""
    return sum(_of(view, node) for node in view.nodes)


def _of(view: View, node: onnx.NodeProto) -> float:
    made = math.prod(max(size, 1) for size in view.shape(node.output[0]) or (1,)) if node.output else 1
    moved = float(PER_VALUE * made)
    match node.op_type:
        case "Conv":
            return moved + made * math.prod((view.shape(node.input[1]) or (1, 1))[1:])
        case "ConvTranspose":
            read = math.prod(max(size, 1) for size in view.shape(node.input[0]) or (1,))
            return moved + read * math.prod((view.shape(node.input[1]) or (1, 1))[1:])
        case "Gemm" | "MatMul":
            a = view.shape(node.input[0]) or (1,)
            return moved + made * (a[-2] if attribute(node, "transA", 0) else a[-1])
        case _:
            return moved
