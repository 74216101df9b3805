"""HTML that cannot be broken by what it shows: text is escaped by Jinja2 unless it is `Html` already.

The parts of a page are macros of parts.html; `tag` spells a single element, as the plots need them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, cast

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

VOID = {"meta", "link", "br", "hr", "rect", "line", "circle", "path", "polyline", "col"}
LONGEST = 20_000  # characters of one piece of text
Html = Markup
NOTHING = Html("")


@cache
def environment() -> Environment:
    """Where templates come from: what is put in is spelled out, then escaped."""
    return Environment(
        loader=PackageLoader("edgeprune.report", "."), autoescape=True, undefined=StrictUndefined, finalize=_finished
    )


def rendered(template: str, **values: Any) -> str:
    """A template of this folder with these values."""
    return environment().get_template(template).render(**values)


def _part(name: str, *arguments: Any) -> Html:
    """A macro of parts.html."""
    macro = getattr(environment().get_template("parts.html").module, name)
    return cast(Html, macro(*arguments))


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element. `cls` is class, `_` in a name is `-`; an attribute that is None is left out."""
    spelled = "".join(
        f' {"class" if key == "cls" else key.replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        inner = join(children)
        return Html(f"<{name}{spelled}>{inner}</{name}>" if inner else f"<{name}{spelled}/>")
    return Html(f"<{name}{spelled}>{join(children)}</{name}>")


def join(children: Iterable[Any], between: str = "") -> Html:
    """Children one after the other; text is escaped, None and False are left out."""
    return Html(Html(between).join(_finished(child) for child in children))


def _finished(child: Any) -> str:
    """What stands on the page for a value; text is still to be escaped."""
    if child is None or child is False:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, list | tuple):
        return join(child)
    return spelled(child)


def text(value: Any) -> Html:
    """Any value as text of a page, its markup escaped."""
    return escape(spelled(value))


def spelled(value: Any) -> str:
    """Any value as text: control, invisible and turning characters spelled out (\\x1b)."""
    found = str(value)
    if len(found) > LONGEST:
        found = f"{found[:LONGEST]}... ({len(found) - LONGEST:,} more characters)"
    if not found.isprintable():
        found = "".join(one if one.isprintable() or one == "\n" else _spelled(one) for one in found)
    return found


def _spelled(one: str) -> str:
    code = ord(one)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def section(identity: str, title: str, *children: Any, lead: Any = None) -> Html:
    """A section of the page with its heading; nothing when it has no content."""
    return _part("section", identity, title, children, lead) if any(children) else NOTHING


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[Any]],
    numbers: Iterable[int] = (),
    caption: str = "",
    strong: str = "",
    stack: bool = False,
    only_filled: bool = False,
) -> Html:
    """A table that scrolls sideways by itself; nothing when it has no rows.

    Args:
        numbers: columns to align right.
        strong: the row of that name stands out.
        stack: for sentences: on a narrow screen each row becomes a block.
        only_filled: leave out the columns in which no row has anything.
    """
    body = [list(values) for values in rows]
    if only_filled:
        kept = [column for column in range(len(head)) if any(row[column] not in ("", None) for row in body)]
        right = set(numbers)
        numbers = [place for place, column in enumerate(kept) if column in right]
        head, body = [head[column] for column in kept], [[row[column] for column in kept] for row in body]
    label = caption or ", ".join(filter(None, head))
    return _part("table", head, body, set(numbers), caption, label, strong, stack) if body else NOTHING


def fold(summary: Any, *children: Any) -> Html:
    """Details that open on demand; nothing when they are empty."""
    return _part("fold", summary, children) if any(children) else NOTHING


def figure(caption: Any, *children: Any) -> Html:
    """A figure with its caption."""
    return _part("figure", caption, children) if any(children) else NOTHING


def legend(entries: Mapping[str, str]) -> Html:
    """Class of a mark -> what it means."""
    return _part("legend", entries)


def definitions(pairs: Mapping[str, object]) -> Html:
    """A list of names and values."""
    return _part("definitions", pairs) if pairs else NOTHING
