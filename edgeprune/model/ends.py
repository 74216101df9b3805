"""What an artifact takes and gives in place of what its network does ([export]): camera bytes in, classes or boxes out.

The float graph, training and calibration know nothing of it: the nodes are put around the graph last of all, so that
the scaling of pixels and the choice of a class run where the network runs, and are measured with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgeprune.errors import DataError
from edgeprune.model import suppression
from edgeprune.model.preprocess import Preprocess
from edgeprune.recipe import Recipe

EXACT = 0.02  # of a pixel: how far from a whole number what float32 made of one can be taken back to
HINT = "State the preprocessing in [data] scale, mean, std (or by Data(prepare=...)), or leave [export] input out."


@dataclass(frozen=True)
class Ends:
    """What stands before and behind the network in the artifact; as it is made, nothing.

    Attributes:
        layout: of the bytes that are fed, "NHWC" or "NCHW"; empty: the network's own input.
        scale, mean, std: what is done with the bytes: (byte * scale - mean) / std, per channel.
        output: what is done with scores: the number of the best class, probabilities, or nothing; or "nms": with a
            detector's outputs, of which boxes are made.
        place: of the output that holds the scores.
        decode: of "nms", the decoder whose work the graph does.
    """

    layout: Literal["", "NHWC", "NCHW"] = ""
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    output: Literal["", "argmax", "softmax", "nms"] = ""
    place: int = 0
    decode: Any = None

    @classmethod
    def of_recipe(cls, recipe: Recipe, place: int = 0, prepare: object = None, decode: object = None) -> Ends:
        """As [export] asks, by [data] scale, mean and std, or by those of the user's own `prepare`."""
        section, data = recipe.export, prepare if isinstance(prepare, Preprocess) else recipe.data
        layout: Any = section.input.removeprefix("uint8 ")
        said = (data.scale, data.mean, data.std) if layout else (1.0, (0.0,), (1.0,))
        return cls(layout, *said, section.output, place, decode if section.output == "nms" else None)

    def __bool__(self) -> bool:
        return bool(self.layout or self.output)

    @property
    def title(self) -> str:
        """In words, such as "uint8 NHWC in, argmax out"."""
        boxes = suppression.title(self.decode) if self.output == "nms" else self.output
        parts = (f"uint8 {self.layout} in" if self.layout else "", f"{boxes} out" if self.output else "")
        return ", ".join(part for part in parts if part)

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of one example as it is fed, from [C, H, W]."""
        return (*shape[1:], shape[0]) if self.layout == "NHWC" else shape

    def fed(self, columns: tuple[NDArray[Any], ...]) -> tuple[NDArray[Any], ...]:
        """A batch of the network's inputs as the artifact takes it.

        Raises:
            DataError: they were not made from bytes by this scale, mean and std.
        """
        if not self.layout:
            return columns
        pixels = columns[0] * self._column(self.std)
        pixels += self._column(self.mean)
        pixels /= np.float32(self.scale)
        whole = np.rint(pixels)
        if pixels.size and (whole.min() < 0 or whole.max() > 255):
            worst = pixels.min() if whole.min() < 0 else pixels.max()
            raise DataError(f"[export] input: the data has a pixel of {worst:.4g}; a byte is 0 to 255.", HINT)
        pixels -= whole
        if pixels.size and np.abs(pixels).max() > EXACT:
            place = np.unravel_index(int(np.abs(pixels).argmax()), pixels.shape)
            value = float(whole[place] + pixels[place])
            raise DataError(f"[export] input: the data has a pixel of {value:.4g}, which is no byte.", HINT)
        made = whole.astype(np.uint8)
        return (np.ascontiguousarray(made.transpose(0, 2, 3, 1)) if self.layout == "NHWC" else made,)

    def around(self, graph: onnx.ModelProto) -> onnx.ModelProto:
        """The graph, float or Q/DQ, with these ends; its inputs and outputs keep their names."""
        made = onnx.ModelProto()
        made.CopyFrom(graph)
        if self.layout:
            self._put_before(made.graph)
        if self.output == "nms":
            suppression.append(made, self.decode)
        elif self.output:
            self._put_behind(made.graph)
        if self:
            onnx.checker.check_model(made)
        return made

    def _column(self, values: tuple[float, ...]) -> NDArray[np.float32]:
        return np.asarray(values, np.float32).reshape(-1, 1, 1)

    def _put_before(self, graph: onnx.GraphProto) -> None:
        """Bytes are put in order first, as they are the smallest; what adds nothing is left out."""
        given = graph.input[0]
        name = given.name
        batch, *shape = (dim.dim_value for dim in given.type.tensor_type.shape.dim)
        std, mean = (np.asarray(part, np.float64) for part in (self.std, self.mean))
        steps: list[tuple[str, dict[str, Any], NDArray[np.float32] | None]] = []
        if self.layout == "NHWC":
            steps.append(("Transpose", {"perm": [0, 3, 1, 2]}, None))
        steps.append(("Cast", {"to": TensorProto.FLOAT}, None))
        factor, shift = self.scale / std, -mean / std
        if (factor != 1).any():
            steps.append(("Mul", {}, factor.astype(np.float32).reshape(-1, 1, 1)))
        if shift.any():
            steps.append(("Add", {}, shift.astype(np.float32).reshape(-1, 1, 1)))
        inner, at = f"{name}/float", name
        for node in graph.node:
            node.input[:] = [inner if one == name else one for one in node.input]
        for number, (kind, attributes, constant) in enumerate(steps):
            to = inner if number == len(steps) - 1 else f"{name}/{kind.lower()}"
            inputs = [at]
            if constant is not None:
                inputs.append(f"{name}/{kind.lower()}.constant")
                graph.initializer.append(numpy_helper.from_array(constant, inputs[1]))
            node = helper.make_node(kind, inputs, [to], f"{name}/{kind.lower()}", **attributes)
            graph.node.insert(number, node)
            at = to
        sizes = [batch, *self.shape(tuple(shape))]
        given.CopyFrom(helper.make_tensor_value_info(name, TensorProto.UINT8, sizes))

    def _put_behind(self, graph: onnx.GraphProto) -> None:
        """Class numbers of maps are bytes where they fit: a map is what has to be carried away."""
        given = graph.output[self.place]
        name, kind = given.name, given.type.tensor_type.elem_type
        sizes = [dim.dim_value for dim in given.type.tensor_type.shape.dim]
        inner = f"{name}/scores"
        for node in graph.node:
            node.input[:] = [inner if one == name else one for one in node.input]
            node.output[:] = [inner if one == name else one for one in node.output]
        if self.output == "softmax":
            graph.node.append(helper.make_node("Softmax", [inner], [name], f"{name}/softmax", axis=1))
        else:
            kind, small = TensorProto.INT64, len(sizes) > 2 and sizes[1] <= 256
            to = f"{name}/class" if small else name
            graph.node.append(helper.make_node("ArgMax", [inner], [to], f"{name}/argmax", axis=1, keepdims=0))
            sizes = [sizes[0], *sizes[2:]]
            if small:
                kind = TensorProto.UINT8
                graph.node.append(helper.make_node("Cast", [to], [name], f"{name}/cast", to=kind))
        given.CopyFrom(helper.make_tensor_value_info(name, kind, sizes))
