"""Prune one smallest model of each of timm's architecture modules, and torchvision's, uniformly; prove each.

    python benchmarks/zoo.py --site DIR [--passes ours onnx peer] [--only NAME ...] [--suite timm]

Each model runs in a process of its own with a limit on its processor time; seconds are processor seconds. The passes:
`ours` traces, plans, applies and proves; `onnx` applies the plan that `ours` kept to a fresh model, exports it with
`edgeprune.model.export_onnx` and compares ONNX Runtime with PyTorch (batch norms have the statistics of four random
images, so that numbers of order one arrive); `peer` runs Torch-Pruning 1.6.1 on the same model (global group magnitude,
pruning ratio 0.3, its defaults). Results are kept in the JSON, so that a killed run goes on.

Images are 128 pixels wide (126 for patches of 14) where the model takes that: the graph is the same. Of torchvision's
detectors the network itself is traced (`raw`): backbone, pyramid and dense heads, without the image transform, the
boxes' decoding and NMS, whose Python depends on data.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

FRACTION = 0.3
SIDES = {
    "torchvision/inception_v3": (299,),  # its auxiliary head, which training runs, takes no smaller image
    "torchvision/ssd300_vgg16": (300,),
}


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
            entry = {"suite": "torchvision", "module": "torchvision", "name": name}
            chosen.append({**entry, "parameters": sum(p.numel() for p in _torchvision(name).parameters())})
    return sorted(chosen, key=lambda entry: (entry["suite"], entry["parameters"]))


def build(entry: dict[str, Any]) -> tuple[Any, Any]:
    """The model with generic weights, and an image at 128 pixels where it runs so, else at its own size."""
    import torch

    for side in SIDES.get(f"{entry['suite']}/{entry['name']}", (128, 126, 192, 0)):
        with contextlib.suppress(Exception), torch.no_grad():
            torch.manual_seed(0)
            if entry["suite"] == "torchvision":
                model, x = _torchvision(entry["name"]), torch.randn(1, 3, side or 224, side or 224)
            else:
                model, x = _timm(entry["name"], side)
            model.eval()(x)
            return model, x
    raise RuntimeError(f"{entry['name']} does not run")


def _timm(name: str, side: int) -> tuple[Any, Any]:
    """A timm model for images of this size (0: its own)."""
    import timm
    import torch

    model = None
    if side:
        with contextlib.suppress(Exception):
            model = timm.create_model(name, pretrained=False, img_size=side)
    model = model or timm.create_model(name, pretrained=False)
    channels, height, width = model.pretrained_cfg["input_size"]
    return model, torch.randn(1, channels, side or height, side or width)


def _torchvision(name: str) -> Any:
    """A torchvision model with random weights; of a detector what comes before its boxes."""
    import torchvision

    home = _home(name)
    more = {"weights_backbone": None} if "segmentation" in home or "detection" in home else {}
    model = torchvision.models.get_model(name, weights=None, **more)
    return raw(model) if "detection" in home else model


def raw(detector: Any) -> Any:
    """A detector's network: the pyramid's maps and what the dense heads say of each place, before any decoding."""
    import torch

    class Raw(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = detector.backbone
            self.head = detector.rpn.head if hasattr(detector, "rpn") else detector.head

        def forward(self, x: torch.Tensor) -> Any:
            maps = self.backbone(x)
            maps = list(maps.values()) if isinstance(maps, dict) else [maps]
            said = self.head(maps)
            return (maps, said) if hasattr(detector, "rpn") else said

    return Raw()


def _home(name: str) -> str:
    import torchvision

    return str(torchvision.models.get_model_builder(name).__module__)


def ours(entry: dict[str, Any], plans: Path) -> dict[str, Any]:
    """Trace, plan, apply, prove; the plan is kept for `onnx`."""
    import torch

    import edgeprune

    model, x = build(entry)
    before = sum(p.numel() for p in model.parameters())
    start = time.process_time()
    structure = edgeprune.trace(model, x)
    traced = time.process_time()
    plan = structure.uniform(FRACTION, 1)
    pruned = plan.apply(model)
    planned = time.process_time()
    after = sum(p.numel() for p in pruned.parameters())
    with torch.no_grad():
        pruned(x)
    proof = structure.prove(model, plan)
    plan.save(plans / f"{entry['suite']}-{entry['name']}.json")
    return {
        "runs": True,
        "proved": proof.passed,
        "max_error": proof.max_error,
        "detail": proof.detail,
        "method": proof.method,
        "image": list(x.shape),
        "parameters": before,
        "removed": 1 - after / before,
        "groups": len(structure.groups),
        "blocks": len(structure.blocks),
        "frozen": [f"{f.why} [{f.operator} {Path(f.source).name}] x{len(f.layers)}" for f in structure.frozen],
        "trace_seconds": traced - start,
        "plan_seconds": planned - traced,
        "prove_seconds": time.process_time() - planned,
    }


def onnx(entry: dict[str, Any], plans: Path) -> dict[str, Any]:
    """Export the pruned model and compare ONNX Runtime with PyTorch on one image, each output by its spread."""
    import tempfile

    import numpy as np
    import onnxruntime
    import torch
    from torch.utils._pytree import tree_flatten

    import edgeprune
    from edgeprune.model import export_onnx

    model, x = build(entry)
    pruned = edgeprune.Plan.load(plans / f"{entry['suite']}-{entry['name']}.json").apply(model).eval()
    wake(pruned, x)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pruned.onnx"
        try:
            export_onnx(pruned, x, path)
        except edgeprune.EdgepruneError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            try:
                export_onnx(model, x, path)
                which = "the dense network exports"
            except edgeprune.EdgepruneError:
                which = "nor the dense network"
            return {"equal": False, "detail": f"torch cannot export it, {which}: {type(cause).__name__}: {cause}"}
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        got = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        want = [v.numpy() for v in tree_flatten(pruned(x))[0] if isinstance(v, torch.Tensor)]
    worst = max(
        float(np.abs(g - w).max() / max(1e-30, float(w.max() - w.min()))) for g, w in zip(got, want, strict=True)
    )
    detail = "" if worst < 1e-3 else f"differs by {worst:.3g} of the spread"
    return {"equal": not detail, "max_error": worst, "detail": detail, "seconds": time.process_time() - start}


def wake(model: Any, x: Any) -> None:
    """Let numbers of order one reach the outputs: with fresh weights and statistics they die out on the way."""
    import torch

    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad(), contextlib.suppress(ValueError, RuntimeError):
        for norm in norms:
            norm.momentum = None  # the plain mean over all that was seen
        model.train()(torch.randn(4, *x.shape[1:]))
    model.eval()


def peer(entry: dict[str, Any], plans: Path) -> dict[str, Any]:
    """Torch-Pruning, as in its README: global group magnitude, 30 %, the layers that make the outputs kept."""
    import torch
    import torch_pruning as tp
    from torch.utils._pytree import tree_leaves

    def shapes() -> list[Any]:
        with torch.no_grad():
            return [v.shape for v in tree_leaves(model(x)) if isinstance(v, torch.Tensor)]

    model, x = build(entry)
    before, given = sum(p.numel() for p in model.parameters()), shapes()
    start = time.process_time()
    pruner = tp.pruner.BasePruner(
        model, x, importance=tp.importance.GroupMagnitudeImportance(), pruning_ratio=FRACTION, global_pruning=True,
        ignored_layers=[m for name, m in model.named_modules() if _last(model, name, m)],
    )  # fmt: skip
    pruner.step()
    seconds = time.process_time() - start
    after = sum(p.numel() for p in model.parameters())
    same = shapes() == given
    return {
        "runs": same,
        "removed": 1 - after / before,
        "seconds": seconds,
        "detail": "" if same else "output shape changed",
    }


def _last(model: Any, name: str, module: Any) -> bool:
    """Whether a layer makes an output: of 1,000 classes, of a segmenter's 21, or of a detector's head or pyramid."""
    import torch

    if isinstance(module, torch.nn.Linear):
        return module.out_features == 1000
    detects = ["cls_logits", "bbox_pred", "bbox_reg", "bbox_ctrness", "module_list"]
    if type(getattr(model, "head", None)).__name__ == "RPNHead":
        detects.append("fpn.layer_blocks")
    return isinstance(module, torch.nn.Conv2d) and (
        module.out_channels in (21, 1000) or any(part in name for part in detects)
    )


PASSES: dict[str, Callable[[dict[str, Any], Path], dict[str, Any]]] = {"ours": ours, "onnx": onnx, "peer": peer}


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


def child(kind: str, entry: dict[str, Any], plans: Path, limit: float) -> dict[str, Any]:
    """Run one side of one model in a forked process of its own."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(kind, entry, plans, there, limit))
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
    return dict(result)


