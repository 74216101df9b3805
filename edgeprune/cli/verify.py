"""`edgeprune verify BUNDLE`: integrity, signature, evidence, and the samples run again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeprune.cli import console
from edgeprune.cli.session import current, echo_json, json_option, verbose_option
from edgeprune.errors import BundleError, GateError, NotAuthenticated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgeprune.release import Check, Revoked, Verified

COLOURS = {"good": "green", "authentic": "green", "intact": "yellow", "unverified": "yellow"}


@click.command("verify")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    help="The public key (PEM) that must have signed it; or a file of several.",
)
@click.option("--revoked", type=click.Path(path_type=Path), help="A list of keys and bundles that are not trusted.")
@click.option("--device", default="", metavar="DEVICE", help="Run the samples there; see 'edgeprune devices list'.")
@click.option("--no-rerun", is_flag=True, help="Open nothing: check files, signature and evidence only.")
@click.option("--strict", is_flag=True, help="Fail unless it is GOOD: signed by --key, and the samples rerun.")
@click.option(
    "--identity", type=click.Path(path_type=Path), help="A device's private key (age): opens an encrypted one."
)
@click.option("--policy", type=click.Path(path_type=Path), help="Hold it against what a team asks for; see ci.md.")
@json_option
@verbose_option
def command(
    bundle: Path,
    key: Path | None,
    revoked: Path | None,
    device: str,
    no_rerun: bool,
    strict: bool,
    identity: Path | None,
    policy: Path | None,
) -> None:
    """Check a bundle on any machine: every byte, the signature, the evidence, and its samples again.

    The last line says what that came to, and the exit code says it too:

    \b
    GOOD (signed by KEY, samples rerun here)            0
    AUTHENTIC, SAMPLES NOT RERUN (signed by KEY)        0, with --strict 12
    AUTHENTIC, ENCRYPTED: EVIDENCE NOT CHECKED          0, with --strict 12
    INTACT, NOT AUTHENTICATED (no signature, or no key) 12
    UNVERIFIED: its own device has not measured it      8
    BAD: damaged, altered, incomplete, contradictory    10
    WITH --policy: good enough, but a rule is broken    14
    """
    from edgeprune import release

    listed = release.load_revoked(revoked) if revoked is not None else None
    try:
        if policy is not None:
            _hold(bundle, policy, key, device, not no_rerun, listed, strict)
            return
        checked = release.verify(bundle, key=key, device=device, rerun=not no_rerun, revoked=listed, identity=identity)
    except BundleError:
        if not current().as_json:
            console.say(console.style("BAD", fg="red", bold=True), f"  {bundle}")
        raise
    if current().as_json:
        echo_json(checked.to_dict())
    else:
        _show(checked.checks)
        console.say(console.style(checked.summary, fg=COLOURS[checked.state], bold=True), f"  {bundle}")
    _judge(checked, strict)


def _show(checks: Sequence[Check], bad: str = "·", colour: str = "yellow") -> None:
    for check in checks:
        mark = console.style("✓", fg="green") if check.passed else console.style(bad, fg=colour)
        console.say("  ", mark, f" {check.name}: {check.message}")


def _hold(
    bundle: Path, path: Path, key: Path | None, device: str, rerun: bool, revoked: Revoked | None, strict: bool
) -> None:
    """What the policy asks for, and where it says nothing of signatures or evidence, what `verify` asks for."""
    from edgeprune import release

    policy = release.load_policy(path)
    found = release.contents(
        bundle,
        key=key or release.signer(bundle, policy),
        device=device,
        rerun=rerun,
        revoked=revoked.and_of(policy.revoked) if revoked else policy.revoked,
    )
    rules = release.hold(found, policy)
    held = all(rule.passed for rule in rules)
    if current().as_json:
        facts = [{"name": rule.name, "passed": rule.passed, "message": rule.message} for rule in rules]
        echo_json({**found.verified.to_dict(), "policy": {"path": str(path), "held": held, "rules": facts}})
    else:
        _show(found.verified.checks)
        _show(rules, "✗", "red")
        word, fg = ("POLICY HELD", "green") if held else ("POLICY BROKEN", "red")
        console.say(console.style(word, fg=fg, bold=True), f"  {path}; {found.verified.summary}  {bundle}")
    release.enforce(rules, found, policy)
    if strict or (not policy.signature.keys and found.verified.state == "intact"):
        _judge(found.verified, strict)


def _judge(checked: Verified, strict: bool) -> None:
    """Raise what the state is worth to a script."""
    if checked.state == "unverified":
        raise GateError(
            f"{checked.bundle}: marked unverified: the device it is for has not measured it.",
            "Its README.md has the commands that measure it on a device.",
        )
    if checked.state == "intact":
        raise NotAuthenticated(
            f"{checked.bundle}: intact, but it was not proved who made it.",
            "Give the public key of who should have signed it: --key release.pub; see bundle.md to sign one.",
        )
    if strict and not next(check.passed for check in checked.checks if check.name == "evidence"):
        raise NotAuthenticated(
            f"{checked.bundle}: its evidence was not checked, and --strict asks for that.",
            "It is encrypted: give the device's key with --identity device.key, or verify the plain bundle.",
        )
    if strict and checked.state != "good":
        raise NotAuthenticated(
            f"{checked.bundle}: its samples were not rerun, and --strict asks for that.",
            "Install the runtime, or name a device that has it: --device NAME",
        )
