"""`edgeprune inspect FACTORY --input 3,224,224`: groups, frozen parts and reasons, parameters and MACs a group."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeprune.cli import console
from edgeprune.cli.session import current, echo_json, json_option
from edgeprune.errors import ModelError, UsageError

if TYPE_CHECKING:
    from torch import nn

    from edgeprune.graph import Structure


@click.command("inspect")
@click.argument("factory")
@click.option("--input", "shape", required=True, metavar="C,H,W", help="Shape of one example, without the batch.")
@click.option("--weights", type=click.Path(path_type=Path), help="safetensors or a plain state dict.")
@click.option("--opaque", multiple=True, metavar="MODULE", help="A submodule that cannot be captured; may be repeated.")
@json_option
def command(factory: str, shape: str, weights: Path | None, opaque: tuple[str, ...]) -> None:
    """Show which channels of a network may go, and which may not and why.

    FACTORY is "path/to/file.py:callable" or "package.module:callable"; it is called without arguments.
    """
    import torch

    from edgeprune.graph import trace

    sizes = _sizes(shape)
    model = _build(factory, weights)
    structure = trace(model, torch.zeros(1, *sizes), opaque=opaque)
    if current().as_json:
        echo_json(structure.to_dict())
    else:
        _show(structure)


def _sizes(text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1:
        raise UsageError(f"--input {text}: not a shape.", "Give positive sizes with commas, such as --input 3,224,224.")
    return sizes


def _build(factory: str, weights: Path | None) -> nn.Module:
    from torch import nn

    from edgeprune.model import load_factory, load_weights

    build = load_factory(factory)
    try:
        model = build()
    except Exception as error:  # whatever a user's own code may raise
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        raise ModelError(f"{factory}() failed: {what}.", "It is called without arguments.") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{factory}() gave {type(model).__name__}, not a torch.nn.Module.")
    if weights is not None:
        try:
            model.load_state_dict(load_weights(weights))
        except RuntimeError as error:
            lines = str(error).strip().splitlines()
            raise ModelError(
                f"{weights} does not fit {factory}: {(lines[1:] or lines)[0].strip()}",
                "The factory must build the network that was trained.",
            ) from error
    return model


def _show(structure: Structure) -> None:
    macs = sum(layer.macs for layer in structure.layers)
    console.say(
        f"{len(structure.layers)} layers, {structure.parameters:,} parameters, {macs:,} multiply-accumulates a call"
    )
    if not structure.groups:
        console.say(f"Nothing can be narrowed. {structure.obstacle()}".strip())
    groups = console.table(
        "Groups that may be narrowed",
        group="group", size="units", unit="a unit is", parameters="parameters", macs="MACs", makers="made by",
        readers="read by", right="size,parameters,macs",
    )  # fmt: skip
    for g in structure.groups:
        counts = (f"{g.parameters:,}", f"{g.macs:,}", str(len(g.producers)), str(len(g.consumers)))
        groups.add_row(g.name, str(g.size), g.unit, *counts)
    console.show(groups)
    if structure.blocks:
        blocks = console.table("Blocks that may be removed", module="module", stream="on the stream", layers="layers")
        for b in structure.blocks:
            blocks.add_row(b.module, ", ".join(b.groups) or "(frozen)", str(len(b.layers)))
        console.show(blocks)
    if structure.frozen:
        frozen = console.table(
            "Frozen",
            what="what", why="why", operator="operator", source="source", parameters="parameters", macs="MACs",
            right="parameters,macs",
        )  # fmt: skip
        for f in sorted(structure.frozen, key=lambda f: -f.parameters):
            frozen.add_row(f.what, f.why, f.operator, f.source, f"{f.parameters:,}", f"{f.macs:,}")
        console.show(frozen)
