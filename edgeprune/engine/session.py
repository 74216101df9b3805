"""The dense network as search and repair look at it: captured once a run, and passed on.

Half of the examples fit (repairs, moments), the other half judges: what a repair has seen says little about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from edgeprune.engine import distance as distances
from edgeprune.engine.distance import Distance, Fitted
from edgeprune.engine.examples import Batch, Examples, Outputs, batch_size, batches, layout, parts, take
from edgeprune.engine.layers import AffineLayer, layers_of
from edgeprune.engine.moments import InputMoments, input_moments
from edgeprune.engine.rebatch import rebatched
from edgeprune.engine.tape import Route, Tape
from edgeprune.errors import ModelError
from edgeprune.graph import Capture


class Session:
    """The dense network's tape, weights and layers, and examples in two halves; all tensors on the network's device.

    Args:
        model: the dense network; it is left as it was.
        examples: as the network takes them (see `examples.Examples`), 256 to 512 of them.
        distance: makes the distance from the dense network's outputs on the judging half; None: `distance.default`.
        seed: of the positions that are sampled.
        capture: of `model`, where there is one (`Structure.capture`): the network is not captured again, unless it
            mixes its batch into numbers that no rule finds.

    Raises:
        CaptureError, GraphError: the network cannot be followed on a tape.
        ModelError: its outputs on these examples are not finite, or none is floating.
    """

    def __init__(
        self,
        model: nn.Module,
        examples: Examples,
        *,
        distance: Fitted | None = None,
        seed: int = 0,
        capture: Capture | None = None,
    ) -> None:
        self.model, self.seed = model, seed
        self.device = next((value.device for value in model.state_dict().values()), torch.device("cpu"))
        examples = to_device(examples, self.device)
        self.size = batch_size(examples)
        self.first = take(examples, 0, self.size)
        self.examples = examples
        self.weights = weights_of(model)
        handed = rebatched(capture, model, self.first, self.weights) if capture is not None else None
        self.tape = handed or Tape.of(model, self.first)
        self.layers = layers_of(self.tape, self.weights)
        every = batches(examples, self.size)
        half = max(1, len(every) // 2)
        self.fit, self.judge = every[:half], every[half:] or every
        self._distance = distance or distances.default
        self.ridges: dict[str, float] = {}  # chosen once a layer: the examples stay the same

    @cached_property
    def dense(self) -> tuple[Outputs, ...]:
        """The dense network's outputs on each judging batch."""
        with torch.no_grad():
            found = tuple(self.outputs(self.tape, self.weights, self.tape.route(), batch) for batch in self.judge)
        for outputs in found:
            for number, item in enumerate(outputs):
                if item.is_floating_point() and not bool(item.isfinite().all()):
                    raise ModelError(
                        f"the dense network's output {number} is not finite on the user's own examples.",
                        "Look at the preprocessing and at the network; nothing can be compared to NaN.",
                    )
        return found

    @cached_property
    def distance(self) -> Distance:
        """How far other outputs are from `dense`."""
        return self._distance(self.dense)

    @cached_property
    def moments(self) -> dict[str, InputMoments]:
        """Of every layer's inputs, over the fitting half."""
        with torch.no_grad():
            return input_moments(self.tape, self.layers, self.weights, self.fit, seed=self.seed)

    @property
    def by_weight(self) -> dict[str, AffineLayer]:
        """The layers by their weight's name."""
        return {layer.weight: layer for layer in self.layers}

    @property
    def judged(self) -> int:
        """How many examples judge."""
        return sum(len(batch[0]) for batch in self.judge)

    def outputs(self, tape: Tape, weights: Mapping[str, Tensor], route: Route, batch: Batch) -> Outputs:
        """A whole run of one batch."""
        values = tape.begin(batch)
        tape.run(values, route, weights)
        return tape.results(values, weights)

    def batches(self, examples: Examples) -> list[Batch]:
        """Other examples, in batches that the tape runs on."""
        return batches(to_device(examples, self.device), self.size)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers (non-persistent ones too) by qualified name; convolution weights in channels-last
    order.
    """
    found = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    return {name: layout(value.detach()) for name, value in found.items()}


def to_device(examples: Examples, device: torch.device) -> Examples:
    """The same examples on a device."""
    if isinstance(examples, Tensor):
        return examples.to(device)
    if isinstance(examples, Mapping):
        return {name: item.to(device) for name, item in examples.items()}
    return tuple(item.to(device) for item in parts(examples))
