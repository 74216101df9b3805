"""Can the budget be met at all? The dense network in FP32 and INT8, and the smallest networks that pruning can make."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx

from edgeprune import latency, model
from edgeprune.devices import Loaded
from edgeprune.errors import BudgetError
from edgeprune.latency import Maker, Variant
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.rundir import read_json, write_json


def plan_stage(context: Context, folder: Path) -> None:
    """dense.onnx, feasibility.json: measured on the device; nothing is trained."""
    model.export_onnx(context.model, context.example, folder / "dense.onnx")
    recipe = context.recipe
    blocks = recipe.search.blocks and recipe.search.method == "joint"
    maker = variant_maker(context, folder / "dense.onnx", folder / "variants")
    found = latency.feasibility(maker, context.device, recipe.budget, blocks)
    write_json(folder / "feasibility.json", {**asdict(found), "possible": found.possible})


def variant_maker(context: Context, dense: Path, folder: Path) -> Maker:
    """Makes INT8 artifacts of narrowed networks for latency alone; their weights do not matter."""
    return latency.maker(
        context.model, context.structure, context.example, context.target, folder, float_onnx=onnx.load(dense)
    )


def plan_report(context: Context) -> dict[str, Any]:
    """What `edgeprune TARGET plan` prints and `--json` gives."""
    found = read_json(context.folder("plan") / "feasibility.json")
    frozen = read_json(context.folder("graph") / "structure.json").get("frozen", [])
    return {
        **found,
        "feasible": found["possible"],
        "advice": " ".join(part for part in (found["message"], found["remedy"]) if part),
        "layers": [{**layer, "ms": layer["time"]} for layer in found["layers"]],
        "frozen": frozen,
    }


def refuse_impossible(context: Context) -> None:
    """Before any training: raise BudgetError when the plan says that the budget cannot be met."""
    found = read_json(context.folder("plan") / "feasibility.json")
    if not found["possible"]:
        raise BudgetError(f"{context.target.name}: {found['message']}", found["remedy"])


def load_variant(context: Context, maker: Maker, variant: Variant, name: str) -> Loaded:
    """Build one narrowed network and open it on the device."""
    return context.device.load(maker.build(variant, name).artifact)
