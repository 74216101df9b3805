"""Answers that no honest agent gives: each ends in one DeviceError that says what was wrong, or is taken as it is."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tinynets
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from edgeprune import devices
from edgeprune.devices import Artifact, answers, results
from edgeprune.devices.agent.store import sha256
from edgeprune.devices.link import Link, LinkLost, Overdue
from edgeprune.devices.ssh import Ssh
from edgeprune.errors import DeviceError, EdgepruneError, UsageError
from edgeprune.target import Target

HERE = Path(__file__).parent
os.environ.setdefault("HOSTILE_HOME", "/nowhere")
from hostile import GOOD, SUMMARY  # noqa: E402

KINDS = {
    "hello": answers.Greeting, "missing": answers.Missing, "probe": answers.Probed, "load": answers.Opening,
    "infer": answers.FetchAnswer, "measure": answers.MeasureAnswer, "profile": answers.Profiled,
    "optimise": answers.FetchAnswer, "timing_cache": answers.FetchAnswer, "unload": answers.Nothing,
}  # fmt: skip


class Board:
    """A device whose agent is hostile.py."""

    def __init__(self, target: Target, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self._plan = folder / "home", folder / "plan.json"
        (self.home / "outgoing").mkdir(parents=True)
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{HERE / "hostile.py"}"\n')
        python.chmod(0o755)
        monkeypatch.setenv("HOSTILE", str(self._plan))
        monkeypatch.setenv("HOSTILE_HOME", str(self.home))
        connection = msgspec.structs.replace(target.connection, python=str(python))
        self.target = msgspec.structs.replace(target, connection=connection)
        self.says()

    def says(self, **raw: Any) -> None:
        """What each operation is answered with: raw lines."""
        self._plan.write_text(json.dumps(raw))

    def result(self, op: str, **changed: Any) -> str:
        """A line with the usual answer, but for some values."""
        good = json.loads(json.dumps(GOOD[op]).replace(os.environ["HOSTILE_HOME"], str(self.home)))
        return json.dumps({"protocol": 1, "id": 0, "ok": True, "result": {**good, **changed}}).replace(
            '"id": 0', '"id": %d'
        )

    def outputs(self, data: bytes) -> str:
        """An answer to `infer` that leads to a file with `data`."""
        path = self.home / "outgoing" / "result.npz"
        path.write_bytes(data)
        return self.result("infer", path=str(path), sha256=sha256(str(path)))


@pytest.fixture
def hostile(ort: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    return Board(ort, tmp_path, monkeypatch)


def npz(path: Path, **arrays: Any) -> bytes:
    np.savez(path, **arrays)
    return path.read_bytes()


def everything(board: Board, artifact: Artifact) -> list[EdgepruneError]:
    """All that a device is asked for; what went wrong. Anything but an EdgepruneError is a defect."""
    errors: list[EdgepruneError] = []

    def attempt(work: Any) -> Any:
        try:
            return work()
        except EdgepruneError as error:
            errors.append(error)
            return None

    def session() -> None:
        with devices.connect(board.target) as device:
            attempt(device.probe)
            loaded = attempt(lambda: device.load(artifact))
            if loaded is not None:
                for work in (
                    lambda: device.measure([loaded], board.target.protocol),
                    lambda: device.profile(loaded),
                    lambda: device.infer(loaded, tinynets.images(2)),
                    lambda: device.optimised(loaded),
                    lambda: device.unload(loaded),
                ):
                    attempt(work)

    attempt(session)
    return errors


BROKEN = [
    "", "null", "[]", "7", '"x"', "{", "[" * 100_000, '{"protocol": 1}', '{"protocol": 2, "id": %d, "ok": true}',
    '{"protocol": 1, "id": %d, "ok": true}', '{"protocol": 1, "id": %d, "ok": true, "result": []}',
    '{"protocol": 1, "id": %d, "ok": true, "result": null}', '{"protocol": 1, "id": %d, "ok": false}',
    '{"protocol": 1, "id": %d, "ok": false, "error": {"kind": 1}}', '{"protocol": 1, "id": %d, "ok": "yes"}',
    '{"protocol": 1, "id": %d, "ok": false, "error": {"kind": "runtime", "message": "\\u001b[2J\\r\\nGOOD", "rc": 1}}',
    '{"protocol": 1, "id": %d, "ok": true, "result": {"x": ' + "[" * 5000 + "]" * 5000 + "}}",
    '{"protocol": 1, "id": %d, "ok": true, "result": {"median": NaN}}', "\x1b[2Jwelcome", "9" * 5000,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("op", ["hello", "load", "measure"])
def test_what_is_no_answer(op: str, hostile: Board, artifact: Artifact) -> None:
    for raw in BROKEN:
        hostile.says(**{op: raw})
        found = everything(hostile, artifact)
        mine = [error for error in found if error.exit_code == 6]
        assert mine, raw[:60]
        assert not any(answers.CONTROL.search(error.message) for error in found), raw[:60]


@pytest.mark.parametrize("number", ["null", "0", "-1", "1", "99", None])
def test_an_answer_to_no_question_is_not_waited_on(number: str | None, hostile: Board, artifact: Artifact) -> None:
    """Before, the host waited for the job's time: half an hour."""
    raw = (
        '{"protocol": 1, "ok": true, "result": {"missing": []}' + ("" if number is None else f', "id": {number}') + "}"
    )
    hostile.says(missing=raw)
    began = time.monotonic()
    with pytest.raises(DeviceError, match="an answer to no question"), devices.connect(hostile.target) as device:
        device.load(artifact)
    assert time.monotonic() - began < 60
    hostile.says(missing='{"protocol": 1, "ok": false, "id": null, "error": {"kind": "protocol", "message": "what?"}}')
    with pytest.raises(DeviceError, match="what"), devices.connect(hostile.target) as device:
        device.load(artifact)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"median": float("nan")}, "not an agent"), ({"median": 0}, "median"), ({"median": -2e6}, "median"),
        ({"median": 1e5}, "of rounds whose median is 2e"), ({"spread": -1.0}, "spread"), ({"spread": 0.9}, "spread"),
        ({"rounds": []}, "rounds"), ({"rounds": [0.0]}, "rounds"), ({"count": 1}, "1 runs in 2 rounds"),
        ({"minimum": 3e6}, "minimum"), ({"p90": 9e9}, "p90"), ({"mean": 1.0}, "mean"), ({"median": "2"}, "str"),
        ({"drift": 1e300}, "drift"), ({"rounds": "2"}, "rounds"),
    ],
)  # fmt: skip
def test_a_latency_that_cannot_be(changed: dict[str, Any], words: str, hostile: Board, artifact: Artifact) -> None:
    hostile.says(measure=hostile.result("measure", summaries=[{**SUMMARY, **changed}]))
    with devices.connect(hostile.target) as device:
        loaded = device.load(artifact)
        with pytest.raises(DeviceError, match=words) as caught:
            device.measure([loaded], hostile.target.protocol)
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("count", [0, 2])
def test_more_or_fewer_latencies_than_were_asked_for(count: int, hostile: Board, artifact: Artifact) -> None:
    hostile.says(measure=hostile.result("measure", summaries=[SUMMARY] * count))
    with devices.connect(hostile.target) as device, pytest.raises(DeviceError, match=f"{count} latencies for 1 art"):
        device.measure([device.load(artifact)], hostile.target.protocol)


