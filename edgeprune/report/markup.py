"""Building HTML that cannot be broken by what it shows: text is escaped unless it is `Html` already."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

VOID = {"meta", "link", "br", "hr", "rect", "line", "circle", "path", "polyline", "col"}


class Html(str):
    """Markup that is finished. Everything else is text, and is escaped where it is put in."""

    __slots__ = ()


NOTHING = Html("")


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element. `cls` is class, `_` in a name is `-`; an attribute that is None is left out."""
    spelled = "".join(
        f' {"class" if key == "cls" else key.replace("_", "-")}="{html.escape(str(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        inner = join(children)
        return Html(f"<{name}{spelled}>{inner}</{name}>" if inner else f"<{name}{spelled}/>")
    return Html(f"<{name}{spelled}>{join(children)}</{name}>")


def join(children: Iterable[Any], between: str = "") -> Html:
    """Children one after the other; text is escaped, None and False are left out."""
    return Html(between.join(_one(child) for child in children))


def _one(child: Any) -> str:
    if child is None or child is False:
        return ""
    if isinstance(child, Html):
        return child
    if isinstance(child, list | tuple):
        return join(child)
    return html.escape(str(child), quote=True)


def section(identity: str, title: str, *children: Any, lead: Any = None) -> Html:
    """A section of the page with its heading; nothing when it has no content."""
    if not any(children):
        return NOTHING
    return tag("section", tag("h2", title), lead and tag("p", lead, cls="lead"), children, id=identity)


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[Any]],
    numbers: Iterable[int] = (),
    caption: str = "",
    strong: str = "",
    stack: bool = False,
) -> Html:
    """A table that scrolls sideways by itself; nothing when it has no rows.

    Args:
        numbers: columns to align right.
        strong: the row of that name stands out.
        stack: for sentences: on a narrow screen each row becomes a block.
    """
    right = set(numbers)

    def row(values: Sequence[Any]) -> Html:
        cells = [tag("th", values[0], scope="row")]
        for index, value in enumerate(values[1:], start=1):
            cells.append(tag("td", value, cls="number" if index in right else None))
        return tag("tr", cells, cls="strong" if strong and values[0] == strong else None)

    body = [row(values) for values in rows]
    if not body:
        return NOTHING
    names = [tag("th", text, cls="number" if i in right else None, scope="col") for i, text in enumerate(head)]
    inner = tag("table", tag("thead", tag("tr", names)), tag("tbody", body), cls="stack" if stack else None)
    label = caption or ", ".join(filter(None, head))
    made = tag("div", inner, cls="scroll", tabindex="0", role="region", aria_label=label)
    return join([tag("p", caption, cls="hint"), made]) if caption else made


def fold(summary: Any, *children: Any) -> Html:
    """Details that open on demand; nothing when they are empty."""
    return tag("details", tag("summary", summary), children) if any(children) else NOTHING


def figure(caption: Any, *children: Any) -> Html:
    """A figure with its caption."""
    return tag("figure", children, tag("figcaption", caption)) if any(children) else NOTHING


def legend(entries: Mapping[str, str]) -> Html:
    """Class of a mark -> what it means."""
    return tag("p", [tag("span", tag("i", cls=f"swatch {kind}"), text) for kind, text in entries.items()], cls="legend")


def definitions(pairs: Mapping[str, Any]) -> Html:
    """A list of names and values."""
    return (
        tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs.items()])
        if pairs
        else NOTHING
    )
