"""`edgeprune device`: releases on a board: install one, look at them, go back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgeprune.cli import console
from edgeprune.cli.session import current, echo_json, json_option, verbose_option
from edgeprune.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgeprune.devices import Installed, Releases
    from edgeprune.target import Target

SLACK = click.option(
    "--slack", default=0.25, show_default=True, type=click.FloatRange(0, 100), help="How much slower than it claims."
)


def _where(command: Callable[..., Any]) -> Callable[..., Any]:
    """--device and --folder, which all commands have."""
    folder = click.option("--folder", default="", metavar="DIR", help="Where releases lie on the device.")
    device = click.option("--device", default="", metavar="DEVICE", help="Which; see 'edgeprune devices list'.")
    return device(folder(command))


def _what(command: Callable[..., Any]) -> Callable[..., Any]:
    """--target, where no bundle says it."""
    return click.option("--target", "target_name", default="", metavar="TARGET", help="What the device is.")(command)


@click.group("device")
def command() -> None:
    """Releases on a device: install one, look at them, go back.

    A bundle is verified and tested on the device, beside the release in use; then one rename switches to it.
    """


@command.command("install")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), help="The public key (PEM) that must have signed it.")
@click.option("--revoked", type=click.Path(path_type=Path), help="A list of keys and bundles that are not trusted.")
@click.option("--new-key", is_flag=True, help="Replace the key that the device knows by --key.")
@click.option("--unsigned", is_flag=True, help="Take what nobody signed, where the device knows no key.")
@click.option("--name", default="", metavar="NAME", help="What it is called there; default: the name in the bundle.")
@SLACK
@_where
@json_option
@verbose_option
def install(
    bundle: Path, key: Path | None, revoked: Path | None, new_key: bool, unsigned: bool, name: str, slack: float,
    device: str, folder: str,
) -> None:  # fmt: skip
    """Verify BUNDLE here and on the device, test it there, and put it into use.

    What is in use stays so where anything fails, and after a power cut at any moment.
    """
    from edgeprune import release

    listed = release.load_revoked(revoked) if revoked is not None else None
    found = release.install(
        bundle, device, key=key, revoked=listed, unsigned=unsigned, new_key=new_key, name=name, folder=folder,
        slack=slack,
    )  # fmt: skip
    _show([found])


@command.command("rollback")
@click.argument("name")
@_what
@_where
@json_option
@verbose_option
def rollback(name: str, target_name: str, device: str, folder: str) -> None:
    """Go back to the release before: its files and its samples are checked first."""
    from edgeprune import release

    _show([release.rollback(_profile(target_name, device, name, folder), device, name, folder)])


@command.command("status")
@click.argument("name", default="")
@click.option("--test", is_flag=True, help="Test the release in use again; where it fails, the device goes back.")
@SLACK
@_what
@_where
@json_option
@verbose_option
def status(name: str, test: bool, slack: float, target_name: str, device: str, folder: str) -> None:
    """Which release is in use, and which one before it; every file is held against its sha256."""
    from edgeprune import release

    if test and not name:
        raise UsageError("which release?", "Name it: edgeprune device status NAME --test")
    profile = _profile(target_name, device, name, folder)
    if test:
        _show([release.check(profile, device, name, folder, slack)])
        return
    _show(release.installed(profile, device, name, folder))


def _profile(target_name: str, device: str, name: str, folder: str) -> Target:
    """What the device is: as stated, as the board's entry says, or, on this machine, as its releases say."""
    from edgeprune import release, target
    from edgeprune.devices import book

    named = target_name or (book.find(device).target if device else "")
    if not named and device in ("", "local"):
        named = next(iter(release.targets_here(name, folder) or release.targets_here("", folder)), "")
    if not named:
        here = ": no release that can be read lies on this machine" if device in ("", "local") else ""
        raise UsageError(f"what is the device?{here}", "Say it: --target raspberry-pi-5. See: edgeprune targets")
    return target.load(named)


def _show(found: list[Releases]) -> None:
    if current().as_json:
        import msgspec

        echo_json({"releases": msgspec.to_builtins(found)})
        return
    shown = [one for one in found if one.current or one.previous]
    if not shown:
        console.say("No release is installed there. Install one: edgeprune device install BUNDLE --key release.pub")
        return
    made = console.table(name="name", release="release", state="state", key="signed by", latency="latency", test="test")
    for one in shown:
        for entry, state in ((one.current, "in use"), (one.previous, "before it")):
            if entry is not None:
                made.add_row(one.name, entry.release, *_cells(entry, state))
    console.show(made)
    for one in shown:
        console.say(f"The application opens {one.folder}/current")


def _cells(entry: Installed, state: str) -> tuple[str, str, str, str]:
    import hashlib

    key = hashlib.sha256(bytes.fromhex(entry.signed_by)).hexdigest()[:16] if entry.signed_by else "nobody"
    took = f"{entry.latency:.4g} {entry.unit}, " if entry.judged else "not judged, "
    return (
        f"DAMAGED: {entry.damage}" if entry.damage else state,
        key,
        f"{took}claimed {entry.claimed:.4g} {entry.unit}",
        entry.samples,
    )
