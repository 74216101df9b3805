"""Try a prune on shapes alone: the edited model must capture as the same graph, with every size as predicted.

If it does not, something in the network's Python repeats a size that no attribute holds. What is to blame is frozen,
named with its source line, and the trial is run again.
"""

from __future__ import annotations

import itertools
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import nn
from torch.fx import GraphModule, Node

from edgeprune.graph.analysis import Analysis
from edgeprune.graph.attributes import Coincidence, pattern, read_by
from edgeprune.graph.capture import (
    Capture,
    Inputs,
    capture_model,
    doubled,
    first_line,
    frames_of,
    in_layer,
    owner_of,
    place_of_error,
    shadow_to_run,
    source_of,
    warm,
)
from edgeprune.graph.space import Axis, Reason
from edgeprune.graph.surgery import false_accounts, narrow
from edgeprune.graph.training import train_forward
from edgeprune.graph.walk import Shaped, Walk, operator_name, shaped_in

_LAYOUT = frozenset(["clone", "contiguous"])  # whether they are called may depend on sizes; what they give does not
_WRITES_SIZES = frozenset(
    [
        "view", "reshape", "_unsafe_view", "flatten", "unflatten", "expand", "broadcast_to", "repeat", "tile", "split",
        "split_with_sizes", "tensor_split", "slice", "narrow", "zeros", "ones", "full", "empty", "new_zeros",
        "new_ones", "new_full", "new_empty", "group_norm", "layer_norm", "rms_norm", "channel_shuffle",
    ]
)  # fmt: skip
_SHORT = 16  # numbers in a constant that are compared
_MOST = 8  # attributes of one place that are tried as coincidences; each try is a capture
_NUMBER = "a number in the computation follows the width"
_OTHER_PATH = "the network takes another path when it is narrow"
_PACKAGE = f"{Path(__file__).resolve().parents[1]}/"
_DEFECTS = (NameError, AttributeError, KeyError, AssertionError, ImportError, ZeroDivisionError)
_CALL = re.compile(r"\(\) (missing|takes|got an unexpected)")  # a function called with the wrong arguments
Blame = list[tuple[Axis, Reason]]


@dataclass(frozen=True)
class Failure:
    """Where a trial went wrong and why.

    `still`: something changed there that narrowing should have left as it was. `other_path`: the network's Python did
    not run as before, which what it keeps between forwards may explain.
    """

    module: str
    source: str
    why: str
    node: str = ""
    lines: tuple[str, ...] = ()
    still: bool = False
    other_path: bool = False


def probe(analysis: Analysis) -> dict[str, tuple[int, ...]]:
    """Keep another share of each group, so that no two sizes agree by accident: 0.45 ... 0.85, golden-ratio spaced."""
    kept = {}
    for i, (name, size) in enumerate(zip(analysis.units.names, analysis.units.sizes, strict=True)):
        share = 0.45 + 0.4 * (i * 0.618034 % 1.0)
        count = min(size - 1, max(1, round(size * share)))
        kept[name] = tuple(np.unique(np.linspace(0, size - 1, count).astype(int)).tolist())
    return kept


def try_plan(model: nn.Module, analysis: Analysis, kept: dict[str, tuple[int, ...]]) -> Failure | None:
    """Capture the narrowed model; None when every operator and size is as predicted."""
    cuts, attributes = analysis.spell(kept)
    return _try(narrow(model, cuts, attributes, empty=True), analysis, analysis.inputs, analysis.walk, kept)


def try_training(model: nn.Module, analysis: Analysis, kept: dict[str, tuple[int, ...]]) -> Failure | None:
    """The same in train mode, at twice the batch, where the network has parts that only training runs."""
    assert analysis.walk.training is not None
    cuts, attributes = analysis.spell(kept)
    edited = narrow(model, cuts, attributes, empty=True).train()
    return _try(edited, analysis, doubled(analysis.inputs), analysis.walk.training, kept)


def try_running(model: nn.Module, analysis: Analysis, kept: dict[str, tuple[int, ...]]) -> Failure | None:
    """A plain run in train mode, where the training graph cannot be captured."""
    edited = shadow_to_run(narrow(model, *analysis.spell(kept), empty=True)).train()
    shared = {p.data_ptr() for p in model.parameters()}
    with torch.no_grad():
        for parameter in edited.parameters():
            if parameter.data_ptr() not in shared:
                parameter.fill_(0.01)
    try:
        train_forward(edited, analysis.inputs)
    except Exception as error:
        return _failed(edited, error)
    return None


