"""The table and the plot of benchmarks/results/head_to_head.json: accuracy at equal measured INT8 speed, untrained.

    python benchmarks/head_to_head_report.py [--rows FILE]

Writes head_to_head.md and head_to_head.png beside the JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from common import RESULTS
from methods import METHODS

Rows = dict[tuple[str, str, float, str], dict[str, Any]]
DRAWN = ("ours", "ours without blocks", "ours, blocks alone", "uniform L1", "FLOPs-driven", "random")


def load(path: Path) -> Rows:
    """(network, target, speed-up, method) -> its row."""
    found = {}
    for key, row in json.loads(path.read_text(encoding="utf-8")).items():
        if key.count("/") == 3:
            network, target, speedup, method = key.split("/")
            found[network, target, float(speedup), method] = row
    return found


def table(rows: Rows) -> str:
    """Markdown: a line a method, a column a network, runtime and speed-up."""
    columns = sorted({key[:3] for key in rows})
    heads = [f"{network}, {target}, {speedup:g}x" for network, target, speedup in columns]
    lines = [f"| method | {' | '.join(heads)} |", f"|---|{'---:|' * len(columns)}"]
    for method in METHODS:
        cells = [cell(rows.get((*column, method))) for column in columns]
        if any(cells):
            lines.append(f"| {method} | {' | '.join(cells)} |")
    note = (
        "Top-1 in %, FP32, untrained, after the same least-squares repair. In brackets the measured INT8 latency as a"
        " share of the budget, all networks of one column in one interleaved run. A dash: cannot reach the speed."
    )
    return "\n".join(lines) + f"\n\n{note}\n"


def cell(row: dict[str, Any] | None) -> str:
    """One figure."""
    if row is None:
        return ""
    if row.get("accuracy") is None:
        return "-"
    share = row.get("of_budget_together", row.get("of_budget"))
    return f"{row['accuracy']:.1f} ({share:.2f})" if share is not None else f"{row['accuracy']:.1f}"


def plot(rows: Rows, path: Path) -> None:
    """Accuracy against the speed-up that was measured, a panel a network and runtime."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = sorted({key[:2] for key in rows})
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 3.8), squeeze=False, layout="constrained", sharey=True
    )
    for panel, (network, target) in zip(axes[0], panels, strict=True):
        for colour, method in enumerate(DRAWN):
            points = sorted(
                (speedup / row.get("of_budget_together", row["of_budget"]), row["accuracy"])
                for (n, t, speedup, m), row in rows.items()
                if (n, t, m) == (network, target, method) and row.get("accuracy") is not None
            )
            if points:
                panel.plot(*zip(*points, strict=True), marker="o", color=f"C{colour}")
        panel.set_title(f"{network}, {target}", fontsize=10)
        panel.set_xlabel("measured speed-up over dense INT8")
        panel.set_xlim(1.0, 1.1 * max(speedup for n, t, speedup, _ in rows if (n, t) == (network, target)) + 0.3)
        panel.grid(alpha=0.3)
    axes[0][0].set_ylabel("top-1, %, untrained")
    names = [axes[0][0].plot([], [], marker="o", color=f"C{colour}")[0] for colour in range(len(DRAWN))]
    axes[0][0].legend(names, DRAWN, fontsize=8, loc="lower left")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=RESULTS / "head_to_head.json")
    options = parser.parse_args()
    rows = load(options.rows)
    options.rows.with_suffix(".md").write_text(table(rows), encoding="utf-8")
    plot(rows, options.rows.with_suffix(".png"))
    print(table(rows))


if __name__ == "__main__":
    main()
