"""The picture of the README: accuracy against measured latency, ours and peers, from head_to_head.json.

python benchmarks/front.py                 # writes docs/front.svg
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from common import RESULTS, ROOT

PANELS = (
    ("resnet56", "intel-cpu", "ResNet-56, OpenVINO"),
    ("resnet56", "x86-onnxruntime", "ResNet-56, ONNX Runtime"),
    ("vgg16", "intel-cpu", "VGG16-BN (no blocks), OpenVINO"),
)
METHODS = {  # as head_to_head.py calls it -> (as the picture does, colour, mark)
    "ours": ("edgeprune", "#0b6e4f", "o"),
    "ours without blocks": ("edgeprune, widths alone", "#7bb89f", "s"),
    "FLOPs-driven": ("FLOPs-driven widths", "#b5651d", "^"),
    "additive knapsack, c_in frozen": ("additive knapsack", "#6a5acd", "v"),
    "Torch-Pruning": ("Torch-Pruning, the best of its four", "#c0392b", "X"),
    "uniform L1": ("uniform L1", "#8a8a8a", "D"),
}


def points(found: dict, network: str, target: str, method: str) -> list[tuple[float, float]]:
    """(latency over dense INT8, top-1) of every speed that the method reached, the slowest first."""
    best: dict[float, tuple[float, float]] = {}
    for key, entry in found.items():
        name, _, rest = key.partition("/")
        if key == "conditions" or name != network or entry.get("result") != "reached" or "accuracy" not in entry:
            continue
        where, speed, called = rest.split("/", 2)
        if where == target and (called == method or (method == "Torch-Pruning" and called.startswith(method))):
            share = entry.get("of_budget_together", entry["of_budget"])
            point = (share / float(speed), entry["accuracy"])
            if float(speed) not in best or point[1] > best[float(speed)][1]:
                best[float(speed)] = point
    return sorted(best.values(), reverse=True)


def draw(found: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"svg.fonttype": "none", "font.size": 9, "svg.hashsalt": "front", "font.family": "sans-serif"})
    figure, axes = plt.subplots(1, len(PANELS), figsize=(10.5, 3.7), sharey=True)
    for axis, (network, target, title) in zip(axes, PANELS, strict=True):
        for method, (label, colour, mark) in METHODS.items():
            drawn = points(found, network, target, method)
            if drawn:
                xs, ys = zip(*drawn, strict=True)
                wide = 2.2 if method == "ours" else 1.0
                axis.plot(xs, ys, color=colour, marker=mark, markersize=5, linewidth=wide, label=label)
        if len(axis.lines) == 1:
            axis.text(0.5, 0.5, "no other method reaches 1.5x", transform=axis.transAxes, ha="center", color="#666666")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("latency, dense INT8 = 1")
        axis.set_ylim(24, 96)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("top-1 in %, without training")
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncol=3, frameon=False)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(path, metadata={"Date": None, "Creator": "benchmarks/front.py"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "front.svg")
    given = parser.parse_args()
    draw(json.loads((RESULTS / "head_to_head.json").read_text()), given.out)
    print(f"{given.out}: {given.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
