"""Prune one smallest model of each of timm's architecture modules, and torchvision's, uniformly; prove each.

    python benchmarks/zoo.py --site DIR --out benchmarks/zoo.json [--peer] [--only NAME ...] [--jobs N]

Each model runs in a process of its own with a limit on its processor time. `--peer` runs Torch-Pruning 1.6.1 beside
it on the same models (global group magnitude, pruning ratio 0.3, its defaults). Results are kept in the JSON, so that
a killed run goes on. Images are 128 pixels wide where the model takes that: the graph is the same.
The packages are those of benchmarks/zoo-requirements.txt, installed with `pip install --no-deps --target DIR`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import re
import resource
import signal
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any

FRACTION = 0.3


def prepare(site: str) -> None:
    """Make torchvision and timm importable on a CPU build of torch."""
    sys.path.append(site)
    import torch

    torch.set_num_threads(1)
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    globals()["_library"] = library


def names(site: str) -> list[dict[str, Any]]:
    """The models: the smallest by parameters of each timm module, and torchvision's."""
    prepare(site)
    import timm
    import torch
    import torchvision

    big = re.compile(r"^test_|large|huge|giant|gigantic|enormous|_b[2-8]|_[3-9]\d\d\b|so\d+m|_in2|_d(?:8|12)|_x?l\b")
    chosen: list[dict[str, Any]] = []
    for module in timm.list_modules():
        best: tuple[int, str] | None = None
        mine = sorted(n for n in timm.list_models(module=module) if n)
        for name in [n for n in mine if not big.search(n)] or mine:
            with torch.device("meta"), contextlib.suppress(Exception):
                count = sum(p.numel() for p in timm.create_model(name, pretrained=False).parameters())
                if best is None or count < best[0]:
                    best = (count, name)
        if best:
            chosen.append({"suite": "timm", "module": module, "name": best[1], "parameters": best[0]})
            print(chosen[-1], file=sys.stderr, flush=True)
    for name in torchvision.models.list_models():
        if not name.startswith("quantized") and not any(
            v in name for v in ("mvit", "swin3d", "r3d", "mc3", "r2plus1d", "s3d", "raft")
        ):
            chosen.append({"suite": "torchvision", "module": "torchvision", "name": name})
    return chosen


def build(entry: dict[str, Any]) -> tuple[Any, Any]:
    """The model, and inputs of the size that it wants."""
    import torch

    torch.manual_seed(0)
    if entry["suite"] == "timm":
        return _timm(entry["name"])
    import torchvision

    more = (
        {"weights_backbone": None}
        if "segmentation" in _home(entry["name"]) or "detection" in _home(entry["name"])
        else {}
    )
    model = torchvision.models.get_model(entry["name"], weights=None, **more)
    side = 299 if entry["name"] == "inception_v3" else 224
    return model.eval(), torch.randn(1, 3, side, side)


def _timm(name: str) -> tuple[Any, Any]:
    """A timm model at 128 pixels where it can be built and run so, else at its own size: the graph is the same."""
    import timm
    import torch

    for side in (128, 192, 0):
        for more in ({"img_size": side}, {}) if side else ({},):
            with contextlib.suppress(Exception), torch.no_grad():
                model = timm.create_model(name, pretrained=False, **more).eval()
                channels, height, width = model.pretrained_cfg["input_size"]
                x = torch.randn(1, channels, side or height, side or width)
                model(x)
                return model, x
    raise RuntimeError(f"{name} does not run")


def _home(name: str) -> str:
    import torchvision

    return str(torchvision.models.get_model_builder(name).__module__)


