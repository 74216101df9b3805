"""The TensorRT half of the agent: its contract with every version, its conversation, and one real compiler."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import tinynets

from edgeprune import devices, runtimes, target
from edgeprune.devices import package
from edgeprune.devices.agent import engine
from edgeprune.devices.agent.wire import Failure
from edgeprune.devices.link import AgentError
from edgeprune.errors import TargetError
from edgeprune.target import Target

HERE = Path(__file__).parent
SURFACES = {path.stem.removeprefix("trt_surface_"): path for path in (HERE / "surfaces").glob("*.json")}
JETSON = ["8.5.2", "8.6.1", "10.3.0", "10.13.3", "10.16.1", "11.0.0", "11.4.0"]

# Everything that the agent calls, by class. What stands behind a guard (hasattr) need not exist everywhere.
CONTRACT = {
    "Builder": ["create_network", "create_builder_config", "build_serialized_network"],
    "OnnxParser": ["parse", "num_errors", "get_error"],
    "IBuilderConfig": [
        "set_memory_pool_limit", "profiling_verbosity", "create_timing_cache", "set_timing_cache", "get_timing_cache",
        "set_flag", "clear_flag",
    ],
    "ITimingCache": ["serialize"],
    "ILogger": ["log", "ERROR", "INTERNAL_ERROR"],
    "Runtime": ["deserialize_cuda_engine"],
    "ICudaEngine": [
        "num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_shape", "get_tensor_dtype",
        "create_execution_context", "create_engine_inspector",
    ],
    "IExecutionContext": ["set_tensor_address", "execute_async_v3", "profiler"],
    "EngineInspector": ["get_engine_information"],
    "IProfiler": ["report_layer_time"],
    "MemoryPoolType": ["=WORKSPACE"],
    "ProfilingVerbosity": ["=DETAILED"],
    "LayerInformationFormat": ["=JSON"],
    "TensorIOMode": ["=INPUT"],
    "BuilderFlag": ["=TF32"],
    "DataType": ["=FLOAT", "=HALF", "=INT8", "=INT32", "=BOOL"],
    "NetworkDefinitionCreationFlag": [],
}  # fmt: skip
GUARDED = {
    "EXPLICIT_BATCH", "STRONGLY_TYPED", "builder_optimization_level", "set_compute_capability",
    "num_compute_capabilities", "ComputeCapability",
}  # fmt: skip


@pytest.mark.parametrize("version", [*JETSON, "rtx_1.7.1"])
def test_every_call_exists_in_every_version(version: str) -> None:
    surface = json.loads(SURFACES[version].read_text())
    missing = [
        f"{name}.{member}" for name, members in CONTRACT.items() for member in members if member not in surface[name]
    ]
    assert missing == []


def test_the_contract_lists_every_call_that_the_agent_makes() -> None:
    """An attribute that is a name of TensorRT's, in the agent's source, is in the contract or behind a guard."""
    names: set[str] = set()
    for path in SURFACES.values():
        for owner, members in json.loads(path.read_text()).items():
            names |= {owner, *(member.lstrip("=") for member in members or () if owner in CONTRACT)}
    listed = {member.lstrip("=") for members in CONTRACT.values() for member in members} | set(CONTRACT) | GUARDED
    ordinary = {"name", "value", "update", "__name__", "__version__"}  # enumerations, ctypes, dicts, modules
    agent = Path(package.__file__).parent / "agent"
    for source in ("engine.py", "run_tensorrt.py"):
        for node in ast.walk(ast.parse((agent / source).read_text())):
            if isinstance(node, ast.Attribute) and node.attr in names - ordinary:
                assert node.attr in listed, f"{source}:{node.lineno}: {node.attr} is not in the contract"


def test_flags_of_each_generation() -> None:
    class Old:
        class NetworkDefinitionCreationFlag:
            EXPLICIT_BATCH = 0

    class New:
        class NetworkDefinitionCreationFlag:
            STRONGLY_TYPED = 1

    assert engine.network_flags(Old, False) == 1 and engine.network_flags(New, True) == 2
    with pytest.raises(Failure, match="flavour A"):
        engine.network_flags(Old, True)


@pytest.mark.parametrize(
    ("fused", "names"),
    [
        (
            "layer1.conv.weight + QuantizeLinear_3 + layer1.conv + PWN(relu1)",
            ["QuantizeLinear_3", "layer1.conv", "relu1"],
        ),
        ("{ForeignNode[a...b]}", ["a", "b"]),
        ("conv1 || conv2", ["conv1", "conv2"]),
    ],
)
def test_names_of_fused_layers(fused: str, names: list[str]) -> None:
    assert engine.names_in(fused) == names


@pytest.fixture(scope="session")
def cudart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for libcudart."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the stand-in of the CUDA runtime: apt-get install gcc")
    folder = tmp_path_factory.mktemp("cudart")
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", folder / "libcudart.so.13", HERE / "standin" / "cudart.c"], check=True
    )
    return folder


@pytest.fixture
def standin(cudart: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The agent finds the stand-ins."""
    monkeypatch.setenv("PYTHONPATH", str(HERE / "standin"))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(cudart))
    monkeypatch.setenv("STANDIN_SURFACES", str(HERE / "surfaces"))
    yield monkeypatch


