"""The agent alone: what it may use, what it reads from a board, and how it counts."""

from __future__ import annotations

import ast
import json
import os
import shutil
import statistics
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgeprune import claims
from edgeprune.devices import package
from edgeprune.devices.agent import state, store, timing, wire, worker

SOURCES = sorted((Path(package.__file__).parent / "agent").glob("*.py"))
ALLOWED = {"numpy", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "cuda"}
TOO_NEW = {  # what Python 3.9 and later added and this code might reach for
    "removeprefix", "removesuffix", "cache", "pairwise", "batched", "bit_count", "is_relative_to",
    "randbytes", "to_thread", "hardlink_to", "unparse", "indent",
}  # fmt: skip


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_agent_is_written_in_python_3_8(source: Path) -> None:
    tree = ast.parse(source.read_text(), feature_version=(3, 8))
    future = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    assert future or len(tree.body) <= 1, "annotations must not be evaluated"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Match)
        if isinstance(node, ast.Attribute):
            assert node.attr not in TOO_NEW, f"{source.name}:{node.lineno}: {node.attr}"
            if node.attr == "readlink":  # Path's came with 3.9
                assert isinstance(node.value, ast.Name) and node.value.id == "os", f"{source.name}:{node.lineno}"
        if isinstance(node, ast.With) and len(node.items) > 1:
            assert source.read_text().splitlines()[node.lineno - 1].lstrip().startswith("with ")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "zip":
            assert not any(keyword.arg == "strict" for keyword in node.keywords)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_agent_imports_only_the_standard_library_numpy_and_its_runtime(source: Path) -> None:
    for node in ast.walk(ast.parse(source.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        for name in names:
            root = name.split(".")[0]
            assert root in sys.stdlib_module_names | ALLOWED, f"{source.name}: {name}"


def test_the_supervisor_needs_the_standard_library_alone(tmp_path: Path) -> None:
    """-I -S: no site packages at all, so neither numpy nor a runtime."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import edgeprune_agent.supervisor"
    subprocess.run([sys.executable, "-I", "-S", "-c", code, package.agent()[0]], check=True)


@pytest.mark.long
def test_the_agent_starts_on_python_3_8(tmp_path: Path) -> None:
    python = _python38()
    if not python:
        pytest.skip("no python3.8 on this machine")
    archive, _ = package.agent()
    asked = b"".join(
        json.dumps({"protocol": wire.PROTOCOL, "id": number, "timeout_s": 60, **message}).encode() + b"\n"
        for number, message in enumerate(
            [{"op": "probe"}, {"op": "missing", "digests": ["0" * 64]}, {"op": "nonsense"}]
        )
    )
    command = [python, "-I", archive, "serve", "--home", tmp_path]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    with process, process.stdin, process.stdout:
        process.stdin.write(asked)
        process.stdin.flush()
        replies = [json.loads(process.stdout.readline()) for _ in range(3)]
    assert replies[0]["result"]["fingerprint"]["python"].startswith("3.8.")
    assert replies[1]["result"] == {"missing": ["0" * 64]}
    assert replies[2]["error"]["kind"] == "protocol"


def test_the_archive_is_the_same_each_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, digest = package.agent()
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path))
    second, again = package.agent()
    assert first != second and digest == again and first.read_bytes() == second.read_bytes()
    assert all(info.date_time[0] == 1980 for info in zipfile.ZipFile(second).infolist())


@pytest.mark.parametrize("line", [b"hello\n", b"[1]\n", b'{"id": 1}\n', b'{"protocol": 99, "id": 1}\n', b"\xff\n"])
def test_foreign_lines_are_refused(line: bytes) -> None:
    with pytest.raises(wire.Failure) as caught:
        wire.decode(line)
    assert caught.value.kind == "protocol"


def test_summary_agrees_with_numpy() -> None:
    rounds = np.random.default_rng(0).exponential(size=(5, 31))
    found = timing.summary(rounds.tolist())
    medians = [statistics.median(one) for one in rounds.tolist()]
    assert found["median"] == statistics.median(medians)
    assert found["p90"] == pytest.approx(np.percentile(rounds, 90))
    assert found["p99"] == pytest.approx(np.percentile(rounds, 99))
    assert found["spread"] == pytest.approx(np.median(np.abs(medians - np.median(medians))) / np.median(medians))
    assert found["count"] == 155


@pytest.mark.long
def test_candidates_take_turns_round_by_round() -> None:
    calls: list[str] = []
    steps = [lambda name=name: calls.append(name) for name in "ABC"]
    timing.interleaved(steps, warmup=0, runs=2, rounds=3, min_seconds=0.0, max_seconds=60.0, max_spread=1e9)
    assert "".join(calls) == "AABBCC" * 3


class Shared:
    """A CPU that another process has for 4 ms at a time; reading the clocks takes 1 us of CPU time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = self.cpu = self.switches = 0
        monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: self.wall)
        monkeypatch.setattr(timing.time, "process_time_ns", self.read)
        monkeypatch.setattr(timing, "_switches", lambda: self.switches)

    def read(self) -> int:
        self.wall, self.cpu = self.wall + 500, self.cpu + 500
        return self.cpu

    def network(self, nanoseconds: int, waits: int = 0) -> None:
        self.cpu += nanoseconds
        self.wall += nanoseconds + 4_000_000 * waits
        self.switches += waits


def test_a_run_that_waited_for_its_turn_takes_what_it_had_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = Shared(monkeypatch)
    turns = timing.Turns()
    assert turns.run(lambda: cpu.network(3_000_000)) == 3_000_000  # the clock's word
    assert turns.run(lambda: cpu.network(3_000_000, waits=2)) == 3_000_000  # 11 ms on the wall
    assert turns.run(lambda: cpu.network(0, waits=1)) == 0

    def yields() -> None:  # a switch without a wait, and helpers that have more CPU time than the wall has
        cpu.network(50_000, waits=0)
        cpu.cpu, cpu.switches = cpu.cpu + 70_000, cpu.switches + 1

    assert turns.run(yields) == 50_000


def test_only_one_thread_of_this_process_is_measured_by_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = Shared(monkeypatch)
    steps = [lambda: cpu.network(3_000_000, waits=1)]
    for own, told in ((True, 3_000_000), (False, 7_000_000)):
        found = timing.interleaved(steps, 0, 2, 5, 0.0, 60.0, 1e9, own)
        assert {one for rounds in found[0] for one in rounds} == {told}


@pytest.mark.parametrize(
    ("asked", "threads", "here", "own"),
    [(True, 1, True, True), (False, 1, True, False), (True, 2, True, False), (True, 1, False, False)],
)
def test_own_time_is_for_one_thread_on_this_cpu_and_for_a_clock(
    asked: bool, threads: int, here: bool, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []
    monkeypatch.setattr(timing, "interleaved", lambda *settings: given.append(settings[-1]) or [[[1.0]]])
    made = worker.Worker()
    made._open, made._threads = {"a": SimpleNamespace(step=lambda: None, here=here)}, threads
    protocol = dict.fromkeys(("warmup_runs", "runs", "rounds", "min_seconds", "max_seconds", "max_spread"), 1)
    found = made.do_measure({"handles": ["a"], "own": asked, **protocol})
    assert given == [own] and found["others"] >= 0


@pytest.mark.parametrize(("milliseconds", "runs"), [(0.1, 20), (2.5, 20), (5, 10), (40, 5)])
def test_a_round_of_a_slow_network_has_fewer_runs_and_there_are_as_many_rounds(
    milliseconds: float, runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = Shared(monkeypatch)
    slow = lambda: cpu.network(round(milliseconds * 1e6))  # noqa: E731
    found = timing.interleaved([slow], 0, 20, 40, 0.0, 60.0, 1e9)
    assert [len(one) for one in found[0]] == [runs] * 40
    long = timing.interleaved([slow], 0, 20, 5, 0.4, 60.0, 1e9)
    assert len(long[0][0]) >= 0.4 / (milliseconds / 1000 + 1e-9) * 0.99


def _python38() -> str:
    known = [shutil.which("python3.8"), *Path.home().glob(".pyenv/versions/3.8.*/bin/python3.8")]
    works = (str(one) for one in known if one and subprocess.run([one, "-V"], capture_output=True).returncode == 0)
    return next(works, "")


_CORE = "processor\t: {}\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0b\n"
BOARD = {
    "/proc/cpuinfo": "\n".join(_CORE.format(number) for number in (0, 1)),
    "/proc/meminfo": "MemTotal: 8000000 kB\nMemAvailable: 7000000 kB\nSwapTotal: 100000 kB\nSwapFree: 100000 kB\n",
    "/proc/loadavg": "0.10 0.20 0.30 1/100 1234",
    "/proc/uptime": "100.0 200.0",
    "/proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance",
    "/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2400000",
    "/sys/class/thermal/thermal_zone0/temp": "51234",
    "/sys/class/thermal/thermal_zone0/type": "cpu-thermal",
    "/sys/devices/platform/soc/soc:firmware/get_throttled": "0x0",
}


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Raspberry Pi's /proc and /sys, as files that a test may change."""
    for name, text in BOARD.items():
        path = tmp_path / name[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(state, "ROOT", str(tmp_path))
    return tmp_path


def test_a_board_is_read(board: Path) -> None:
    found, now = state.fingerprint(), state.snapshot()
    assert found["cpus"] == ["cortex-a76", "cortex-a76"] and found["features"] == ["asimd", "asimddp"]
    assert found["model"] == "Raspberry Pi 5 Model B Rev 1.0" and found["governor"] == "performance"
    assert now["temperatures_c"] == {"thermal_zone0 cpu-thermal": 51.234}
    assert now["frequencies_khz"] == {"cpu0": 2400000} and now["throttled"] == 0
    assert state.disturbances(now, state.snapshot()) == ([], [])


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("/sys/devices/platform/soc/soc:firmware/get_throttled", "0x4", "the board reports 'throttled'"),
        ("/sys/devices/platform/soc/soc:firmware/get_throttled", "0x10000", "'under-voltage' during"),
        ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "1500000", "cpu0 fell from 2400 to 1500 MHz"),
        ("/sys/class/thermal/thermal_zone0/temp", "85000", "85 degrees"),
        ("/proc/meminfo", "SwapTotal: 100000 kB\nSwapFree: 90000 kB", "began to swap"),
    ],
)
def test_what_happens_to_a_board_meanwhile_makes_a_measurement_invalid(
    board: Path, file: str, text: str, reason: str
) -> None:
    before = state.snapshot()
    (board / file[1:]).write_text(text)
    reasons, _ = state.disturbances(before, state.snapshot())
    assert len(reasons) == 1 and reason in reasons[0]


def test_a_powersaving_or_busy_board_is_worth_a_note(board: Path) -> None:
    (board / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").write_text("ondemand")
    (board / "proc/loadavg").write_text("90.0 1 1 1/1 1")
    reasons, notes = state.disturbances(state.snapshot(), state.snapshot())
    assert reasons == [] and "'ondemand'" in notes[0] and "busy" in notes[1]


def test_what_other_work_takes_is_what_this_process_does_not(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two CPUs for ten seconds: 12 s busy, of which this process took 7, so 5 of 20 are others'."""
    hertz, own = os.sysconf("SC_CLK_TCK"), iter([3.0, 10.0, 10.0, 10.0])
    monkeypatch.setattr(state.time, "process_time", lambda: next(own))

    def stand(busy: float, idle: float) -> None:
        (board / "proc/stat").write_text(f"cpu  {busy * hertz:.0f} 0 0 {idle * hertz:.0f} 0 0 0 0 0 0\n")

    stand(100, 50)
    began = state.began()
    stand(112, 58)
    assert state.others(began) == pytest.approx(5 / 20)
    stand(100, 50)
    assert state.others(began) == 0.0  # no time went by
    (board / "proc/stat").write_text("")
    assert state.others(began) == 0.0 and state.others(state.began()) == 0.0


def test_load_is_what_is_busy_now_and_not_the_minute_before(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that ended a second ago leaves a load average of 1 or 2; the device is quiet."""
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    (board / "proc/stat").write_text("cpu  1000 0 500 8000 20 0 0 0 0 0\ncpu0 1 2 3\n")

    def meanwhile(_: float) -> None:
        (board / "proc/stat").write_text("cpu  1010 0 500 8029 21 0 0 0 0 0\ncpu0 1 2 3\n")

    monkeypatch.setattr(state.time, "sleep", meanwhile)
    assert state.load() == "0.50"


@pytest.mark.parametrize(
    ("version", "requires", "fits"),
    [
        ("1.31.1", ">=1.20", True), ("1.9.0", ">=1.20", False), ("10.3.0", ">=8.6,<11", True), ("11.0.0", "<11", False),
        ("8.5.2.2", ">=8.5,<8.6", True), ("2026.4.1", "==2026.4.1", True), ("1.20", "!=1.20.0", False), ("1", "", True),
        ("1.21.0+dev", ">1.21", False),
    ],
)  # fmt: skip
def test_versions_against_specifiers(version: str, requires: str, fits: bool) -> None:
    assert claims.fits(version, requires) is fits


def test_the_store_forgets_what_was_used_longest_ago(tmp_path: Path) -> None:
    kept = store.Store(str(tmp_path))
    for age, name in enumerate(["new", "old", "oldest"]):
        path = tmp_path / "blobs" / name
        path.write_bytes(b"x" * 100)
        os.utime(path, (1000 - age, 1000 - age))
    kept.prune(limit=250)
    assert {path.name for path in (tmp_path / "blobs").iterdir()} == {"new", "old"}
