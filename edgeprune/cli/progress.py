"""What a long command says while it works: bars on a terminal, plain lines elsewhere; always on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from edgeprune.cli import console
from edgeprune.cli.session import Invocation

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from edgeprune.pipeline import Event

PLAIN_SECONDS = 10.0  # between two plain lines about the same stage


class Reporter(Protocol):
    """Takes the pipeline's events; a context manager."""

    def __call__(self, event: Event) -> None: ...

    def close(self) -> None:
        """Stop drawing, so that the result can be printed."""
        ...

    def __enter__(self) -> Reporter: ...

    def __exit__(self, *exc: object) -> None: ...


def reporter(session: Invocation) -> Reporter:
    """The reporter that fits the session and where standard error goes."""
    if session.quiet:
        return Silent()
    return Bars() if sys.stderr.isatty() else Lines()


class Silent:
    """Says nothing."""

    def __call__(self, event: Event) -> None:
        """Ignore it."""

    def close(self) -> None:
        """Nothing to stop."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Lines(Silent):
    """One plain line at a time: for files, pipes and build servers."""

    def __init__(self, write: Callable[[str], None] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write or (lambda text: console.say(text, err=True))
        self._clock = clock
        self._said = self._began = clock()
        self._pace = TimeLeft(self._began)

    def __call__(self, event: Event) -> None:
        """Write a line, at most one in ten seconds while a stage progresses."""
        if event.kind == "progress":
            left = self._pace.left(event.done, event.total or 0.0, self._clock())
            if self._clock() - self._said >= PLAIN_SECONDS:
                share = f"{100 * event.done / event.total:4.0f} %  " if event.total else ""
                words = (event.message, "" if left is None else f"{about(left)} left")
                self._line(event.stage, share + ", ".join(filter(None, words)))
        elif event.kind == "done":
            self._line(event.stage, finished(event.message, self._clock() - self._began))
        elif event.kind == "stage":
            self._began = self._clock()
            self._pace = TimeLeft(self._began)
            self._line(event.stage, event.message or "...")
        elif event.kind == "line":
            self._line(event.stage, event.message or "...")

    def _line(self, stage: str, message: str) -> None:
        self._said = self._clock()
        self._write(f"{stage:<10} {message}".rstrip())


class TimeLeft:
    """How long a piece of work still takes, if it goes on as it went; one that starts again at 0 is another piece."""

    def __init__(self, now: float) -> None:
        self._began, self._first, self._last = now, 0.0, 0.0

    def left(self, done: float, total: float, now: float) -> float | None:
        """Seconds; None while nothing is known."""
        if done < self._last:
            self._began, self._first = now, done
        self._last = done
        moved = done - self._first
        return (now - self._began) * (total - done) / moved if moved > 0 and total >= done else None


def about(seconds: float) -> str:
    """40 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def finished(message: str, seconds: float) -> str:
    """What is said of a stage that is whole; `kept` means that nothing had to be done."""
    return message if message == "kept" else f"{message or 'done'} in {seconds:.1f} s"


class Bars(Silent):
    """A live bar for the stage under way; a tick and a line for each that is done."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._console = Console(stderr=True, highlight=False)
        self._progress: Progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[stage]:<10}", style="bold"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", style="dim", markup=False),
            console=self._console,
            transient=True,
        )
        self._stage = ""
        self._began = time.monotonic()
        self._pace = TimeLeft(self._began)
        self._task: TaskID | None = None

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def close(self) -> None:
        """Take the bar away."""
        self._progress.stop()

    def __call__(self, event: Event) -> None:
        """Move the bar, or print the line above it."""
        from rich.text import Text

        if event.kind == "line":
            self._console.print(Text(console.escape(f"  {'':<10} {event.message}"), style="dim"))
        elif event.kind == "done":
            self._finish()
            text = console.escape(finished(event.message, time.monotonic() - self._began))
            self._console.print(Text.assemble(("✓ ", "green"), (f"{event.stage:<10}", "bold"), f" {text}"))
        elif event.kind in ("stage", "progress"):
            self._move(event)

    def _move(self, event: Event) -> None:
        if self._task is None or event.stage != self._stage:
            self._finish()
            self._stage, self._began = event.stage, time.monotonic()
            self._pace = TimeLeft(self._began)
            self._task = self._progress.add_task(console.escape(event.message), total=None, stage=event.stage, left="")
        left = self._pace.left(event.done, event.total or 0.0, time.monotonic()) if event.kind == "progress" else None
        self._progress.update(
            self._task,
            left="" if left is None else f"{about(left)} left",
            description=console.escape(event.message),
            completed=event.done,
            total=event.total if event.kind == "progress" and event.total else None,
        )

    def _finish(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