TRAINING_TRIALS: dict[str, Callable[[nn.Module, Analysis, dict[str, tuple[int, ...]]], Failure | None]] = {
    "": lambda model, analysis, kept: None,
    "walked": try_training,
    "run": try_running,
}


def _try(
    edited: nn.Module, analysis: Analysis, inputs: Inputs, walk: Walk, kept: dict[str, tuple[int, ...]]
) -> Failure | None:
    for name, says in false_accounts(edited):
        return Failure(name, "", f"narrowed, the layer would say {says}")
    masks = analysis.masks(kept)
    failure = _attempt(edited, analysis, inputs, walk, masks)
    if failure is None or not failure.other_path:
        return failure
    edited = shadow_to_run(edited)
    changed = warm(edited, inputs)  # the given network may have been run before: what it keeps is of its widths
    if not changed:
        return failure
    again = _attempt(edited, analysis, inputs, walk, masks)
    if again is None or not again.other_path or again.source != failure.source:
        return again
    return replace(failure, why=f"{failure.why} (a forward changes '{changed[0]}')")


def _attempt(
    edited: nn.Module, analysis: Analysis, inputs: Inputs, walk: Walk, masks: dict[str, NDArray[np.bool_]]
) -> Failure | None:
    try:
        again = capture_model(edited, inputs, lines=False)
    except Exception as error:
        return replace(_failed(edited, error), other_path=True)
    return _compare(analysis, walk, again, masks)


def _failed(edited: nn.Module, error: Exception) -> Failure:
    """What a narrowed network failed with, and where; a defect of edgeprune's own is raised as it is."""
    if is_ours(error):
        raise error
    places = place_of_error(edited, error)
    place = places[0] if places else None
    why = f"narrowing it fails there: {first_line(error)[:160]}"
    if place is None:
        return Failure("", "", why)
    lines = tuple(p.source for p in places if p.module == place.module)
    return Failure(place.module, place.source, why, lines=lines)


def is_ours(error: BaseException) -> bool:
    """Did edgeprune's own code fail, not the network's? Then no network is to blame, and none is called infeasible.

    The innermost line is edgeprune's, and the error is one that no operator of torch raises: those may well fail at
    another width where edgeprune calls them.
    """
    defect = isinstance(error, _DEFECTS) or (isinstance(error, TypeError) and bool(_CALL.search(str(error))))
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    while frames and frames[-1].co_name == "__getattr__":  # nn.Module's: who asked for the attribute counts
        frames.pop()
    return defect and bool(frames) and frames[-1].co_filename.startswith(_PACKAGE)


def _flat(graph: GraphModule, path: str = "") -> Iterator[tuple[str, Node]]:
    for node in graph.graph.nodes:
        if node.op == "get_attr":
            target: Any = graph
            for part in str(node.target).split("."):
                target = getattr(target, part)
            if isinstance(target, GraphModule):
                yield from _flat(target, f"{path}{node.name}/")
        elif node.op == "call_function" and operator_name(node) not in _LAYOUT:
            yield path + node.name, node


def _compare(analysis: Analysis, walk: Walk, again: Capture, masks: dict[str, NDArray[np.bool_]]) -> Failure | None:
    units = analysis.units
    prefix = "train:" if walk is analysis.walk.training else ""
    old = [(prefix + name, node) for name, node in _flat(walk.capture.module)]
    new = list(_flat(again.module))
    for (name, before), (_, after) in zip(old, new, strict=False):
        if operator_name(before) != operator_name(after):
            return Failure(owner_of(before), source_of(before), _OTHER_PATH, name, other_path=True)
        predicted = walk.values.get(name)
        for value, seen in zip(shaped_in(predicted), _tensors(after.meta.get("val")), strict=False):
            want = tuple(int(units.alive(a, masks).sum()) for a in value.axes)
            got = tuple(int(n) for n in seen.shape)
            if want != got:
                why = f"its size is {_text(got)} where {_text(want)} is needed; no attribute that holds it was found"
                still = any(w == old != g for w, old, g in zip(want, value.shape, got, strict=False))
                return Failure(owner_of(before), source_of(before), why, name, still=still)
        if _constants(before, walk.capture) != _constants(after, again):
            why = _NUMBER
            return Failure(owner_of(before), source_of(before), why, name)
        if _numbers(before) != _numbers(after):
            still = _numbers(before, whole=False) == _numbers(after, whole=False)
            why = _NUMBER
            return Failure(owner_of(before), source_of(before), why, name, still=still)
    if len(old) != len(new):
        return Failure("", "", _OTHER_PATH, other_path=True)
    return None


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for v in value:
            yield from _tensors(v)


