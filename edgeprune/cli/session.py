"""What one call of the command line carries with it: how much to say, and in which form."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from edgeprune import files

F = TypeVar("F", bound=Callable[..., Any])


@dataclass
class Invocation:
    """Set by the options while click reads them; read by the commands and by the handler of errors.

    Attributes:
        as_json: one JSON object on standard output and nothing else there.
        quiet: no progress, only the result.
        verbose: progress with the library's log lines, and tracebacks.
        resumable: Ctrl-C leaves a run that the same command goes on with.
        answer: the one JSON object, printed when the command has ended: a refusal adds its `error` to it.
    """

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    resumable: bool = False
    answer: object = None


def current() -> Invocation:
    """The session of the command that is running."""
    return click.get_current_context().ensure_object(Invocation)


def _set(field: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def callback(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            setattr(ctx.ensure_object(Invocation), field, True)

    return callback


def _flag(field: str, *names: str, text: str) -> Callable[[F], F]:
    return click.option(*names, is_flag=True, expose_value=False, callback=_set(field), help=text)


def json_option(command: F) -> F:
    """`--json` on a command."""
    return _flag("as_json", "--json", text="Print one JSON object, and nothing else, on standard output.")(command)


def verbose_option(command: F) -> F:
    """`--verbose` on a command."""
    return _flag("verbose", "-v", "--verbose", text="Say more: log lines, and tracebacks of errors.")(command)


def quiet_option(command: F) -> F:
    """`--quiet` on a command."""
    return _flag("quiet", "-q", "--quiet", text="No progress; only the result.")(command)


def echo_json(data: Any) -> None:
    """The result of a command called with --json; it is printed when the command has ended, well or badly."""
    current().answer = data


def emit(session: Invocation, error: Mapping[str, object] | None = None) -> None:
    """Print the one JSON object: what the command gave, and the error that it ended with."""
    answer = session.answer
    if error is not None:
        answer = {**answer, "error": error} if isinstance(answer, dict) else {"error": error}
    if answer is not None:
        click.echo(json.dumps(answer, indent=2, sort_keys=True, default=files.plain))
