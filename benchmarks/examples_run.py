"""What the runs of examples/ ended in, as their own result.json has it: collected, and written into the pages.

    edgeprune intel-cpu run examples/NAME/recipe.toml
    python benchmarks/examples_run.py keep runs/NAME-intel-cpu [...] [--load 7]   # into results/examples.json
    python benchmarks/examples_run.py table                    # examples/README.md and examples/NAME/README.md

Speed-ups are ratios within one interleaved run; minutes are those of a machine as busy as `load` says (processes that
wanted its CPUs, on average).
"""

from __future__ import annotations

import argparse
import json
import tomllib
from pathlib import Path
from typing import Any

from common import EXAMPLES, RESULTS, kept, put, save

from edgeprune import result as results

OUT, EXAMPLES = RESULTS / "examples.json", EXAMPLES
NETWORKS = ("dense_fp32", "dense_int8", "pruned_fp32", "pruned_int8")


def names() -> dict[str, str]:
    """A recipe's name -> its example's folder, and which recipe of it where it has several: detection/boxes."""
    found = {}
    for path in sorted(EXAMPLES.glob("*/*.toml")):
        also = "" if path.stem == "recipe" else f"/{path.stem}"
        found[tomllib.loads(path.read_text()).get("name", str(path))] = path.parent.name + also
    return found


def row(run: Path, load: float) -> tuple[str, dict[str, Any]]:
    """NAME on TARGET, and what the run ended in."""
    found = json.loads((run / "result.json").read_text())
    read = results.read(found)
    rated = {name: one.rated for name, one in read.networks.items()}
    return f"{names()[read.name]} on {read.target}", {
        "metric": next(one.metric for one in rated.values() if one),
        "unit": next(one.unit for one in rated.values() if one),
        "scores": {name: one.value for name, one in rated.items() if one},
        "examples": read.compared.examples,
        "drop": read.compared.drop,
        "at_most": read.compared.high,
        "max_drop": found["budget"]["max_drop"],
        "wanted": found["budget"]["speedup"],
        "speedup": read.speedup_vs_dense_int8,
        "failed": [gate.name for gate in read.gates if not gate.passed],
        "gates": len(read.gates),
        "verdict": read.verdict,
        "minutes": sum(stage["seconds"] for stage in found["stages"]) / 60,
        "cpu": sorted(set(found["device"].get("cpus", []))),
        "features": found["device"].get("features", []),
        "load": load,
    }


def table(rows: dict[str, dict[str, Any]], named: bool) -> str:
    """Markdown: a line a run."""
    first = "| example on target | metric " if named else "| target "
    lines = [
        f"{first}| dense FP32 | dense INT8 | pruned INT8 | drop, at most | times dense INT8's speed | minutes (load) "
        "| verdict |",
        "|---" * (9 if named else 8) + "|",
    ]
    for key, one in rows.items():
        scores = " | ".join(f"{one['scores'][name]:.2f}" for name in ("dense_fp32", "dense_int8", "pruned_int8"))
        drop = f"{one['drop']:.2f}, {one['at_most']:.2f} of {one['max_drop']:g}"
        gates = f"**{one['verdict']}**" + (
            f": {', '.join(one['failed'])}" if one["failed"] else f", {one['gates']} gates"
        )
        which, _, target = key.partition(" on ")
        head = f"{key} | {one['metric']}, {one['unit']}" if named else f"{which.partition('/')[2]} {target}".strip()
        speed = f"{one['speedup']:.2f} of {one['wanted']:g}"
        lines.append(f"| {head} | {scores} | {drop} | {speed} | {one['minutes']:.0f} ({one['load']:g}) | {gates} |")
    return "\n".join(lines)


def _folder(key: str) -> str:
    return key.partition(" on ")[0].partition("/")[0]


def main() -> None:
    """Collect runs, or write the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("keep", "table"))
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--load", type=float, default=0.0)
    given = parser.parse_args()
    known = kept(OUT)
    if given.step == "keep":
        known.update(row(run, given.load) for run in given.runs)
        save(OUT, dict(sorted(known.items())))
        return
    put(EXAMPLES / "README.md", "examples_run.py", table(known, True))
    for name in sorted({_folder(key) for key in known}):
        mine = {key: one for key, one in known.items() if _folder(key) == name}
        put(EXAMPLES / name / "README.md", "examples_run.py", table(mine, False))


if __name__ == "__main__":
    main()