def _constants(node: Node, graph: Capture) -> list[Any]:
    """The values of what the call reads that are no parameters, buffers or inputs, and short: `torch.tensor(width)`."""
    found = [graph.constants.get(n.name) for n in node.all_input_nodes if n.op == "placeholder"]
    return [
        v.tolist() for v in found if isinstance(v, torch.Tensor) and v.numel() <= _SHORT and type(v) is torch.Tensor
    ]


def _numbers(node: Node, *, whole: bool = True) -> list[float]:
    """The numbers in the call that are no widths: scales, eps, slopes, and (`whole`) shifts, dimensions, strides."""
    name = operator_name(node)
    values = [*node.args, *node.kwargs.values()]
    if name.startswith("conv"):
        values = [v for v in values if not isinstance(v, int)]  # its groups
    flat: list[Any] = []
    for value in values:
        flat.extend(value if isinstance(value, list | tuple) else [value])
    whole = whole and name not in _WRITES_SIZES
    return [v for v in flat if isinstance(v, float) or (whole and isinstance(v, int))]


def blame(analysis: Analysis, failure: Failure) -> Blame:
    """The axes to freeze after a failure: those at the failing line, else those of the failing module, else all."""
    nodes, values = analysis.walk.all_nodes(), analysis.walk.all_values()
    at_line = _at_line(analysis, failure)
    modules = {failure.module, *(owner_of(nodes[n]) for n in at_line)}
    in_module = [n for n, other in nodes.items() if owner_of(other) in modules]
    sizes = {int(a.size) for n in at_line for v in shaped_in(values[n]) for a in v.axes}
    found = _live(analysis, at_line, failure)
    if not found and failure.module:
        found = _live(analysis, in_module, failure, sizes)
    outer = failure.module
    while not found and outer:
        inside = [n for n, o in nodes.items() if (owner_of(o) + ".").startswith(outer + ".")]
        found = _live(analysis, inside, failure)
        outer = outer.rpartition(".")[0]
    return found or everything(analysis, failure)


def _at_line(analysis: Analysis, failure: Failure) -> list[str]:
    """The values made at the failing line, or at the nearest line round it that the graph knows (it records forwards).

    A line of a torch.nn layer is every such layer's line: there, the failing layer and its look-alikes count.
    """
    nodes = analysis.walk.all_nodes()
    node = nodes.get(failure.node)
    lines = [failure.source, *failure.lines, *(frames_of(node)[-1:] if node is not None else [])]
    for line in dict.fromkeys(x for x in lines if x):
        here = [n for n, other in nodes.items() if line in frames_of(other)]
        if in_layer(line):
            here = [n for n in here if pattern(owner_of(nodes[n])) == pattern(failure.module)]
        if here:
            return here
    return []


def everything(analysis: Analysis, failure: Failure) -> Blame:
    """All that could be narrowed: the last resort."""
    return _live(analysis, list(analysis.walk.all_nodes()), failure)


def ties(analysis: Analysis, failure: Failure) -> list[tuple[Axis, Axis]]:
    """Axes to tie so that a size taken from another tensor fits.

    A view at the failing line cuts or makes an axis as long as one that its module reads: `x.reshape(B, N, C)` of the
    heads, or `qkv.reshape(B, N, 3, heads, C // heads)`, with C from the module's input. Tied, C follows the heads.
    """
    nodes, values, units = analysis.walk.all_nodes(), analysis.walk.all_values(), analysis.units

    def live(axis: Axis) -> bool:
        return bool((units.group[units.solution.label[axis]] >= 0).any())

    found = []
    for name in _at_line(analysis, failure):
        node, value = nodes[name], values[name]
        if operator_name(node) not in ("view", "reshape", "flatten", "unflatten") or not isinstance(value, Shaped):
            continue
        read = [a for v in read_by(analysis.walk, owner_of(node)) for a in v.axes if live(a)]
        for made in _made(value, live):
            for axis in read:
                if axis.size == made.size and _fit(units.solution.label[axis], units.solution.label[made]):
                    found.append((made, axis))
                    break
    return found


