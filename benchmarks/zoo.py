"""Prune one smallest model of each of timm's modules, torchvision's, and what people ship, uniformly; prove each.

    python benchmarks/zoo.py --site DIR [--passes ours onnx int8 noisy peer] [--only NAME ...] [--suite timm]

Each model runs in a process of its own with a limit on its processor time; seconds are processor seconds. The passes:
`ours` traces, plans, applies and proves; `onnx` applies the plan that `ours` kept to a fresh model, exports it with
`edgeprune.model.export_onnx` and compares ONNX Runtime with PyTorch (batch norms have the statistics of four random
examples, so that numbers of order one arrive); `int8` calibrates that file on four random examples in the dialects of
OpenVINO and of ONNX Runtime on this CPU, lints, compiles and runs both, and compares each with the float graph on four
others; `noisy` gives that float graph inputs with noise 40 dB below them, to tell what the network itself amplifies;
`peer` runs Torch-Pruning 1.6.1 on the same model (global group magnitude,
pruning ratio 0.3, its defaults). Results are kept in the JSON, so that a killed run goes on.

Images are 128 pixels wide (126 for patches of 14) where the model takes that: the graph is the same. Of torchvision's
detectors the network itself is traced (`raw`): backbone, pyramid and dense heads, without the image transform, the
boxes' decoding and NMS, whose Python depends on data.
The suite `shipped` (benchmarks/zoo_shipped.py: Ultralytics, transformers, segmentation_models_pytorch, MONAI, and small
networks written here) runs when it is named: `--suite shipped --out benchmarks/results/shipped.json`.
The packages are those of benchmarks/zoo-requirements.txt, installed with `pip install --no-deps --target DIR`.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import multiprocessing
import re
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zoo_report
from common import kept, save, with_site

FRACTION = 0.3
SIDES = {
    "torchvision/inception_v3": (299,),  # its auxiliary head, which training runs, takes no smaller image
    "torchvision/ssd300_vgg16": (300,),
}


def prepare(site: str) -> None:
    """Make torchvision and timm importable on a CPU build of torch; once a process."""
    if "_library" in globals():
        return
    with_site(site)
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


def shipped_names() -> list[dict[str, Any]]:
    """The networks of benchmarks/zoo_shipped.py; their parameters are counted when they are built."""
    import zoo_shipped

    return [
        {"suite": "shipped", "module": n.partition("/")[0], "name": n, "parameters": 0} for n in zoo_shipped.NETWORKS
    ]


def build(entry: dict[str, Any]) -> tuple[Any, Any]:
    """The model with generic weights, and an image at 128 pixels where it runs so, else at its own size."""
    import torch

    if entry["suite"] == "shipped":
        import zoo_shipped

        torch.manual_seed(0)
        model, x = zoo_shipped.NETWORKS[entry["name"]]()
        return model.eval(), x

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


def call(model: Any, x: Any) -> Any:
    """One forward on a tensor, a tuple of them, or keyword arguments."""
    if isinstance(x, dict):
        return model(**x)
    return model(*x) if isinstance(x, tuple) else model(x)


def kept_at(plans: Path, entry: dict[str, Any]) -> Path:
    """The file of a model's plan."""
    return plans / f"{entry['suite']}-{entry['name'].replace('/', '-')}.json"


def unreached(model: Any, x: Any) -> int:
    """Parameters that no output depends on: an encoder's last stage behind a decoder that does not look at it.

    They are in no artifact, and no plan touches them. 0 where the gradients do not tell.
    """
    import torch
    from torch.utils._pytree import tree_leaves

    twin = copy.deepcopy(model).requires_grad_(True)
    try:
        outputs = [v for v in tree_leaves(call(twin, x)) if isinstance(v, torch.Tensor) and v.requires_grad]
        sum((v.sum() for v in outputs), torch.zeros(())).backward()
    except RuntimeError:
        return 0
    without = [p.numel() for p in twin.parameters() if p.grad is None]
    return 0 if len(without) == len(list(twin.parameters())) else sum(without)