@pytest.mark.long
def test_outputs_that_cannot_be(hostile: Board, artifact: Artifact, tmp_path: Path) -> None:
    good = np.zeros((4, 10), np.float32)
    compressed = tmp_path / "compressed.npz"
    np.savez_compressed(compressed, o0=good)
    lying = io_npy(good).replace(b"(4, 10)", b"(4, 99)")
    odd = tmp_path / "odd.npz"
    with zipfile.ZipFile(odd, "w") as archive:
        archive.writestr("o0.npy", lying)
    cases = {
        "no zip": b"no zip",
        "is not a zip file": b"",
        "3 rows of outputs for 4 inputs": npz(tmp_path / "a.npz", o0=good[:3]),
        "5 rows of outputs for 4 inputs": npz(tmp_path / "a.npz", o0=np.zeros((5, 10))),
        "no rows of outputs": npz(tmp_path / "a.npz", o0=np.float32(1)),
        "2 outputs of 1": npz(tmp_path / "a.npz", o0=good, o1=good),
        "0 outputs of 1": npz(tmp_path / "a.npz"),
        "other arrays than outputs": npz(tmp_path / "a.npz", x=good),
        "no numbers": npz(tmp_path / "a.npz", o0=np.array(["a"] * 4)),
        "compressed": compressed.read_bytes(),
        "cannot be read": odd.read_bytes(),
        "cannot be read ": npz(tmp_path / "a.npz", o0=good)[:-30],
    }
    with devices.connect(hostile.target) as device:
        loaded = device.load(artifact)
        for words, data in cases.items():
            hostile.says(infer=hostile.outputs(data))
            with pytest.raises(DeviceError) as caught:
                restarted(device, hostile, loaded, artifact)
            assert words.strip() in caught.value.message or words in ("no zip",), (words, caught.value.message)
        hostile.says(infer=hostile.outputs(npz(tmp_path / "a.npz", o0=good)))
        np.testing.assert_array_equal(restarted(device, hostile, loaded, artifact)[0], good)


