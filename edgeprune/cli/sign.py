"""`edgeprune sign BUNDLE`: by a key in a file, or by a command that holds the key."""

from __future__ import annotations

from pathlib import Path

import click

from edgeprune.cli import console
from edgeprune.cli.session import current, echo_json, json_option, verbose_option
from edgeprune.errors import UsageError


@click.command("sign")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), help="The private key (PEM).")
@click.option("--public", type=click.Path(path_type=Path), help="The public key (PEM) of what --command signs with.")
@click.option(
    "--command", "by", default="", metavar="COMMAND", help="Prints the signature of {file}: a token, an agent."
)
@json_option
@verbose_option
def command(bundle: Path, key: Path | None, public: Path | None, by: str) -> None:
    """Sign BUNDLE in place, by a key in a file or by a command that holds the key.

    What lies in a PKCS#11 token, an agent or a key service never comes here: the command gets the list of hashes, and
    what it prints is checked with --public before it is put into the bundle.
    """
    from edgeprune import release

    if (key is None) == (not by) or bool(by) != (public is not None):
        raise UsageError(
            "say who signs.", "Either --key release.key, or --command 'COMMAND {file}' with --public release.pub."
        )
    release.verify(bundle, rerun=False)  # what is damaged or contradicts itself is not signed
    if key is not None:
        release.sign(bundle, key)
    else:
        assert public is not None
        release.sign_by(bundle, public, by)
    checked = release.verify(bundle, rerun=False)
    message = next(check.message for check in checked.checks if check.name == "signature")
    if current().as_json:
        echo_json({"bundle": str(bundle), "signature": message})
    else:
        console.say(f"Signed: {bundle} ({message.rstrip('.')})")