def ours(entry: dict[str, Any], plans: Path) -> dict[str, Any]:
    """Trace, plan, apply, prove; the plan is kept for `onnx`."""
    import torch
    from torch.utils._pytree import tree_leaves

    import edgeprune

    model, x = build(entry)
    idle = unreached(model, x) if entry["suite"] == "shipped" else 0
    before = sum(p.numel() for p in model.parameters()) - idle
    at_rest = memory(reset=True)
    start = time.process_time()
    structure = edgeprune.trace(model, x)
    traced = time.process_time()
    peak = memory() - at_rest
    plan = structure.uniform(FRACTION, 1)
    pruned = plan.apply(model)
    planned = time.process_time()
    after = sum(p.numel() for p in pruned.parameters()) - (unreached(pruned, x) if idle else 0)
    with torch.no_grad():
        call(pruned, x)
    proof = structure.prove(model, plan)
    plan.save(kept_at(plans, entry))
    return {
        "runs": True,
        "proved": proof.passed and not proof.vacuous,
        "max_error": proof.max_error,
        "detail": proof.detail,
        "vacuous": proof.vacuous,
        "obstacle": re.sub(r"/[^ \]]*/", "", structure.obstacle()),
        "method": proof.method,
        "image": [list(v.shape) for v in tree_leaves(x)] if entry["suite"] == "shipped" else list(x.shape),
        "parameters": before,
        "unreached": idle,
        "removed": 1 - after / before,
        "groups": len(structure.groups),
        "ends": sorted({name for f in structure.frozen if f.operator == "output" for name in f.layers}),
        "blocks": len(structure.blocks),
        "frozen": [f"{f.why} [{f.operator} {Path(f.source).name}] x{len(f.layers)}" for f in structure.frozen],
        "trace_seconds": traced - start,
        "plan_seconds": planned - traced,
        "prove_seconds": time.process_time() - planned,
        "trace_megabytes": round(max(0.0, peak), 1),
    }


