"""What may be claimed of a target by which device: every cell of the table, written out once more by hand."""

from __future__ import annotations

import itertools
import json
import platform
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from edgeprune import claims, devices, target
from edgeprune.claims import ANSWERS, FAMILIES, WAYS
from edgeprune.cli.app import main

X86, ARM = ("intel", "x86"), ("arm",)
NO = ("", "refused")
# (families, ways, answer) -> (unit of latency, the best verdict); every other cell of 4 x 6 x 7 is NO.
EXPECTED: dict[tuple[tuple[str, ...], tuple[str, ...], str], tuple[str, str]] = {
    (FAMILIES, ("local", "ssh"), "the target"): ("ms", "release"),
    (FAMILIES, ("local", "ssh"), "another core"): ("ms", "unverified"),
    (ARM, ("local",), "this x86 machine"): ("modelled ms", "unverified"),
    (ARM, ("qemu-board",), "the target"): ("instructions", "release"),
    (ARM, ("qemu-board",), "another core"): ("instructions", "unverified"),
    (FAMILIES, ("model",), "nobody"): ("modelled ms", "unverified"),
}
CELLS = list(itertools.product(FAMILIES, WAYS, ANSWERS))


@pytest.mark.parametrize(("family", "way", "answer"), CELLS)
def test_every_cell(family: Any, way: Any, answer: Any) -> None:
    expected = [
        value
        for (families, ways, who), value in EXPECTED.items()
        if family in families and way in ways and answer == who
    ]
    unit, verdict, because = claims.cell(family, way, answer)
    assert (unit, verdict) == (expected[0] if expected else NO)
    assert bool(because) is (verdict != "release")


def report(machine: str, *cpus: str, version: str = "1.31.1", runtime: str = "onnxruntime", **more: Any) -> dict:
    """What a device says of itself."""
    known = {"machine": machine, "cpus": list(cpus), "model": "", "l4t": "", "emulation": ""}
    return {**known, "runtime": runtime, "runtime_version": version, **more}


PI5 = report("aarch64", *["cortex-a76"] * 4, model="Raspberry Pi 5 Model B Rev 1.0")
PI4 = report("aarch64", *["cortex-a72"] * 4, model="Raspberry Pi 4 Model B Rev 1.4")
XEON = report("x86_64", "Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz")
EPYC = report("x86_64", "AMD EPYC")
VIRT = {"model": "linux,dummy-virt"}
ORIN = {"runtime": "tensorrt", "version": "10.3.0.30", "l4t": "# R36 (release), REVISION: 4.3", "emulation": ""}
NANO = report("aarch64", *["cortex-a78ae"] * 6, model="NVIDIA Jetson Orin Nano Engineering Reference", **ORIN)
AGX = report("aarch64", *["cortex-a78ae"] * 12, model="NVIDIA Jetson AGX Orin Developer Kit", **ORIN)
VINO = {"runtime": "openvino", "version": "2026.4.1"}


