"""Boxes in the graph: what comes out of each runtime is what the decoder makes of the raw outputs on the host."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from edgeprune import model
from edgeprune.errors import ModelError, RecipeError
from edgeprune.model import suppression
from edgeprune.pipeline.ends import same_boxes
from edgeprune.tasks import decoders

PRIORS = np.random.default_rng(4).uniform(0.2, 0.6, (60, 4))
ANCHORS = (((10.0, 13.0), (33.0, 23.0)), ((60.0, 45.0), (59.0, 80.0)))
CASES: dict[str, tuple[Any, tuple[tuple[int, ...], ...]]] = {  # decoder, shapes of the network's outputs
    "FastestDet": (decoders.FastestDet(score=0.3), ((9, 6, 5),)),
    "one class": (decoders.FastestDet(score=0.3), ((6, 6, 5),)),
    "DFL": (decoders.YoloAnchorFree(size=(64, 96), bins=4, score=0.4, most=20), ((19, 8, 12), (19, 4, 6))),
    "sides": (decoders.YoloAnchorFree(size=(64, 96), bins=1, score=0.4), ((7, 8, 12),)),
    "decoded": (decoders.YoloAnchorFree(size=(64, 96), overlap=0.6), ((7, 80),)),
    "v5": (decoders.YoloAnchors(anchors=ANCHORS, size=(64, 96), score=0.2), ((16, 8, 12), (16, 4, 6))),
    "v3": (decoders.YoloAnchors(anchors=ANCHORS, size=(64, 96), squared=False, score=0.2), ((16, 8, 12), (16, 4, 6))),
    "SSD": (decoders.SSD(priors=PRIORS, softmax=True), ((60, 4), (60, 4))),
    "SSD, boxes first": (decoders.SSD(priors=PRIORS, softmax=True), ((60, 4), (60, 5))),
    "SSD without priors": (decoders.SSD(softmax=True, background=2), ((60, 5), (60, 4))),
    "SSD of faces": (decoders.SSD(softmax=False, background=None), ((60, 1), (60, 4))),
}


def outputs(name: str, batch: int, seed: int = 0) -> list[Any]:
    """Raw outputs that mean something: a FastestDet's first and last channels are probabilities."""
    random = np.random.default_rng(seed)
    made = [random.normal(0, 1.5, (batch, *shape)).astype(np.float32) for shape in CASES[name][1]]
    if name in ("FastestDet", "one class"):
        made[0][:, :1], made[0][:, 5:] = random.random(made[0][:, :1].shape), random.random(made[0][:, 5:].shape)
    if name == "sides":  # a box that is turned inside out has no area on the host, and its mirror's in a runtime
        made[0][:, :4] = np.abs(made[0][:, :4])
    if name == "decoded":
        made[0][:, :4], made[0][:, 4:] = random.uniform(10, 60, made[0][:, :4].shape), random.random((batch, 3, 80))
    if name in ("SSD of faces", "SSD without priors"):
        corner = random.random((batch, 60, 2))
        made[1] = np.concatenate([corner, corner + random.uniform(0.1, 0.5, (batch, 60, 2))], 2).astype(np.float32)
        if name == "SSD of faces":
            made[0] = random.random((batch, 60, 1)).astype(np.float32)
    return made


