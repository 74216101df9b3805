"""The user's own boards, the way that a target and an address lead to, and the commands about them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from edgeprune import devices, target
from edgeprune.cli import main
from edgeprune.cli.devices import command as devices_command
from edgeprune.cli.doctor import command as doctor_command
from edgeprune.devices import book, checks
from edgeprune.devices.emulation import board, emulator
from edgeprune.devices.emulation.qemu_user import QemuUser
from edgeprune.devices.reach import transport
from edgeprune.devices.ssh import Ssh
from edgeprune.devices.transport import Local
from edgeprune.errors import DeviceUnreachable, TargetError, UsageError


@pytest.fixture(autouse=True)
def private_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEPRUNE_DEVICES", str(tmp_path / "devices.toml"))
    return tmp_path / "devices.toml"


def test_add_find_remove(private_book: Path) -> None:
    entry = book.BoardEntry("ssh://pi@10.0.0.7", "edgeprune/bin/python", "raspberry-pi-5")
    book.add("pi5", entry)
    book.add("nano", book.BoardEntry("ssh://nano"))
    assert book.find("pi5") == book.find("ssh://pi5") == entry
    assert book.find("ssh://other") == book.BoardEntry("ssh://other")
    book.remove("pi5")
    assert list(book.read()) == ["nano"]
    with pytest.raises(TargetError, match="Did you mean 'nano'"):
        book.find("nanoo")
    with pytest.raises(UsageError, match="no board is called 'pi5'"):
        book.remove("pi5")


@pytest.mark.parametrize(
    ("name", "address"), [("a b", "ssh://x"), ("local", "ssh://x"), ("pi", "x"), ("pi", "ftp://x")]
)
def test_what_cannot_be_written_down(name: str, address: str, private_book: Path) -> None:
    with pytest.raises(UsageError):
        book.add(name, book.BoardEntry(address))
    assert not private_book.exists()


@pytest.mark.parametrize("text", ["[pi5\n", "[pi5]\naddress = 3\n", '[pi5]\nadress = "ssh://x"\n'])
def test_a_damaged_file_is_named(text: str, private_book: Path) -> None:
    private_book.write_text(text)
    with pytest.raises(UsageError, match=r"devices\.toml"):
        book.read()


def test_an_address_leads_to_a_transport(monkeypatch: pytest.MonkeyPatch) -> None:
    pi5, intel = target.load("raspberry-pi-5"), target.load("intel-cpu")
    book.add("mine", book.BoardEntry("ssh://pi@10.0.0.7:2222", "python3.12"))
    assert type(transport(intel)) is Local
    assert type(transport(pi5, "local")) is Local
    over_ssh = transport(pi5, "mine")
    assert isinstance(over_ssh, Ssh) and over_ssh.where == "pi@10.0.0.7:2222" and over_ssh.survives
    over_ssh.close()
    user = transport(pi5, "qemu-user://")
    assert isinstance(user, QemuUser) and user.where == "cortex-a76 under qemu-user"
    with pytest.raises(TargetError, match="not a way"):
        transport(pi5, "ftp://x")
    with pytest.raises(DeviceUnreachable, match="'i486' is not a core"):
        transport(pi5, "qemu-board://i486")
    monkeypatch.setattr(board, "installed", lambda: False)
    with pytest.raises(DeviceUnreachable, match="--install-emulator"):
        transport(pi5)


@pytest.mark.parametrize(
    ("name", "device", "unit", "core"),
    [
        ("raspberry-pi-5", "", "instructions", "cortex-a76"),
        ("raspberry-pi-4", "qemu-board://", "instructions", "cortex-a72"),
        ("raspberry-pi-5", "qemu-user://", "ms", "cortex-a76"),
        ("raspberry-pi-5", "qemu-board://cortex-a76?clock=none", "ms", "cortex-a76"),
        ("raspberry-pi-5", "ssh://10.0.0.7", "ms", ""),
        ("x86-onnxruntime", "local", "ms", ""),
        ("jetson-orin-nano", "", "modelled ms", ""),
        ("jetson-orin-nano", "ssh://10.0.0.9", "ms", ""),
    ],
)
def test_the_way_decides_the_unit_and_what_is_emulated(name: str, device: str, unit: str, core: str) -> None:
    profile = target.load(name)
    reached = devices.reached(profile, device)
    assert reached.protocol.unit == unit and devices.emulated_core(profile, device) == core
    assert (reached.protocol.runs == profile.protocol.runs) == (unit == "ms")


def test_the_commands_about_boards() -> None:
    run = CliRunner()
    assert "No boards yet" in run.invoke(devices_command).output
    added = run.invoke(devices_command, ["add", "pi5", "ssh://pi@10.0.0.7", "--target", "raspberry-pi-5"])
    assert added.exit_code == 0 and "edgeprune devices probe pi5" in added.output
    listed = json.loads(run.invoke(main, ["devices", "list", "--json"]).output)
    assert listed == {"devices": {"pi5": {"address": "ssh://pi@10.0.0.7", "python": "", "target": "raspberry-pi-5"}}}
    assert "ssh://pi@10.0.0.7" in run.invoke(devices_command, ["list"]).output
    unknown = run.invoke(devices_command, ["add", "pi4", "ssh://pi4", "--target", "raspbery-pi-4"])
    assert isinstance(unknown.exception, TargetError) and "raspberry-pi-4" in str(unknown.exception)
    nameless = run.invoke(devices_command, ["probe", "ssh://10.0.0.9"])
    assert isinstance(nameless.exception, UsageError)


@pytest.mark.long
def test_doctor_says_what_is_here_and_what_mends_the_rest() -> None:
    run = CliRunner()
    answer = json.loads(run.invoke(main, ["doctor", "x86-onnxruntime", "--json"]).output)
    assert answer["ready"] and answer["checks"][-1]["found"].startswith("onnxruntime ")
    jetson = run.invoke(doctor_command, ["jetson-orin-nano"])
    assert jetson.exit_code == 0 and "latency is a model" in " ".join(jetson.output.split())
    found = checks.device(target.load("jetson-orin-nano"), "")
    assert found.state == "optional" and found.remedy.endswith("--target jetson-orin-nano")
    assert isinstance(run.invoke(doctor_command, ["intel-cpu", "--install-emulator"]).exception, UsageError)


def test_doctor_on_a_host_without_emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator, "installed", lambda: False)
    found = {check.what: check for check in checks.host(target.load("raspberry-pi-5"))}
    assert found["ARM emulation"].state == "missing"
    found = {check.what: check for check in checks.host(target.load("raspberry-pi-5"), "ssh://pi5")}
    assert found["ARM emulation"].state == found["emulated ARM board"].state == "optional"  # it has a board
    monkeypatch.setattr(emulator.platform, "machine", lambda: "riscv64")
    found = {check.what: check for check in checks.host(target.load("raspberry-pi-5"))}
    assert "not on riscv64" in found["ARM emulation"].remedy


def test_the_command_that_puts_a_runtime_on_a_device() -> None:
    command = checks.install_command(target.load("raspberry-pi-5"), "ssh://pi@10.0.0.7")
    assert command.startswith('ssh pi@10.0.0.7 "python3 -m venv edgeprune') and "onnxruntime>=1.20" in command
    assert "edgeprune devices add 10-0-0-7 ssh://pi@10.0.0.7 --python edgeprune/bin/python" in command
    assert "nvidia-jetpack" in checks.install_command(target.load("jetson-orin-nano"), "ssh://nano")
    book.add("shed", book.BoardEntry("ssh://pi@10.0.0.8:2222"))
    command = checks.install_command(target.load("raspberry-pi-5"), "shed")
    assert command.startswith("ssh -p 2222 pi@10.0.0.8 ") and "devices add shed ssh://pi@10.0.0.8:2222" in command
