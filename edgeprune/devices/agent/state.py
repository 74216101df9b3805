"""What the device is and how it is doing: read from /proc and /sys, with nothing installed."""

from __future__ import annotations

import glob
import os
import platform
import re
import shutil
import subprocess
import time
from typing import Any

# Part numbers of the ARM MIDR register, as in the Linux kernel's arch/arm64/include/asm/cputype.h.
ARM_PARTS = {
    "0xd03": "cortex-a53", "0xd04": "cortex-a35", "0xd05": "cortex-a55", "0xd07": "cortex-a57",
    "0xd08": "cortex-a72", "0xd09": "cortex-a73", "0xd0a": "cortex-a75", "0xd0b": "cortex-a76",
    "0xd0c": "neoverse-n1", "0xd0d": "cortex-a77", "0xd40": "neoverse-v1", "0xd41": "cortex-a78",
    "0xd42": "cortex-a78ae", "0xd44": "cortex-x1", "0xd46": "cortex-a510", "0xd47": "cortex-a710",
    "0xd49": "neoverse-n2", "0xd4d": "cortex-a715", "0xd4f": "neoverse-v2", "0xd80": "cortex-a520",
    "0xd81": "cortex-a720",
}  # fmt: skip
FEATURES = (
    "asimd", "asimddp", "i8mm", "asimdhp", "bf16", "sve", "sve2", "sme",
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8",
)  # fmt: skip
# Bits of the Raspberry Pi firmware's get_throttled: 0-3 now, 16-19 the same since boot.
THROTTLE_BITS = {0: "under-voltage", 1: "frequency capped", 2: "throttled", 3: "soft temperature limit"}
TOO_HOT_C = 80.0  # a Raspberry Pi begins to throttle at 80 degrees, a Jetson Orin above that
FREQUENCY_DROP = 0.05
BUSY_LOAD = 0.5  # a CPU
LOOK_S = 0.2  # how long the device is looked at: 20 ticks a CPU


ROOT = ""  # tests put a board's /proc and /sys here


def read(path: str) -> str:
    """A file of /proc or /sys, stripped; empty when it cannot be read."""
    try:
        with open(ROOT + path, errors="replace") as stream:
            return stream.read().strip("\0\n ")
    except OSError:
        return ""


def fingerprint() -> dict[str, Any]:
    """What latency depends on and does not change by itself."""
    cores = _cores()
    first = cores[0] if cores else {}
    flags = (first.get("Features") or first.get("flags") or "").split()
    kernel = read("/proc/sys/kernel/arch")  # of the real kernel, also under user-mode emulation; Linux 6.1 and later
    return {
        "machine": platform.machine(),
        **({"kernel_machine": kernel} if kernel and kernel != platform.machine() else {}),
        "cpus": [
            ARM_PARTS.get(core.get("CPU part", ""), core.get("CPU part") or core.get("model name", "?"))
            for core in cores
        ],
        "features": [name for name in FEATURES if name in flags],
        "model": read("/proc/device-tree/model"),
        "governor": read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libc": "-".join(platform.libc_ver()),
        "l4t": read("/etc/nv_tegra_release").split("\n")[0],
        "power_mode": _nvpmodel(),
    }


def snapshot() -> dict[str, Any]:
    """How the device is doing now: degrees Celsius, kHz, bytes, load."""
    memory = _memory()
    throttled = _rpi_throttled()
    return {
        "temperatures_c": _temperatures(),
        "frequencies_khz": _frequencies(),
        "load": load(),
        "cpus": os.cpu_count() or 1,
        "throttled": throttled,
        "throttle_events": sum(
            int(read(path) or 0) for path in _glob("/sys/devices/system/cpu/cpu*/thermal_throttle/*count")
        ),
        "memory_bytes": {
            name: memory[name] for name in ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree") if name in memory
        },
        "uptime_s": float(read("/proc/uptime").split(" ")[0] or 0),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
        "oom_kills": oom_kills(),
    }


def available() -> int:
    """Bytes of memory that a new process may have; 0 where the system does not tell."""
    return _memory().get("MemAvailable", 0)


def _memory() -> dict[str, int]:
    found = re.findall(r"^(\w+):\s+(\d+)", read("/proc/meminfo"), re.M)
    return {name: int(kilobytes) * 1024 for name, kilobytes in found}


def load(seconds: float = LOOK_S) -> str:
    """How many CPUs are busy just now, while this process sleeps; "" where the system does not tell.

    Not the load average: that still holds the minute before, and so what the host itself did between measurements.
    """
    before = _busy_ticks()
    if before is None:
        return read("/proc/loadavg").split(" ")[0] if read("/proc/loadavg") else ""
    time.sleep(seconds)
    after = _busy_ticks() or before
    busy, every = after[0] - before[0], after[1] - before[1]
    return "%.2f" % (busy / max(1, every) * (os.cpu_count() or 1))


