"""Terms that may go: `x + f(x)` written in a module's forward, so that no module spans the sum.

A pre-norm transformer layer is `x + attn(norm(x))` and then `x + mlp(norm(x))`; BERT's is `norm(x + dense(attn(x)))`.
What goes is f alone: the sum becomes x, and a norm behind the sum stays. Its last modules give zeros, those before
them hand on what they read, and what the forward does in between (views, window shuffles, layer scales) makes zeros of
zeros.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch.fx import Graph, GraphModule, Node

from edgeprune.graph.blocks import Span, modules_of
from edgeprune.graph.capture import Capture, owner_of
from edgeprune.graph.parts import SumPlace
from edgeprune.graph.surgery import FIRST, NOTHING, stand_in_text
from edgeprune.graph.walk import Shaped, Walk, operator_name

_NEAR = 4  # operators between the sum's x and what f reads: a norm that attention and MLP share
_SIZED = frozenset(["view", "reshape", "_unsafe_view", "expand", "flatten", "unflatten"])  # they write sizes
# Zeros in, zeros out, whatever else they are told.
KEEPS_ZERO = frozenset(
    [
        "view", "reshape", "_unsafe_view", "permute", "transpose", "t", "flatten", "unflatten", "contiguous", "clone",
        "dropout", "roll", "slice", "narrow", "select", "squeeze", "unsqueeze", "expand", "chunk", "split",
        "split_with_sizes", "unbind", "getitem", "neg", "relu", "gelu", "silu", "tanh", "to", "_to_copy", "type_as",
        "movedim", "alias", "detach", "feature_dropout", "alpha_dropout", "flip", "pad", "constant_pad_nd", "identity",
    ]
)  # fmt: skip


def find_terms(walk: Walk, spans: Mapping[str, Span]) -> dict[str, Span]:
    """The blocks of a network: residual modules, and terms of sums that no residual module spans.

    A residual module all of whose layers lie in terms gives way to them where there are two or more, so that attention
    and MLP may go apart, and where it has several inputs or results. No two of the blocks overlap; of nested terms the
    inner ones are taken.
    """
    called = {call.node: call.module for call in walk.calls}
    places = _Places(walk.capture, called)
    found: list[_Term] = []
    for node in walk.capture.module.graph.nodes:
        if operator_name(node).removesuffix("_") == "add" and (term := _term(walk, places, node)) is not None:
            found.append(term)
    found = [t for t in found if not any(o is not t and o.result in t.cone for o in found)]
    kept = dict(spans)
    for path in spans:
        inside = [t for t in found if _within(t.name, path) and path in modules_of(t.result)]
        layers = {n for n, module in called.items() if _within(module, path)}
        several = len(inside) > 1 or len(places.inputs[path]) > 1 or spans[path].stand_ins
        if inside and several and layers <= {n.name for t in inside for n in t.cone}:
            del kept[path]
    busy = {n for n in walk.capture.module.graph.nodes if any(path in modules_of(n) for path in kept)}
    free = [t for t in found if busy.isdisjoint(t.cone) and t.result not in busy]
    return kept | {t.name: t.span() for t in free if t.name not in kept}


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


@dataclass(frozen=True, eq=False)
class _Term:
    """The term of one sum."""

    name: str
    source: Node
    result: Node
    cone: frozenset[Node]
    modules: tuple[tuple[str, str], ...]

    def span(self) -> Span:
        operand = self.result.args.index(self.source)
        op, module = operator_name(self.result).removesuffix("_"), owner_of(self.result)
        alike = [n for n in self.result.graph.nodes if n.op == "call_function" and owner_of(n) == module]
        same = [n for n in alike if operator_name(n).removesuffix("_") == op]
        end = SumPlace(module, op, same.index(self.result), operand)
        nodes = frozenset(n.name for n in self.cone)
        return Span(self.name, self.source.name, self.result.name, self.modules, nodes, end, "term")


class _Places:
    """How many nodes each module has, what it takes and returns, and which calls of layers there are."""

    def __init__(self, capture: Capture, calls: Mapping[str, str]) -> None:
        self.calls, self.forwards, self.given = calls, capture.forwards, set(capture.inputs)
        nodes = list(capture.module.graph.nodes)
        self.order = {node: i for i, node in enumerate(nodes)}
        self.idle: set[Node] = set()  # what is read by nothing: checks, and writes into a mask
        for node in reversed(nodes):
            if node.op == "call_function" and self.idle.issuperset(node.users):
                self.idle.add(node)
        self.counts: dict[str, int] = {}
        self.inputs: dict[str, set[Node]] = {}
        for node in nodes:
            for path in modules_of(node):
                if node not in self.idle:
                    self.counts[path] = self.counts.get(path, 0) + 1
                for read in node.all_input_nodes:
                    if self.data(read) and path not in modules_of(read):
                        self.inputs.setdefault(path, set()).add(read)

    def data(self, node: Node) -> bool:
        """Whether a value is no parameter, buffer or constant."""
        return node.op == "call_function" or (node.op == "placeholder" and node.name in self.given)

    def outermost(self, cone: Iterable[Node]) -> dict[Node, str]:
        """For each node of the cone the outermost module that lies wholly in it, where there is one."""
        mine: dict[str, int] = {}
        nodes = list(cone)
        for node in nodes:
            for path in modules_of(node):
                mine[path] = mine.get(path, 0) + 1
        whole = {path for path, n in mine.items() if n == self.counts[path] and "@" not in path}
        whole = {path for path in whole if path + "@1" not in self.counts}
        found = {}
        for node in nodes:
            outer = [path for path in modules_of(node) if path in whole]
            found.update({node: outer[0]} if outer else {})
        return found


def _term(walk: Walk, places: _Places, node: Node) -> _Term | None:
    """The term of a sum of two tensors of one shape; None where there is none that could go."""
    if len(node.args) != 2 or node.kwargs or not all(isinstance(a, Node) for a in node.args):
        return None
    values = [walk.values.get(n.name) for n in (node, *node.all_input_nodes)]
    if len(values) != 3 or len({v.shape if isinstance(v, Shaped) else None for v in values}) != 1:
        return None
    first, second = node.args
    for source, term in ((first, second), (second, first)):
        assert isinstance(source, Node) and isinstance(term, Node)
        if term.op == "call_function" and places.data(source) and list(term.users) == [node]:
            made = _grown(places, source, term, node)
            if made is not None:
                return made
    return None


def _grown(places: _Places, source: Node, term: Node, result: Node) -> _Term | None:
    cone, outside = _cone(term, places.idle)
    layers = [n for n in cone if n.name in places.calls]
    if not layers or not _reads(outside, source):
        return None
    owners = places.outermost(cone)
    ends = _ends(term, owners)
    if not ends or any(n not in owners for n in layers) or not _Sizes(places, cone, owners).hold(ends):
        return None
    modules: dict[str, str] = {}
    for node in sorted(owners, key=lambda n: places.order[n]):
        path = owners[node]
        forward = places.forwards.get(path)
        if forward is None or not forward.count:
            return None
        modules[path] = stand_in_text(NOTHING if path in ends else FIRST, forward.count)
    weighted = [owners[n] for n in sorted(layers, key=lambda n: places.order[n])]
    name = next((path for path in reversed(list(modules)) if path in ends and path in weighted), weighted[-1])
    idle = {n for n in places.idle if not cone.isdisjoint(n.all_input_nodes)}
    return _Term(name, source, result, frozenset(cone | idle), tuple(modules.items()))


class _Sizes:
    """The sizes of a term's values when its modules hand on what they read: what runs between them must still fit."""

    def __init__(self, places: _Places, cone: set[Node], owners: Mapping[Node, str]) -> None:
        self.places, self.cone, self.owners = places, cone, owners
        self.reads: dict[str, list[Node]] = {}
        for node, path in owners.items():
            mine = self.reads.setdefault(path, [])
            mine += [n for n in self._data(node) if owners.get(n) != path and n not in mine]
        self.known: dict[Node, object] = {}

    def hold(self, ends: set[str]) -> bool:
        """Whether every value between modules has a size, and zeros like what `ends` read have their results'."""
        users = {n: set(n.users) - self.places.idle for n in self.cone}
        made = [n for n in self.cone if any(self.owners.get(user) != self.owners.get(n) for user in users[n])]
        if any(self.size(n) is None for n in made):
            return False
        return all(self.size(n) == _size(n) for n in made if self.owners.get(n) in ends)

    def size(self, node: Node) -> object:
        """The size of a value then; None where it cannot be told."""
        if node not in self.cone:
            return _size(node)
        if node not in self.known:
            self.known[node] = self._size(node)
        return self.known[node]

    def _size(self, node: Node) -> object:
        path = self.owners.get(node)
        reads = self._data(node) if path is None else self.reads[path]
        same = all(self.size(n) == _size(n) for n in reads)
        if path is not None:
            if len(reads) == 1:
                return self.size(reads[0])
            return _size(node) if same and self.places.forwards[path].given == _size(node) else None
        if same:
            return _size(node)
        alike = len(reads) == 1 and _size(reads[0]) == _size(node) and operator_name(node) not in _SIZED
        return self.size(reads[0]) if alike else None

    def _data(self, node: Node) -> list[Node]:
        return [n for n in node.all_input_nodes if self.places.data(n)]


