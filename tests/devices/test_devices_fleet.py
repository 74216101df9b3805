"""What an address of several boards means, and the look at all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgeprune import devices, target
from edgeprune.cli import main
from edgeprune.devices import Probe, book, status
from edgeprune.errors import DeviceBusy, DeviceUnreachable, TargetError, UsageError

pi5 = target.load("raspberry-pi-5")


@pytest.fixture(autouse=True)
def private_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPRUNE_DEVICES", str(tmp_path / "devices.toml"))
    return tmp_path / "devices.toml"


def test_a_fleet_by_commas_and_by_name() -> None:
    for name in ("a", "b"):
        book.add(name, book.BoardEntry(f"ssh://{name}.local", target="raspberry-pi-5"))
    book.add("lab", book.BoardEntry("fleet://a, b"))
    assert book.members("lab") == book.members("a,b") == book.members("fleet://a,b") == ("a", "b")
    assert book.members("lab, ssh://c") == ("a", "b", "ssh://c") and book.members("") == ("",)
    fleet = devices.connect(pi5, "lab")
    assert isinstance(fleet, devices.Fleet) and [one.name for one in fleet.states] == ["a", "b"]
    assert devices.way(pi5, "lab").unit == "ms" and devices.way(pi5, "a").where == "a.local"
    twins = devices.way(pi5, "qemu-board://cortex-a76,qemu-board://cortex-a76")
    assert twins.counted and devices.reached(pi5, "qemu-board://cortex-a76,qemu-board://cortex-a76") == devices.reached(
        pi5, "qemu-board://cortex-a76"
    )


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("ssh://a,local", "local is no board of a fleet"),
        ("local,local", "local is no board of a fleet"),
        ("ssh://a,ssh://a", "a is in the fleet twice"),
        ("ssh://a,qemu-board://cortex-a76", "qemu-board and ssh are no fleet"),
        ("ssh://a,nobody", "no board is called 'nobody'"),
        ("loop", "the fleet 'loop' is in itself"),
    ],
)
def test_what_is_no_fleet(device: str, says: str, private_book: Path) -> None:
    private_book.write_text('[loop]\naddress = "fleet://loop,a"\n[a]\naddress = "ssh://a"\n')
    with pytest.raises(TargetError, match=says):
        devices.connect(pi5, device)


def test_a_fleet_of_boards_that_nobody_knows_is_not_written_down(private_book: Path) -> None:
    with pytest.raises(UsageError, match="no board is called 'a'"):
        book.add("lab", book.BoardEntry("fleet://a,b"))
    assert not private_book.exists()


class Answers:
    """In place of a connected board."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> Answers:
        if self.name == "away":
            raise DeviceUnreachable("away: timed out.")
        if self.name == "held":
            raise DeviceBusy("held: lab-2 holds it.")
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def probe(self) -> Probe:
        kernel = "5.4" if self.name == "old" else "6.1"
        state: dict[str, Any] = {"load": "0.10", "cpus": 4, "temperatures_c": {"soc": 61.2}, "throttled": 4}
        fixed = {"machine": "aarch64", "cpus": ["cortex-a76"] * 4, "runtime": "onnxruntime", "runtime_version": "1.31"}
        return Probe({**fixed, "kernel": kernel}, state if self.name == "one" else {})


def test_status_looks_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two", "old", "away", "held"):
        book.add(name, book.BoardEntry(f"ssh://{name}", target="raspberry-pi-5"))
    book.add("odd", book.BoardEntry("ssh://odd"))
    book.add("lab", book.BoardEntry("fleet://one,two"))
    monkeypatch.setattr(status, "connect", lambda profile, name: Answers(name))
    done = CliRunner().invoke(main, ["devices", "status", "--json"])
    assert done.exit_code == 6 and "3 of 6 boards cannot be used" in done.stderr
    found = {one["name"]: one for one in json.loads(done.stdout)["devices"]}
    assert {name: one["state"] for name, one in found.items()} == {
        "one": "answers", "two": "answers", "old": "answers", "away": "away", "held": "busy", "odd": "unusable",
    }  # fmt: skip
    assert found["one"]["kind"] == found["two"]["kind"] != found["old"]["kind"]
    assert found["one"]["hottest"] == "61" and found["one"]["notes"] == ["throttled (0x4)"]
    shown = CliRunner().invoke(main, ["devices", "status", "--target", "raspberry-pi-5"])
    assert "throttled" in shown.stdout and "timed out" in shown.stdout and shown.exit_code == 6


def test_status_of_nothing() -> None:
    done = CliRunner().invoke(main, ["devices", "status"])
    assert done.exit_code == 2 and "no board is written down" in done.stderr
