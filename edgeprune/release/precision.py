"""In which precision an artifact computes, as its own file says: read without a runtime, without its weights.

ONNX is walked as protocol buffers (field numbers of onnx.proto, ONNX 1.17): graph 7, node 1, initializer 5; NodeProto
input 1, output 2, op_type 4; TensorProto data_location 14. OpenVINO's IR names its layers in XML.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from edgeprune.errors import BundleError
from edgeprune.release.archive import DAMAGED, Archive

MAX_FIELDS = 2_000_000
MAX_TEXT = 4_096  # bytes of the name of an operator or tensor
MAX_XML = 64 << 20
COMPUTE = ("Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits")
INTEGER = re.compile(r"QLinear\w+|QGemm|QAttention|ConvInteger|MatMulInteger\w*|DynamicQuantize\w+")
LAYER = re.compile(rb'<layer\s[^<>]*\btype="([A-Za-z0-9_]{1,64})"')
WEIGHED = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")


@dataclass
class _Graph:
    """What is remembered of an ONNX graph."""

    operators: list[tuple[str, list[str]]] = field(default_factory=list)  # type, inputs
    dequantised: set[str] = field(default_factory=set)
    outside: bool = False  # a tensor lies in another file


def check(found: Archive, name: str) -> str:
    """How much of an artifact that is called INT8 is INT8, in words.

    Raises:
        BundleError: none of it, or it cannot be read, or it points to files outside.
    """
    int8, all_of_them = _ir(found, name) if name.endswith(".xml") else _onnx(found, name)
    if not int8:
        what = f"all {all_of_them} convolutions and matrix products compute in float"
        raise BundleError(f"{found.path}: '{name}' is called INT8, but {what}.", "It was not made by a passing run.")
    return f"{int8} of {all_of_them}"


def _ir(found: Archive, name: str) -> tuple[int, int]:
    data = found.read(name, MAX_XML)
    if b"<!" in data or b"<net" not in data[:4096]:
        raise BundleError(f"{found.path}: '{name}' is no OpenVINO IR.", DAMAGED)
    kinds = [match.decode() for match in LAYER.findall(data)]
    weighed = sum(kind in WEIGHED for kind in kinds)
    return min(kinds.count("FakeQuantize"), weighed), weighed


def _onnx(found: Archive, name: str) -> tuple[int, int]:
    graph = _Graph()
    member = found.member(name)
    try:
        with found.path.open("rb") as file:
            stream = _Stream(file, member.offset)
            for number, end, _ in stream.fields(member.offset + member.size):
                if number == 7 and end:
                    _walk(stream, end, graph)
    except (ValueError, IndexError) as cause:
        raise BundleError(f"{found.path}: '{name}' is no ONNX graph ({cause}).", DAMAGED) from None
    if graph.outside:
        raise BundleError(f"{found.path}: '{name}' has weights in another file.", "A bundle's graph is one file.")
    weighed = [inputs for kind, inputs in graph.operators if kind in COMPUTE]
    quantised = sum(bool(graph.dequantised.intersection(inputs[:1])) for inputs in weighed)
    integer = sum(bool(INTEGER.fullmatch(kind)) for kind, _ in graph.operators)
    return quantised + integer, len(weighed) + integer


def _walk(stream: _Stream, end: int, graph: _Graph) -> None:
    """A GraphProto: its nodes, and where its tensors lie."""
    for number, stop, _ in stream.fields(end):
        if number == 1 and stop:
            _node(stream, stop, graph)
        elif number == 5 and stop:
            graph.outside |= _elsewhere(stream, stop)


def _node(stream: _Stream, end: int, graph: _Graph) -> None:
    inputs, outputs, kind = [], [], ""
    for number, stop, _ in stream.fields(end):
        if number == 1:
            inputs.append(stream.text(stop))
        elif number == 2:
            outputs.append(stream.text(stop))
        elif number == 4:
            kind = stream.text(stop)
        elif number == 5 and stop:  # an attribute, whose tensor is its field 5
            for inner, tensor_end, _ in stream.fields(stop):
                graph.outside |= bool(inner == 5 and tensor_end and _elsewhere(stream, tensor_end))
    graph.operators.append((kind, inputs))
    if kind == "DequantizeLinear":
        graph.dequantised.update(outputs)


def _elsewhere(stream: _Stream, end: int) -> bool:
    """Does a TensorProto say that its data lies in another file?"""
    return any(number == 14 and value != 0 for number, _, value in stream.fields(end))


class _Stream:
    """Protocol buffers read forwards; what is skipped is never held."""

    def __init__(self, file: BinaryIO, at: int) -> None:
        self._file = file
        self._at = file.seek(at)
        self._fields = 0

    def fields(self, end: int) -> Iterator[tuple[int, int, int]]:
        """(number, where its content ends or 0, its value where it is a number) of a message that ends at `end`.

        What the caller leaves of a field's content is skipped. ValueError where the bytes are no message.
        """
        while self._at < end:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise ValueError("too many fields")
            key = self._varint()
            number, kind = key >> 3, key & 7
            if kind == 0:
                yield number, 0, self._varint()
                continue
            if kind not in (1, 2, 5):
                raise ValueError("a field of no known kind")
            stop = self._varint() + self._at if kind == 2 else self._at + (8 if kind == 1 else 4)
            if stop > end:
                raise ValueError("cut off")
            yield number, stop if kind == 2 else 0, 0
            if self._at != stop:
                self._at = self._file.seek(stop)
        if self._at != end:
            raise ValueError("cut off")

    def text(self, end: int) -> str:
        """A string that ends at `end`."""
        size = end - self._at
        if not 0 <= size <= MAX_TEXT:
            raise ValueError("a name that is no name")
        data = self._file.read(size)
        self._at += len(data)
        return data.decode("utf-8", "replace")

    def _varint(self) -> int:
        """A number of at most 64 bits."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self._file.read(1)[0]
            self._at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number without an end")