def ours(entry: dict[str, Any], onnx: bool) -> dict[str, Any]:
    """Trace, plan, apply, prove, export."""
    import torch

    import edgeprune

    model, x = build(entry)
    before = sum(p.numel() for p in model.parameters())
    start = time.perf_counter()
    structure = edgeprune.trace(model, x)
    traced = time.perf_counter() - start
    plan = structure.uniform(FRACTION, 1)
    pruned = plan.apply(model)
    seconds = time.perf_counter() - start
    after = sum(p.numel() for p in pruned.parameters())
    with torch.no_grad():
        pruned(x)
    proof = structure.prove(model, plan)
    return {
        "runs": True,
        "proved": proof.passed,
        "max_error": proof.max_error,
        "detail": proof.detail,
        "method": proof.method,
        "parameters": before,
        "removed": 1 - after / before,
        "groups": len(structure.groups),
        "blocks": len(structure.blocks),
        "frozen": [f"{f.why} [{f.operator} {Path(f.source).name}] x{len(f.layers)}" for f in structure.frozen],
        "trace_seconds": traced,
        "seconds": seconds,
        "total_seconds": time.perf_counter() - start,
        "onnx": onnx_check(pruned, x) if onnx else "not run",
    }


def onnx_check(model: Any, x: Any) -> str:
    """'equal', or what went wrong, of an ONNX export run by ONNX Runtime."""
    import io
    import logging
    import warnings

    import numpy as np
    import onnxruntime
    import torch
    from torch.utils._pytree import tree_flatten

    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
            buffer = io.BytesIO()
            program.save(buffer)
            session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
            got = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            want = [v.numpy() for v in tree_flatten(model(x))[0] if isinstance(v, torch.Tensor)]
        worst = max(
            float(np.abs(g - w).max() / max(1e-6, float(w.max() - w.min()))) for g, w in zip(got, want, strict=True)
        )
        return "equal" if worst < 1e-3 else f"differs by {worst:.3g} of the spread"
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"


def peer(entry: dict[str, Any]) -> dict[str, Any]:
    """Torch-Pruning, as in its README: global group magnitude, 30 %, the classifier's outputs kept."""
    import torch
    import torch_pruning as tp

    model, x = build(entry)
    before = sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        classes = model(x)
    start = time.perf_counter()
    ignored = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1000]
    pruner = tp.pruner.BasePruner(
        model, x, importance=tp.importance.GroupMagnitudeImportance(), pruning_ratio=FRACTION, global_pruning=True,
        ignored_layers=ignored,
    )  # fmt: skip
    pruner.step()
    seconds = time.perf_counter() - start
    after = sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        out = model(x)
    same = getattr(out, "shape", None) == getattr(classes, "shape", None)
    return {
        "runs": bool(same),
        "removed": 1 - after / before,
        "seconds": seconds,
        "detail": "" if same else "output shape changed",
    }


def warm() -> None:
    """Import everything once and trace a toy, so that each fork starts warm."""
    import timm
    import torch
    import torch_pruning
    import torchvision

    import edgeprune

    toy = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 3))
    edgeprune.trace(toy, torch.zeros(1, 3)).uniform(FRACTION)
    assert timm and torch_pruning and torchvision


def child(kind: str, entry: dict[str, Any], limit: float) -> dict[str, Any]:
    """Run one side of one model in a forked process of its own."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    start = time.perf_counter()
    process = context.Process(target=work, args=(kind, entry, there, limit))
    process.start()
    there.close()
    try:
        late = {"runs": False, "detail": f"over {20 * limit:g} s on the clock"}
        result = here.recv() if here.poll(20 * limit) else late
    except EOFError:
        process.join()
        over = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        why = f"over {limit:g} s of processor time" if over else f"died with exit code {process.exitcode}"
        result = {"runs": False, "detail": why}
    process.kill()
    process.join()
    result.setdefault("total_seconds", time.perf_counter() - start)
    return dict(result)


def work(kind: str, entry: dict[str, Any], pipe: Any, limit: float) -> None:
    """The child's side: send one result. The limit is processor time: other work on the machine does not count."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = int(used.ru_utime + used.ru_stime + limit)
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, allowed + 5))
    try:
        result = ours(entry, not entry.get("no_onnx")) if kind == "ours" else peer(entry)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        result = {"runs": False, "detail": f"{type(error).__name__}: {str(error)[:400]} ({place})"}
    pipe.send(result)


