"""An outside opinion on Q/DQ graphs for TensorRT: TensorRT-RTX compiles them without a GPU and names its kernels.

Optional (`pip install "edgeprune[tensorrt-lint]"`, NVIDIA's proprietary licence, never shipped with edgeprune). It is a
linter, not a Jetson artifact: engines are built on the device. Verified with 1.7.1.116, whose SM86 kernels are those
that TensorRT 10.16 loads on Orin.
"""

from __future__ import annotations

import importlib
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from edgeprune.errors import MissingDependency
from edgeprune.quantize.check.findings import DQ, LintFinding
from edgeprune.quantize.view import WEIGHTED, View

PINNED = "1.7.1.116"


@dataclass(frozen=True)
class Compiled:
    """What TensorRT-RTX made of a graph.

    Attributes:
        accepted: it parsed and compiled.
        errors: why not, in its own words.
        version: of TensorRT-RTX.
        layers: layer -> element type of what its kernel reads, such as "Int8"; empty if the log did not tell.
        intended: convolutions and linear layers whose weight is quantised in the graph.
    """

    accepted: bool
    errors: tuple[str, ...]
    version: str
    layers: Mapping[str, str]
    intended: tuple[str, ...]

    @property
    def in_int8(self) -> tuple[str, ...]:
        """The intended layers that truly run in INT8."""
        return tuple(name for name in self.intended if self.layers.get(name) == "Int8")


def available() -> bool:
    """Whether TensorRT-RTX is installed."""
    try:
        importlib.import_module("tensorrt_rtx")
    except ImportError:
        return False
    return True


def compile_for(model: onnx.ModelProto, capability: str = "SM86") -> Compiled:
    """Compile `model` for a compute capability and read the log.

    Raises:
        MissingDependency: TensorRT-RTX is not installed.
    """
    try:
        rtx: Any = importlib.import_module("tensorrt_rtx")
    except ImportError:
        raise MissingDependency(
            "TensorRT-RTX is not installed; it is the optional compiler check for TensorRT graphs.",
            'pip install "edgeprune[tensorrt-lint]"',
        ) from None
    view = View.of(model)
    weighted = [n for n in view.nodes if n.op_type in WEIGHTED]
    intended = tuple(n.name for n in weighted if _from_dq(view, n.input[1]))
    with _LOCK:
        logger = _logger(rtx)
        logger.lines.clear()
        errors, built = _build(rtx, logger, model, capability)
        layers = _layers(logger.lines, [n.name for n in weighted])
    return Compiled(built and not errors, errors, str(rtx.__version__), layers, intended)


def findings(model: onnx.ModelProto, capability: str = "SM86") -> list[LintFinding]:
    """What the compiler says, as a linter says it."""
    return judge(compile_for(model, capability))


def judge(compiled: Compiled) -> list[LintFinding]:
    """A compilation as a linter tells it: an error when it was refused, a warning for each layer left in float."""
    if not compiled.accepted:
        text = "; ".join(compiled.errors) or "no reason given"
        return [LintFinding("graph", "rtx-rejected", "error", f"TensorRT-RTX: {text}.", "Mend what it names.")]
    if not compiled.layers:
        return []  # this version's log does not name its kernels: the build alone counts
    return [
        LintFinding(
            name,
            "rtx-float",
            "warning",
            f"Its kernel reads {compiled.layers.get(name, 'unknown')}.",
            "Leave it in float.",
        )
        for name in compiled.intended
        if name not in compiled.in_int8
    ]


def _from_dq(view: View, tensor: str) -> bool:
    node = view.producer.get(tensor)
    return node is not None and node.op_type == DQ


def _build(rtx: Any, logger: Any, model: onnx.ModelProto, capability: str) -> tuple[tuple[str, ...], bool]:
    """Parse and compile; gives the errors and whether an engine came out."""
    builder = rtx.Builder(logger)
    strongly = getattr(rtx.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly is None else 1 << int(strongly))
    parser = rtx.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        return tuple(str(parser.get_error(index).desc()) for index in range(parser.num_errors)), False
    config = builder.create_builder_config()
    config.profiling_verbosity = rtx.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(rtx.ComputeCapability, capability), 0)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        return tuple(text for severity, text in logger.lines if "ERROR" in severity) or ("no engine",), False
    return (), True


_KERNEL = re.compile(r"Name: ([^,]+), LayerType: (\w+), Inputs: \[ (.*?)\]", re.DOTALL)
_TYPE = re.compile(r"Datatype: (\w+)")


def _layers(lines: list[tuple[str, str]], weighted: list[str]) -> dict[str, str]:
    """Layer -> element type of its kernel's first input, from the compiler's kernel listing.

    The compiler names a kernel after the node, or after several that it made one of ("k+q"), with a suffix, and lists
    the kernels in one record near the end.
    """
    found: dict[str, str] = {}
    names = set(weighted)
    for _, text in lines:
        for name, _, _ in _KERNEL.findall(text):
            stem = re.sub(r"_myl\d+.*$", "", name).strip()
            members = [stem] if stem in names else [part for part in stem.split("+") if part in names]
            kind = _TYPE.search(text, text.index(f"Name: {name}, LayerType")) if members else None
            if kind:
                found |= dict.fromkeys(members, kind[1])
    return found


_LOCK = threading.Lock()
_LOGGERS: dict[str, object] = {}


def _logger(rtx: Any) -> Any:
    """The one logger of this process: the library keeps the first that it is given."""
    if "rtx" not in _LOGGERS:

        class Logger(rtx.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                rtx.ILogger.__init__(self)
                self.lines: list[tuple[str, str]] = []

            def log(self, severity: Any, message: str) -> None:
                self.lines.append((str(severity), message))

        _LOGGERS["rtx"] = Logger()
    return _LOGGERS["rtx"]
