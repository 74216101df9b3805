"""Every way in which a command can end badly, as one clear message and an exit code.

A user error never shows a traceback; `--verbose` shows it. With `--json` the same facts stand on standard output as
`{"error": {"kind", "message", "remedy", "exit_code"}}`, beside what the command found before it was refused.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback

import click

from edgeprune.cli import console
from edgeprune.cli.session import Invocation, emit
from edgeprune.errors import EdgepruneError, RunError

INTERRUPTED = 130
_FULL = {errno.ENOSPC, errno.EDQUOT}
_UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}
_WRONG_PATH = {  # what a path can be besides forbidden
    *(errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENOTEMPTY, errno.EEXIST, errno.ENXIO),
    *(errno.EINVAL, errno.EILSEQ, errno.EXDEV, errno.ENODEV, errno.EBUSY, errno.ETXTBSY, errno.ESTALE),
}
_FAILING = {errno.EIO, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOLCK}  # the machine's limits and faults


def finish(error: BaseException, session: Invocation) -> int:
    """Say what went wrong, and return the exit code of the process."""
    if isinstance(error, BrokenPipeError):  # `edgeprune targets | head`: nobody is listening any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, click.Abort | KeyboardInterrupt):
        resume = " What is finished is kept; resume with the same command." if session.resumable else ""
        return _say(session, "Interrupted", f"Interrupted.{resume}", "", INTERRUPTED)
    if session.verbose and not isinstance(error, click.ClickException):
        console.say(console.lines("".join(traceback.format_exception(error)).rstrip("\n")), err=True)
    if isinstance(error, click.ClickException):
        return _say(session, "UsageError", *_usage(error), error.exit_code)
    known = as_edgeprune_error(error)
    if known is not None:
        return _say(session, type(known).__name__, known.message, known.remedy, known.exit_code)
    text = f"{type(error).__name__}: {error}"
    remedy = "" if session.verbose else "This is a defect in edgeprune. The same command with --verbose shows where."
    return _say(session, "InternalError", f"internal error: {text}", remedy, 1)


def as_edgeprune_error(error: BaseException) -> EdgepruneError | None:
    """The error itself, or the RunError that a full disk or an unwritable folder means; None for a defect."""
    if isinstance(error, EdgepruneError):
        return error
    if isinstance(error, ValueError) and str(error) in ("embedded null byte", "embedded null character"):
        return RunError("a path holds a NUL character.", "No file can be called so: check the paths that were given.")
    if isinstance(error, OSError) and error.errno in _FULL | _UNWRITABLE | _WRONG_PATH | _FAILING and error.filename:
        where = f"{os.fsdecode(error.filename)[:300]}: "
        if error.errno in _WRONG_PATH:
            return RunError(f"{where}cannot be used ({error.strerror}).", "Check this path, or choose --run-dir.")
        if error.errno in _FAILING:
            return RunError(f"{where}cannot be read or written ({error.strerror}).", "Check the disk and its limits.")
    if isinstance(error, OSError) and error.errno in _FULL | _UNWRITABLE:
        where = f"{os.fsdecode(error.filename)[:300]}: " if error.filename else ""
        if error.errno in _FULL:
            return RunError(
                f"{where}the disk is full.",
                "Nothing half-written was left. Free some space, or choose another disk with --run-dir, "
                "and repeat the command: it resumes.",
            )
        return RunError(
            f"{where}cannot be read or written ({error.strerror}).", "Check its permissions, or choose --run-dir."
        )
    if isinstance(error, MemoryError):
        return RunError("the host ran out of memory.", "Lower [recover] batch or [quantize] images in the recipe.")
    return None


def _usage(error: click.ClickException) -> tuple[str, str]:
    message = error.format_message()
    message = message[:1].lower() + message[1:]
    ctx = getattr(error, "ctx", None)
    return message, f"Try '{ctx.command_path} --help'." if ctx is not None else ""


def _say(session: Invocation, kind: str, message: str, remedy: str, code: int) -> int:
    if session.as_json:
        emit(session, {"kind": kind, "message": message, "remedy": remedy, "exit_code": code})
    label = "" if kind in ("Interrupted", "NotAuthenticated") else console.style("Error: ", fg="red", bold=True)
    console.say(label, console.lines(message), err=True)
    if remedy:
        console.say("  ", console.lines(remedy), err=True)
    return code
