"""The whole page: head, verdict, sections in the order in which a reader asks, foot."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from edgeprune.report import evidence, how, latency, network, verdict, words
from edgeprune.report.markup import NOTHING, Html, join, tag

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


def page(result: Mapping[str, Any]) -> str:
    """The report of a result as HTML; whatever is in the result, the page is well formed and needs no network."""
    title = f"{result.get('name') or 'run'} on {result.get('target') or 'a target'}"
    bodies = {name: write(result) for name, (_, write) in SECTIONS.items()}
    links = [tag("a", SECTIONS[name][0], href=f"#{name}") for name, body in bodies.items() if body]
    contents = tag("nav", links, aria_label="Contents")
    foot = "Every figure on this page also stands in result.json, next to it. The page was written by edgeprune"
    version = words.entries(result.get("environment")).get("packages", {}).get("edgeprune", "")
    return document(title, verdict.head(result), join([contents, *bodies.values()]), f"{foot} {version}".strip() + ".")


def profile_page(found: Mapping[str, Any], name: str) -> str:
    """The account of a latency table (profile.json) as HTML; `name` says of which network and device."""
    foot = "Every figure on this page also stands in profile.json, next to it."
    return document(name, NOTHING, latency.account(found), foot)


def document(title: str, under: Html, body: Html, foot: str) -> str:
    """A page that needs no network: `under` the title stands what matters most."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title}: edgeprune report"),
        Html(f"<style>{_style()}</style>"),
    )
    header = tag("header", tag("p", "edgeprune report", cls="eyebrow"), tag("h1", title), under)
    whole = tag("body", header, tag("main", body), tag("footer", foot))
    return f"<!doctype html>\n{tag('html', head, whole, lang='en')}\n"


def _style() -> str:
    return (resources.files("edgeprune.report") / "style.css").read_text("utf-8")
