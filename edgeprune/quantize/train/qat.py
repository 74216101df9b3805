"""Quantisation-aware fine-tuning: the target's own Q/DQ graph is trained, so that the artifact is what was trained.

The graph that `apply` writes is interpreted in PyTorch with live weights in place of its integers: the same nodes, the
same places, the same scales for activations, and weight scales by the same rule (largest magnitude an output channel).
Afterwards the trained weights go back into a float graph; `apply` on it gives the graph that was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from edgeprune.errors import RecipeError
from edgeprune.quantize.correct.equalise import equalised
from edgeprune.quantize.feeds import inputs_of, parts
from edgeprune.quantize.ranges.grids import BIAS_STEPS, TINY
from edgeprune.quantize.ranges.outputs import Distance, default_distance
from edgeprune.quantize.ranges.ranges import Ranges
from edgeprune.quantize.train.interpret import constants, interpret, rounded
from edgeprune.quantize.train.learnt_scales import QUICKER, LearntScales
from edgeprune.quantize.view import View, output_axis
from edgeprune.quantize.write.insert import apply
from edgeprune.quantize.write.weights import only
from edgeprune.runtimes import Dialect


class Trainable(nn.Module):
    """The Q/DQ graph of a float graph, with trainable weights and biases.

    Args:
        model: the float graph; it is left as it was.
        ranges: from `calibrate`; equalisation and bias correction are the starting point of training.
        precision: as for `apply`.
        steps: the scales of activations learn too.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        ranges: Ranges,
        dialect: Dialect,
        precision: Mapping[str, str] | None = None,
        steps: bool = False,
    ) -> None:
        super().__init__()
        self.dialect, self.precision = dialect, {**ranges.precision, **(precision or {})}
        if only(self.precision):
            raise RecipeError("[quantize] weights and qat_epochs do not go together.", "Set [quantize] qat_epochs = 0.")
        self.base = _corrected(equalised(model, ranges.equalise), ranges)
        self.ranges = replace(ranges, equalise={}, bias={}, rounding={}, precision=self.precision)
        self.graph = apply(self.base, self.ranges, dialect, precision)
        self.steps = (
            LearntScales(self.graph, self.ranges, lambda given: apply(self.base, given, dialect, precision))
            if steps
            else None
        )
        self.inputs = View.of(self.graph).inputs
        for name, tensor in constants(self.graph, torch.float32).items():
            self.register_buffer(_key(name), tensor)
        self.names = [_unkey(name) for name, _ in self.named_buffers()]
        self.live = _live(self.base, self.graph)
        self.trained = nn.ParameterDict()
        values = {t.name: numpy_helper.to_array(t) for t in self.base.graph.initializer}
        for weight, bias, _ in self.live.values():
            for name in (weight, bias):
                if name and values[name].dtype == np.float32:
                    self.trained[_key(name)] = nn.Parameter(torch.from_numpy(values[name].copy()))

    def forward(self, images: Tensor) -> Tensor:
        """Images [N, C, H, W] to the first output, through the fake-quantised graph."""
        return self.outputs({self.inputs[0]: images})[0]

    def outputs(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Every output, of inputs by name."""
        fixed = {name: getattr(self, _key(name)) for name in self.names}
        fixed |= self.steps.scales(fixed) if self.steps is not None else {}
        given: dict[str, Tensor] = dict(inputs)
        for layer, (weight, bias, axis) in self.live.items():
            value = self.trained[_key(weight)]
            node = next(n for n in self.graph.graph.node if n.name == layer)
            if node.input[1] == weight:  # a float layer
                given[weight] = value
                if bias:
                    given[bias] = self.trained[_key(bias)]
                continue
            scale = _weight_scale(value, axis, self.dialect, self._least(bias, node, fixed))
            levels = float(self.dialect.weight_levels)
            wide = scale if axis is None else scale.reshape([-1 if i == axis else 1 for i in range(value.ndim)])
            given[node.input[1]] = rounded(value, wide, levels, torch.float32)
            if bias:
                given[node.input[2]] = self._bias(bias, node, scale, fixed)
        return tuple(interpret(self.graph, fixed, given))

    def _bias(self, bias: str, node: onnx.NodeProto, scale: Tensor, fixed: Mapping[str, Tensor]) -> Tensor:
        """The bias as the graph will hold it: float, or whole multiples of input scale x weight scale."""
        value: Tensor = self.trained[_key(bias)]
        if node.input[2] == bias:
            return value
        step = _input_scale(node, fixed) * scale.float()
        step = step.to(value.dtype)
        return rounded(value, step, 2.0**31 - 1, torch.float64)

    def _least(self, bias: str, node: onnx.NodeProto, fixed: Mapping[str, Tensor]) -> Tensor | None:
        """Scales below which the bias would not fit into int32; None for a float bias."""
        if not bias or node.input[2] == bias:
            return None
        steps = self.trained[_key(bias)].detach().float().abs().double()
        least: Tensor = (steps / (_input_scale(node, fixed).double() * BIAS_STEPS)).float()
        return least

    def to_onnx(self) -> tuple[onnx.ModelProto, Ranges]:
        """The trained float graph and its ranges: `apply` on them gives what was trained."""
        result = onnx.ModelProto()
        result.CopyFrom(self.base)
        for tensor in result.graph.initializer:
            if _key(tensor.name) in self.trained:
                value = self.trained[_key(tensor.name)].detach().cpu().to(torch.float32).numpy()
                tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
        return result, self.ranges if self.steps is None else self.steps.learnt()


def fine_tune(
    model: onnx.ModelProto,
    ranges: Ranges,
    dialect: Dialect,
    data: Callable[[], Iterable[Any]],
    epochs: float,
    precision: Mapping[str, str] | None = None,
    lr: float = 1e-4,
    on_step: Callable[[int, float], None] | None = None,
    distance: Distance | None = None,
    device: str = "cpu",
    reduced: bool = False,
    steps: bool = False,
) -> tuple[onnx.ModelProto, Ranges]:
    """Train the Q/DQ graph to give the float network's outputs (distillation; no labels), with Adam and a cosine.

    Args:
        data: gives the batches of one pass, in a fixed order: [N, C, H, W], or mappings by input name.
        epochs: passes; a fraction stops within the last one.
        on_step: called with the step and its loss.
        distance: of the task; None: KL divergence of logits, else see outputs.default_distance.
        device: that torch trains on; the graphs that come back are the same everywhere.
        reduced: layers compute in bfloat16; rounding to INT8 and the distance stay in float32.
        steps: the scales of activations learn too (LSQ), ten times as fast as weights.

    Returns:
        The trained float graph and the ranges for it.
    """
    student = Trainable(model, ranges, dialect, precision, steps).to(device)
    teacher = {name: value.to(device) for name, value in constants(model, torch.float32).items()}
    _, inputs = inputs_of(View.of(model))
    measure = distance or default_distance
    total = max(1, round(epochs * sum(1 for _ in data())))
    groups: list[dict[str, object]] = [{"params": list(student.trained.values())}]
    if student.steps is not None:
        groups.append({"params": [student.steps.logs], "lr": QUICKER * lr})
    optimiser = torch.optim.Adam(groups, lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, total)
    done = 0
    while done < total:
        for batch in data():
            given = {
                one.name: torch.from_numpy(np.ascontiguousarray(value, one.dtype)).to(device)
                for one, value in zip(inputs, parts(batch, inputs), strict=True)
            }
            with torch.autocast(device, torch.bfloat16, enabled=reduced):
                with torch.no_grad():
                    wanted = tuple(interpret(model, teacher, given))
                found = student.outputs(given)
            loss = measure(_whole(wanted), _whole(found)).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            done += 1
            if on_step is not None:
                on_step(done, float(loss.detach()))
            if done == total:
                break
    return student.to_onnx()


def _whole(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Without what bfloat16 leaves out."""
    return tuple(one.float() if one.is_floating_point() else one for one in outputs)


def _key(name: str) -> str:
    """A tensor's name as torch allows it for buffers and parameters."""
    return name.replace(".", "\u2024")


def _unkey(name: str) -> str:
    return name.replace("\u2024", ".")


def _live(base: onnx.ModelProto, graph: onnx.ModelProto) -> dict[str, tuple[str, str, int | None]]:
    """Layer -> weight, bias ("" for none) and the axis of output channels, for layers with weights of their own."""
    view = View.of(base)
    names = {node.name for node in graph.graph.node}
    found: dict[str, tuple[str, str, int | None]] = {}
    for name, node in view.layers.items():
        own = len(view.consumers[node.input[1]]) == 1 and name in names
        bias = node.input[2] if len(node.input) > 2 else ""
        if own and (not bias or len(view.consumers[bias]) == 1):
            weight = view.constant(node.input[1])
            assert weight is not None
            found[name] = node.input[1], bias, output_axis(node) % weight.ndim
    return found


def _input_scale(node: onnx.NodeProto, fixed: Mapping[str, Tensor]) -> Tensor:
    """The scale of what a layer reads; a bias is rounded to it and does not move it."""
    return fixed[f"{node.input[0].removesuffix('.dq')}.scale"].detach().float()


def _weight_scale(weight: Tensor, axis: int | None, dialect: Dialect, least: Tensor | None) -> Tensor:
    """The scale of `quantise_weight`, in float32 as it is stored, in the weight's type."""
    others = [index for index in range(weight.ndim) if index != axis]
    peak = weight.detach().abs().amax(others if dialect.per_channel else list(range(weight.ndim)))
    scale = torch.clamp(peak.float() / dialect.weight_levels, min=TINY)
    scale = scale if least is None else torch.maximum(scale, least)
    return scale.to(weight.dtype)


def _corrected(model: onnx.ModelProto, ranges: Ranges) -> onnx.ModelProto:
    """A copy of `model` with the bias corrections of its INT8 layers in its biases."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    view = View.of(result)
    for name, node in view.layers.items():
        added = ranges.bias.get(name)
        if added is None or len(node.input) < 3 or not node.input[2] or ranges.precision.get(name) == "float":
            continue
        tensor = view.initializers[node.input[2]]
        value = numpy_helper.to_array(tensor)
        if value.shape == (len(added),) and len(view.consumers[node.input[2]]) == 1:
            tensor.CopyFrom(numpy_helper.from_array(value + np.asarray(added, np.float32), tensor.name))
    return result
