"""Recurrent layers: the gates of one hidden unit go together, in every layer and direction: they share one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeprune.graph.rules.contract import record
from edgeprune.graph.space import Axis
from edgeprune.graph.walk import Arguments, Rule, RuleError, Shaped, Walk

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


def _tie_gates(walk: Walk, axis: Axis, hidden: Axis, gates: int) -> None:
    """Rows of (gates, hidden): each gate of a unit with the unit."""
    for piece in axis.reshape(gates, hidden.size):
        walk.unite(hidden, piece)


def _cell(walk: Walk, weights: Sequence[Shaped], inputs: Axis, hidden: Axis, gates: int) -> None:
    """w_ih (gates x hidden, inputs), w_hh (gates x hidden, hidden), and their biases."""
    walk.unite(inputs, weights[0].axes[1])
    walk.unite(hidden, weights[1].axes[1])
    for weight in weights:
        _tie_gates(walk, weight.axes[0], hidden, gates)


def recurrent(walk: Walk, a: Arguments) -> list[Shaped]:
    """aten.lstm, gru, rnn on whole sequences."""
    if "data" in a or "batch_sizes" in a:
        raise RuleError("packed sequences")
    name = str(walk.node.target).split(".")[1]
    gates = _GATES[name]
    x = a.shaped("input")
    states: list[Shaped] = list(a["hx"]) if isinstance(a["hx"], list | tuple) else [a["hx"]]
    directions = 2 if a["bidirectional"] else 1
    per_cell = 4 if a["has_biases"] else 2
    weights: list[Shaped] = a["params"]
    if len(weights) != per_cell * directions * a["num_layers"]:
        raise RuleError("a projected hidden state")
    hidden = states[0].axes[-1]
    for state in states[1:]:
        hidden = walk.unite(hidden, state.axes[-1])
    inputs = x.axes[-1]
    walk.literal(inputs.size, inputs, "input_size")
    rows = int(np.prod(x.shape[:-1]))
    axis = inputs
    for layer in range(a["num_layers"]):
        for direction in range(directions):
            at = (layer * directions + direction) * per_cell
            _cell(walk, weights[at : at + per_cell], axis, hidden, gates)
            hidden = weights[at + 1].axes[1]
        axis = np.tile(hidden, directions)
    walk.literal(hidden.size, hidden, "hidden_size")
    for i in range(a["num_layers"] * directions):
        w = weights[i * per_cell]
        reads = inputs if i < directions else axis
        record(walk, name, w, reads, w.axes[0], rows, in_size=x.shape[1:-1], out_size=x.shape[1:-1], batch=x.shape[0],
               parameter=walk.parameter_in_list(i * per_cell))  # fmt: skip
    out = x.replace(x.ndim - 1, axis)
    return [out, *[s.replace(s.ndim - 1, hidden) for s in states]]


def cell(walk: Walk, a: Arguments) -> Any:
    """lstm_cell, gru_cell, rnn cells: one step."""
    name = str(walk.node.target).split(".")[1].removesuffix("_cell")
    states: list[Shaped] = list(a["hx"]) if isinstance(a["hx"], list | tuple) else [a["hx"]]
    hidden = states[0].axes[-1]
    for state in states[1:]:
        hidden = walk.unite(hidden, state.axes[-1])
    weights = [a[k] for k in ("w_ih", "w_hh", "b_ih", "b_hh") if a.get(k) is not None]
    x = a.shaped("input")
    _cell(walk, weights, x.axes[-1], hidden, _GATES[name])
    walk.literal(x.axes[-1].size, x.axes[-1], "input_size")
    hidden = weights[1].axes[1]
    walk.literal(hidden.size, hidden, "hidden_size")
    record(walk, name, weights[0], x.axes[-1], weights[0].axes[0], x.shape[0] if x.ndim > 1 else 1,
           batch=x.shape[0], parameter=walk.parameter_of("w_ih", 2))  # fmt: skip
    results = [s.replace(s.ndim - 1, hidden) for s in states]
    return results if name == "lstm" else results[0]


RULES: dict[str, Rule] = dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), recurrent)
RULES |= dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), cell)
