"""`edgeprune decrypt BUNDLE`: the plain bundle, for who has the device's key."""

from __future__ import annotations

from pathlib import Path

import click

from edgeprune.cli import console
from edgeprune.cli.session import current, echo_json, json_option, verbose_option


@click.command("decrypt")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--identity", required=True, type=click.Path(path_type=Path), help="The device's private key (age).")
@click.option("--key", type=click.Path(path_type=Path), help="The public key (PEM) that must have signed BUNDLE.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The plain bundle, a .tar file.")
@json_option
@verbose_option
def command(bundle: Path, identity: Path, key: Path | None, out: Path) -> None:
    """Make the plain bundle of an encrypted one; its evidence is checked as any bundle's. It is not signed."""
    from edgeprune import release

    release.verify(bundle, key=key, rerun=False)
    written = release.decrypt(bundle, identity, out)
    checked = release.verify(written, rerun=False)
    if current().as_json:
        echo_json({"bundle": str(written), "state": checked.state})
    else:
        console.say(f"Decrypted: {written} ({checked.summary})")
