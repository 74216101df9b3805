"""The table of docs/security.md, from the JSON of all campaigns.

python benchmarks/campaigns/table.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from trying import RESULTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
BEGIN, END = "<!-- campaigns -->", "<!-- /campaigns -->"
ORDER = (
    "networks", "bundles", "flips", "recipes", "profiles", "safetensors", "pt", "images", "sounds", "tables", "answers",
    "guided", "damage", "kills", "disk", "power", "locks", "validations", "rollout-local", "rollout-board",
)  # fmt: skip
TITLES = {
    "networks": "networks that must not be released",
    "bundles": "crafted bundles, all hashes put right",
    "flips": "bundles with one to eight bits turned",
    "safetensors": "weights, safetensors",
    "pt": "weights, torch.save",
    "images": "image files of six formats",
    "sounds": "wav files",
    "tables": "CSV, COCO, VOC, YOLO, tokenizers, npz",
    "answers": "answers of a device",
    "guided": "eight readers, guided by coverage (Atheris)",
    "damage": "one file of a whole run damaged",
    "kills": "runs killed at random",
    "disk": "disk full",
    "power": "power cut",
    "locks": "contended acquisitions of a lock",
    "validations": "two validations of the same artifacts under load",
    "rollout-local": "kills while a release is installed, here",
    "rollout-board": "power cuts while a release is installed, emulated board with a disk",
}


def row(facts: dict[str, Any]) -> str:
    """One campaign as a row."""
    name = facts["campaign"]
    ends = ", ".join(f"{end} {count:,}" for end, count in facts["ends"].items())
    bounds = f"{facts['slowest_s']:g} s, {facts['most_mib']:g} MiB" if facts.get("most_mib") else ""
    cells = (
        TITLES.get(name, name),
        f"{facts['tries']:,}",
        f"{ends}{_more(name, facts)}",
        bounds,
        str(facts["failures"]),
    )
    return f"| {' | '.join(cells)} |"


def _more(name: str, facts: dict[str, Any]) -> str:
    if name == "networks":
        must, chance = facts["must_not_be_released"], facts["honest_refused_by_chance"]
        return (
            f" ({must['dense']} before training, {must['released']} at the gates); chance: {chance['plans_refused']} "
            f"of {chance['plans']} plans, {chance['gates_refused']} of {chance['gates']} sets of gates"
        )
    if name == "locks":
        return f"; held twice {facts['held_twice']}, killed while held {facts['killed_while_held']}"
    if name == "kills":
        whom = f"; whom: {_listed(facts['whom'])}" if "whom" in facts else ""
        return f"; lost {facts['lost']}; in {_listed(facts['in_stage'])}{whom}"
    if name == "disk":
        return f"; in {_listed(facts['in_stage'])}"
    if name.startswith("rollout"):
        after = facts["in_use_afterwards"]
        return f"; afterwards in use: the old release {after['old']}, the new one {after['new']}"
    if name == "validations":
        return f"; {_listed(facts['verdicts'])}"
    if name == "guided":
        return f"; {_listed(facts['runs'])}"
    return ""


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


def table(folder: Path = RESULTS) -> str:
    """All campaigns that were run."""
    found = {}
    for path in folder.glob("*.json"):
        facts = json.loads(path.read_text("utf-8"))
        found[facts["campaign"]] = facts
    head = ["| campaign | tries | how they ended | slowest, most memory | failures |", "|---|---|---|---|---|"]
    return "\n".join([*head, *(row(found[name]) for name in ORDER if name in found)])


def main() -> None:
    """Write the table into the page."""
    text = PAGE.read_text("utf-8")
    before, rest = text.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}", "utf-8")


if __name__ == "__main__":
    main()
