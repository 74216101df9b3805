"""Tables and rules: one look for all commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

PIPE_WIDTH = 120  # columns where standard output is not a terminal


def table(title: str = "", *, right: str = "", **columns: str) -> Table:
    """A table with quiet lines.

    Args:
        title: plain text above it.
        right: names of the columns to align right, separated by commas.
        columns: name -> heading.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(
        title=Text(title) if title else None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for index, (name, heading) in enumerate(columns.items()):
        made.add_column(heading, justify="right" if name in right.split(",") else "left", no_wrap=index == 0)
    return made


def show(made: Table) -> None:
    """Print a table on standard output."""
    import sys

    from rich.console import Console

    Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH).print(made)