def began() -> tuple[tuple[int, int] | None, float]:
    """What `others` needs of the beginning: the ticks of all CPUs, and this process's own seconds."""
    return _busy_ticks(), time.process_time()


def others(since: tuple[tuple[int, int] | None, float]) -> float:
    """The share of all CPUs' time that other work took since `since = began()`; 0 where the system does not tell."""
    ticks, own = since
    now = _busy_ticks()
    if ticks is None or now is None or now[1] <= ticks[1]:
        return 0.0
    mine = (time.process_time() - own) * os.sysconf("SC_CLK_TCK")
    return max(0.0, now[0] - ticks[0] - mine) / (now[1] - ticks[1])


def _busy_ticks() -> tuple[int, int] | None:
    """Clock ticks of all CPUs since the start: not idle, and all of them (proc(5), /proc/stat)."""
    found = re.match(r"cpu +((?:\d+ ?)+)", read("/proc/stat"))
    if not found:
        return None
    ticks = [int(one) for one in found.group(1).split()[:8]]  # user nice system idle iowait irq softirq steal
    return (sum(ticks) - sum(ticks[3:5]), sum(ticks)) if len(ticks) >= 5 else None


def disturbances(before: dict[str, Any], after: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Compare two snapshots around a measurement: (why it does not count, what is worth saying)."""
    reasons, notes = [], []
    for bit, name in THROTTLE_BITS.items():
        if after["throttled"] >> bit & 1:
            reasons.append("the board reports '%s'" % name)
        elif (after["throttled"] & ~before["throttled"]) >> (bit + 16) & 1:
            reasons.append("the board reported '%s' during the measurement" % name)
    if after["throttle_events"] > before["throttle_events"]:
        reasons.append("the CPU was throttled %d times" % (after["throttle_events"] - before["throttle_events"]))
    for cpu, now in after["frequencies_khz"].items():
        was = before["frequencies_khz"].get(cpu, now)
        if read("/sys/devices/system/cpu/%s/cpufreq/scaling_governor" % cpu) == "performance" and now < was * (
            1 - FREQUENCY_DROP
        ):
            reasons.append("%s fell from %d to %d MHz" % (cpu, was // 1000, now // 1000))
    hottest = max(after["temperatures_c"].values(), default=0.0)
    if hottest > TOO_HOT_C:
        reasons.append("%.0f degrees Celsius, limit %.0f" % (hottest, TOO_HOT_C))
    swap = [one["memory_bytes"].get("SwapTotal", 0) - one["memory_bytes"].get("SwapFree", 0) for one in (before, after)]
    if swap[1] > swap[0]:
        reasons.append("the device began to swap")
    notes.extend(_notes(before))
    return reasons, notes


def _notes(before: dict[str, Any]) -> list[str]:
    notes = []
    governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor and governor != "performance":
        notes.append("the CPU governor is '%s', not 'performance'" % governor)
    others = float(before["load"] or 0) / before["cpus"]
    if others > BUSY_LOAD:
        notes.append("the device was busy: load %.1f a CPU" % others)
    return notes


def oom_kills() -> int:
    """How many processes the kernel killed for want of memory since it started."""
    found = re.search(r"^oom_kill (\d+)", read("/proc/vmstat"), re.M)
    return int(found.group(1)) if found else 0


def _glob(pattern: str) -> list[str]:
    return sorted(path[len(ROOT) :] for path in glob.glob(ROOT + pattern))


def _cores() -> list[dict[str, str]]:
    blocks = read("/proc/cpuinfo").split("\n\n")
    parsed = [
        {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        for block in blocks
    ]
    return [core for core in parsed if "processor" in core]


def _temperatures() -> dict[str, float]:
    found = {}
    for path in sorted(_glob("/sys/class/thermal/thermal_zone*/temp")):
        value = read(path)
        if value.lstrip("-").isdigit():
            zone = os.path.dirname(path)
            found["%s %s" % (os.path.basename(zone), read(zone + "/type"))] = int(value) / 1000.0
    return found


def _frequencies() -> dict[str, int]:
    paths = sorted(_glob("/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"))
    return {path.split("/")[-3]: int(read(path)) for path in paths if read(path).isdigit()}


def _rpi_throttled() -> int:
    text = read("/sys/devices/platform/soc/soc:firmware/get_throttled")
    if not text and shutil.which("vcgencmd"):
        text = _output(["vcgencmd", "get_throttled"]).split("=")[-1]
    try:
        return int(text, 16) if text else 0
    except ValueError:
        return 0


def _nvpmodel() -> str:
    return " ".join(_output(["nvpmodel", "-q"]).split()) if shutil.which("nvpmodel") else ""


def _output(command: list[str]) -> str:
    try:
        return (
            subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5)
            .stdout.decode()
            .strip()
        )
    except (OSError, subprocess.SubprocessError):
        return ""
