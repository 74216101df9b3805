"""The zoo's results in words: totals, the table of timm and torchvision, and the page of what people ship.

    python benchmarks/zoo_report.py  # writes docs/networks.md from benchmarks/results/shipped.json

A test holds the page to the JSON.
"""

from __future__ import annotations

import json
import statistics
from typing import Any

import zoo_shipped
from common import HERE, ROOT

SHIPPED = HERE / "results" / "shipped.json"
PAGE = ROOT / "docs" / "networks.md"
ENOUGH = 0.15  # of the parameters removed
LOUD = 20  # dB; an output below it is explained
INTRO = """# The networks that people ship

Each network below was built with random weights, traced without a hint, every group pruned by 30 %, and the prune
[proven](graph.md#the-proof) in float64. The pruned network was exported to ONNX and compared with PyTorch, then
calibrated on four random examples and run in INT8 by OpenVINO and by ONNX Runtime on a CPU. The figure in dB is
signal to noise against the float graph on four other random examples, of the worst and of the best floating output:
with random weights and inputs it checks that the graph compiles, runs and computes the same; it is no accuracy (for
that, of trained networks, see [INT8](int8.md)). Below 20 dB a table at the end says what the float graph makes of noise
40 dB below its input: what a network with random weights amplifies is not what INT8 adds.
Nine detectors (YOLOv3-tiny, v5n, v6n, v8n, v9t, v10n, 11n, 12n, 26n) were run again since inputs of a Concat keep
ranges of their own in ONNX Runtime (YOLO11n had 18 to 24 dB before, YOLOv10n 7 to 20); other networks with necks were
not.
Transformers are small ones of two or three layers, whose graph is that of the full network. `MB` is the memory that
a trace takes beside the network, `s` its seconds of one core, of three machines: some rows are of
one that took up to three times as long. Parameters that no output depends on (PSPNet's decoder
does not look at its encoder's last stage) are not counted. Torch-Pruning 1.6.1 prunes the same network by its
global group magnitude, 30 %, with the layers that make the outputs kept and without a hint as well (its examples give
YOLOv8 another C2f and BERT its heads by hand); the figure is what it removed where the result runs and gives outputs of
the same shapes. "Not run" is said of what has not been run yet.

Made by `benchmarks/zoo.py --suite shipped` and `benchmarks/zoo_report.py` from
[`shipped.json`](../benchmarks/results/shipped.json); the builders are `benchmarks/zoo_shipped.py` and
`benchmarks/zoo_nets.py`. Networks on graphs (torch-geometric) are out of scope: their tensors are ragged.
"""
FAMILIES = {
    "ultralytics": "Detectors, segmenters, poses and oriented boxes of Ultralytics, with their decoding",
    "text": "Text encoders and decoders of Hugging Face transformers",
    "vision": "Vision networks of Hugging Face transformers",
    "audio": "Speech and sound encoders of Hugging Face transformers",
    "smp": "Segmenters of segmentation_models_pytorch: decoder-encoder",
    "monai": "Medical networks of MONAI",
    "own": "Kinds that come with no package, written for this benchmark",
}


def summary(results: dict[str, Any]) -> list[str]:
    """The totals, a line each."""
    lines = []
    for suite in ("timm", "torchvision", "shipped"):
        rows = [r for r in results.values() if r["entry"]["suite"] == suite and "ours" in r]
        good = [r for r in rows if r["ours"].get("proved")]
        if not good:
            continue
        shares = [r["ours"]["removed"] for r in good]
        seconds = sorted(r["ours"]["trace_seconds"] for r in good)
        lines.append(
            f"{suite}: {len(rows)} models tried; **{len(good)} proven**, of them with at least 15 % of the parameters "
            f"removed {sum(s >= 0.15 for s in shares)}; median removed {100 * statistics.median(shares):.1f} %; "
            f"a trace takes {statistics.median(seconds):.1f} s (median), {seconds[-1]:.0f} s (longest) of one core"
        )
        early = sum("signal alive" not in r["ours"]["method"] for r in good)
        if early:
            lines.append(f"{suite}: {early} of these proofs were made before generic weights kept the signal alive")
        tried = [r["onnx"] for r in rows if "onnx" in r]
        if tried:
            lines.append(
                f"{suite}, exported to ONNX after pruning: {sum(bool(o.get('equal')) for o in tried)} of {len(tried)} "
                "equal to PyTorch in ONNX Runtime"
            )
        peers = [r["peer"] for r in rows if "peer" in r]
        if peers:
            ran = [p["removed"] for p in peers if p.get("runs")]
            late = sum("processor time" in p.get("detail", "") for p in peers)
            lines.append(
                f"{suite}, Torch-Pruning 1.6.1: {len(ran)} of {len(peers)} run, {late} stopped at the time limit; "
                f"median removed {100 * statistics.median(ran or [0]):.1f} %"
            )
    return lines


