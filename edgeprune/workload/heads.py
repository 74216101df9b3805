"""What a detector's raw outputs mean to its metric: the distance of heads that a built-in decoder knows.

A detector says "nothing" nearly everywhere, and most of its channels are classes that a picture does not show. Measured
by an error a channel, objectness would be one channel of 85 that counts like any other, and mAP falls to nothing while
the error hardly grows. So a known head is compared as it is decoded (torch, differentiable, a batch at once):

- is there an object: divergence of objectness (or of each class's own yes or no) over all places;
- which one: divergence of the classes, where the dense network sees one (Mehta and Ozturk, arXiv:1805.06361);
- where: corners of the boxes over the dense box's size, there too; squared where small, linear where large.

Each is a sum over places, divided by how many objects the dense network sees in the picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeprune.workload import decoders, distances

if TYPE_CHECKING:
    from torch import Tensor

SURE = 1e-6  # probabilities are at least that far from 0 and 1
SMALL = 1e-3  # of the picture: a side of a box counts as that long at least


@dataclass(frozen=True)
class Decoded:
    """One head's outputs as they are decoded, before suppression; P places (of all maps together).

    Attributes:
        boxes: [N, P, 4] as x0, y0, x1, y1 in 0..1.
        classes: [N, P, C] probabilities.
        presence: [N, P], that there is an object; None: `classes` say so themselves.
        exclusive: the classes of a place are one distribution; else each is a yes or no of its own.
    """

    boxes: Tensor
    classes: Tensor
    presence: Tensor | None = None
    exclusive: bool = True


def known(decode: object) -> bool:
    """Is it a decoder whose head is compared here? Not one of the user's own, nor rows of boxes that are sorted
    already: a place means nothing there."""
    return type(decode) in HEADS


def distance(wanted: Decoded, found: Decoded) -> Tensor:
    """How far `found` is from `wanted`: [batch], 0 where they are equal."""
    import torch

    there = wanted.classes.amax(-1) if wanted.presence is None else wanted.presence
    objects = there.sum(1).clamp_min(1.0)
    box = _apart(wanted.boxes, found.boxes)  # weighed by `there`, not its square: unsure boxes count in mAP as well
    if wanted.exclusive:
        said = wanted.classes * (_log(wanted.classes) - _log(found.classes)) - wanted.classes + found.classes
    else:
        said = _binary(wanted.classes, found.classes)
    which = said.sum(-1)
    if wanted.presence is not None and found.presence is not None:
        parts = _binary(wanted.presence, found.presence) + there * (which + box)
    else:
        parts = which + there * box
    return torch.where(parts.isnan(), torch.full_like(parts, float("inf")), parts).sum(1).clamp_min(0.0) / objects


def _log(values: Tensor) -> Tensor:
    return values.clamp(SURE, 1.0).log()


def _binary(wanted: Tensor, found: Tensor) -> Tensor:
    """Divergence of a yes or no, each."""
    p, q = wanted.clamp(SURE, 1 - SURE), found.clamp(SURE, 1 - SURE)
    return p * (p.log() - q.log()) + (1 - p) * ((1 - p).log() - (1 - q).log())


def _apart(wanted: Tensor, found: Tensor) -> Tensor:
    """[N, P, 4] twice -> [N, P]: sqrt(1 + e^2) - 1 of the corners' errors over the wanted box's sides."""
    sides = (wanted[..., 2:] - wanted[..., :2]).clamp_min(SMALL)
    error = ((found - wanted) / sides.repeat(1, 1, 2)).square().sum(-1)
    return (1 + error).sqrt() - 1


def _corners(centre: Tensor, size: Tensor) -> Tensor:
    import torch

    return torch.cat([centre - size / 2, centre + size / 2], -1)


def _grid(like: Tensor) -> Tensor:
    """[rows, columns, 2]: x and y of each place, for maps [..., rows, columns]."""
    import torch

    rows, columns = like.shape[-2:]
    y, x = torch.meshgrid(*(torch.arange(n, device=like.device) for n in (rows, columns)), indexing="ij")
    return torch.stack([x, y], -1)


def _span(like: Tensor) -> Tensor:
    """[2]: columns and rows."""
    import torch

    return torch.tensor([like.shape[-1], like.shape[-2]], device=like.device)


def _fastestdet(decode: decoders.FastestDet, outputs: Sequence[Tensor]) -> Decoded:
    head = outputs[0].permute(0, 2, 3, 1)
    centre = (head[..., 1:3].tanh() + _grid(outputs[0])) / _span(outputs[0])
    boxes = _corners(centre, head[..., 3:5].sigmoid())
    return Decoded(boxes.flatten(1, 2), head[..., 5:].flatten(1, 2), head[..., 0].flatten(1))


def _anchor_free(decode: decoders.YoloAnchorFree, outputs: Sequence[Tensor]) -> Decoded:
    import torch

    if len(outputs) == 1 and outputs[0].ndim == 3:
        table, pixels = outputs[0].transpose(1, 2), torch.tensor(decode.size[::-1], device=outputs[0].device)
        return Decoded(_corners(table[..., :2] / pixels, table[..., 2:4] / pixels), table[..., 4:], exclusive=False)
    boxes, classes = [], []
    for level in outputs:
        head, bins = level.permute(0, 2, 3, 1), decode.bins
        sides = head[..., : 4 * bins].reshape(*head.shape[:-1], 4, bins)
        steps = torch.arange(bins, device=level.device)
        reach = (sides.softmax(-1) * steps).sum(-1) if bins > 1 else sides[..., 0]
        middle = _grid(level) + 0.5
        corners = torch.cat([(middle - reach[..., :2]) / _span(level), (middle + reach[..., 2:]) / _span(level)], -1)
        boxes.append(corners.flatten(1, 2))
        classes.append(head[..., 4 * bins :].sigmoid().flatten(1, 2))
    return Decoded(torch.cat(boxes, 1), torch.cat(classes, 1), exclusive=False)


def _anchors(decode: decoders.YoloAnchors, outputs: Sequence[Tensor]) -> Decoded:
    import torch

    boxes, classes, presence = [], [], []
    pixels = torch.tensor(decode.size[::-1], device=outputs[0].device)
    for level, sizes in zip(outputs, decode.anchors, strict=True):
        split = level.reshape(len(level), len(sizes), -1, *level.shape[2:])
        head = split.permute(0, 1, 3, 4, 2)  # [N, anchors, rows, columns, 5 + classes]
        spans = torch.tensor(sizes, device=level.device).reshape(1, -1, 1, 1, 2)
        if decode.squared:
            at, size = 2 * head[..., :2].sigmoid() - 0.5, (2 * head[..., 2:4].sigmoid()).square() * spans
        else:
            at, size = head[..., :2].sigmoid(), head[..., 2:4].clamp(-20, 20).exp() * spans
        boxes.append(_corners((at + _grid(level)) / _span(level), size / pixels).flatten(1, 3))
        presence.append(head[..., 4].sigmoid().flatten(1))
        classes.append(head[..., 5:].sigmoid().flatten(1, 3))
    return Decoded(torch.cat(boxes, 1), torch.cat(classes, 1), torch.cat(presence, 1), exclusive=False)


def _ssd(decode: decoders.SSD, outputs: Sequence[Tensor]) -> Decoded:
    import torch

    scores, boxes = outputs
    if boxes.shape[-1] != 4 and scores.shape[-1] == 4:
        scores, boxes = boxes, scores
    logits = decode.softmax if decode.softmax is not None else bool(scores.min() < 0 or scores.max() > 1)
    if logits:
        scores = scores.sigmoid() if decode.background is None else scores.softmax(-1)
    if decode.priors is not None:
        priors = torch.as_tensor(decode.priors, dtype=boxes.dtype, device=boxes.device)
        centre = priors[:, :2] + boxes[..., :2] * decode.variance[0] * priors[:, 2:]
        boxes = _corners(centre, priors[:, 2:] * (boxes[..., 2:] * decode.variance[1]).clamp(-20, 20).exp())
    if decode.background is None:
        return Decoded(boxes, scores, exclusive=False)
    return Decoded(boxes, scores, 1 - scores[..., decode.background])


def _detr(decode: decoders.DETR, outputs: Sequence[Tensor]) -> Decoded:
    logits, boxes = outputs
    corners = _corners(boxes[..., :2], boxes[..., 2:])
    if not decode.background:
        return Decoded(corners, logits.sigmoid(), exclusive=False)
    scores = logits.softmax(-1)
    return Decoded(corners, scores, 1 - scores[..., -1])


HEADS: dict[type, Callable[..., Decoded]] = {
    decoders.FastestDet: _fastestdet,
    decoders.YoloAnchorFree: _anchor_free,
    decoders.YoloAnchors: _anchors,
    decoders.SSD: _ssd,
    decoders.DETR: _detr,
}


def between(decode: object, reference: Sequence[Tensor], outputs: Sequence[Tensor]) -> Tensor:
    """`distance` of the outputs of a head that is known (`known`): [batch].

    Raises:
        ModelError: the outputs are of other shapes than the reference's.
    """
    read = HEADS[type(decode)]
    pairs = distances.paired(reference, outputs)
    return distance(read(decode, [wanted for wanted, _ in pairs]), read(decode, [found for _, found in pairs]))
