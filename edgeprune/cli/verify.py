"""`edgeprune verify BUNDLE`: integrity, signature, evidence, and the samples run again."""

from __future__ import annotations

from pathlib import Path

import click

from edgeprune.cli.session import current, echo_json, json_option, verbose_option


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), help="The public key (PEM) that must have signed it.")
@click.option("--device", default="", metavar="DEVICE", help="Run the samples there; see 'edgeprune devices list'.")
@click.option("--no-rerun", is_flag=True, help="Open nothing: check files, signature and evidence only.")
@json_option
@verbose_option
def command(bundle: Path, key: Path | None, device: str, no_rerun: bool) -> None:
    """Check a bundle on any machine: every byte, the signature, the evidence, and its samples again.

    Where the runtime is not installed the samples are not run, and the answer says so. Exit code 10 when anything
    is damaged, altered or missing.
    """
    from edgeprune import release

    checked = release.verify(bundle, key=key, device=device, rerun=not no_rerun)
    if current().as_json:
        echo_json(checked.to_dict())
        return
    for check in checked.checks:
        mark = click.style("✓", fg="green") if check.passed else click.style("·", fg="yellow")
        click.echo(f"  {mark} {check.name}: {check.message}")
    click.echo(f"{click.style('GOOD', fg='green', bold=True)}  {bundle}")