def work(kind: str, entry: dict[str, Any], plans: Path, pipe: Any, limit: float) -> None:
    """The child's side: send one result. The limit is processor time: other work on the machine does not count."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    allowed = int(used.ru_utime + used.ru_stime + limit)
    resource.setrlimit(resource.RLIMIT_CPU, (allowed, allowed + 5))
    try:
        result = PASSES[kind](entry, plans)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(where.filename).name}:{where.lineno}"
        result = {"runs": False, "detail": f"{type(error).__name__}: {str(error)[:400]} ({place})"}
    pipe.send(result)


def summary(results: dict[str, Any]) -> list[str]:
    """The totals, a line each."""
    lines = []
    for suite in ("timm", "torchvision"):
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


def main() -> None:
    """Run what is missing in the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", required=True, help="folder with timm, torchvision and torch_pruning")
    parser.add_argument("--out", default="benchmarks/zoo.json", type=Path)
    parser.add_argument("--names", type=Path, help="JSON list of models, written on the first run")
    parser.add_argument("--plans", type=Path, help="folder of the plans (default: beside the list of models)")
    parser.add_argument("--passes", nargs="*", default=[*PASSES], choices=[*PASSES])
    parser.add_argument("--only", nargs="*", default=[], help="these models alone, again")
    parser.add_argument("--suite", default="")
    parser.add_argument("--redo", action="store_true", help="run again what failed")
    parser.add_argument("--limit", type=float, default=400.0, help="processor seconds a model and pass")
    parser.add_argument("--peer-limit", type=float, default=150.0)
    options = parser.parse_args()
    listing = options.names or options.out.with_name("zoo-models.json")
    if not listing.exists():
        listing.write_text(json.dumps(names(options.site), indent=1))
    plans = options.plans or listing.parent / "zoo-plans"
    plans.mkdir(exist_ok=True)
    results = json.loads(options.out.read_text()) if options.out.exists() else {}
    prepare(options.site)
    warm()
    for kind in options.passes:
        for entry in json.loads(listing.read_text()):
            key = f"{entry['suite']}/{entry['name']}"
            row = dict(results.get(key, {}))
            if not entry["suite"].startswith(options.suite) or (options.only and entry["name"] not in options.only):
                continue
            failed = kind in row and not row[kind].get({"ours": "proved", "onnx": "equal"}.get(kind, "runs"))
            if kind in row and not options.only and not (options.redo and failed):
                continue
            if kind == "onnx" and not row.get("ours", {}).get("proved"):
                continue
            row[kind] = child(kind, entry, plans, options.peer_limit if kind == "peer" else options.limit)
            results = json.loads(options.out.read_text()) if options.out.exists() else {}
            results.setdefault(key, {"entry": entry})[kind] = row[kind]
            temporary = options.out.with_suffix(".tmp")
            temporary.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
            temporary.replace(options.out)
            said = {k: v for k, v in row[kind].items() if k in ("proved", "equal", "runs", "removed", "detail")}
            print(key, kind, said, flush=True)
    options.out.with_suffix(".md").write_text(table(results))
    print("\n".join(summary(results)))


if __name__ == "__main__":
    main()
