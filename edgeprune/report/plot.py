"""Plots as inline SVG. Colours come from the page's style sheet, so that light and dark need no second picture.

Every plot is drawn twice, for a wide and for a narrow screen (scaling one picture would make its text unreadable); the
style sheet shows one. Marks carry a <title>, and the same figures stand in a table next to each plot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeprune.report.markup import NOTHING, Html, join, tag

WIDE, NARROW = 720, 340


@dataclass(frozen=True)
class Mark:
    """A mark: where, its style class, a label beside it, and what it says when pointed at."""

    x: float
    y: float
    kind: str
    label: str = ""
    title: str = ""


@dataclass(frozen=True)
class Bar:
    """One column: a wide pale bar behind (before) and a narrow one in front (after)."""

    title: str
    before: float
    after: float | None
    gone: bool = False  # the layer was removed


@dataclass(frozen=True)
class Frame:
    """Maps data to pixels of a picture with margins."""

    width: int
    height: int
    x: tuple[float, float]
    y: tuple[float, float]
    left: int = 52
    bottom: int = 40
    top: int = 14
    right: int = 14

    def px(self, value: float) -> float:
        """Pixels from the left."""
        low, high = self.x
        return round(self.left + (value - low) / (high - low) * (self.width - self.left - self.right), 2)

    def py(self, value: float) -> float:
        """Pixels from the top."""
        low, high = self.y
        return round(
            self.height - self.bottom - (value - low) / (high - low) * (self.height - self.bottom - self.top), 2
        )


def both(draw: Callable[[int], Html], description: str) -> Html:
    """A picture for wide screens and one for narrow ones; `draw` gets the width in pixels."""
    return join(
        tag("div", draw(width), cls=f"plot {name}", role="img", aria_label=description)
        for name, width in (("wide", WIDE), ("narrow", NARROW))
    )


def svg(width: int, height: int, *children: Html | None) -> Html:
    """The picture itself."""
    return tag("svg", children, viewBox=f"0 0 {width} {height}", width=width, height=height, aria_hidden="true")


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers between `low` and `high`, about `wanted` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def spelled(values: Sequence[float]) -> list[tuple[float, str]]:
    """Numbers of one axis with as many decimals as the one that needs most."""
    short = {value: f"{value:.6g}" for value in values}
    if any("e" in text for text in short.values()):
        return list(short.items())
    digits = max((len(text.partition(".")[2]) for text in short.values()), default=0)
    return [(value, f"{value:.{digits}f}") for value in values]


def padded(values: Sequence[float], share: float = 0.08, zero: bool = False) -> tuple[float, float]:
    """A range that holds all values with some air; from 0 when `zero`."""
    low, high = (0.0 if zero else min(values)), max(values)
    air = (high - low or abs(high) or 1.0) * share
    return (0.0 if zero else low - air), high + air


def axes(frame: Frame, x_name: str, y_name: str, x_ticks: bool = True) -> Html:
    """Grid lines, numbers and the names of both axes."""
    bottom, name_y = frame.height - frame.bottom, max(10, frame.top - 14)
    parts = []
    for value, text in spelled(ticks(*frame.y)):
        y = frame.py(value)
        parts.append(tag("line", x1=frame.left, x2=frame.width - frame.right, y1=y, y2=y, cls="grid"))
        if y >= name_y + 8:  # else the name is there
            parts.append(tag("text", text, x=frame.left - 7, y=y + 4, cls="tick end"))
    for value, text in spelled(ticks(*frame.x, 6 if frame.width > NARROW else 4)) if x_ticks else ():
        parts.append(tag("text", text, x=frame.px(value), y=bottom + 17, cls="tick middle"))
    parts.append(tag("line", x1=frame.left, x2=frame.width - frame.right, y1=bottom, y2=bottom, cls="axis"))
    parts.append(tag("text", x_name, x=frame.width - frame.right, y=frame.height - 6, cls="name end"))
    parts.append(tag("text", y_name, x=0, y=name_y, cls="name"))
    return join(parts)


def scatter(
    points: Sequence[Mark],
    x_name: str,
    y_name: str,
    description: str,
    *,
    wanted: tuple[float, float] | None = None,
    line: Sequence[tuple[float, float]] = (),
    height: int = 320,
) -> Html:
    """Points with labels, an optional line under them, and the region x <= wanted[0], y >= wanted[1] shaded."""
    if not points:
        return NOTHING
    xs = [point.x for point in points] + [x for x, _ in line] + ([wanted[0]] if wanted else [])
    ys = [point.y for point in points] + [y for _, y in line] + ([wanted[1]] if wanted else [])

    def draw(width: int) -> Html:
        frame = Frame(width, height, padded(xs, zero=min(xs) >= 0), padded(ys, 0.15, zero=min(ys) == 0), top=26)
        parts = [_region(frame, wanted) if wanted else None, axes(frame, x_name, y_name), _line(frame, line, "trend")]
        for point, (x, y, anchor) in zip(points, _labels(frame, points), strict=True):
            mark = tag("circle", cx=frame.px(point.x), cy=frame.py(point.y), r=6, cls=f"mark {point.kind}")
            text = tag("text", point.label, x=x, y=y, cls=f"label {anchor} {point.kind}") if point.label else None
            parts.append(tag("g", tag("title", point.title or point.label), mark, text))
        return svg(width, height, *parts)

    return both(draw, description)


def _region(frame: Frame, wanted: tuple[float, float]) -> Html:
    """Where a network would be fast and accurate enough."""
    x, y, top = frame.px(wanted[0]), frame.py(wanted[1]), frame.top
    return join(
        [
            tag("rect", x=frame.left, y=top, width=max(0.0, x - frame.left), height=max(0.0, y - top), cls="wanted"),
            tag("line", x1=x, x2=x, y1=top, y2=frame.height - frame.bottom, cls="limit"),
            tag("line", x1=frame.left, x2=frame.width - frame.right, y1=y, y2=y, cls="limit"),
        ]
    )


def _labels(frame: Frame, points: Sequence[Mark]) -> list[tuple[float, float, str]]:
    """A place for each label: beside its point, moved down or up where another label or point is already there."""
    placed: list[tuple[float, float, str]] = [(0.0, 0.0, "")] * len(points)
    taken: list[tuple[float, float, float]] = []
    for index in sorted(range(len(points)), key=lambda i: frame.py(points[i].y)):
        point = points[index]
        x, y, long = frame.px(point.x), frame.py(point.y) + 4, 7.6 * len(point.label)
        left = x + 12 + long > frame.width
        start = x - 12 - long if left else x + 12
        dots = [(frame.px(p.x) - 6, frame.px(p.x) + 6, frame.py(p.y) + 4) for p in points if p is not point]
        there = [*taken, *dots]
        steps = (y + 15 * side * step for step in range(len(there) + 1) for side in (1, -1))
        y = next(at for at in steps if _free(at, start, start + long, there)) if point.label else y
        taken.append((start, start + long, y))
        placed[index] = (x - 12 if left else x + 12, y, "end" if left else "")
    return placed


def _free(y: float, start: float, end: float, there: Sequence[tuple[float, float, float]]) -> bool:
    """Is nothing of (start, end, y) where a label would be?"""
    return all(end <= first or start >= last or abs(y - other) >= 15 for first, last, other in there)


def columns(bars: Sequence[Bar], y_name: str, x_name: str, description: str, height: int = 240) -> Html:
    """A column a layer, from input to output: before in pale, after in colour; removed layers carry a cross."""
    if not bars:
        return NOTHING
    top = max([bar.before for bar in bars] + [bar.after or 0.0 for bar in bars]) or 1.0

    def draw(width: int) -> Html:
        frame = Frame(width, height, (0, len(bars)), (0, top * 1.06), top=26, bottom=24)
        parts = [axes(frame, x_name, y_name, x_ticks=False)]
        step = frame.px(1) - frame.px(0)
        for index, bar in enumerate(bars):
            parts.append(tag("g", tag("title", bar.title), _column(frame, index, step, bar), cls="column"))
        return svg(width, height, *parts)

    return both(draw, description)


def _column(frame: Frame, index: int, step: float, bar: Bar) -> list[Html]:
    zero, left = frame.py(0), frame.px(index)

    def block(value: float, share: float, kind: str) -> Html:
        y, wide = frame.py(value), max(1.0, step * share)
        x = round(left + (step - wide) / 2, 2)
        return tag("rect", x=x, y=y, width=round(wide, 2), height=round(max(0.0, zero - y), 2), rx=1, cls=kind)

    parts = [block(bar.before, 0.86, "before" if bar.after is not None or bar.gone else "alone")]
    if bar.after is not None and not bar.gone:
        parts.append(block(bar.after, 0.5, "after"))
    if bar.gone:
        x, y = round(left + step / 2, 2), zero - 7
        parts.append(tag("path", d=f"M{x - 3} {y - 3}l6 6M{x - 3} {y + 3}l6 -6", cls="gone"))
    return parts


def lines(
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    x_name: str,
    y_name: str,
    description: str,
    *,
    level: float | None = None,
    height: int = 220,
) -> Html:
    """Curves (style class, points) in one frame; `level` is a horizontal line to compare with."""
    every = [point for _, points in series for point in points]
    if len(every) < 2:
        return NOTHING
    xs, ys = [x for x, _ in every], [y for _, y in every] + ([level] if level is not None else [])

    def draw(width: int) -> Html:
        frame = Frame(width, height, padded(xs, 0.02), padded(ys), top=26)
        parts = [axes(frame, x_name, y_name)]
        if level is not None:
            y = frame.py(level)
            parts.append(tag("line", x1=frame.left, x2=frame.width - frame.right, y1=y, y2=y, cls="limit"))
        for kind, points in series:
            parts.append(_line(frame, points, kind))
            parts += [tag("circle", cx=frame.px(x), cy=frame.py(y), r=3, cls=f"mark {kind}") for x, y in points]
        return svg(width, height, *parts)

    return both(draw, description)


def _line(frame: Frame, points: Sequence[tuple[float, float]], kind: str) -> Html:
    if len(points) < 2:
        return NOTHING
    return tag("polyline", points=" ".join(f"{frame.px(x)},{frame.py(y)}" for x, y in points), cls=f"line {kind}")


def spark(values: Sequence[float], width: int = 96, height: int = 22) -> Html:
    """A histogram in one line of a table."""
    top = max(values, default=0)
    if top <= 0:
        return NOTHING
    step = width / len(values)
    parts = []
    for index, value in enumerate(values):
        tall = round(value / top * height, 1)
        parts.append(
            tag("rect", x=round(index * step, 2), y=height - tall, width=round(step * 0.9, 2), height=tall, cls="after")
        )
    return tag(
        "svg", parts, viewBox=f"0 0 {width} {height}", width=width, height=height, cls="spark", aria_hidden="true"
    )
