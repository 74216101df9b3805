"""Options of a runtime: the listed ones reach it, all others are refused on the host and by the agent."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edgeprune import devices, runtimes, target
from edgeprune.devices.agent import options, run_onnxruntime, run_openvino
from edgeprune.devices.agent.wire import Failure
from edgeprune.errors import JobFailed, TargetError

PATHS = {
    "openvino": (
        "CACHE_DIR", "CACHE_MODE", "cache_dir", "DEVICE_PROPERTIES", "WEIGHTS_PATH", "LOG_LEVEL", "PERF_COUNT",
        "MODEL_PTR", "CPU_RUNTIME_CACHE_CAPACITY", "EXCLUSIVE_ASYNC_REQUESTS", "", "INFERENCE_PRECISION_HINT ",
    ),
    "onnxruntime": (
        "optimized_model_filepath", "profile_file_prefix", "enable_profiling",
        "session.optimized_model_external_initializers_file_name",
        "session.model_external_initializers_file_folder_path", "ep.context_file_path", "ep.context_enable",
        "session.load_model_format", "session.use_ort_model_bytes_directly", "session.x", "log_severity_level", "a.b",
    ),
    "tensorrt": ("compute_capability", "plugins", "timing_cache", "engine_file", "workspace"),
}  # fmt: skip
ODD = (
    None,
    float("nan"),
    float("inf"),
    1.0,
    -1,
    10**30,
    "",
    "x",
    "../x",
    "/etc/passwd",
    [],
    {},
    [1],
    {"a": 1},
    "1.0",
    "²",
    "1" * 5000,
)


@pytest.mark.parametrize(("runtime", "name"), [(runtime, name) for runtime, names in PATHS.items() for name in names])
def test_what_is_not_listed_is_refused(runtime, name):
    for value in ("cache", "1", 1, True):
        assert "no option" in options.wrong(runtime, {name: value})


@pytest.mark.parametrize("runtime", runtimes.names())
def test_a_listed_name_takes_no_odd_value(runtime):
    for name in options.runtime_half(runtime).OPTIONS:
        for value in ODD:
            assert options.wrong(runtime, {name: value}), (name, value)
    for odd in (None, [], "x", 1):
        assert options.wrong(runtime, odd)


def test_every_shipped_profile_passes():
    for name in target.names():
        known = target.load(name)
        assert options.wrong(known.runtime, known.execution.options) == ""
    assert options.wrong("onnx", {})


def values(allowed):
    return [allowed[1], str(allowed[1])] if isinstance(allowed, range) else list(allowed)


@pytest.mark.long
@pytest.mark.parametrize(("runtime", "runner"), [("openvino", run_openvino), ("onnxruntime", run_onnxruntime)])
def test_the_real_runtime_takes_every_listed_value(runtime, runner, nets, tmp_path):
    pytest.importorskip(runtime)
    for name, allowed in options.runtime_half(runtime).OPTIONS.items():
        for value in values(allowed):
            if (name, value) in (
                ("NUM_STREAMS", 0),
                ("INFERENCE_PRECISION_HINT", "f16"),
                ("INFERENCE_PRECISION_HINT", "bf16"),
            ):
                continue  # for CPUs that have it
            model = runner.Model({"float.onnx": str(nets["fp32"])}, {name: value}, 1, str(tmp_path))
            assert model.run(run_onnxruntime.fixed_input(model.shape, model.dtype))


SIGNALLED = """
import os, signal, sys
from edgeprune.devices.agent import run_openvino
signal.signal(signal.SIGUSR1, lambda *_: print("alive"))
def opened():
    return run_openvino.Model({"float.onnx": sys.argv[1]}, {}, 1, ".")
first = opened()
second = opened()
del first
del second
os.kill(os.getpid(), signal.SIGUSR1)
"""


@pytest.mark.long
def test_artifacts_closed_in_any_order_leave_a_process_that_hears_signals(nets):
    pytest.importorskip("openvino")
    command = [sys.executable, "-X", "faulthandler", "-c", SIGNALLED, str(nets["fp32"])]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


@pytest.mark.parametrize(("runtime", "runner"), [("openvino", run_openvino), ("onnxruntime", run_onnxruntime)])
def test_the_agent_refuses_before_the_runtime_sees_them(runtime, runner, nets, tmp_path):
    pytest.importorskip(runtime)
    for name in PATHS[runtime]:
        with pytest.raises(Failure, match="no option"):
            runner.Model({"float.onnx": str(nets["fp32"])}, {name: str(tmp_path / "written")}, 1, str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_an_artifact_cannot_say_where_openvino_writes(openvino, artifact, nets, tmp_path):
    ours = dataclasses.replace(artifact, runtime="openvino", options={"CACHE_DIR": str(tmp_path / "cache")})
    with devices.connect(openvino) as device, pytest.raises(JobFailed, match="no option CACHE_DIR"):
        device.load(ours)
    assert not (tmp_path / "cache").exists()


def test_a_profile_cannot_either_and_is_refused_before_anything_is_opened(openvino, tmp_path):
    execution = msgspec.structs.replace(openvino.execution, options={"CACHE_DIR": str(tmp_path / "cache")})
    wrong = msgspec.structs.replace(openvino, execution=execution, folder=str(Path("targets/mine")))
    with pytest.raises(
        TargetError, match=r"targets/mine/profile\.toml: \[execution\.options\]: OpenVINO has no option CACHE_DIR"
    ):
        devices.connect(wrong)
    assert not (tmp_path / "cache").exists()
