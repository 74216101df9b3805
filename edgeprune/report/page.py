"""The whole page: head, verdict, sections in the order in which a reader asks, foot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path

from edgeprune.report import evidence, front, how, latency, network, sweep, verdict, words
from edgeprune.report.markup import NOTHING, Html, join, rendered, section, tag
from edgeprune.result import Facts, Front, SweepReport

# What each section is called in the contents, and who writes it. A section without data does not appear.
SECTIONS = {
    "gates": ("Gates", verdict.gates),
    "networks": ("Accuracy and latency", verdict.networks),
    "layers": ("Latency by layer", network.latency),
    "widths": ("Widths", network.widths),
    "frozen": ("Frozen", network.frozen),
    "search": ("Search", how.search),
    "recovery": ("Recovery", how.recovery),
    "calibration": ("Calibration", how.calibration),
    "evidence": ("Evidence", evidence.evidence),
    "environment": ("Environment", evidence.environment),
    "recipe": ("Recipe", evidence.recipe),
}


def page(result: Mapping[str, object]) -> str:
    """The report of a result as HTML; whatever is in the result, the page is well formed and needs no network.

    A section whose part of the result is of another shape says so in its place; an odd verdict is none.
    """
    title = f"{words.plain(result.get('name') or 'run')} on {words.plain(result.get('target') or 'a target')}"
    found = Facts(result)
    bodies = {name: _soundly(write, found, name, heading) for name, (heading, write) in SECTIONS.items()}
    links = [tag("a", SECTIONS[name][0], href=f"#{name}") for name, body in bodies.items() if body]
    contents = tag("nav", links, aria_label="Contents")
    foot = "Every figure on this page also stands in result.json, next to it. The page was written by edgeprune"
    version = words.plain(_version(found))
    foot = foot if version == words.NONE else f"{foot} {version}"
    return document(title, _soundly(verdict.head, found, "verdict"), join([contents, *bodies.values()]), f"{foot}.")


def profile_page(found: Mapping[str, object], name: str) -> str:
    """The account of a latency table (profile.json) as HTML; `name` says of which network and device."""
    foot = "Every figure on this page also stands in profile.json, next to it."
    return document(name, NOTHING, _soundly(latency.account, Facts(found), "table", "Latency table"), foot)


def front_page(found: Front) -> str:
    """The front of one network on one target (front.json) as HTML."""
    title = f"{words.plain(found.name or 'run')} on {words.plain(found.target or 'a target')}: the front"
    foot = "Every figure on this page also stands in front.json, next to it."
    return document(title, NOTHING, front.section_of(found), foot, broad=True)


def sweep_page(found: SweepReport, folder: Path) -> str:
    """All runs of a sweep as HTML; `folder`: where the page will lie, for its links."""
    foot = "Every figure on this page also stands in sweep.json and sweep.csv, next to it."
    return document(f"Sweep {words.plain(found.name)}", NOTHING, sweep.sections_of(found, folder), foot, broad=True)


def _soundly(write: Callable[[Facts], Html], found: Facts, name: str, heading: str = "") -> Html:
    """What `write` makes of a result; where the result is of another shape than a run writes, one sentence instead."""
    try:
        return write(found)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as cause:
        what = f"This part of the result is not as a run writes it ({type(cause).__name__}: {str(cause)[:200]})."
        if not heading:
            return tag("div", tag("strong", "No verdict"), tag("p", what), cls="verdict open")
        return section(name, heading, tag("p", what))


def _version(found: Facts) -> object:
    """Of edgeprune, that made the result; "" where it does not say."""
    packages = found.get("environment")
    packages = packages.get("packages") if isinstance(packages, Mapping) else None
    return packages.get("edgeprune", "") if isinstance(packages, Mapping) else ""


def document(title: str, under: Html, body: Html, foot: str, *, broad: bool = False) -> str:
    """A page that needs no network: `under` the title stands what matters most; `broad`: for tables of many columns."""
    style = Html(_style())
    return rendered("page.html", title=title, under=under, body=body, foot=foot, style=style, broad=broad) + "\n"


def _style() -> str:
    return (resources.files("edgeprune.report") / "style.css").read_text("utf-8")