@pytest.mark.parametrize(
    ("name", "way", "found", "unit", "verdict", "said"),
    [
        # An ARM target on x86: the pre-check of outputs and nothing else.
        ("raspberry-pi-5", "local", {"emulation": "model", "host": "x86_64"}, "modelled ms", "unverified", "x86_64"),
        ("raspberry-pi-5", "local", EPYC, "", "refused", "AMD EPYC"),
        ("raspberry-pi-5", "ssh", XEON, "", "refused", "Xeon"),
        ("raspberry-pi-5", "ssh", PI5, "ms", "release", ""),
        ("raspberry-pi-5", "local", PI5, "ms", "release", ""),
        ("raspberry-pi-5", "ssh", PI4, "ms", "unverified", "cortex-a72"),
        ("raspberry-pi-4", "ssh", PI5, "ms", "unverified", "cortex-a76"),
        ("raspberry-pi-5", "ssh", report("aarch64", *["cortex-a55"] * 4, *["cortex-a76"] * 4), "ms", "unverified",
         "cortex-a55"),
        ("raspberry-pi-5", "ssh", report("aarch64"), "ms", "unverified", "no core that it names"),
        ("raspberry-pi-5", "ssh", report("armv7l", "cortex-a76"), "", "refused", "armv7l"),
        ("raspberry-pi-5", "ssh", report("", "cortex-a76"), "", "refused", "no architecture"),
        ("raspberry-pi-5", "ssh", report("riscv64"), "", "refused", "riscv64"),
        ("arm64-generic", "ssh", PI5, "ms", "release", ""),
        ("arm64-generic", "ssh", PI4, "ms", "release", ""),
        ("arm64-generic", "ssh", report("aarch64", "0xd99"), "ms", "release", ""),
        # Emulators that do not say so.
        ("raspberry-pi-5", "ssh", report("aarch64", "cortex-a76", **VIRT), "", "refused", "dummy-virt"),
        ("arm64-generic", "local", report("aarch64", "AMD EPYC 7763"), "", "refused", "EPYC"),
        ("arm64-generic", "local", report("aarch64", "cortex-a53", kernel_machine="x86_64"), "", "refused", "cortex"),
        ("x86-onnxruntime", "local", report("x86_64", "neoverse-n1"), "", "refused", "neoverse-n1"),
        ("x86-onnxruntime", "local", report("x86_64", "0xd4f"), "", "refused", "0xd4f"),
        ("x86-onnxruntime", "ssh", report("x86_64", "QEMU TCG CPU version 2.5+"), "", "refused", "TCG"),
        ("x86-onnxruntime", "ssh", report("x86_64", "VirtualApple @ 2.50GHz"), "", "refused", "VirtualApple"),
        # Ours do.
        ("raspberry-pi-5", "qemu-board", report("aarch64", "cortex-a76", **VIRT), "instructions", "release", ""),
        ("raspberry-pi-5", "qemu-board", report("aarch64", "cortex-a53", **VIRT), "instructions", "unverified", "a53"),
        ("raspberry-pi-5", "qemu-board?clock=none", report("aarch64", "cortex-a76", **VIRT), "", "refused", "latency"),
        ("raspberry-pi-5", "qemu-user", report("aarch64", "cortex-a76"), "", "refused", "no meaningful latency"),
        ("x86-onnxruntime", "qemu-user", report("aarch64", "cortex-a76"), "", "refused", "x86-64"),
        ("intel-cpu", "qemu-board", report("aarch64", "cortex-a76", **VINO), "", "refused", "aarch64"),
        # x86 targets.
        ("intel-cpu", "local", report("x86_64", "AMD EPYC", **VINO), "ms", "release", ""),
        ("intel-cpu", "ssh", report("x86_64", "12th Gen Intel(R) Core(TM) i7-1260P", **VINO), "ms", "release", ""),
        ("intel-cpu", "ssh", report("aarch64", "cortex-a76", **VINO), "", "refused", "aarch64"),
        ("x86-onnxruntime", "local", report("aarch64", "neoverse-n1"), "", "refused", "aarch64"),
        ("x86-onnxruntime", "local", report("AMD64"), "ms", "release", ""),
        ("x86-onnxruntime", "local", report("i686", "Intel(R) Atom(TM)"), "", "refused", "i686"),
        # Jetsons: the board decides, as all Orins have the same core.
        ("jetson-orin-nano", "model", {"emulation": "model"}, "modelled ms", "unverified", "no device has run this"),
        ("jetson-orin-nano", "ssh", NANO, "ms", "release", ""),
        ("jetson-agx-orin", "ssh", AGX, "ms", "release", ""),
        ("jetson-agx-orin", "ssh", NANO, "ms", "unverified", "Orin Nano"),
        ("jetson-orin-nano", "ssh", {**NANO, "l4t": ""}, "ms", "unverified", "Orin Nano"),
        ("jetson-orin-nano", "ssh", report("x86_64", "AMD EPYC", **ORIN), "", "refused", "EPYC"),
        ("jetson-orin-nano", "local", report("x86_64", "AMD EPYC", **ORIN), "", "refused", "EPYC"),
        # The runtime that is really there.
        ("raspberry-pi-5", "ssh", {**PI5, "runtime_version": "1.19.2"}, "", "refused", "1.19.2"),
        ("raspberry-pi-5", "ssh", {**PI5, "runtime_version": ""}, "", "refused", "another runtime"),
        ("raspberry-pi-5", "ssh", {**PI5, "runtime_version": "9" * 5000}, "", "refused", "another runtime"),
        ("raspberry-pi-5", "ssh", {**PI5, "runtime": "openvino"}, "", "refused", "openvino"),
        ("raspberry-pi-5", "ssh", {}, "", "refused", "another runtime"),
    ],
)  # fmt: skip
def test_what_the_device_reports_decides(
    name: str, way: Any, found: dict[str, Any], unit: str, verdict: str, said: str
) -> None:
    claim = claims.judge(target.load(name), way, found)
    assert (claim.unit, claim.verdict) == (unit, verdict)
    assert said in claim.why and bool(claim.remedy) is (verdict != "release")


def test_a_profile_without_cores_is_held_to_the_core_that_it_emulates() -> None:
    own = msgspec.structs.replace(target.load("raspberry-pi-5"), cpus=(), name="mine")
    assert claims.judge(own, "ssh", PI5).verdict == "release"
    assert claims.judge(own, "ssh", PI4).verdict == "unverified"


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the pre-check is for x86 machines")
@pytest.mark.parametrize("name", ["raspberry-pi-5", "raspberry-pi-4", "arm64-generic"])
def test_an_arm_target_on_this_machine_has_no_milliseconds(name: str) -> None:
    profile = target.load(name)
    assert devices.reached(profile, "local").protocol.unit == "modelled ms"
    with devices.connect(profile, "local") as device:
        claim = devices.judge(profile, "local", device.probe().fingerprint)
    assert (claim.unit, claim.verdict, claim.answer) == ("modelled ms", "unverified", "this x86 machine")


@pytest.mark.long
def test_this_machine_is_what_it_is() -> None:
    profile = target.load("x86-onnxruntime")
    with devices.connect(profile, "local") as device:
        claim = devices.judge(profile, "local", device.probe().fingerprint)
    assert claim.verdict == ("release" if platform.machine() in ("x86_64", "AMD64") else "refused")


def test_the_table_is_printed_and_in_the_docs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "devices.md").read_text("utf-8")
    printed = CliRunner().invoke(main, ["targets"]).stdout
    for row in claims.ROWS:
        families, ways, answer, unit, verdict = claims.in_words(row)
        way = ways if ways == "any" else f"`{ways}`"
        assert f"| {families} | {way} | {answer} | {unit} | {verdict} |" in page
        assert row.answer in printed and row.verdict in printed and (row.unit or "outputs only") in printed
    listed = json.loads(CliRunner().invoke(main, ["targets", "--json"]).stdout)["claims"]
    assert len(listed) == len(claims.ROWS) and listed[0]["verdict"] == "release"
