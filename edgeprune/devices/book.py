"""The boards that this user owns: ~/.config/edgeprune/devices.toml, or the file that EDGEPRUNE_DEVICES names.

[pi5]
address = "ssh://pi@10.0.0.7"
python = "/home/pi/edgeprune/bin/python"     # there; empty: python3
target = "raspberry-pi-5"                    # what `edgeprune devices probe` takes it for

[lab]
address = "fleet://pi5,pi6"                  # several boards of one kind, as one device
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edgeprune import files
from edgeprune.config import convert
from edgeprune.devices.package import write_whole
from edgeprune.devices.settings import home_folder
from edgeprune.errors import TargetError, UsageError, did_you_mean

SCHEMES = ("ssh", "qemu-user", "qemu-board", "fleet")
FLEET = "fleet://"


class BoardEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One board."""

    address: str
    python: str = ""
    target: str = ""


def path() -> Path:
    """Where the file lies."""
    named, config = os.environ.get("EDGEPRUNE_DEVICES"), os.environ.get("XDG_CONFIG_HOME")
    home = home_folder() or Path("/nonexistent")  # without a home folder there is no file, and none can be written
    return Path(named) if named else Path(config or home / ".config") / "edgeprune" / "devices.toml"


def read() -> dict[str, BoardEntry]:
    """All boards, by name; none when there is no file. Raises UsageError when the file is wrong."""
    if not path().exists():
        return {}
    data = files.read_toml(path(), UsageError, "Mend or delete it.")
    return {name: convert(value, BoardEntry, UsageError, f"{path()}: [{name}]") for name, value in data.items()}


def add(name: str, entry: BoardEntry) -> None:
    """Write down a board; an older entry of that name is replaced."""
    if not re.fullmatch(r"[\w-]+", name) or name == "local":
        raise UsageError(f"'{name}' cannot be a board's name.", "Use letters, digits, - and _.")
    scheme, found, _ = entry.address.partition("://")
    if not found or scheme not in SCHEMES:
        raise UsageError(
            f"'{entry.address}' is not an address.", "Use ssh://user@host, or ssh://NAME of ~/.ssh/config."
        )
    if scheme == "fleet":
        for one in _members(entry.address, (name,)):
            find(one)
    _write({**read(), name: entry})


def remove(name: str) -> None:
    """Forget a board."""
    known = read()
    if name not in known:
        raise UsageError(f"no board is called '{name}'.", did_you_mean(name, known))
    _write({key: entry for key, entry in known.items() if key != name})


def members(device: str) -> tuple[str, ...]:
    """The boards that `--device` means: one, or those of a fleet, given with commas or by its name in the file."""
    return tuple(_members(device)) or (device,)


def _members(device: str, inside: tuple[str, ...] = ()) -> Iterator[str]:
    for part in filter(None, (one.strip() for one in device.removeprefix(FLEET).split(","))):
        entry = known.address if (known := _entry(part)) else ""
        if part in inside:
            raise TargetError(f"the fleet '{part}' is in itself.", f"Mend {path()}.")
        if entry.startswith(FLEET):
            yield from _members(entry, (*inside, part))
        else:
            yield part


def _entry(name: str) -> BoardEntry | None:
    return None if "://" in name or name == "local" else read().get(name)


def find(device: str) -> BoardEntry:
    """The board that `--device` means: a name in the file, or an address; "local" is this machine."""
    known = read()
    scheme, addressed, where = device.partition("://")
    if device in known:
        return known[device]
    if scheme == "ssh" and where in known:
        return known[where]
    if addressed or device == "local":
        return BoardEntry(device)
    raise TargetError(
        f"no board is called '{device}'.", f"{did_you_mean(device, known)} See: edgeprune devices".strip()
    )


def _write(entries: dict[str, BoardEntry]) -> None:
    lines = ["# The boards that edgeprune knows. Written by: edgeprune devices add"]
    for name, entry in sorted(entries.items()):
        lines += ["", f"[{name}]"]
        lines += [f"{key} = {json.dumps(value)}" for key, value in msgspec.structs.asdict(entry).items() if value]
    write_whole(path(), ("\n".join(lines) + "\n").encode())
