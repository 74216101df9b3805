"""The commands of one target: `edgeprune TARGET plan|profile|prune|calibrate|export|validate|package|run RECIPE`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edgeprune import runtimes, stage
from edgeprune import target as profiles
from edgeprune.cli import console, front, quick, session, tune
from edgeprune.cli.running import run_step
from edgeprune.errors import did_you_mean
from edgeprune.target import EVIDENCE_LEVELS, Target

if TYPE_CHECKING:
    pass

STEPS = {step.name: step.text for step in stage.STEPS}  # in the order in which they run
UNTIL = {"run": stage.ENDS, "prune": ("search", "recover")}  # where else a command may be told to end
RUN = "All of it, with the verdict at the end. The same command resumes."


class TargetGroup(click.Group):
    """The steps of one target."""

    def __init__(self, name: str) -> None:
        self.target = profiles.load(name)
        super().__init__(name, help=_about(self.target), subcommand_metavar="STEP RECIPE")
        for step in (*STEPS, "run", "front", "tune"):
            self.add_command(_step_command(step, self.target))
        self.add_command(quick.quick_command(self.target))

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they run."""
        return [*STEPS, "run", "quick", "front", "tune"]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the step, or say which one was probably meant."""
        if args and not ctx.resilient_parsing and args[0] not in self.commands and args[0][:1] != "-":
            raise click.UsageError(f"no step is called '{args[0]}'. {did_you_mean(args[0], self.commands)}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The steps in their order, then `run`."""
        with formatter.section("Steps, in order; each first does what is missing before it"):
            formatter.write_dl(list(STEPS.items()))
        with formatter.section("Everything"):
            formatter.write_dl([("run", RUN), ("quick", quick.TEXT), ("front", front.TEXT), ("tune", tune.TEXT)])


def target_group(name: str) -> click.Group:
    """The group of commands of target `name`; raises TargetError when its profile is wrong."""
    return TargetGroup(name)


def _about(target: Target) -> str:
    """What `edgeprune TARGET --help` says first."""
    step, run = target.channels, target.execution
    facts = [
        f"Runtime: {runtimes.load(target.runtime).title} {target.requires}".rstrip(),
        f"Channels in steps of {step.step}, at least {step.minimum}",
        f"{run.threads} thread{'s'[: run.threads > 1]}, batch {run.batch}, reached by: {target.connection.transport}",
        f"Verified: {EVIDENCE_LEVELS[target.level]}"
        + (f" ({target.evidence[-1].on}, {target.evidence[-1].date})" if target.evidence else ""),
    ]
    notes = f"\n\n{console.escape(' '.join(target.notes.split()))}" if target.notes else ""
    return f"{console.escape(target.title)}.\n\n\b\n" + "\n".join(map(console.escape, facts)) + notes


def _step_command(step: str, target: Target) -> click.Command:
    """One command, with the options that this step and this target's runtime have."""

    def run(**values: Any) -> None:
        recipe = values.pop("recipe")
        if step == "front":
            front.run(_override(target, values), recipe, values)
            return
        if step == "tune":
            tune.run(_override(target, values), recipe, values)
            return
        run_step(step, _override(target, values), recipe, **values)

    params: list[Callable[[Any], Any]] = [
        click.argument("recipe", type=click.Path(path_type=Path)),
        click.option("--run-dir", type=click.Path(path_type=Path, file_okay=False), help="Where the run is kept."),
        click.option(
            "--device", default="", metavar="DEVICE", help="A board from 'edgeprune devices list', or ssh://HOST."
        ),
        click.option("--threads", type=click.IntRange(1), help="Threads on the device, instead of the profile's."),
    ]
    for extra in runtimes.load(target.runtime).options:
        kind = click.Choice(list(extra.choices)) if extra.choices else click.IntRange(1)
        params.append(click.option(extra.flag, type=kind, help=extra.text))
    if step == "run":
        choices = click.Choice(list(STEPS))
        params.append(click.option("--from", "start", type=choices, help="Start again at this step."))
    if step == "plan":
        text = "Search and repair too: what accuracy is left before training. Minutes; run goes on from there."
        params.append(click.option("--accuracy", is_flag=True, help=text))
    if step in UNTIL:
        text = "End after this; 'recover' repairs the network and leaves its training to you."
        params.append(click.option("--until", type=click.Choice(UNTIL[step]), help=text))
    params += {"front": front.OPTIONS, "tune": tune.OPTIONS}.get(step, ())
    if step not in ("plan", "profile", "front", "tune"):
        file = click.Path(path_type=Path, dir_okay=False)
        text = "Weights of the pruned network, trained elsewhere; used in place of training."
        params.append(click.option("--weights", type=file, metavar="FILE", help=text))
    if step in ("package", "run"):
        key = click.Path(path_type=Path, dir_okay=False)
        params.append(click.option("--sign", type=key, metavar="KEY", help="Sign the bundle: an ed25519 key, PEM."))
    params += [session.json_option, session.quiet_option, session.verbose_option]
    function: Any = run
    for param in reversed(params):
        function = param(function)
    text = {"run": RUN, "front": front.TEXT, "tune": tune.TEXT}.get(step) or STEPS[step]
    return click.command(step, help=text)(function)


def _override(target: Target, values: dict[str, Any]) -> Target:
    """The target with what the command line changes; takes those values out of `values`."""
    options, dialect = dict(target.execution.options), target.dialect
    for extra in runtimes.load(target.runtime).options:
        value = values.pop(extra.flag.lstrip("-"), None)
        if value is not None and extra.key == runtimes.DIALECT:
            dialect = value
        elif value is not None:
            options[extra.key] = value
    threads = values.pop("threads") or target.execution.threads
    execution = msgspec.structs.replace(target.execution, threads=threads, options=options)
    return msgspec.structs.replace(target, execution=execution, dialect=dialect)
