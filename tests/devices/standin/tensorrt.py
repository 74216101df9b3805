"""A stand-in for the `tensorrt` module, for the agent's conversation where there is no GPU: it compiles nothing.

It has the names of a recorded surface only (STANDIN_TENSORRT says which version), runs the graph with ONNX Runtime on
memory that the stand-in for the CUDA runtime gives out, and fails on request (STANDIN_FAULT).
"""

import ctypes
import enum
import json
import os
import pathlib

import numpy as np

__version__ = os.environ.get("STANDIN_TENSORRT", "10.3.0")
_FAULT = os.environ.get("STANDIN_FAULT", "")
_SURFACE = json.loads((pathlib.Path(os.environ["STANDIN_SURFACES"]) / (f"trt_surface_{__version__}.json")).read_text())


def _members(name):
    return [member[1:] for member in _SURFACE[name] if member.startswith("=")]


def _enum(name):
    return enum.IntEnum(name, {member: index for index, member in enumerate(_members(name))})


NetworkDefinitionCreationFlag = _enum("NetworkDefinitionCreationFlag")
BuilderFlag = _enum("BuilderFlag")
MemoryPoolType = _enum("MemoryPoolType")
ProfilingVerbosity = _enum("ProfilingVerbosity")
LayerInformationFormat = _enum("LayerInformationFormat")
TensorIOMode = _enum("TensorIOMode")
DataType = _enum("DataType")


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class IProfiler:
    def __init__(self):
        self.ready = True


class _Network:
    graph = b""


class Builder:
    def __init__(self, logger):
        self._logger = logger

    def create_network(self, flags):
        explicit = getattr(NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
        assert explicit is None or flags >> int(explicit) & 1, "TensorRT up to 10 wants explicit batch"
        return _Network()

    def create_builder_config(self):
        return _Config()

    def build_serialized_network(self, network, config):
        if _FAULT == "no-memory":
            self._logger.log(ILogger.ERROR, "[virtualMemoryBuffer.cpp] OutOfMemory (Requested size was 1 GiB)")
            return None
        if _FAULT == "no-kernel":
            self._logger.log(ILogger.ERROR, "Error Code 10: Could not find any implementation for node layer1.conv")
            return None
        assert config.cache is not None and config.pools
        return (
            json.dumps({"flags": sorted(flag.name for flag in config.flags), "verbose": True}).encode()
            + b"\0"
            + network.graph
        )


class _Config:
    def __init__(self):
        tf32 = getattr(BuilderFlag, "TF32", None)
        self.flags, self.pools, self.cache = ({tf32} if tf32 is not None else set()), {}, None
        if "builder_optimization_level" in _SURFACE["IBuilderConfig"]:
            self.builder_optimization_level = 3

    def set_memory_pool_limit(self, pool, size):
        self.pools[pool] = size

    def set_flag(self, flag):
        self.flags.add(flag)

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def create_timing_cache(self, data):
        return _TimingCache(data)

    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = cache

    def get_timing_cache(self):
        return self.cache


class _TimingCache:
    def __init__(self, data):
        self._data = data

    def serialize(self):
        return memoryview(self._data + b"timed;")


class OnnxParser:
    def __init__(self, network, logger):
        self._network, self._errors = network, []
        self.num_errors = 0

    def parse(self, graph):
        if _FAULT == "parse":
            self._errors, self.num_errors = ["In node 3 (importQuantize): zero point must be 0"], 1
            return False
        self._network.graph = graph
        return True

    def get_error(self, index):
        return self._errors[index]


class Runtime:
    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, data):
        return None if _FAULT == "deserialize" else _Engine(data)


class _Engine:
    def __init__(self, data):
        import onnx
        import onnxruntime

        header, _, graph = bytes(data).partition(b"\0")
        self.header = json.loads(header)
        self._nodes = onnx.load_from_string(graph).graph.node
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self.ports = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.num_io_tensors = len(self.ports)

    def get_tensor_name(self, index):
        return self.ports[index].name

    def _port(self, name):
        return next(port for port in self.ports if port.name == name)

    def get_tensor_mode(self, name):
        inputs = [port.name for port in self.session.get_inputs()]
        return TensorIOMode.INPUT if name in inputs else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name):
        return self._port(name).shape

    def get_tensor_dtype(self, name):
        return DataType.FLOAT

    def create_execution_context(self):
        return _Context(self)

    def create_engine_inspector(self):
        return _Inspector(self)

    def layers(self):
        """Names as TensorRT fuses them: the constant, the quantiser and the layer."""
        dequantised = {name for node in self._nodes if node.op_type == "DequantizeLinear" for name in node.output}
        for node in self._nodes:
            if node.op_type in ("Conv", "Add", "GlobalAveragePool"):
                fused = f"{node.name}.weight + {node.name}" if node.op_type == "Conv" else node.name
                int8 = node.op_type == "Conv" and node.input[0] in dequantised and "INT8" in self.header["flags"]
                yield fused, node.name, node.op_type, "Int8 NC/32HW32" if int8 else "Float"


class _Inspector:
    def __init__(self, engine):
        self._engine = engine

    def get_engine_information(self, form):
        assert form == LayerInformationFormat.JSON
        metadata = not __version__.startswith("8.5")
        found = [
            {
                "Name": fused,
                "LayerType": "CaskConvolution" if kind == "Conv" else kind,
                "Inputs": [{"Name": "x", "Format/Datatype": form}],
                "TacticName": "sm80_xmma_fprop",
                **({"Metadata": f"[ONNX Layer: {name}]"} if metadata else {}),
            }
            for fused, name, kind, form in self._engine.layers()
        ]
        return json.dumps({"Layers": found})


class _Context:
    def __init__(self, engine):
        self._engine, self._addresses, self.profiler = engine, {}, None

    def set_tensor_address(self, name, pointer):
        self._addresses[name] = pointer

    def execute_async_v3(self, stream):
        if _FAULT == "execute":
            return False
        feeds = {port.name: self._view(port).copy() for port in self._engine.session.get_inputs()}
        outputs = self._engine.session.run(None, feeds)
        for port, value in zip(self._engine.session.get_outputs(), outputs):  # noqa: B905 - Python 3.8
            self._view(port)[...] = value
        if self.profiler is not None:
            assert self.profiler.ready
            for fused, *_ in self._engine.layers():
                self.profiler.report_layer_time(fused, 0.25)
        return True

    def _view(self, port):
        size = int(np.prod(port.shape))
        memory = (ctypes.c_float * size).from_address(self._addresses[port.name])
        return np.ctypeslib.as_array(memory).reshape(port.shape)
