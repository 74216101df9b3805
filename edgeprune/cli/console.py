"""What reaches a terminal: one look for all commands, and the one place where foreign text is made harmless.

Names of files, strings of bundles, recipes, profiles and networks, and what a device answers are written by others. A
terminal obeys some characters (ESC, carriage return, backspace), and others turn text around or hide it (bidirectional
overrides, zero widths: https://trojansource.codes). Here they are spelled out, so that a line says only what it shows.
`say` and `table` escape everything but `Styled`, which only `style` and `lines` make.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

PIPE_WIDTH = 120  # columns where standard output is not a terminal
LONGEST = 4_000  # characters of one piece of text
LONGEST_CELL = 400  # of one cell of a table
MARKS = 2  # accents that may stand on one letter; more of them spill over the lines above and below
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


class Styled(str):
    """Text that is ours, or was escaped: it goes out as it is."""

    __slots__ = ()


NEWLINE = Styled("\n")


def escape(text: Any, longest: int = LONGEST) -> str:
    r"""One line that shows what it is: control and invisible characters as \x1b or \u202e, the end cut off."""
    found = str(text)
    rest = len(found) - longest
    if rest > 0:
        found = found[:longest]
    if not found.isprintable() or any(unicodedata.combining(character) for character in found):
        found = "".join(_spelled(found))
    return f"{found}... ({rest:,} more characters)" if rest > 0 else found


def _spelled(text: str) -> list[str]:
    made, marks = [], 0
    for character in text:
        marks = marks + 1 if unicodedata.category(character) in ("Mn", "Me") else 0
        if character.isprintable() and marks <= MARKS:
            made.append(character)
        else:
            made.append(_SHORT.get(character) or character.encode("ascii", "backslashreplace").decode("ascii"))
    return [rf"\x{ord(part):02x}" if len(part) == 1 and not part.isprintable() else part for part in made]


def lines(text: Any) -> Styled:
    """Text of several lines, such as a traceback; every line but the first is set in, so that none can pose as ours."""
    first, *more = str(text)[: 25 * LONGEST].split("\n")
    return Styled("\n".join([escape(first), *(f"  | {escape(line)}" if line else "" for line in more)]))


def style(text: Any, **look: Any) -> Styled:
    """Text with a colour or weight (as click.style takes them); what it says is escaped."""
    return Styled(click.style(escape(text), **look))


def say(*parts: Any, err: bool = False) -> None:
    """Print parts one after the other as a line; all that is not Styled is escaped."""
    click.echo("".join(part if isinstance(part, Styled) else escape(part) for part in parts), err=err)


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

    class Plain(Table):
        """Cells are text, never markup, and are escaped."""

        def add_row(self, *cells: Any, **options: Any) -> None:
            """A row of str or Text."""
            super().add_row(*(None if cell is None else _cell(cell) for cell in cells), **options)

    def _cell(cell: Any) -> Text:
        if isinstance(cell, Text):
            return Text(escape(cell.plain, LONGEST_CELL), style=cell.style)
        return Text(escape(cell, LONGEST_CELL))

    made = Plain(
        title=Text(escape(title, LONGEST_CELL)) if title else None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for index, (name, heading) in enumerate(columns.items()):
        made.add_column(_cell(heading), justify="right" if name in right.split(",") else "left", no_wrap=index == 0)
    return made


def show(made: Table) -> None:
    """Print a table on standard output."""
    import sys

    from rich.console import Console

    Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH).print(made)