def restarted(device: Any, board: Board, loaded: Any, artifact: Artifact) -> Any:
    """The outputs by an agent that has read its plan anew."""
    device._disconnect()
    return device.infer(loaded, tinynets.images(4))


def io_npy(array: Any) -> bytes:
    import io

    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "outgoing/x", "{home}/outgoing/../blobs/x", "{home}/outgoing/pipe", "{home}/outgoing/gone"]
)
def test_a_file_that_is_no_result(path: str, hostile: Board, artifact: Artifact) -> None:
    os.mkfifo(hostile.home / "outgoing" / "pipe")
    hostile.says(infer=hostile.result("infer", path=path.format(home=hostile.home)))
    with devices.connect(hostile.target) as device, pytest.raises(DeviceError):
        device.infer(device.load(artifact), tinynets.images(4))


def test_limits_of_lines_and_files(
    hostile: Board, artifact: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(answers, "LINE_BYTES", 1000)
    hostile.says(load="x" * 5000)
    with devices.connect(hostile.target) as device, pytest.raises(DeviceError, match="longer than"):
        device.load(artifact)
    monkeypatch.setattr("edgeprune.devices.transport.FILE_BYTES", 1000)
    hostile.says(infer=hostile.outputs(npz(tmp_path / "a.npz", o0=np.zeros((4, 1000)))))
    with devices.connect(hostile.target) as device, pytest.raises(DeviceError, match="result is larger"):
        device.infer(device.load(artifact), tinynets.images(4))


@pytest.mark.long
def test_alive_for_ever_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeprune.devices.link.SLACK_S", 0.5)
    chatter = 'while true; do echo \'{"protocol":1,"id":1,"event":"alive"}\'; sleep 0.05; done'

    def start(errors: Any) -> subprocess.Popen[bytes]:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        return subprocess.Popen(["sh", "-c", chatter], **pipes)  # type: ignore[call-overload,no-any-return]

    link = Link(start, "a board", 7200.0)
    begun = time.monotonic()
    with pytest.raises(Overdue, match=r"no answer in 1 s, though it is alive") as caught:
        link.ask({"op": "probe"}, 1.0)
    assert time.monotonic() - begun < 10 and caught.value.kind == "timeout" and "JOB_TIMEOUT" in caught.value.remedy
    link._process.kill()
    link.close()


@pytest.mark.parametrize("name", ["EDGEPRUNE_JOB_TIMEOUT", "EDGEPRUNE_LOCK_WAIT"])
@pytest.mark.parametrize("value", ["inf", "nan", "-1", "soon", "1e400", "1e18"])
def test_times_of_the_environment_are_looked_at(
    name: str, value: str, hostile: Board, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=name), devices.connect(hostile.target) as device:
        device.probe()


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=20), st.just([]),
    st.just({}), st.lists(st.integers(), max_size=3), st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
    st.sampled_from(["\x1b[2J", "../../x", "\0", "9" * 5000, "\ud800", "nan", -0.0, 1e400, 2**63, 2**64]),
)  # fmt: skip