def _size(node: Node) -> object:
    return tuple(getattr(node.meta.get("val"), "shape", ()))


def _cone(term: Node, idle: set[Node]) -> tuple[set[Node], set[Node]]:
    """What serves the term alone, and what that reads from outside."""

    def alone(node: Node) -> bool:
        return node.op == "call_function" and all(user in cone or user in idle for user in node.users)

    cone, edge, outside = {term}, [term], set()
    while edge:
        for node in edge.pop().all_input_nodes:
            if alone(node):
                cone.add(node)
                edge.append(node)
            elif node not in cone:
                outside.add(node)
    more = True
    while more:  # a node that was met before the last of its readers
        again = [n for n in outside if alone(n)]
        more = bool(again)
        for node in again:
            cone.add(node)
            outside |= set(node.all_input_nodes)
        outside -= cone
    return cone, outside


def _reads(outside: Iterable[Node], source: Node) -> bool:
    """Whether the term is a function of x, directly or by way of a norm that it shares with others."""
    for node in outside:
        at = node
        for _ in range(_NEAR):
            if at is source:
                return True
            before = [n for n in at.all_input_nodes if n.op == "call_function" or n is source]
            if len(before) != 1:
                break
            at = before[0]
    return False


def _ends(node: Node, owners: Mapping[Node, str]) -> set[str] | None:
    """The modules that must give zeros for `node` to be zero; None where that cannot be had."""
    if node in owners:
        return {owners[node]}
    name = operator_name(node).removesuffix("_")
    parents = node.all_input_nodes
    if name in KEEPS_ZERO and parents:
        return _ends(parents[0], owners)
    if name == "mul":
        return next((found for p in parents if (found := _ends(p, owners))), None)
    if name in ("add", "cat", "stack"):
        each = [_ends(p, owners) for p in parents]
        return None if any(e is None for e in each) else {path for e in each for path in e or ()}
    return None


