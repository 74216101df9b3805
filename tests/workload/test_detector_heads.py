"""The distance of detectors whose head a built-in decoder knows: what it looks at is what the decoder decodes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from edgeprune.errors import ModelError
from edgeprune.workload import decoders, heads
from edgeprune.workload.tasks.detection import Detection

PRIORS = np.random.default_rng(0).uniform(0.1, 0.9, (9, 4))
HEADS: dict[str, object] = {
    "FastestDet": decoders.FastestDet(score=0.0, overlap=1.0),
    "YoloAnchorFree": decoders.YoloAnchorFree(0.0, 1.0, size=(64, 96), bins=4),
    "YoloAnchorFree, distances": decoders.YoloAnchorFree(0.0, 1.0, size=(64, 96), bins=1),
    "YoloAnchorFree, decoded": decoders.YoloAnchorFree(0.0, 1.0, size=(64, 96)),
    "YoloAnchors": decoders.YoloAnchors(0.0, 1.0, anchors=(((10, 20), (8, 9)), ((30, 40), (50, 20))), size=(64, 96)),
    "YoloAnchors, v3": decoders.YoloAnchors(0.0, 1.0, anchors=(((10, 20),),), size=(64, 96), squared=False),
    "SSD": decoders.SSD(0.0, 1.0, priors=PRIORS),
    "SSD, decoded": decoders.SSD(0.0, 1.0, background=None),
    "DETR": decoders.DETR(score=0.0),
    "DETR, sigmoids": decoders.DETR(background=False, score=0.0),
}


def outputs(name: str, seed: int = 0) -> tuple[Tensor, ...]:
    """Two pictures' raw outputs, as such a network gives them."""
    torch.manual_seed(seed)
    made = {
        "FastestDet": lambda: (
            torch.cat([torch.rand(2, 1, 5, 6), torch.randn(2, 4, 5, 6), torch.randn(2, 7, 5, 6).softmax(1)], 1),
        ),
        "YoloAnchorFree": lambda: (torch.randn(2, 19, 4, 6), torch.randn(2, 19, 2, 3)),
        "YoloAnchorFree, distances": lambda: (torch.randn(2, 7, 4, 6),),
        "YoloAnchorFree, decoded": lambda: (torch.cat([60 * torch.rand(2, 4, 9), torch.rand(2, 3, 9)], 1),),
        "YoloAnchors": lambda: (torch.randn(2, 16, 4, 6), torch.randn(2, 16, 2, 3)),
        "YoloAnchors, v3": lambda: (torch.randn(2, 8, 4, 6),),
        "SSD": lambda: (torch.randn(2, 9, 5), torch.randn(2, 9, 4)),
        "SSD, decoded": lambda: (torch.rand(2, 9, 3), torch.rand(2, 9, 4).cumsum(-1)),
        "DETR": lambda: (torch.randn(2, 9, 5), torch.rand(2, 9, 4)),
        "DETR, sigmoids": lambda: (torch.randn(2, 9, 5), torch.rand(2, 9, 4)),
    }[name]()
    return tuple(made)


def distance(name: str, wanted: Sequence[Tensor], found: Sequence[Tensor]) -> Tensor:
    return Detection(decode=HEADS[name]).distance(wanted, found)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", HEADS)
def test_places_are_the_boxes_and_scores_that_the_decoder_gives(name: str) -> None:
    """Every place of the second picture, in the order of its score, with all boxes kept."""
    decode, raw = HEADS[name], outputs(name)
    boxes, scores, _ = decode(tuple(value[1].double().numpy() for value in raw))  # type: ignore[operator]
    seen = heads.HEADS[type(decode)](decode, [value.double() for value in raw])
    classes, presence = seen.classes[1], seen.presence
    if name == "FastestDet":
        assert presence is not None
        rated = presence[1, :, None] ** 0.6 * classes**0.4
    elif name.startswith("SSD") or name == "DETR":
        there = {"SSD": slice(1, None), "DETR": slice(None, -1)}.get(name, slice(None))
        rated = classes[:, there]
    else:
        rated = classes if presence is None else presence[1, :, None] * classes
    flat = rated.flatten() if name == "DETR, sigmoids" else rated.amax(1)
    order = flat.argsort(descending=True)[: len(scores)]
    place = order // rated.shape[1] if name == "DETR, sigmoids" else order
    assert len(scores) == min(100, len(flat))
    np.testing.assert_allclose(scores, flat[order].numpy(), rtol=1e-9)
    np.testing.assert_allclose(boxes, seen.boxes[1][place].numpy(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", HEADS)
def test_equal_outputs_are_at_no_distance_and_others_further_the_further_they_are(name: str) -> None:
    wanted, other = outputs(name), outputs(name, seed=1)
    apart = [
        distance(name, wanted, [a + share * (b - a) for a, b in zip(wanted, other, strict=True)])
        for share in (0.0, 0.1, 0.3, 0.9)
    ]
    assert apart[0].tolist() == [0.0, 0.0]
    assert all((low < high).all() for low, high in itertools.pairwise(apart))


@pytest.mark.parametrize("name", HEADS)
def test_it_can_be_trained_by(name: str) -> None:
    wanted = outputs(name)
    free = [value.clone().requires_grad_() for value in outputs(name, seed=1)]
    distance(name, wanted, free).sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in free)


def test_losing_all_objects_is_far_and_losing_classes_that_no_picture_shows_is_not() -> None:
    """What mAP looks at. By an error a channel, each of 80 classes that are not there counts as objectness does."""
    head = torch.zeros(1, 85, 22, 22)
    head[:, 5] = 1.0
    seen = head.clone()
    seen[:, 0, 4, 4] = seen[:, 0, 15, 9] = 0.9
    blind = seen.clone()
    blind[:, 0] = 0.0
    torch.manual_seed(0)
    muddled = seen.clone()
    muddled[:, 5:] = (torch.rand(1, 80, 22, 22) * 0.5 + 0.01).softmax(1)  # nothing is sure of its class any more,
    muddled[:, 5:, 4, 4] = seen[:, 5:, 4, 4]  # but where there is an object
    muddled[:, 5:, 15, 9] = seen[:, 5:, 15, 9]
    apart = {name: float(distance("FastestDet", (seen,), (one,))) for name, one in (("b", blind), ("m", muddled))}
    assert apart["b"] > 5 > 0.1 > apart["m"]
    plain = Detection(decode=lambda outputs: HEADS["FastestDet"](outputs))  # type: ignore[operator]
    assert float(plain.distance((seen,), (blind,))) < float(plain.distance((seen,), (muddled,)))


def test_nan_is_infinitely_far_and_another_shape_an_error() -> None:
    wanted = outputs("FastestDet")
    broken = wanted[0].clone()
    broken[0, 0, 1, 1] = float("nan")
    apart = distance("FastestDet", wanted, (broken,))
    assert apart[0] == float("inf") and apart[1] == 0
    with pytest.raises(ModelError, match="that of the dense network is"):
        distance("FastestDet", wanted, (wanted[0][:, :-1],))


def test_a_decoder_of_ones_own_and_ones_own_weights_take_the_error_a_channel() -> None:
    assert "variance per channel" in Detection(decode=lambda outputs: outputs).apart
    assert "variance per channel" in Detection(decode=decoders.EndToEnd()).apart
    own = Detection(decode=decoders.FastestDet(), sureness=lambda reference: [torch.ones(1) for _ in reference])
    assert "variance per channel" in own.apart
    assert "as decoded" in Detection(decode=decoders.FastestDet()).apart