def _fit(a: Axis, b: Axis) -> bool:
    """Whether tying two axes that are not yet one leaves more than one unit to choose from."""
    if np.array_equal(a, b):
        return False
    names, flat = np.unique(np.concatenate([a, b]), return_inverse=True)
    graph = coo_matrix((np.ones(a.size), (flat[: a.size], flat[a.size :])), shape=(names.size, names.size))
    return bool(connected_components(graph, directed=False)[0] > 1)


def hold_widths(analysis: Analysis, failure: Failure) -> Blame:
    """The widths of query and key to freeze, so that heads go instead: a number (a scale) is made from the width."""
    if failure.why != _NUMBER:
        return []
    walk, units = analysis.walk, analysis.units
    failing = pattern(failure.module)
    reason = Reason(
        "a number in the computation is made from the width of query and key", "", failure.source, failure.module
    )
    found: Blame = []
    for module, axis in [*walk.contracted, *(walk.training.contracted if walk.training else ())]:
        near = pattern(module)
        if near == failing or near.startswith(failing + ".") or failing.startswith(near + "."):
            live = axis[units.group[units.solution.label[axis]] >= 0]
            if live.size:
                found.append((live, reason))
    return found


def settle_disputes(analysis: Analysis, failure: Failure) -> list[tuple[Axis, Axis]]:
    """Axes to tie because the failing module, a look-alike or one round it holds their width in one attribute."""
    failing = pattern(failure.module) + "."
    return [d.axes for d in analysis.disputes if failing.startswith(pattern(d.module) + ".")]


def coincidences(analysis: Analysis, failure: Failure) -> list[frozenset[Coincidence]]:
    """Attributes round the failing place that were set for their value alone: one by one, then all but one.

    Elements of a tuple come first.
    """
    failing = pattern(failure.module) + "."
    found: dict[Coincidence, None] = {}
    for rule in sorted(analysis.rules, key=lambda r: r.part is None):
        where = pattern(rule.module)
        if rule.by_value and (not where or failing.startswith(where + ".")):
            found.setdefault((where, rule.name))
    names = list(found)[:_MOST]
    most = [frozenset(names) - {name} for name in reversed(names)] if len(names) > 2 else []
    return [*(frozenset([name]) for name in names), *most]


def further(analysis: Analysis, failure: Failure, again: Failure | None) -> bool:
    """Whether a trial came further than the one that failed: it passed, captured, or failed later or elsewhere."""
    if again is None or pattern(again.module) != pattern(failure.module):
        return True
    order = {name: i for i, name in enumerate(analysis.walk.all_nodes())}
    return order.get(again.node, -1) > order.get(failure.node, -1)


def _made(value: Shaped, live: Callable[[Axis], bool]) -> Iterator[Axis]:
    """The live axes of a view, and the products of two neighbours of which one is live."""
    for axis in value.axes:
        if live(axis):
            yield axis
    for a, b in itertools.pairwise(value.axes):
        if live(a) != live(b):
            yield a.repeat(b.size) if live(a) else np.tile(b, a.size)


def _live(analysis: Analysis, names: list[str], failure: Failure, sizes: set[int] | None = None) -> Blame:
    nodes, known = analysis.walk.all_nodes(), analysis.walk.all_values()
    found: Blame = []
    for name in names:
        node = nodes[name]
        reason = Reason(failure.why, operator_name(node), failure.source or source_of(node), failure.module)
        values = [known[name]]
        values += [known.get(_path(name) + n.name) for n in node.all_input_nodes]
        for value in shaped_in([v for v in values if isinstance(v, Shaped | list | tuple)]):
            for axis in value.axes:
                if sizes is not None and int(axis.size) not in sizes:
                    continue
                classes = analysis.units.solution.label[axis]
                live = axis[analysis.units.group[classes] >= 0]
                if live.size:
                    found.append((live, reason))
    return found


def _path(name: str) -> str:
    if "/" in name:
        return name.rpartition("/")[0] + "/"
    return "train:" if name.startswith("train:") else ""
