"""The emulated board over ssh: instructions that repeat, the same outputs, and a board that dies and boots again."""

from __future__ import annotations

import dataclasses
import io
import threading
from pathlib import Path

import numpy as np
import pytest
import tinynets

from edgeprune import devices, target
from edgeprune.devices import Artifact
from edgeprune.devices.emulation import board, cpio
from edgeprune.errors import MeasurementError

pi5 = target.load("raspberry-pi-5")


@pytest.mark.device
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_board(artifact: Artifact, int8_artifact: Artifact, tmp_path: Path) -> None:
    if not board.installed():
        pytest.skip("no emulated board: edgeprune doctor raspberry-pi-5 --install-emulator")
    exact = dataclasses.replace(int8_artifact, options={"session.qdqisint8allowed": "1"})
    images = tinynets.images(4)
    with devices.connect(pi5, "local") as device:
        (here,) = device.infer(device.load(exact), images)
    with devices.connect(pi5) as device:
        int8, fp32 = device.load(exact), device.load(artifact)
        (there,) = device.infer(int8, images)
        counted = devices.reached(pi5).protocol
        first = device.measure([int8, fp32], counted)
        again = device.measure([int8, fp32], counted)
        kernels = device.profile(int8, runs=5)
        (tmp_path / "ahead.onnx").write_bytes(device.optimised(int8))
        done = {**exact.options, "graph_optimization_level": "disable"}
        ahead = dataclasses.replace(exact, files={"ahead.onnx": tmp_path / "ahead.onnx"}, options=done)
        (optimised,) = device.infer(device.load(ahead), images)
        with pytest.raises(MeasurementError, match="never a time"):
            device.measure([int8], target.Protocol(unit="ms"))
        device._transport._process.kill()  # type: ignore[attr-defined]
        (rebooted,) = device.infer(int8, images)
        threading.Timer(1.0, device._transport._process.kill).start()  # type: ignore[attr-defined]
        (in_a_job, _) = device.measure([int8, fp32], counted)
        fingerprint = device.probe().fingerprint
    np.testing.assert_array_equal(here, there)
    np.testing.assert_array_equal(there, rebooted)
    np.testing.assert_array_equal(there, optimised)
    assert fingerprint["cpus"] == ["cortex-a76"] and fingerprint["emulation"] == "qemu-board-icount"
    assert in_a_job.valid and in_a_job.minimum == pytest.approx(first[0].minimum, rel=0.01)
    for one, two in zip(first, again, strict=True):
        assert one.unit == "instructions" and one.valid and one.spread < 0.01
        assert one.minimum == pytest.approx(two.minimum, rel=0.01)
    assert {kernel.unit for kernel in kernels} == {"instructions"}
    assert "layer2.conv" in {name for kernel in kernels for name in kernel.layers}


def test_a_disk_image_has_files_links_and_the_console(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tool").write_bytes(b"12345")
    (tmp_path / "sh").symlink_to("bin/tool")
    stream = io.BytesIO()
    cpio.write(stream, tmp_path)
    found, data = {}, stream.getvalue()
    position = 0
    while True:
        assert data[position : position + 6] == b"070701"
        fields = [int(data[position + 6 + 8 * index : position + 14 + 8 * index], 16) for index in range(13)]
        name = data[position + 110 : position + 110 + fields[11] - 1].decode()
        start = position + (110 + fields[11] + 3) // 4 * 4
        found[name] = (fields[1] & 0o170000, data[start : start + fields[6]])
        position = start + (fields[6] + 3) // 4 * 4
        if name == "TRAILER!!!":
            break
    assert position == len(data)
    assert found["bin/tool"] == (0o100000, b"12345") and found["sh"] == (0o120000, b"bin/tool")
    assert found["bin"][0] == 0o040000 and found["dev/console"][0] == 0o020000
