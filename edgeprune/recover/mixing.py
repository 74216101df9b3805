"""Two examples in one, of any inputs that are floats; a function of seed and step alone.

Nobody has a label for half of one example and half of another, but the dense network has an answer.

Sources: mixup, arXiv:1710.09412; CutMix, arXiv:1905.04899; with a network that teaches, arXiv:2106.05237.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from edgeprune.engine import Examples, parts
from edgeprune.errors import RecipeError
from edgeprune.workload import Inputs

MIXED = ("mixup", "cutmix")  # what has no one label any more
ALPHA = {"mixup": 0.2, "cutmix": 1.0}  # of the beta distribution that shares are drawn from, as the sources have them


def check(names: Sequence[str], labelled: bool) -> None:
    """Raises RecipeError where examples are mixed although labels teach (`labelled`)."""
    mixed = [name for name in names if name in MIXED]
    if mixed and labelled:
        raise RecipeError(
            f"[data] augment: {mixed[0]} mixes two examples, which have no one label; [recover] label_weight is not 0.",
            "Leave one of them out: the dense network teaches without labels.",
        )


def check_inputs(names: Sequence[str], inputs: Inputs) -> None:
    """Raises RecipeError where examples other than images of classes cannot be augmented as `names` says."""
    others = [name for name in names if name not in MIXED]
    if others:
        raise RecipeError(
            f"[data] augment: {others[0]} is for images of classes; this run's examples are others.",
            f"Augment in the dataset, and leave it out; {' and '.join(MIXED)} are for all that is floats.",
        )
    whole = [part for part in inputs.parts if not part.dtype.startswith("float")]
    if names and whole:
        raise RecipeError(
            f"[data] augment: {names[0]} mixes two examples, and input {whole[0].name} is {whole[0].dtype}: there is "
            "nothing between two of its values.",
            "Leave it out.",
        )


class Mixing:
    """Every example of a batch with another one of it: all its inputs alike, with one share for the batch.

    Args:
        names: "mixup" adds the two; "cutmix" takes a part of the other: a rectangle of the last two axes of
            [N, C, H, W] or more, a stretch of the longer axis of [N, T, F], a stretch of [N, F]. With both, one of them
            a batch.
        rank: this process's number; each mixes its own share of a batch.
    """

    def __init__(self, names: Sequence[str], seed: int, rank: int = 0) -> None:
        self.names, self.seed, self.rank = tuple(name for name in MIXED if name in names), seed, rank

    def __call__(self, examples: Examples, step: int) -> Examples:
        """The examples of batch number `step`, in the form that they have."""
        if not self.names:
            return examples
        random = np.random.default_rng((self.seed, 3, step, self.rank))
        name = self.names[int(random.integers(len(self.names)))]
        share = float(random.beta(ALPHA[name], ALPHA[name]))
        whole = parts(examples)
        other = torch.from_numpy(random.permutation(len(whole[0])))
        corner = random.random(2)
        if name == "mixup":
            found = [torch.lerp(one[other], one, share) for one in whole]
        else:
            found = [_pasted(one, one[other], 1 - share, corner.tolist()) for one in whole]
        if isinstance(examples, Tensor):
            return found[0]
        return dict(zip(examples, found, strict=True)) if isinstance(examples, Mapping) else tuple(found)


def _pasted(values: Tensor, others: Tensor, share: float, corner: Sequence[float]) -> Tensor:
    """`share` of `values` replaced by that of `others`; `corner`: where, as a share of the room that there is."""
    last = values.dim() - 1
    if values.dim() >= 4:
        axes = [last - 1, last]
    else:
        axes = [max(range(1, last + 1), key=lambda axis: values.shape[axis])]
    place = [slice(None)] * values.dim()
    for axis, at in zip(axes, corner, strict=False):
        size = values.shape[axis]
        long = round(size * share ** (1 / len(axes)))
        first = int(at * (size - long + 1))
        place[axis] = slice(first, first + long)
    found = values.clone()
    found[tuple(place)] = others[tuple(place)]
    return found
