"""The records of a trace: segments of channels, groups and their members, layers, blocks, and what is frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Segment:
    """A run of channels on an axis. `group` is None where the channels stay; `per_unit` channels go with one unit."""

    group: str | None
    size: int
    per_unit: int

    def width(self, units: Mapping[str, int]) -> int:
        """Channels left when group g keeps `units[g]` units (all of them where g is not listed)."""
        if self.group is None or self.group not in units:
            return self.size
        return units[self.group] * self.per_unit


def sliced(blocks: Iterable[Block], layer: str, units: Mapping[str, int]) -> int:
    """Input channels that a layer loses with these blocks when group g keeps `units[g]` units."""
    return sum(width(segments, units) for block in blocks for name, segments in block.slices if name == layer)


def width(segments: Sequence[Segment], units: Mapping[str, int]) -> int:
    """Channels left on an axis when group g keeps `units[g]` units."""
    return sum(s.width(units) for s in segments)


@dataclass(frozen=True, eq=False)
class Member:
    """An axis of a parameter or buffer that a group narrows.

    Attributes:
        parameter: qualified name.
        axis: the dimension.
        indices: int array [size, k]; unit u occupies the positions indices[u] along that dimension.
        role: "output" (the layer produces it), "input" (it consumes it) or "tied" (norms, biases, depthwise, ...).
    """

    parameter: str
    axis: int
    indices: NDArray[np.int64]
    role: str


@dataclass(frozen=True, eq=False)
class Group:
    """Units that may be removed one by one, in any choice that leaves at least one.

    Attributes:
        name: the first producing layer's qualified name.
        size: number of units.
        unit: "channel", "head", "convolution group", "hidden unit", "4 channels" or "channels" (several at once).
        divisor: the number of units kept must be a multiple of this.
        members: everything that is narrowed together.
        producers, consumers: layer names.
    """

    name: str
    size: int
    unit: str
    divisor: int
    members: tuple[Member, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    parameters: int = 0
    macs: int = 0


@dataclass(frozen=True)
class Frozen:
    """Something that stays whole: what, why, by which operator and source line, and the layers that it blocks.

    `parameters` and `macs` are those of the layers that it blocks.
    """

    what: str
    why: str
    operator: str
    source: str
    layers: tuple[str, ...]
    parameters: int = 0
    macs: int = 0

    @property
    def place(self) -> str:
        """The operator and the source line, as far as they are known: "gather at net.py:12"."""
        return " at ".join(part for part in (self.operator, self.source) if part)


@dataclass(frozen=True)
class Operation:
    """An operator of the graph, the module that runs it, and its source line."""

    operator: str
    module: str
    source: str


@dataclass(frozen=True)
class Layer:
    """One call of a convolution, linear, recurrent or embedding layer, in graph order; sizes are for one example.

    `macs` are multiply-accumulates for one example at full width. `inputs` and `outputs` are the channel axes.
    """

    name: str
    kind: str
    weight: str
    weight_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    macs: int
    inputs: tuple[Segment, ...]
    outputs: tuple[Segment, ...]
    group_axis: tuple[Segment, ...] = ()

    def macs_at(self, units: Mapping[str, int]) -> int:
        """Multiply-accumulates for one example when group g keeps `units[g]` units."""
        full = width(self.inputs, {}) * width(self.outputs, {}) / max(1, self.groups)
        groups = width(self.group_axis, units) if self.group_axis else self.groups
        now = width(self.inputs, units) * width(self.outputs, units) / max(1, groups)
        return round(self.macs * now / full) if full else 0


@dataclass(frozen=True)
class SumPlace:
    """The sum that a block's term is added in: the `number`th `op` that `module` itself runs; its `operand` stays."""

    module: str
    op: str
    number: int
    operand: int


@dataclass(frozen=True)
class Block:
    """A block that may go: `x + f(x)` becomes x.

    A residual module becomes an identity of its first input. Where the sum stands in a module's own forward (`end`),
    the modules of f go, each by its stand-in.

    Attributes:
        module: its name: the module's, or that of the last module of f that has weights.
        groups: the groups of its input and output axis (one, unless the stream is a concat).
        inner: groups that live only inside it.
        layers: the layers inside.
        stand_ins: module -> what takes its place ("first", "nothing"); none for a residual module.
        end: the sum, where it stands in a module's own forward.
        slices: layers that read a concat of what the block reads and gives -> the channels that they read once less
            without it (the float ONNX adds up the weights of two equal slices).
        kind: "module": a residual module; "term": of a sum in a module's own forward; "repeat": without a sum.
    """

    module: str
    groups: tuple[str, ...]
    inner: tuple[str, ...]
    layers: tuple[str, ...]
    stand_ins: tuple[tuple[str, str], ...] = ()
    end: SumPlace | None = None
    kind: str = "module"
    slices: tuple[tuple[str, tuple[Segment, ...]], ...] = ()

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that go."""
        return tuple(name for name, _ in self.stand_ins) or (self.module,)

    def holds(self, name: str) -> bool:
        """Whether a module or a parameter goes with it."""
        return any(name == module or name.startswith(module + ".") for module in self.modules)

    @property
    def group(self) -> str:
        """The group that the block lives on ('' where its stream is frozen)."""
        return self.groups[0] if self.groups else ""