def memory(*, reset: bool = False) -> float:
    """The most memory of this process since the last reset, in megabytes; with `reset`, what it has now."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(t for t in Path("/proc/self/status").read_text().splitlines() if t.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def onnx(entry: dict[str, Any], plans: Path) -> dict[str, Any]:
    """Export the pruned model and compare ONNX Runtime with PyTorch on one image, each output by its spread."""
    import numpy as np
    import onnxruntime
    import torch
    from torch.utils._pytree import tree_flatten

    import edgeprune
    from edgeprune.model import export_onnx

    model, x = build(entry)
    pruned = edgeprune.Plan.load(kept_at(plans, entry)).apply(model).eval()
    wake(pruned, x)
    start = time.process_time()
    path = kept_at(plans, entry).with_suffix(".onnx")
    with contextlib.nullcontext():
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
        feed = [v.numpy() for v in tree_flatten(x)[0]]
        got = session.run(None, {i.name: v for i, v in zip(session.get_inputs(), feed, strict=True)})
    with torch.no_grad():
        want = [v.numpy() for v in tree_flatten(call(pruned, x))[0] if isinstance(v, torch.Tensor)]
    worst = max(
        float(np.abs(g - w).max() / max(1e-30, float(w.max() - w.min()) or float(np.abs(w).max())))
        for g, w in zip(got, want, strict=True)
    )
    detail = "" if worst < 1e-3 else f"differs by {worst:.3g} of the spread"
    return {"equal": not detail, "max_error": worst, "detail": detail, "seconds": time.process_time() - start}


def others(x: Any, seed: int) -> list[Any]:
    """Another example of the same kind: fresh numbers where it holds floats, its integers in another order."""
    import torch
    from torch.utils._pytree import tree_leaves

    dice = torch.Generator().manual_seed(seed)
    found = []
    for value in tree_leaves(x):
        if value.is_floating_point():
            found.append(torch.rand(value.shape, generator=dice).numpy())
        elif value.ndim == 2:
            found.append(value[:, torch.randperm(value.shape[1], generator=dice)].numpy())
        else:
            found.append(value.numpy())
    return found


def int8(entry: dict[str, Any], plans: Path) -> dict[str, Any]:
    """INT8 of the file that `onnx` left, in two runtimes, each against the float graph: signal to noise in dB."""
    import numpy as np
    import onnx as library
    import onnxruntime
    import openvino

    from edgeprune import quantize
    from edgeprune.recipe import QuantizeSection
    from edgeprune.runtimes.dialects import DIALECTS

    path = kept_at(plans, entry).with_suffix(".onnx")
    model, x = library.load(path), build(entry)[1]
    inputs = [i.name for i in model.graph.input]
    feeds = [dict(zip(inputs, others(x, seed), strict=True)) for seed in range(8)]
    quiet = _quiet()
    float_graph = onnxruntime.InferenceSession(path, quiet, ["CPUExecutionProvider"])
    want = [float_graph.run(None, feed) for feed in feeds[4:]]
    cpu = "ort-x86" if "vnni" in Path("/proc/cpuinfo").read_text() else "ort-x86-avx2"
    found: dict[str, Any] = {}
    for dialect in (DIALECTS["openvino"], DIALECTS[cpu]):
        start = time.process_time()
        try:
            ranges = quantize.calibrate(model, feeds[:4], dialect, QuantizeSection(images=4))
            small = quantize.apply(model, ranges, dialect)
            said = [str(f) for f in quantize.lint(small, dialect)]
            data = small.SerializeToString()
            if dialect.runtime == "openvino":
                hints = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
                core = openvino.Core()
                compiled = core.compile_model(core.read_model(data), "CPU", hints)
                got = [[np.array(v) for v in compiled(feed).values()] for feed in feeds[4:]]
            else:
                session = onnxruntime.InferenceSession(data, quiet, ["CPUExecutionProvider"])
                got = [session.run(None, feed) for feed in feeds[4:]]
            quantised = sum(n.op_type == "QuantizeLinear" for n in small.graph.node)
            found[dialect.name] = {"decibels": _decibels(want, got), "lint": said, "quantised": quantised}
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            found[dialect.name] = {"detail": f"{type(error).__name__}: {str(error)[:300]} ({place})"}
        found[dialect.name]["seconds"] = time.process_time() - start
    return {"runs": all("decibels" in row for row in found.values()), "dialects": found}


def _quiet() -> Any:
    import onnxruntime

    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level, quiet.intra_op_num_threads = 3, 1
    return quiet


def noisy(entry: dict[str, Any], plans: Path) -> dict[str, Any]:
    """What the float graph makes of noise, 40 dB below each floating input: how much a network itself amplifies.

    `selects`: it picks the best of its candidates, so that a small error puts another one in a place.
    """
    import numpy as np
    import onnx as library
    import onnxruntime

    path = kept_at(plans, entry).with_suffix(".onnx")
    selects = any(node.op_type == "TopK" for node in library.load(path).graph.node)
    float_graph = onnxruntime.InferenceSession(path, _quiet(), ["CPUExecutionProvider"])
    dice, x = np.random.default_rng(0), build(entry)[1]
    inputs = [i.name for i in float_graph.get_inputs()]
    want, got = [], []
    for seed in range(4, 8):
        values = others(x, seed)
        beside = [
            v + 0.01 * float(np.sqrt(np.square(v).mean())) * dice.standard_normal(v.shape, np.float32)
            if v.dtype.kind == "f"
            else v
            for v in values
        ]
        want.append(float_graph.run(None, dict(zip(inputs, values, strict=True))))
        got.append(float_graph.run(None, dict(zip(inputs, beside, strict=True))))
    return {"runs": True, "decibels": _decibels(want, got), "selects": selects}


def _decibels(want: list[list[Any]], got: list[list[Any]]) -> list[float]:
    """Of each floating output, the signal's power over the error's, over all examples; 99 where they are equal."""
    import numpy as np

    found = []
    for reference, said in zip(zip(*want, strict=True), zip(*got, strict=True), strict=True):
        a, b = (np.stack([np.asarray(v, np.float64) for v in side]) for side in (reference, said))
        if reference[0].dtype.kind == "f" and np.isfinite(a).all() and a.any():
            noise = float(np.square(a - b).sum() / np.square(a).sum())
            found.append(round(min(99.0, -10 * float(np.log10(max(noise, 1e-30)))), 1))
    return found


def wake(model: Any, x: Any) -> None:
    """Let numbers of order one reach the outputs: with fresh weights and statistics they die out on the way.

    Batch norms get the mean over four random examples; where the outputs are nothing still (a decoder whose weights
    are drawn small), each layer that makes less than a hundredth has its weights scaled to make numbers of order one.
    """
    import torch
    from torch.utils._pytree import tree_leaves, tree_map

    def four(value: Any) -> Any:
        if not value.is_floating_point():
            return value.repeat(4, *[1] * (value.ndim - 1))
        return torch.randn(4, *value.shape[1:])

    def rouse(layer: Any, _: Any, made: Any) -> Any:
        spread = float(made.std())
        if 0 < spread < 1e-2:
            layer.weight.div_(spread)
            return made / spread  # the bias is left as it is: small beside it
        return made

    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    with torch.no_grad(), contextlib.suppress(ValueError, RuntimeError):
        for norm in norms:
            norm.momentum = None  # the plain mean over all that was seen
        call(model.train(), tree_map(four, x))
    model.eval()
    with torch.no_grad():
        outputs = [v for v in tree_leaves(call(model, x)) if isinstance(v, torch.Tensor) and v.is_floating_point()]
        if all(float(v.abs().max()) > 1e-3 for v in outputs if v.numel()):
            return
        kinds = (torch.nn.Linear, torch.nn.modules.conv._ConvNd)
        hooks = [m.register_forward_hook(rouse) for m in model.modules() if isinstance(m, kinds)]
        call(model, x)
        for hook in hooks:
            hook.remove()


def peer(entry: dict[str, Any], plans: Path) -> dict[str, Any]:
    """Torch-Pruning, as in its README: global group magnitude, 30 %, the layers that make the outputs kept."""
    import torch
    import torch_pruning as tp
    from torch.utils._pytree import tree_leaves

    def shapes() -> list[Any]:
        with torch.no_grad():
            return [v.shape for v in tree_leaves(call(model, x)) if isinstance(v, torch.Tensor)]

    model, x = build(entry)
    before, given = sum(p.numel() for p in model.parameters()), shapes()
    ends = entry.get("ends", ())
    start = time.process_time()
    pruner = tp.pruner.BasePruner(
        model, x, importance=tp.importance.GroupMagnitudeImportance(), pruning_ratio=FRACTION, global_pruning=True,
        ignored_layers=[m for name, m in model.named_modules() if name in ends or _last(model, name, m)],
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


PASSES: dict[str, Callable[[dict[str, Any], Path], dict[str, Any]]] = {
    "ours": ours,
    "onnx": onnx,
    "int8": int8,
    "noisy": noisy,
    "peer": peer,
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


def main() -> None:
    """Run what is missing in the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--site", required=True, help="folder with timm, torchvision and torch_pruning")
    parser.add_argument("--out", default="benchmarks/results/zoo.json", type=Path)
    parser.add_argument("--names", type=Path, help="JSON list of models, written on the first run")
    parser.add_argument("--plans", type=Path, help="folder of the plans (default: beside the list of models)")
    parser.add_argument("--passes", nargs="*", default=[*PASSES], choices=[*PASSES])
    parser.add_argument("--only", nargs="*", default=[], help="these alone; 'text/' is a whole family")
    parser.add_argument("--suite", default="")
    parser.add_argument("--redo", action="store_true", help="run again what failed; with --only, all")
    parser.add_argument("--limit", type=float, default=400.0, help="processor seconds a model and pass")
    parser.add_argument("--peer-limit", type=float, default=150.0)
    options = parser.parse_args()
    listing = options.names or options.out.with_name("zoo-models.json")
    if options.suite != "shipped" and not listing.exists():
        listing.write_text(json.dumps(names(options.site), indent=1))
    plans = options.plans or listing.parent / "zoo-plans"
    plans.mkdir(exist_ok=True, parents=True)
    results = kept(options.out)
    prepare(options.site)
    warm()

    def chosen(name: str) -> bool:
        return not options.only or name in options.only or any(name.startswith(o) for o in options.only if o[-1] == "/")

    for kind in options.passes:
        for entry in shipped_names() if options.suite == "shipped" else json.loads(listing.read_text()):
            key = f"{entry['suite']}/{entry['name']}"
            row = dict(results.get(key, {}))
            if not entry["suite"].startswith(options.suite) or not chosen(entry["name"]):
                continue
            failed = kind in row and not row[kind].get({"ours": "proved", "onnx": "equal"}.get(kind, "runs"))
            if kind in row and not (options.redo and (failed or options.only)):
                continue
            needs = {"onnx": ("ours", "proved"), "int8": ("onnx", "equal"), "noisy": ("onnx", "equal")}.get(kind)
            if needs and not row.get(needs[0], {}).get(needs[1]):
                continue
            row[kind] = child(
                kind,
                {**entry, "ends": row.get("ours", {}).get("ends", ())},
                plans,
                options.peer_limit if kind == "peer" else options.limit,
            )
            results = kept(options.out)
            results.setdefault(key, {"entry": entry})[kind] = row[kind]
            save(options.out, results, sort_keys=True)
            said = {k: v for k, v in row[kind].items() if k in ("proved", "equal", "runs", "removed", "detail")}
            print(key, kind, said, flush=True)
    page = zoo_report.PAGE if options.suite == "shipped" else options.out.with_suffix(".md")
    page.write_text(zoo_report.page(results) if options.suite == "shipped" else zoo_report.table(results))
    print("\n".join(zoo_report.summary(results)))


if __name__ == "__main__":
    main()