def passed(shapes: tuple[tuple[int, ...], ...], batch: int) -> onnx.ModelProto:
    """A graph that gives what it is given."""
    sizes = [[batch, *shape] for shape in shapes]
    given = [helper.make_tensor_value_info(f"given_{n}", TensorProto.FLOAT, s) for n, s in enumerate(sizes)]
    names = ["output" if n == 0 else f"output_{n}" for n in range(len(sizes))]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in zip(names, sizes, strict=True)]
    nodes = [helper.make_node("Identity", [f"given_{n}"], [name]) for n, name in enumerate(names)]
    graph = helper.make_graph(nodes, "heads", given, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(made: onnx.ModelProto, given: list[Any], runtime: str) -> Any:
    feeds = {f"given_{n}": one for n, one in enumerate(given)}
    if runtime == "openvino":
        openvino = pytest.importorskip("openvino", reason="the extra edgeprune[openvino] is not installed")
        core = openvino.Core()
        graph = core.read_model(io.BytesIO(made.SerializeToString()))
        compiled = core.compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return compiled(feeds)[0]
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_the_graph_gives_the_decoders_boxes(name: str, batch: int, runtime: str) -> None:
    decode, shapes = CASES[name]
    graph = passed(shapes, batch)
    made = model.Ends(output="nms", decode=decode).around(graph)
    (value,) = made.graph.output
    sizes = [one.dim_value for one in value.type.tensor_type.shape.dim]
    assert (value.name, sizes) == ("output", [batch, decode.most, 6])
    given = outputs(name, batch)
    rows = run(made, given, runtime)
    assert list(rows.shape) == sizes
    for place in range(batch):
        wanted = decode(tuple(one[place] for one in given))
        found = decoders.EndToEnd()((rows[place],))
        assert 3 <= len(wanted[0]) == len(found[0]) and same_boxes(wanted, found)
        assert np.allclose(found[1], wanted[1], atol=1e-4)  # best first
        empty = rows[place][len(found[0]) :]
        assert (empty == [0, 0, 0, 0, 0, -1]).all()
    assert graph.graph.output[0].name == "output" and len(graph.graph.node) == len(shapes)  # as it was


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_picture_of_nothing_has_no_boxes(runtime: str) -> None:
    made = model.Ends(output="nms", decode=decoders.FastestDet()).around(passed(((9, 6, 5),), 1))
    rows = run(made, [np.zeros((1, 9, 6, 5), np.float32)], runtime)
    assert rows.shape == (1, 100, 6) and all(len(part) == 0 for part in decoders.EndToEnd()((rows[0],)))


def test_boxes_that_differ_are_not_the_same() -> None:
    decode, _ = CASES["FastestDet"]
    boxes, scores, labels = decode(tuple(one[0] for one in outputs("FastestDet", 1)))
    turned = np.random.default_rng(0).permutation(len(boxes))
    assert same_boxes((boxes, scores, labels), (boxes[turned], scores[turned], labels[turned]))
    assert not same_boxes((boxes, scores, labels), (boxes + 0.01, scores, labels))
    assert not same_boxes((boxes, scores, labels), (boxes, scores, labels + 1))
    assert not same_boxes((boxes, scores, labels), (boxes[:0], scores[:0], labels[:0]))


class Mine:
    """A decoder of the user's own."""


@pytest.mark.parametrize(
    ("decode", "says"),
    [
        (decoders.DETR(), "DETR needs no suppression"),
        (Mine(), "is for the decoders FastestDet, YoloAnchorFree, YoloAnchors, SSD"),
        (type("FastestDet", (), {})(), "this task has another"),
        (decoders.SSD(), "SSD looks at the scores"),
    ],
)
def test_a_decoder_that_no_graph_can_have_is_refused(decode: object, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        suppression.check(decode)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("decode", "shapes"),
    [
        (decoders.FastestDet(), ((5, 4, 4),)),
        (decoders.FastestDet(), ((9, 4, 4), (9, 4, 4))),
        (decoders.YoloAnchorFree(), ((64, 4, 4),)),
        (decoders.YoloAnchorFree(), ((66, 4, 4), (67, 2, 2))),
        (decoders.YoloAnchors(anchors=ANCHORS), ((16, 4, 4),)),
        (decoders.YoloAnchors(anchors=ANCHORS), ((17, 4, 4), (16, 2, 2))),
        (decoders.SSD(softmax=True), ((60, 5), (59, 4))),
        (decoders.SSD(priors=PRIORS[:3], softmax=True), ((60, 5), (60, 4))),
    ],
)
def test_another_head_is_refused(decode: Any, shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ModelError, match="this head is"):
        model.Ends(output="nms", decode=decode).around(passed(shapes, 1))


def test_its_name_tells_tables_apart() -> None:
    one, other = (model.Ends(output="nms", decode=decoders.FastestDet(score=s)) for s in (0.01, 0.3))
    assert one.title == "FastestDet's 100 boxes of 0.01 and more out" != other.title
