"""The reference of a proof: the *original* graph at full size, run as if the removed channels did not exist.

Every operator runs on the original's full tensors with the original's weights; nothing of the surgery is used.
- Where an axis is contracted (convolution, linear, matmul, einsum), removed positions are read as zero.
- Where an axis is normalised or averaged, the statistic is taken over the kept positions.
- A removed block's result is its first input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import GraphModule, Node

from edgeprune.graph.analysis import Analysis
from edgeprune.graph.walk import Shaped, operator_name, read

Masks = Mapping[str, NDArray[np.bool_]]

_REDUCE = frozenset(
    [
        "mean",
        "sum",
        "amax",
        "amin",
        "std",
        "var",
        "var_mean",
        "std_mean",
        "norm",
        "linalg_vector_norm",
        "logsumexp",
        "prod",
        "any",
        "all",
        "max",
        "min",
    ]
)
_SOFTMAX = frozenset(["softmax", "log_softmax", "_softmax", "_log_softmax", "softmin"])
_CONV = ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


class Reference:
    """Evaluate the traced graph under masks of kept units.

    Args:
        analysis: of the trace.
        masks: kept units by group.
        tensors: parameters and buffers by canonical name.
        removed: names of removed blocks.
        dtype: what float32 becomes (float64 in a proof).
    """

    def __init__(
        self,
        analysis: Analysis,
        masks: Masks,
        tensors: Mapping[str, torch.Tensor],
        removed: Sequence[str],
        dtype: torch.dtype,
    ) -> None:
        self.analysis = analysis
        self.masks = dict(masks)
        self.tensors = tensors
        self.removed = tuple(removed)
        self.dtype = dtype
        self.results = {analysis.spans[b].result: analysis.spans[b].source for b in removed}

    def run(self, inputs: Sequence[Any]) -> list[torch.Tensor]:
        """The network's outputs, flattened, for flattened inputs."""
        capture = self.analysis.walk.capture
        feed = dict(zip(capture.inputs, inputs, strict=True))
        values = []
        for node in capture.module.graph.nodes:
            if node.op != "placeholder":
                continue
            if node.name in capture.parameters:
                values.append(self.tensors[capture.parameters[node.name]])
            elif node.name in feed:
                value = feed[node.name]
                values.append(value.clone() if isinstance(value, torch.Tensor) else value)
            else:
                values.append(self._cast(capture.constants.get(node.name)))
        out = self._graph(capture.module, values, "")
        return [v for v in _leaves(out) if isinstance(v, torch.Tensor)]

    def _cast(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(self.dtype) if value.dtype == torch.float32 else value
        return value

    def _graph(self, graph: GraphModule, inputs: Sequence[Any], path: str) -> Any:
        env: dict[Node, Any] = {}
        last: dict[Node, Node] = {}
        for node in graph.graph.nodes:
            for source in node.all_input_nodes:
                last[source] = node
        dead: dict[Node, list[Node]] = {}
        for source, node in last.items():
            dead.setdefault(node, []).append(source)
        feed = iter(inputs)
        by_name = {n.name: n for n in graph.graph.nodes}
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                env[node] = next(feed)
            elif node.op == "get_attr":
                target: Any = graph
                for part in str(node.target).split("."):
                    target = getattr(target, part)
                env[node] = (target, f"{path}{node.name}/") if isinstance(target, GraphModule) else self._cast(target)
            elif node.op == "output":
                return read(node.args[0], env)
            elif not path and node.name in self.results:
                env[node] = env[by_name[self.results[node.name]]]
            elif self._skipped(node):
                env[node] = None
            else:
                env[node] = self._call(node, env, path)
            if not self.removed:
                for source in dead.get(node, ()):
                    env[source] = None
        return None

    def _skipped(self, node: Node) -> bool:
        if not self.removed:
            return False
        spans = [self.analysis.spans[b] for b in self.removed]
        stack = node.meta.get("nn_module_stack") or {}
        return any(
            node.name in s.nodes if s.nodes else any(s.gone(str(path)) for path, _ in stack.values()) for s in spans
        )

    def _call(self, node: Node, env: dict[Node, Any], path: str) -> Any:
        args, kwargs = list(read(node.args, env)), dict(read(node.kwargs, env))
        name = operator_name(node)
        if name == "_assert_tensor_metadata":  # it insists on the number type of the capture
            return None
        if name.startswith("wrap_with"):
            at = next(i for i, a in enumerate(args) if isinstance(a, tuple) and a and isinstance(a[0], GraphModule))
            return self._graph(args[at][0], args[at + 1 :], args[at][1])
        args = [self._dtype(a) for a in args]
        kwargs = {k: self._dtype(v) for k, v in kwargs.items()}
        target: Callable[..., Any] = node.target  # type: ignore[assignment]
        if self.masks and isinstance(node.target, torch._ops.OpOverload):
            done = self._masked(node, name, target, args, kwargs, path)
            if done is not None:
                return done
        return target(*args, **kwargs)

    def _dtype(self, value: Any) -> Any:
        return self.dtype if value is torch.float32 else value

    def _alive(self, node: Any, path: str) -> list[torch.Tensor | None]:
        """A mask a dimension of an argument; None where all stay."""
        value = self.analysis.walk.values.get(path + node.name) if isinstance(node, Node) else None
        if not isinstance(value, Shaped):
            return []
        masks: list[torch.Tensor | None] = []
        for axis in value.axes:
            alive = self.analysis.units.alive(axis, self.masks) if axis.any() else None
            masks.append(None if alive is None or alive.all() else torch.from_numpy(alive))
        return masks

    def _masked(
        self, node: Node, name: str, target: Callable[..., Any], args: list[Any], kwargs: dict[str, object], path: str
    ) -> Any:
        """The operator's result when it contracts or measures a narrowed axis; None when it does neither."""
        nodes = list(node.args)
        if name in _CONV:
            x = args[0]
            masks = self._alive(nodes[0], path)
            at = 1 if x.ndim == args[1].ndim else 0
            args[0] = silence(x, at, masks[at])
            return target(*args, **kwargs)
        if name == "linear":
            args[0] = silence(args[0], -1, self._alive(nodes[0], path)[-1])
            return target(*args, **kwargs)
        if name in ("matmul", "mm", "bmm", "mv", "dot"):
            args[0] = silence(args[0], -1, self._alive(nodes[0], path)[-1])
            return target(*args, **kwargs)
        if name in ("addmm", "baddbmm"):
            args[1] = silence(args[1], -1, self._alive(nodes[1], path)[-1])
            return target(*args, **kwargs)
        if name == "scaled_dot_product_attention":
            args[0] = silence(args[0], -1, self._alive(nodes[0], path)[-1])
            return target(*args, **kwargs)
        if name == "einsum":
            args[1] = self._einsum(args, nodes, path)
            return target(*args, **kwargs)
        if name in _SOFTMAX:
            return over_kept(target, args, kwargs, [args[1] % args[0].ndim], self._alive(nodes[0], path))
        if name in _REDUCE and "other" not in kwargs and not (len(args) > 1 and isinstance(args[1], torch.Tensor)):
            return self._reduce(node, target, args, kwargs, path)
        if name in ("layer_norm", "rms_norm", "native_layer_norm"):
            return self._layer_norm(target, args, kwargs, self._alive(nodes[0], path))
        if name == "group_norm":
            return self._group_norm(target, args, kwargs, self._alive(nodes[0], path))
        if name in ("batch_norm", "instance_norm"):
            masks = self._alive(nodes[0], path)
            dims = [d for d in range(args[0].ndim) if d != 1]
            if args[5] and any(masks[d] is not None for d in dims):
                return over_kept(target, args, kwargs, dims, masks)
        if name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            at = 2
            sources: Any = nodes[at]
            weights = [
                silence(w, 1, masks[1]) if len(masks := self._alive(n, path)) == 2 else w
                for w, n in zip(args[at], sources, strict=True)
            ]
            return target(*args[:at], weights, *args[at + 1 :], **kwargs)
        if name.endswith("_cell"):
            for i in (2, 3):
                args[i] = silence(args[i], 1, self._alive(nodes[i], path)[1])
            return target(*args, **kwargs)
        if name in ("_weight_norm", "_weight_norm_interface"):
            masks = self._alive(nodes[0], path)
            dim = args[2] if len(args) > 2 else 0
            v = args[0]
            for d, mask in enumerate(masks):
                if d != dim:
                    v = silence(v, d, mask)
            return target(v, *args[1:], **kwargs)
        return None

    def _einsum(self, args: list[Any], nodes: list[Any], path: str) -> list[torch.Tensor]:
        left, _, right = args[0].replace(" ", "").partition("->")
        tensors = list(args[1])
        for i, term in enumerate(left.split(",")):
            masks = self._alive(nodes[1][i], path)
            for d, letter in enumerate(term):
                if letter not in right and masks:
                    tensors[i] = silence(tensors[i], d, masks[d])
        return tensors

    def _reduce(
        self, node: Node, target: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], path: str
    ) -> Any:
        names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
        at = names.index("dim") if "dim" in names else None
        dims = kwargs.get("dim", args[at] if at is not None and at < len(args) else None)
        x = args[0]
        chosen = list(range(x.ndim)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
        masks = self._alive(node.args[0], path)
        for d in chosen:
            mask = masks[d % x.ndim] if masks and x.ndim else None
            if mask is not None:
                x = x.index_select(d % x.ndim, mask.nonzero()[:, 0])
        return target(x, *args[1:], **kwargs)

    def _layer_norm(
        self, target: Callable[..., Any], args: list[Any], kwargs: dict[str, object], masks: list[Any]
    ) -> Any:
        x, shape = args[0], list(args[1])
        first = x.ndim - len(shape)
        dims = [d for d in range(first, x.ndim) if masks[d] is not None]
        if not dims:
            return None
        rest = list(args[2:])
        for i in range(min(2, len(rest))):
            for d in dims:
                if isinstance(rest[i], torch.Tensor):
                    rest[i] = rest[i].index_select(d - first, masks[d].nonzero()[:, 0])
        size = [
            int(masks[d].sum()) if masks[d] is not None else n for d, n in zip(range(first, x.ndim), shape, strict=True)
        ]
        return over_kept(target, [x, size, *rest], kwargs, dims, masks)

    def _group_norm(
        self, target: Callable[..., Any], args: list[Any], kwargs: dict[str, object], masks: list[Any]
    ) -> Any:
        x, count = args[0], args[1]
        mask = masks[1]
        if mask is None:
            return None
        per = mask.reshape(count, -1).sum(1)
        left = per[per > 0]
        if not bool((left == left[0]).all()):
            raise ValueError("groups keep unequal numbers of channels")
        kept = mask.nonzero()[:, 0]
        rest = [r.index_select(0, kept) if isinstance(r, torch.Tensor) else r for r in args[2:]]
        return over_kept(target, [x, int(left.numel()), *rest], kwargs, [1], masks)


def silence(x: torch.Tensor, dim: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Zero where the mask is false along `dim`."""
    if mask is None:
        return x
    shape = [1] * x.ndim
    shape[dim] = -1
    return torch.where(mask.reshape(shape), x, torch.zeros((), dtype=x.dtype))


def over_kept(
    target: Callable[..., Any],
    args: list[Any],
    kwargs: dict[str, object],
    dims: Sequence[int],
    masks: Sequence[torch.Tensor | None],
) -> Any:
    """Run on the kept positions of `dims` alone and put the results back in place, zero elsewhere."""
    x = args[0]
    full = list(x.shape)
    used = [d for d in dims if masks[d] is not None]
    if not used:
        return None
    index = {d: masks[d].nonzero()[:, 0] for d in used}  # type: ignore[union-attr]
    for d in used:
        x = x.index_select(d, index[d])
    result = target(x, *args[1:], **kwargs)
    for d in used:
        shape = list(result.shape)
        shape[d] = full[d]
        result = result.new_zeros(shape).index_copy_(d, index[d], result)
    return result


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, tuple | list):
        return [leaf for v in value for leaf in _leaves(v)]
    if isinstance(value, dict):
        return [leaf for v in value.values() for leaf in _leaves(v)]
    return [value]