def mutated(good: Any, rng: random.Random, junk: Any) -> Any:
    """The answer with one value somewhere inside replaced, or left out."""
    found = copy.deepcopy(good)
    place = found
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return junk
        key = rng.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
            place = place[key]
        elif isinstance(place, dict) and rng.random() < 0.2:
            del place[key]
            return found
        else:
            place[key] = junk
            return found


@pytest.mark.long
@seed(20261128)
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(op=st.sampled_from(sorted(KINDS)), junk=JUNK, rng=st.randoms(use_true_random=False))
def test_generated_answers_are_right_or_refused(op: str, junk: Any, rng: random.Random) -> None:
    """Everything that reads an answer: the line, the struct, the consistency of its figures."""
    answer = mutated(GOOD[op], rng, junk)
    try:
        line = json.dumps({"protocol": 1, "id": 1, "ok": True, "result": answer}).encode()
        found = answers.reply(line, "a board")
        if found is None or not isinstance(found.result, dict):
            return
        read = answers.read(found.result, KINDS[op], "a board")
        if isinstance(read, answers.MeasureAnswer):
            answers.check_summaries(read, 1, "a board")
        elif isinstance(read, answers.Opening):
            answers.check_info(read, "a board")
    except DeviceError as error:
        assert not answers.CONTROL.search(error.message) and len(error.message) < 1000
        return
    if isinstance(read, answers.MeasureAnswer):
        one = read.summaries[0]
        assert math.isfinite(one.median) and one.median > 0 and one.median == pytest.approx(np.median(one.rounds))
    assert not answers.CONTROL.search(json.dumps(msgspec.to_builtins(read), ensure_ascii=False))


@pytest.mark.long
@seed(20261128)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(rng=st.randoms(use_true_random=False))
def test_damaged_outputs_are_read_or_refused(rng: random.Random, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    data = bytearray(npz(folder / "good.npz", o0=np.arange(12.0).reshape(4, 3), o1=np.arange(4)))
    for _ in range(rng.randint(1, 4)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    if rng.random() < 0.2:
        del data[rng.randrange(len(data)) :]
    (folder / "bad.npz").write_bytes(bytes(data))
    try:
        found = results.arrays(folder / "bad.npz", "a board")
        answers.check_rows(found, 2, 4, "a board")
    except DeviceError as error:
        assert not answers.CONTROL.search(error.message)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the place of ssh: a shell on this machine, in a home folder of its own. Yields the script."""
    (tmp_path / "home").mkdir()
    script = tmp_path / "ssh"
    script.write_text(
        '#!/bin/sh\nfor word; do case $word in -O) exit 0;; esac; done\neval "last=\\${$#}"\n'
        f'cd "{tmp_path}/home" && HOME="{tmp_path}/home" exec sh -c "$last"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("EDGEPRUNE_SSH_COMMAND", str(script))
    return script


@pytest.mark.long
def test_files_come_and_go_through_a_shell(shell: Path, ort: Target, artifact: Artifact) -> None:
    there = msgspec.structs.replace(ort.connection, python=sys.executable)
    with devices.connect(msgspec.structs.replace(ort, connection=there), "ssh://board") as device:
        (found,) = device.infer(device.load(artifact), tinynets.images(5))
    with devices.connect(ort) as here:
        np.testing.assert_array_equal(found, here.infer(here.load(artifact), tinynets.images(5))[0])


@pytest.mark.long
def test_a_shell_that_floods_or_complains_in_colours(
    shell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    way = Ssh("board")
    try:
        monkeypatch.setattr("edgeprune.devices.transport.FILE_BYTES", 1 << 20)
        with pytest.raises(DeviceError, match="result is larger"):
            way.get("/dev/zero", tmp_path / "result")
        with pytest.raises(DeviceError) as caught:
            way._call("printf '\\033[2Jnothing\\n' >&2; exit 3")
        assert "\\x1b[2Jnothing" in caught.value.message
        monkeypatch.setattr("edgeprune.devices.ssh.CALL_S", 0.5)
        with pytest.raises(LinkLost, match="no answer"):
            way._call("exec sleep 60")
        with pytest.raises(LinkLost, match="no answer"):
            way._call("exec yes")
    finally:
        way.close()
