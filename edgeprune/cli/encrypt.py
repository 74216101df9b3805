"""`edgeprune encrypt BUNDLE`: its artifact for the keys of devices alone."""

from __future__ import annotations

from pathlib import Path

import click

from edgeprune.cli import console
from edgeprune.cli.session import current, echo_json, json_option, verbose_option


@click.command("encrypt")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--for", "keys", required=True, multiple=True, metavar="age1...", help="A device's public key (age).")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The encrypted bundle, a .tar file.")
@json_option
@verbose_option
def command(bundle: Path, keys: tuple[str, ...], out: Path) -> None:
    """Encrypt the artifact of BUNDLE for the keys of devices; sign what comes out, as it is another file.

    run.py decrypts to memory on the device: python3 run.py --identity device.key. What it does not protect against is
    in docs/bundle.md.
    """
    from edgeprune import release

    release.verify(bundle, rerun=False)  # nobody can check the evidence afterwards without the device's key
    written = release.encrypt(bundle, keys, out)
    if current().as_json:
        echo_json({"bundle": str(written), "keys": len(keys)})
    else:
        many = "key" if len(keys) == 1 else "keys"
        console.say(f"Encrypted for {len(keys)} {many}: {written}. Sign it: edgeprune sign {written} --key release.key")