@pytest.fixture
def jetson() -> Target:
    """A Jetson's profile, on this machine's stand-in."""
    found = target.load("jetson-orin-nano")
    quick = target.Protocol(warmup_runs=2, runs=5, rounds=2, max_spread=1e9)
    return msgspec.structs.replace(found, requires=">=8.5", protocol=quick)


def artifact(jetson: Target, folder: Path, precision: str = "int8") -> devices.Artifact:
    source = (tinynets.int8_net if precision == "int8" else tinynets.float_net)(folder / "net.onnx")
    return runtimes.build(source, folder / "out", jetson, f"dense-{precision}", precision)


@pytest.mark.long
@pytest.mark.parametrize("version", JETSON)
def test_the_whole_conversation(version: str, standin: pytest.MonkeyPatch, jetson: Target, tmp_path: Path) -> None:
    """On the stand-in: build, cache, accuracy, latency by CUDA graph, profile, inspector, timing cache."""
    standin.setenv("STANDIN_TENSORRT", version)
    net = artifact(jetson, tmp_path)
    with devices.connect(jetson, "local") as device:
        loaded = device.load(net)
        (found,) = device.infer(loaded, tinynets.images(5))
        (timing,) = device.measure([loaded], jetson.protocol)
        kernels = device.profile(loaded, runs=4)
        timing_cache = device.timing_cache(loaded)
        again = device.load(net)
        device.unload(again)
    with devices.connect(jetson, "local") as device:
        kept = device.load(net)
    info = loaded.info  # type: ignore[attr-defined]
    assert info["built"] and info["tensorrt"] == version and info["compute_capability"] == "8.7"
    assert not kept.info["built"] and kept.info["engine_key"] == info["engine_key"]  # type: ignore[attr-defined]
    assert timing_cache == b"timed;"
    assert found.shape == (5, 16) and np.isfinite(found).all()
    assert timing.unit == "ms" and timing.count == 10
    convolutions = [kernel for kernel in kernels if kernel.kind == "CaskConvolution"]
    assert [name for kernel in convolutions for name in kernel.layers] == [
        "layer1.conv", "layer2.conv", "layer3.conv",
    ]  # fmt: skip
    assert all(kernel.median == pytest.approx(0.25) and kernel.count == 4 for kernel in kernels)
    in_int8 = set(info["int8_layers"])
    old = version.startswith(("8", "10"))  # the INT8 flag is gone in 11, and the stand-in goes by the flag
    assert in_int8 == ({"layer1.conv", "layer2.conv", "layer3.conv"} if old else set())


