"""The root of the command line: commands are imported when called, targets are read from their profiles."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import click

from edgeprune import files
from edgeprune.cli import console
from edgeprune.cli.failures import finish
from edgeprune.cli.session import Invocation, emit, verbose_option
from edgeprune.errors import TargetError, did_you_mean

# Each is a module of edgeprune.cli with a click object called `command`; the text is what `edgeprune --help` says.
COMMANDS = {
    "init": "Write a recipe from a network and data, with what was found out about them.",
    "targets": "List the targets: runtime, precision, channel step, how it was verified.",
    "data": "Show the examples as the network gets them, and its metric on them.",
    "inspect": "Show which channels of a network may go, and which may not and why.",
    "devices": "The boards that you own: add, list, probe, status.",
    "device": "Releases on a device: install, status, rollback.",
    "sweep": "Many runs: targets x budgets x recipes x seeds, here or on a Ray cluster.",
    "table": "Latency tables that a fleet shares: info, export, import, merge.",
    "doctor": "What is installed, what is missing, and the command that mends it.",
    "sign": "Sign a bundle: by a key in a file, or by a command that holds the key.",
    "encrypt": "Encrypt the artifact of a bundle for the keys of devices.",
    "decrypt": "Make an encrypted bundle plain again, with the device's key.",
    "verify": "Check a bundle: integrity, signature, evidence, and its samples again.",
    "compare": "Is a release worse than the one before it, and is that more than noise?",
    "reproduce": "Run the recipe of a bundle again, and say what differs.",
    "runs": "List your runs with verdict, size and age; clean up.",
    "report": "Write a run's report page again from its result.json.",
}
EXAMPLES = """\
edgeprune targets                          which devices are known
edgeprune init mynet.py:build --data FOLDER   a recipe for your network
edgeprune TARGET plan recipe.toml          can the budget be met? no training
edgeprune TARGET run  recipe.toml          all of it; the same command resumes
edgeprune verify BUNDLE                    check what came out"""


class Root(click.Group):
    """The root group: lazy commands, one group for each target, and one place where errors end."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line and exit with the code of errors.py."""
        session = Invocation()
        before = os.environ.get("EDGEPRUNE_TARGETS")
        extra.update(standalone_mode=False, prog_name=extra.get("prog_name") or "edgeprune", obj=session)
        try:
            code = super().main(*args, **extra)
            emit(session)
            sys.stdout.flush()
        except (Exception, KeyboardInterrupt) as error:
            code = finish(error, session)
        finally:
            _restore("EDGEPRUNE_TARGETS", before)
        sys.exit(code if isinstance(code, int) else 0)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Commands, then targets."""
        return [*COMMANDS, *_targets()]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import a command, or make the group of a target."""
        if name in COMMANDS:
            found: click.Command = importlib.import_module(f"edgeprune.cli.{name}").command
            return found
        if name in _targets():
            from edgeprune.cli.steps import target_group

            return target_group(name)
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one was probably meant."""
        if args and not ctx.resilient_parsing and args[0] not in self.list_commands(ctx) and args[0][:1] != "-":
            hint = did_you_mean(args[0], self.list_commands(ctx))
            raise click.UsageError(f"no command or target is called '{args[0]}'. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List targets and commands without importing any of them."""
        with formatter.section("Targets (edgeprune TARGET --help shows the steps)"):
            formatter.write_dl([(name, _title(profile)) for name, profile in _targets().items()] or [("none", "")])
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))
        with formatter.section("Examples"):
            for line in EXAMPLES.splitlines():
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


def _targets() -> dict[str, Path]:
    from edgeprune import target

    return {name: profile for name, profile in target.names().items() if name not in COMMANDS}


def _title(profile: Path) -> str:
    """The title of a profile, read without checking it: one broken profile must not break --help."""
    try:
        return console.escape(files.read_toml(profile, TargetError).get("title", ""), 100)
    except TargetError:
        return console.escape(f"unreadable profile: {profile}")


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _add_targets(ctx: click.Context, _: click.Parameter, folders: tuple[str, ...]) -> None:
    """Hand --targets on to everything below through the variable that target.folders() reads; main() restores it."""
    if folders:
        known = os.environ.get("EDGEPRUNE_TARGETS", "")
        os.environ["EDGEPRUNE_TARGETS"] = os.pathsep.join(filter(None, [known, *folders]))


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from edgeprune._version import __version__

        console.say(f"edgeprune {__version__}")
        ctx.exit()


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--targets",
    multiple=True,
    metavar="DIR",
    is_eager=True,
    expose_value=False,
    callback=_add_targets,
    help="A folder with more targets; may be repeated. Also: EDGEPRUNE_TARGETS.",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
@verbose_option
def main() -> None:
    """Make a trained PyTorch network meet a latency on a device.

    Give it a network, a device and a latency; it gives back an INT8 release that meets that latency on that device,
    with the evidence inside, or says before starting why it cannot.
    """