def drop_zeros(graph: GraphModule) -> None:
    """Take sums with the zeros of removed terms out of a captured graph, and what served them, in place."""
    zeros = {n for n in graph.graph.nodes if _gives_zeros(n)}
    if not zeros:
        return
    for node in graph.graph.nodes:
        if node.op != "call_function" or node in zeros:
            continue
        name, parents = operator_name(node).removesuffix("_"), node.all_input_nodes
        if not zeros.intersection(parents):
            continue
        if name == "add" and len(node.args) == 2 and not node.kwargs and len(parents) == 2:
            other = next((p for p in parents if p not in zeros), None)
            if other is None:
                zeros.add(node)
            elif _shape(other) == _shape(node):
                node.replace_all_uses_with(other)
        elif _zero(name, [p in zeros for p in parents]):
            zeros.add(node)
    _sweep(graph.graph)
    graph.recompile()


def _zero(name: str, given: list[bool]) -> bool:
    """Whether an operator gives zeros, by which of the tensors that it reads are zeros."""
    if name in KEEPS_ZERO:
        return given[0]
    return name == "mul" or (name in ("cat", "stack") and all(given))


def _sweep(graph: Graph) -> None:
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users and not operator_name(node).endswith("_"):
            graph.erase_node(node)


def _shape(node: Node) -> tuple[object, ...]:
    value = node.meta.get("val")
    return (tuple(getattr(value, "shape", ())), getattr(value, "dtype", None))


def _gives_zeros(node: Node) -> bool:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return bool(stack) and str(stack[-1][1]).endswith("surgery.ZeroStandIn") and operator_name(node) == "zeros_like"