@pytest.mark.long
def test_fp32_is_built_apart_without_int8(standin: pytest.MonkeyPatch, jetson: Target, tmp_path: Path) -> None:
    with devices.connect(jetson, "local") as device:
        plain = device.load(artifact(jetson, tmp_path, "fp32"))
        quantised = device.load(artifact(jetson, tmp_path, "int8"))
    assert plain.info["int8_layers"] == []  # type: ignore[attr-defined]
    assert plain.info["engine_key"] != quantised.info["engine_key"]  # type: ignore[attr-defined]


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("parse", "runtime", "cannot read the graph: In node 3 .importQuantize.: zero point must be 0"),
        ("no-memory", "out-of-memory", "needs more memory"),
        ("no-kernel", "runtime", "Could not find any implementation for node layer1.conv"),
        ("deserialize", "runtime", "cannot open the engine"),
        ("gpu-memory", "out-of-memory", "no memory left .cudaMalloc"),
    ],
)
def test_failures_while_building(
    fault: str, kind: str, words: str, standin: pytest.MonkeyPatch, jetson: Target, tmp_path: Path
) -> None:
    standin.setenv("STANDIN_FAULT", fault)
    with devices.connect(jetson, "local") as device, pytest.raises(AgentError, match=words) as caught:
        device.load(artifact(jetson, tmp_path))
    assert caught.value.kind == kind


@pytest.mark.long
def test_an_engine_that_does_not_run(standin: pytest.MonkeyPatch, jetson: Target, tmp_path: Path) -> None:
    standin.setenv("STANDIN_FAULT", "execute")
    with devices.connect(jetson, "local") as device:
        loaded = device.load(artifact(jetson, tmp_path))
        with pytest.raises(AgentError, match="could not run the engine"):
            device.infer(loaded, tinynets.images(1))


@pytest.mark.long
def test_without_cuda_graphs_it_is_timed_all_the_same(
    standin: pytest.MonkeyPatch, jetson: Target, tmp_path: Path
) -> None:
    standin.setenv("STANDIN_FAULT", "capture")
    with devices.connect(jetson, "local") as device:
        (timing,) = device.measure([device.load(artifact(jetson, tmp_path))], jetson.protocol)
    assert timing.count == 10


def test_no_cuda_runtime_on_the_device(standin: pytest.MonkeyPatch, jetson: Target, tmp_path: Path) -> None:
    standin.setenv("LD_LIBRARY_PATH", str(tmp_path))
    with devices.connect(jetson, "local") as device, pytest.raises(AgentError, match=r"libcudart|CUDA"):
        device.load(artifact(jetson, tmp_path))


def test_a_tensorrt_that_the_profile_does_not_allow(standin: pytest.MonkeyPatch) -> None:
    standin.setenv("STANDIN_TENSORRT", "11.0.0")
    with (
        pytest.raises(AgentError, match=r"tensorrt 11\.0\.0 is installed, jetson-orin-nano needs >=8\.6,<11"),
        devices.connect(target.load("jetson-orin-nano"), "local"),
    ):
        pass


def test_a_jetson_that_nobody_named() -> None:
    """Without a device it is modelled, in a unit of its own; a profile that says ssh and no host is refused."""
    jetson = target.load("jetson-orin-nano")
    with devices.connect(jetson) as device:
        assert device.unit == "modelled ms"
    nowhere = msgspec.structs.replace(jetson.connection, transport="ssh", address="")
    with pytest.raises(TargetError, match="no device yet"):
        devices.connect(msgspec.structs.replace(jetson, connection=nowhere))


@pytest.mark.device
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")  # its timing cache is a no-op
def test_the_build_half_with_a_real_compiler(tmp_path: Path) -> None:
    """TensorRT-RTX compiles for SM86 without a GPU, with the agent's own code; twice the same bytes of engine."""
    trt = pytest.importorskip("tensorrt_rtx", reason='TensorRT-RTX is missing: pip install "edgeprune[tensorrt-lint]"')
    from edgeprune import quantize

    source = tinynets.float_net(tmp_path / "net.onnx", width=32)
    model = onnx.load(source)
    dialect = runtimes.DIALECTS["tensorrt-a"]
    graph = quantize.apply(model, quantize.dummy_ranges(model), dialect).SerializeToString()
    built, timing = engine.build(trt, graph, {"precision": "int8", "compute_capability": "SM86"}, b"")
    again, _ = engine.build(trt, graph, {"precision": "int8", "compute_capability": "SM86"}, timing)
    assert len(built) > 10_000 and len(again) > 10_000
    broken = graph[: len(graph) // 2]
    with pytest.raises(Failure, match="cannot read the graph"):
        engine.build(trt, broken, {"precision": "int8", "compute_capability": "SM86"}, b"")
