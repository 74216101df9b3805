"""The commands of one target: `edgeprune TARGET plan|profile|prune|calibrate|export|validate|package|run RECIPE`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from edgeprune import target as profiles
from edgeprune.cli import session
from edgeprune.errors import BudgetError, GateError, did_you_mean
from edgeprune.target import EVIDENCE_LEVELS, Target

if TYPE_CHECKING:
    from edgeprune.pipeline import Outcome

# In the order in which they run; each leaves one folder in the run directory.
STEPS = {
    "plan": "Can the budget be met, and at what widths? Measures the dense network; trains nothing.",
    "profile": "Build or extend the latency table on the device.",
    "prune": "Choose the widths that fit the budget, narrow the network, win the accuracy back.",
    "calibrate": "Choose INT8 ranges on real images.",
    "export": "Make the artifacts that the runtime opens.",
    "validate": "Run the artifacts on the device: accuracy, latency, every gate.",
    "package": "Write the report and, if every gate holds, the release bundle.",
}
RUN = "All of it, with the verdict at the end. The same command resumes."
RUNTIMES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT"}


@dataclass(frozen=True)
class RuntimeOption:
    """An option that one runtime has.

    Its value goes to `Target.execution.options[key]`, and so to the runtime; that of DIALECT chooses the Q/DQ scheme.
    """

    flag: str
    key: str
    type: Any
    text: str


DIALECT = "dialect"
FLAVOURS = click.Choice(["tensorrt-a", "tensorrt-b"])
LEVELS = click.Choice(["disable", "basic", "extended", "all"])
RUNTIME_OPTIONS = {
    "openvino": (
        RuntimeOption("--streams", "NUM_STREAMS", click.IntRange(1), "Requests that OpenVINO runs side by side."),
    ),
    "onnxruntime": (
        RuntimeOption("--optimization", "graph_optimization_level", LEVELS, "How far ONNX Runtime rewrites the graph."),
    ),
    "tensorrt": (
        RuntimeOption("--workspace", "workspace_mib", click.IntRange(1), "MiB that TensorRT may use while it builds."),
        RuntimeOption(
            "--flavour", DIALECT, FLAVOURS, "a: FP32 around INT8, TensorRT 8.5 to 10; b: FP16, 10.12 and up."
        ),
    ),
}


class TargetGroup(click.Group):
    """The steps of one target."""

    def __init__(self, name: str) -> None:
        self.target = profiles.load(name)
        super().__init__(name, help=_about(self.target), subcommand_metavar="STEP RECIPE")
        for step in (*STEPS, "run"):
            self.add_command(_step_command(step, self.target))

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which they run."""
        return [*STEPS, "run"]

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
            formatter.write_dl([("run", RUN)])


def target_group(name: str) -> click.Group:
    """The group of commands of target `name`; raises TargetError when its profile is wrong."""
    return TargetGroup(name)


def _about(target: Target) -> str:
    """What `edgeprune TARGET --help` says first."""
    step, run = target.channels, target.execution
    facts = [
        f"Runtime: {RUNTIMES[target.runtime]} {target.requires}".rstrip(),
        f"Channels in steps of {step.step}, at least {step.minimum}",
        f"{run.threads} thread{'s'[: run.threads > 1]}, batch {run.batch}, reached by: {target.connection.transport}",
        f"Verified: {EVIDENCE_LEVELS[target.level]}"
        + (f" ({target.evidence[-1].on}, {target.evidence[-1].date})" if target.evidence else ""),
    ]
    return f"{target.title}.\n\n\b\n" + "\n".join(facts) + (f"\n\n{target.notes}" if target.notes else "")


def _step_command(step: str, target: Target) -> click.Command:
    """One command, with the options that this step and this target's runtime have."""

    def run(**values: Any) -> None:
        recipe = values.pop("recipe")
        _run_step(step, _override(target, values), recipe, **values)

    params: list[Callable[[Any], Any]] = [
        click.argument("recipe", type=click.Path(path_type=Path)),
        click.option("--run-dir", type=click.Path(path_type=Path, file_okay=False), help="Where the run is kept."),
        click.option(
            "--device", default="", metavar="DEVICE", help="A board from 'edgeprune devices list', or ssh://HOST."
        ),
        click.option("--threads", type=click.IntRange(1), help="Threads on the device, instead of the profile's."),
    ]
    for extra in RUNTIME_OPTIONS.get(target.runtime, ()):
        params.append(click.option(extra.flag, type=extra.type, help=extra.text))
    if step == "run":
        choices = click.Choice(list(STEPS))
        params.append(click.option("--from", "start", type=choices, help="Start again at this step."))
    if step in ("package", "run"):
        key = click.Path(path_type=Path, dir_okay=False)
        params.append(click.option("--sign", type=key, metavar="KEY", help="Sign the bundle: an ed25519 key, PEM."))
    params += [session.json_option, session.quiet_option, session.verbose_option]
    function: Any = run
    for param in reversed(params):
        function = param(function)
    text = RUN if step == "run" else STEPS[step]
    return click.command(step, help=text)(function)


def _override(target: Target, values: dict[str, Any]) -> Target:
    """The target with what the command line changes; takes those values out of `values`."""
    options, dialect = dict(target.execution.options), target.dialect
    for extra in RUNTIME_OPTIONS.get(target.runtime, ()):
        value = values.pop(extra.flag.lstrip("-"), None)
        if value is not None and extra.key == DIALECT:
            dialect = value
        elif value is not None:
            options[extra.key] = value
    threads = values.pop("threads") or target.execution.threads
    execution = msgspec.structs.replace(target.execution, threads=threads, options=options)
    return msgspec.structs.replace(target, execution=execution, dialect=dialect)


def _run_step(
    step: str,
    target: Target,
    recipe_path: Path,
    *,
    run_dir: Path | None,
    device: str,
    start: str | None = None,
    sign: Path | None = None,
) -> None:
    from edgeprune import recipe as recipes
    from edgeprune.cli import outcome, progress

    now = session.current()
    recipe = recipes.load(recipe_path)
    if sign is not None:
        from edgeprune import release

        release.check_key(sign)  # before the hours of work, not after them
    now.resumable = True
    with _calm(now.verbose), progress.reporter(now) as events:
        from edgeprune import pipeline

        if step == "plan":
            plan = pipeline.plan(recipe, target, run_dir, device=device, events=events)
            events.close()
            outcome.show_plan(plan, recipe, target, now)
            if not plan.get("feasible"):
                raise BudgetError("the budget cannot be met.", str(plan.get("advice", "")))
            return
        until = "package" if step == "run" else step
        try:
            done: Outcome = pipeline.run(
                recipe, target, run_dir, until=until, start=start or "", device=device, events=events
            )
        except GateError as refused:
            events.close()
            outcome.show_refused(refused, step, now)
            raise
        events.close()
    if sign is not None and done.bundle is not None:
        from edgeprune import release

        release.sign(done.bundle, sign)
    outcome.show(done, step, now)


@contextmanager
def _calm(verbose: bool) -> Iterator[None]:
    """Third-party warnings and log lines are for --verbose."""
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
