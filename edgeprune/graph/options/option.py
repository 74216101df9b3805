"""What a layer may become beside narrower: the interface of one option.

An option changes one layer and leaves its inputs and outputs as they are, so that any choice of options goes with any
choice of widths and blocks. Whatever it does inside, its function is that of the same layer with another weight of the
same shape: that weight (`project`) is all that search and repair look at, and they stay on the dense tape. Where a
layer may go altogether, or fewer of its channels, is not for an option to say: that ties layers together (`Group`,
`Block`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor, nn

from edgeprune.graph.parts import Layer


class LayerOption(Protocol):
    """One kind of change. A file of this folder with an `OPTION` is one; nothing else has to know of it."""

    @property
    def name(self) -> str:
        """As recipes and plans have it; the file's name with hyphens."""
        ...

    def settings(self, layer: Layer) -> Sequence[int]:
        """What may be chosen for this layer at its full width, such as ranks; empty where the option is not for it."""
        ...

    def project(self, weight: Tensor, moments: Tensor, shape: Sequence[int], setting: int) -> Tensor:
        """The weight that the layer can hold under this option and whose outputs are nearest to those of `weight`.

        Args:
            weight: [groups, d, o] in float64; o counts the outputs of a group.
            moments: second moments [groups, d, d] of what the layer reads.
            shape: of the weight as the layer has it, [outputs, inputs a group, taps...]; d runs over taps, then inputs.

        What can be held must stay so when an output is scaled: a batch norm behind the layer does that.
        """
        ...

    def replace(self, module: nn.Module, setting: int) -> nn.Module:
        """The module in its new form; the given one is left as it was. Exact where `project` made its weight."""
        ...

    def merge(self, module: nn.Module) -> nn.Module:
        """The way back: an ordinary layer that computes what `replace`'s result computes."""
        ...

    def parts(self, c_in: int, c_out: int, setting: int) -> Mapping[str, tuple[int, int]]:
        """The kernels in place of the layer's own: name within the new module -> channels in and out."""
        ...

    def elements(self, shape: Sequence[int], setting: int) -> int:
        """How many weights it has in place of a weight of this shape."""
        ...
