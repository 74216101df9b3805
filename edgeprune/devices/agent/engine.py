"""Building a TensorRT engine from ONNX, with the calls that TensorRT 8.5 to 11.4 have in common."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

from .wire import Failure

_MESSAGES = []  # type: list[str]
_LOGGERS = {}  # type: dict[str, Any]
LEVEL = 3  # builder_optimization_level: TensorRT's default, said aloud because it is part of the engine's key


def logger(trt: Any) -> Any:
    """The one logger of this process: TensorRT keeps the first that it is given."""
    if trt.__name__ not in _LOGGERS:

        class Logger(trt.ILogger):  # type: ignore[misc]
            """Keeps the errors for the answer to the host."""

            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                """Called by TensorRT."""
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    _MESSAGES.append(str(message))
                    del _MESSAGES[:-20]

        _LOGGERS[trt.__name__] = Logger()
    return _LOGGERS[trt.__name__]


def build(trt: Any, onnx: bytes, options: dict[str, Any], timing: bytes) -> tuple[bytes, bytes]:
    """Parse and compile; returns the serialised engine and the timing cache.

    Options: precision ("fp32": no TF32, FP16 or INT8; "int8": all that the graph's Q/DQ pairs allow), strongly_typed,
    workspace_mib, optimization_level, compute_capability (only where the compiler can build for another GPU).
    """
    del _MESSAGES[:]
    builder = trt.Builder(logger(trt))
    network = builder.create_network(network_flags(trt, bool(options.get("strongly_typed"))))
    parser = trt.OnnxParser(network, logger(trt))
    if not parser.parse(onnx):
        errors = [str(parser.get_error(index)) for index in range(parser.num_errors)]
        raise Failure("runtime", "TensorRT cannot read the graph: %s" % ("; ".join(errors) or "no reason given"))
    config = builder.create_builder_config()
    _configure(trt, config, options)
    cache = config.create_timing_cache(timing)
    config.set_timing_cache(cache, False)
    serialised = builder.build_serialized_network(network, config)
    if serialised is None:
        raise _failed()
    return bytes(serialised), bytes(config.get_timing_cache().serialize())


def network_flags(trt: Any, strongly_typed: bool) -> int:
    """Explicit batch where that is still a choice (up to 10.x), strong types where asked for and known."""
    known = trt.NetworkDefinitionCreationFlag
    flags = 0
    if hasattr(known, "EXPLICIT_BATCH"):
        flags |= 1 << int(known.EXPLICIT_BATCH)
    if strongly_typed:
        if not hasattr(known, "STRONGLY_TYPED"):
            raise Failure("wrong-runtime", "this TensorRT has no strongly typed networks; use flavour A of the graph")
        flags |= 1 << int(known.STRONGLY_TYPED)
    return flags


def _configure(trt: Any, config: Any, options: dict[str, Any]) -> None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.get("workspace_mib", 512)) << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if hasattr(config, "builder_optimization_level"):
        config.builder_optimization_level = int(options.get("optimization_level", LEVEL))
    if options.get("precision") == "fp32" and hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.get("precision") == "int8" and not options.get("strongly_typed"):
        for name in ("FP16", "INT8"):  # gone in TensorRT 11, where the graph's own types decide
            if hasattr(trt.BuilderFlag, name):
                config.set_flag(getattr(trt.BuilderFlag, name))
    if options.get("compute_capability"):
        if not hasattr(config, "set_compute_capability"):
            raise Failure("runtime", "this TensorRT builds for the GPU it runs on only")
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, options["compute_capability"]), 0)


def _failed() -> Failure:
    words = "; ".join(_MESSAGES[-3:]) or "no reason given"
    if re.search(r"out of memory|OutOfMemory|insufficient memory|outofmemory", words, re.I):
        return Failure("out-of-memory", "building the engine needs more memory: %s" % words, 137)
    return Failure("runtime", "TensorRT could not build the engine: %s" % words)


def layers(trt: Any, engine: Any) -> list[dict[str, Any]]:
    """What the engine consists of, by its inspector: name, kind, tactic, layers of the ONNX graph, INT8 or not."""
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    found = []
    with contextlib.suppress(ValueError):
        for layer in json.loads(text).get("Layers", []):
            if isinstance(layer, dict):
                found.append(_layer(layer))
    return found


def _layer(layer: dict[str, Any]) -> dict[str, Any]:
    types = [str(part.get("Format/Datatype", part.get("Datatype", ""))) for part in layer.get("Inputs", [])]
    metadata = re.findall(r"\[ONNX Layer: ([^\]]+)\]", str(layer.get("Metadata", "")))
    return {
        "name": str(layer.get("Name", "")),
        "kind": str(layer.get("LayerType", "")),
        "implementation": str(layer.get("TacticName", "")),
        "layers": list(dict.fromkeys(metadata or names_in(str(layer.get("Name", ""))))),
        "int8": bool(types) and "int8" in types[0].lower(),
    }


def names_in(fused: str) -> list[str]:
    """ONNX layers, not constants, in a fused name such as "a.weight + QuantizeLinear_1 + a + PWN(relu, add)"."""
    plain = re.sub(r"PWN\(|\)|\{ForeignNode\[|\]\}|\.\.\.|\|\||,|(?<= )\+(?= )", " ", fused)
    return [name for name in plain.split() if not name.endswith((".weight", ".bias"))]
