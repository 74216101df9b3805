"""Which layers run in INT8 and which stay in float: by accuracy and latency together, the cost of reformatting counted.

A layer belongs in INT8 only if that is good enough and faster on this target. With s_l = 1 for INT8:

    minimise    sum_l (float_ms_l + (int8_ms_l - float_ms_l) s_l) + sum_e reformat_ms_e y_e
    subject to  y_e >= s_a - s_b,  y_e >= s_b - s_a             for every edge e = (a, b) between layers
                sum_l loss_l s_l <= max_loss
                s binary, y >= 0

All layers in float is always a solution, so the answer is never slower than the float network (by the times given).
The baseline reverts the layer with the largest loss until the rest is good enough, and looks at no time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from edgeprune.devices import KernelTime
from edgeprune.errors import BudgetError
from edgeprune.quantize.feeds import Images, feeds
from edgeprune.quantize.ranges.observe import inference_session
from edgeprune.quantize.ranges.ranges import Ranges
from edgeprune.quantize.view import View
from edgeprune.quantize.write.insert import apply
from edgeprune.quantize.write.placement import SHARING, place
from edgeprune.runtimes import Dialect


@dataclass(frozen=True)
class LayerCost:
    """One layer's times in milliseconds, and what INT8 costs in accuracy (any additive unit; 0 or more)."""

    float_ms: float
    int8_ms: float
    loss: float


@dataclass(frozen=True)
class PrecisionChoice:
    """Which layers run in INT8, with what that costs by the numbers given.

    Attributes:
        precision: layer -> "int8" or "float".
        ms: total, reformatting included.
        loss: sum of the INT8 layers' losses.
        float_ms: everything in float, for comparison.
        gap: what remains between the answer and the solver's bound, relative; 0 is proven best. NaN for the baseline.
    """

    precision: Mapping[str, Literal["int8", "float"]]
    ms: float
    loss: float
    float_ms: float
    gap: float


Edges = Mapping[tuple[str, str], float]  # (layer, layer that reads it) -> milliseconds if their precisions differ


def solve(costs: Mapping[str, LayerCost], edges: Edges, max_loss: float, time_limit: float = 10.0) -> PrecisionChoice:
    """The fastest precision of every layer whose losses sum to at most `max_loss` (HiGHS, exact unless it times out).

    Raises:
        BudgetError: `max_loss` is negative, so that not even float is good enough.
    """
    if max_loss < 0:
        raise BudgetError(f"a loss of at most {max_loss:g} cannot be met: float costs 0.", "Allow 0 or more.")
    names = list(costs)
    index = {name: position for position, name in enumerate(names)}
    links = [(index[a], index[b], ms) for (a, b), ms in edges.items()]
    objective = np.array([costs[n].int8_ms - costs[n].float_ms for n in names] + [ms for _, _, ms in links])
    rows: list[int] = []
    columns: list[int] = []
    values: list[float] = []
    for number, (a, b, _) in enumerate(links):
        for row, sign in ((2 * number, 1.0), (2 * number + 1, -1.0)):
            rows += [row] * 3
            columns += [a, b, len(names) + number]
            values += [sign, -sign, -1.0]
    last = 2 * len(links)
    rows += [last] * len(names)
    columns += list(range(len(names)))
    values += [costs[name].loss for name in names]
    matrix = coo_array((values, (rows, columns)), shape=(last + 1, len(objective)))
    limits = np.array([0.0] * last + [max_loss])
    result = milp(
        objective,
        constraints=LinearConstraint(matrix.tocsr(), -np.inf, limits),
        integrality=np.array([1] * len(names) + [0] * len(links)),
        bounds=Bounds(0, 1),
        options={"time_limit": time_limit, "mip_rel_gap": 0.0},
    )
    chosen = np.zeros(len(names), bool) if result.x is None else result.x[: len(names)] > 0.5
    gap = float(result.mip_gap) if result.x is not None and result.mip_gap is not None else np.inf
    return _choice(costs, edges, {name for name, on in zip(names, chosen, strict=True) if on}, gap)


def greedy(costs: Mapping[str, LayerCost], edges: Edges, max_loss: float) -> PrecisionChoice:
    """The baseline: everything in INT8, then the worst layer back to float until the losses fit; blind to time."""
    kept = set(costs)
    while kept and sum(costs[name].loss for name in kept) > max_loss:
        kept.remove(max(kept, key=lambda name: (costs[name].loss, name)))
    return _choice(costs, edges, kept, float("nan"))


def choose(
    method: Literal["auto", "greedy", "none"], costs: Mapping[str, LayerCost], edges: Edges, max_loss: float
) -> PrecisionChoice:
    """What the recipe's `fallback` asks for: the program, the baseline, or INT8 wherever the dialect can.

    `edges` may lead to layers without a cost: those stay in float in this dialect, whatever is chosen.
    """
    costs, edges = _beside_float(costs, edges)
    match method:
        case "auto":
            return solve(costs, edges, max_loss)
        case "greedy":
            return greedy(costs, edges, max_loss)
        case _:
            return _choice(costs, edges, set(costs), float("nan"))