def table(results: dict[str, Any]) -> str:
    """The totals, and every model as a row of Markdown."""
    lines = ["# Pruning uniformly by 30 %", "", "Made by `benchmarks/zoo.py`, which says how.", ""]
    lines += [f"- {line}" for line in summary(results)]
    lines += [
        "",
        "| model | parameters | proven | removed | error | seconds | ONNX | Torch-Pruning | why |",
        "|---" * 9 + "|",
    ]
    for key, row in sorted(results.items()):
        mine, other, file = row.get("ours", {}), row.get("peer"), row.get("onnx")
        few = mine.get("removed", 1) < 0.15
        why = mine.get("detail") or "; ".join(mine.get("frozen", [])[:2] if few else [])
        cells = [
            key,
            f"{mine.get('parameters') or row['entry']['parameters']:,}",
            "yes" if mine.get("proved") else "no",
            f"{100 * mine['removed']:.1f} %" if "removed" in mine else "",
            f"{mine['max_error']:.0e}" if mine.get("max_error") is not None else "",
            f"{mine['trace_seconds']:.0f}" if "trace_seconds" in mine else "",
            "not run" if file is None else "equal" if file.get("equal") else file["detail"][:140],
            "not run"
            if other is None
            else f"{100 * other['removed']:.0f} %"
            if other.get("runs")
            else other["detail"][:60],
            why[:200],
        ]
        lines.append("| " + " | ".join(c.replace("|", "/").replace("\n", " ") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def page(results: dict[str, Any]) -> str:
    """The page of what people ship: how, the totals, a table a family, and why what is refused or small is so."""
    rows = {k.removeprefix("shipped/"): r for k, r in results.items() if r["entry"]["suite"] == "shipped"}
    lines = [*INTRO.splitlines(), ""]
    lines += [f"- {line}" for line in totals(rows)]
    for family, title in FAMILIES.items():
        mine = {name.partition("/")[2]: row for name, row in rows.items() if name.startswith(family + "/")}
        if mine:
            lines += ["", f"## {title}", "", *_family(mine)]
    lines += _noises(rows)
    weak = [(name, row["ours"]) for name, row in rows.items() if not _good(row.get("ours", {})) and "ours" in row]
    if weak:
        lines += [
            "",
            "## Less than 15 %, or not proven: why",
            "",
            "| network | removed | what keeps most whole |",
            "|---" * 3 + "|",
        ]
        for name, mine in weak:
            why = mine.get("obstacle") or mine.get("detail") or "; ".join(mine.get("frozen", [])[:2])
            lines.append(_row([name, _percent(mine), why[:300]]))
    return "\n".join(lines) + "\n"


def totals(rows: dict[str, Any]) -> list[str]:
    """The page's totals, a line each."""
    mine = [row["ours"] for row in rows.values() if "ours" in row]
    proven = [m for m in mine if m.get("proved")]
    wrong = sum(1 for m in mine if "max_error" in m and not m.get("proved") and not m.get("vacuous"))
    said = [
        f"**{len(mine)} networks, of {len(zoo_shipped.NETWORKS)} listed: {sum(map(_good, mine))} proven with at least "
        f"15 % of the parameters removed** ({len(proven)} proven in all; {wrong} with a plan that its proof stopped); "
        f"median removed {100 * statistics.median([m['removed'] for m in proven] or [0]):.1f} %."
    ]
    files = [row["onnx"] for row in rows.values() if "onnx" in row]
    if files:
        said.append(f"ONNX: {sum(bool(f.get('equal')) for f in files)} of {len(files)} equal to PyTorch.")
    for runtime, title in (("openvino", "OpenVINO"), ("ort", "ONNX Runtime")):
        tried = [d for row in rows.values() if "int8" in row for d in [_dialect(row["int8"], runtime)]]
        ran = [min(d["decibels"]) for d in tried if d.get("decibels")]
        if tried:
            said.append(
                f"INT8 in {title}: {sum('decibels' in d for d in tried)} of {len(tried)} compile and run; the worst "
                f"output has {statistics.median(ran or [0]):.0f} dB (median), {sum(v >= 20 for v in ran)} >= 20 dB."
            )
    peers = [row["peer"] for row in rows.values() if "peer" in row]
    if peers:
        ran = [p["removed"] for p in peers if p.get("runs")]
        late = sum("processor time" in p.get("detail", "") for p in peers)
        said.append(
            f"Torch-Pruning 1.6.1: {len(ran)} of {len(peers)} run, {sum(v >= ENOUGH for v in ran)} with at least "
            f"15 % removed; median removed {100 * statistics.median(ran or [0]):.1f} %; {late} stopped after 20 to "
            "150 s of processor time. None of them is proven."
        )
    seconds = sorted(m["trace_seconds"] for m in mine if "trace_seconds" in m)
    if seconds:
        said.append(
            f"A trace takes {statistics.median(seconds):.1f} s (median), {seconds[-1]:.0f} s (longest) of one core."
        )
    return said


def _good(mine: dict[str, Any]) -> bool:
    return bool(mine.get("proved")) and mine.get("removed", 0) >= ENOUGH


def _family(rows: dict[str, Any]) -> list[str]:
    lines = [
        "| network | parameters | proven | removed | ONNX | OpenVINO dB | ONNX Runtime dB | s | MB | Torch-Pruning |"
    ]
    lines.append("|---" * 10 + "|")
    for name, row in rows.items():
        mine, file, peer = row.get("ours", {}), row.get("onnx"), row.get("peer")
        lines.append(
            _row(
                [
                    name,
                    f"{mine['parameters']:,}" if "parameters" in mine else "",
                    ("yes" if mine.get("proved") else "no") if mine else "not run",
                    _percent(mine),
                    "not run" if file is None else "equal" if file.get("equal") else _short(file),
                    *(_noise(row, runtime) for runtime in ("openvino", "ort")),
                    f"{mine['trace_seconds']:.1f}" if "trace_seconds" in mine else "",
                    f"{mine['trace_megabytes']:.0f}" if "trace_megabytes" in mine else "",
                    "not run" if peer is None else _percent(peer) if peer.get("runs") else _short(peer),
                ]
            )
        )
    return lines


def _noises(rows: dict[str, Any]) -> list[str]:
    """A table of the networks whose INT8 does not run or is below LOUD somewhere, and why."""
    lines = []
    for name, row in rows.items():
        tried = [_dialect(row["int8"], runtime) for runtime in ("openvino", "ort")] if "int8" in row else []
        if all(min(d.get("decibels") or [0]) >= LOUD for d in tried):
            continue
        noise = row.get("noisy", {})
        echo = noise.get("decibels") or []
        if not all("decibels" in d for d in tried):
            why = "does not run"
        elif not all(d["decibels"] for d in tried):
            why = "no floating output that is not zero"
        elif noise.get("selects"):
            why = "picks its best candidates in the graph: another one in a place is another row"
        elif echo and min(echo) < LOUD:
            why = "amplifies: noise alone comes out below 20 dB, in float"
        else:
            why = "INT8 itself: the float graph does not amplify so" if echo else "not looked into yet"
        heard = "not run" if not noise else f"{min(echo):.0f}" if echo else ""
        lines.append(_row([name, *(_noise(row, runtime) for runtime in ("openvino", "ort")), heard, why]))
    heads = "| network | OpenVINO dB | ONNX Runtime dB | float with noise at 40 dB | why |"
    return ["", f"## INT8 below {LOUD} dB", "", heads, "|---" * 5 + "|", *lines] if lines else []


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(" ".join(c.replace("|", "/").split()) for c in cells) + " |"


def _percent(mine: dict[str, Any]) -> str:
    return f"{100 * mine['removed']:.1f} %" if "removed" in mine else ""


def _short(result: dict[str, Any]) -> str:
    """The first words of why something did not run."""
    words = str(result.get("detail", "")).splitlines() or [""]
    return words[0][:60]


def _dialect(result: dict[str, Any], runtime: str) -> dict[str, Any]:
    found = [d for name, d in result.get("dialects", {}).items() if name.startswith(runtime)]
    return found[0] if found else result


def _noise(row: dict[str, Any], runtime: str) -> str:
    if "int8" not in row:
        return "not run"
    said = _dialect(row["int8"], runtime)
    if "decibels" not in said:
        return _short(said)
    values = said["decibels"]
    return "" if not values else f"{min(values):.0f}" if len(values) == 1 else f"{min(values):.0f} to {max(values):.0f}"


if __name__ == "__main__":
    PAGE.write_text(page(json.loads(SHIPPED.read_text())))
