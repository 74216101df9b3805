"""What the scripts of this folder share: places, JSON that is whole or not there, tables in pages, interleaved timing.

Nothing here needs more than Python, as some scripts run beside other tools, in environments of their own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT, RESULTS = HERE.parent, HERE / "results"
EXAMPLES = ROOT / "examples"


def beside(*folders: str) -> None:
    """Let modules of these folders below the repository be imported."""
    sys.path[:0] = [place for folder in folders if (place := str(ROOT / folder)) not in sys.path]


def with_site(site: str) -> None:
    """Let a site-packages of other tools be imported from, behind what is installed here; empty: nothing to do."""
    sys.path += [site] if site and site not in sys.path else []


def kept(path: Path, default: Any = None) -> Any:
    """What earlier calls left in a JSON file; `default` (an empty dict) where there is none."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else {} if default is None else default


def save(path: Path, found: Any, **how: Any) -> None:
    """Write JSON, whole or not at all; `how`: as json.dumps takes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(found, indent=1, **how) + "\n", encoding="utf-8")
    part.replace(path)


def put(page: Path, script: str, text: str) -> None:
    """Put text between the two marks that a page has for a script of this folder."""
    begin, end = (f"<!-- benchmarks/{script}: {word} -->" for word in ("begin", "end"))
    whole = page.read_text("utf-8")
    if begin not in whole or end not in whole:
        raise SystemExit(f"{page.name}: no place for the tables; put the lines {begin} and {end} there.")
    before, _, rest = whole.partition(begin)
    page.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{rest.partition(end)[2]}", "utf-8")


def heads(*names: str) -> list[str]:
    """The first two lines of a Markdown table."""
    return [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]


def line(*cells: object) -> str:
    """Another line of it; what would end a cell is replaced."""
    return "| " + " | ".join(str(cell).replace("|", "/").replace("\n", " ") for cell in cells) + " |"


def dialect_on(device: Any, target: Any) -> Any:
    """The Q/DQ scheme that a run takes there: the target's, or its twin of 63 weight steps on a CPU that saturates."""
    from edgeprune import runtimes

    return runtimes.for_cpu(target.dialect, device.probe().fingerprint.get("features", ()))


def ratios(device: Any, loaded: Sequence[Any], protocol: Any, rounds: int) -> tuple[list[list[float]], list[float]]:
    """Latencies over the first one's, a list each, all measured together; and the first one's own medians."""
    found, first = [list[float]() for _ in loaded], list[float]()
    for _ in range(rounds):
        timings = device.measure(loaded, protocol)
        first.append(timings[0].median)
        for one, timing in zip(found, timings, strict=True):
            one.append(timing.median / timings[0].median)
    return found, first