def _beside_float(costs: Mapping[str, LayerCost], edges: Edges) -> tuple[dict[str, LayerCost], Edges]:
    """Reformatting to a layer that is always float is a part of what INT8 costs the layer beside it."""
    extra = dict.fromkeys(costs, 0.0)
    for pair, ms in edges.items():
        inside = [name for name in pair if name in costs]
        if len(inside) == 1:
            extra[inside[0]] += ms
    within = {pair: ms for pair, ms in edges.items() if pair[0] in costs and pair[1] in costs}
    return {name: replace(cost, int8_ms=cost.int8_ms + extra[name]) for name, cost in costs.items()}, within


def _choice(costs: Mapping[str, LayerCost], edges: Edges, int8: set[str], gap: float) -> PrecisionChoice:
    total = sum(cost.int8_ms if name in int8 else cost.float_ms for name, cost in costs.items())
    total += sum(ms for (a, b), ms in edges.items() if (a in int8) != (b in int8))
    return PrecisionChoice(
        precision={name: "int8" if name in int8 else "float" for name in costs},
        ms=float(total),
        loss=float(sum(cost.loss for name, cost in costs.items() if name in int8)),
        float_ms=float(sum(cost.float_ms for cost in costs.values())),
        gap=gap,
    )


def layer_edges(model: onnx.ModelProto, ms_per_element: float) -> dict[tuple[str, str], float]:
    """Edges between layers, through whatever lies between, with the time to reformat the tensor that is read.

    Args:
        ms_per_element: of a Q or DQ kernel on the target: its profiled time divided by its elements.
    """
    view = View.of(onnx.shape_inference.infer_shapes(model))
    sizes = {
        value.name: int(np.prod([max(dim.dim_value, 1) for dim in value.type.tensor_type.shape.dim]))
        for value in (*view.model.graph.value_info, *view.model.graph.input, *view.model.graph.output)
    }
    found: dict[tuple[str, str], float] = {}
    for name, node in view.layers.items():
        for maker in _makers(view, node.input[0]):
            found[(maker, name)] = ms_per_element * sizes.get(node.input[0], 0)
    return found


def _makers(view: View, tensor: str) -> set[str]:
    """The layers whose outputs reach `tensor` without passing another layer."""
    found: set[str] = set()
    seen: set[str] = set()
    waiting = [tensor]
    while waiting:
        name = waiting.pop()
        node = view.producer.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if node.name in view.layers:
            found.add(node.name)
        else:
            waiting += [node.input[index] for index in view.data_inputs(node)]
    return found


def times(layers: Iterable[str], kernels: Iterable[KernelTime]) -> dict[str, float]:
    """Milliseconds of each layer from a profile; a kernel that fused several layers is shared out evenly."""
    wanted = set(layers)
    found = dict.fromkeys(wanted, 0.0)
    for kernel in kernels:
        inside = [name for name in (kernel.layers or (kernel.name,)) if name in wanted]
        for name in inside:
            found[name] += kernel.median / len(inside)
    return found


def sensitivities(
    model: onnx.ModelProto, ranges: Ranges, dialect: Dialect, images: Images, limit: int = 16
) -> dict[str, float]:
    """What each layer alone in INT8 does to the network's outputs: noise divided by signal, over up to `limit` images.

    The mean over the outputs that hold floating-point numbers.

    For small noise these add up, so they serve as losses in `solve`.
    """
    view = View.of(model)
    layers = [name for name, role in place(view, dialect, ranges.precision).nodes.items() if role == "compute"]
    everything = {node.name: "float" for node in view.nodes if node.op_type not in SHARING}  # these own no range
    fed = [feed for feed, _ in feeds(view, images, limit)]
    outputs = [index for index, name in enumerate(view.outputs) if view.is_float(name)]
    reference = [inference_session(model).run(None, feed) for feed in fed]
    signals = [sum(_energy(row[index]) for row in reference) for index in outputs]
    found = {}
    for layer in layers:
        one = apply(model, ranges, dialect, {k: v for k, v in everything.items() if k != layer})
        runner = inference_session(one)
        rows = [runner.run(None, feed) for feed in fed]
        noises = [
            sum(_energy(row[index] - exact[index]) for row, exact in zip(rows, reference, strict=True))
            for index in outputs
        ]
        ratios = [noise / max(signal, 1e-30) for noise, signal in zip(noises, signals, strict=True)]
        found[layer] = sum(ratios) / len(ratios)
    return found


def _energy(value: NDArray[np.generic]) -> float:
    return float((np.asarray(value, np.float64) ** 2).sum())