def summary(results: dict[str, Any]) -> str:
    """The table and the totals, as text."""
    lines = []
    for suite in ("timm", "torchvision"):
        rows = [r for r in results.values() if r["entry"]["suite"] == suite and "ours" in r]
        if not rows:
            continue
        good = [r for r in rows if r["ours"].get("proved")]
        enough = [r for r in good if r["ours"]["removed"] >= 0.15]
        shares = [r["ours"]["removed"] for r in good]
        lines.append(f"{suite}: {len(rows)} models; proven {len(good)}, of them with >= 15 % removed {len(enough)}; "
                     f"median removed {100 * statistics.median(shares or [0]):.1f} %; "
                     f"ONNX equal {sum(r['ours'].get('onnx') == 'equal' for r in rows)}")  # fmt: skip
        peers = [r["peer"] for r in rows if "peer" in r]
        if peers:
            ran = [p for p in peers if p.get("runs")]
            lines.append(f"    Torch-Pruning 1.6.1: {len(ran)} of {len(peers)} run; median removed "
                         f"{100 * statistics.median([p['removed'] for p in ran] or [0]):.1f} %")  # fmt: skip
    return "\n".join(lines)


def table(results: dict[str, Any]) -> str:
    """Every model as a row of Markdown, the totals above."""
    lines = [f"    {line}" for line in summary(results).splitlines()]
    lines += [
        "",
        "| model | parameters | proven | removed | largest error | seconds | ONNX | Torch-Pruning | why |",
        "|" + "---|" * 9,
    ]
    for key, row in sorted(results.items()):
        mine, other = row.get("ours", {}), row.get("peer")
        peer = (
            "not run"
            if other is None
            else f"{100 * other['removed']:.0f} %"
            if other.get("runs")
            else other["detail"][:60]
        )
        why = mine.get("detail") or "; ".join(mine.get("frozen", [])[:1] if mine.get("removed", 1) < 0.15 else [])
        cells = [key, f"{mine.get('parameters', 0):,}", "yes" if mine.get("proved") else "no",
                 f"{100 * mine.get('removed', 0):.1f} %", f"{mine.get('max_error', 0) or 0:.1g}",
                 f"{mine.get('seconds', 0):.0f}", mine.get("onnx", "")[:60], peer, why[:160]]  # fmt: skip
        lines.append("| " + " | ".join(c.replace("|", "/").replace("\n", " ") for c in cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing in the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--site", required=True, help="folder with timm, torchvision and torch_pruning")
    parser.add_argument("--out", default="benchmarks/zoo.json", type=Path)
    parser.add_argument("--names", type=Path, help="JSON list of models, written on the first run")
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--peer-only", action="store_true")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--suite", default="")
    parser.add_argument("--redo", action="store_true", help="run again what failed")
    parser.add_argument("--limit", type=float, default=400.0)
    parser.add_argument("--peer-limit", type=float, default=150.0)
    parser.add_argument("--no-onnx", action="store_true")
    options = parser.parse_args()
    listing = options.names or options.out.with_name("zoo-models.json")
    if not listing.exists():
        listing.write_text(json.dumps(names(options.site), indent=1))
    entries = json.loads(listing.read_text())
    results = json.loads(options.out.read_text()) if options.out.exists() else {}

    def one(entry: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        key = f"{entry['suite']}/{entry['name']}"
        row = dict(results.get(key, {"entry": entry}))
        again = options.redo and not row.get("ours", {}).get("proved")
        if not options.peer_only and ("ours" not in row or again or options.only):
            row["ours"] = child("ours", {**entry, "no_onnx": options.no_onnx}, options.limit)
        if (options.peer or options.peer_only) and "peer" not in row:
            row["peer"] = child("peer", entry, options.peer_limit)
        return key, row

    chosen = [
        e for e in entries if (not options.only or e["name"] in options.only) and e["suite"].startswith(options.suite)
    ]
    prepare(options.site)
    warm()
    for key, row in map(one, chosen):
        results[key] = row
        temporary = options.out.with_suffix(".tmp")
        temporary.write_text(json.dumps(results, indent=1, sort_keys=True))
        temporary.replace(options.out)
        mine, other = row.get("ours", {}), row.get("peer", {})
        share = f"{100 * mine.get('removed', 0):.0f}%"
        print(key, mine.get("proved"), share, mine.get("detail", ""), mine.get("onnx", ""), "| peer", other.get("runs"))
    options.out.with_suffix(".md").write_text(table(results))
    print(summary(results))


if __name__ == "__main__":
    main()
