"""From a variant to its artifact, with whatever weights there are and dummy INT8 ranges.

Latency does not depend on the weights, nor on how large a range is; it does on whether all are the same (dummy_ranges).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from edgeprune import quantize, runtimes
from edgeprune.devices import Artifact
from edgeprune.engine import parts
from edgeprune.graph import Configuration, Structure
from edgeprune.latency.kernels import precisions
from edgeprune.latency.network import FloatGraph, read_network
from edgeprune.latency.sites import Example
from edgeprune.latency.slicing import narrow
from edgeprune.latency.variants import draw
from edgeprune.model import Ends, export_onnx
from edgeprune.target import Target

if TYPE_CHECKING:
    from torch import Tensor, nn

    from edgeprune.engine import Examples

EXAMPLES = 11  # seed


@dataclass(frozen=True, eq=False)
class Built:
    """A variant as an artifact, and what the join with a profile needs."""

    variant: Configuration
    artifact: Artifact
    network: FloatGraph
    precision: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class ArtifactBuilder:
    """Makes artifacts of narrowed networks; see `maker`.

    Attributes:
        dense: the float graph of the whole network.
        structure: of the same network.
        precision: "int8" or "fp32".
        layers: node name -> "int8" or "float", for networks that keep some layers in float.
        ends: what stands before and behind the network in the artifact.
    """

    dense: onnx.ModelProto
    structure: Structure
    target: Target
    folder: Path
    model: nn.Module
    example: Examples
    precision: str = "int8"
    layers: Mapping[str, str] = field(default_factory=dict)
    ends: Ends = field(default_factory=Ends)

    @property
    def network(self) -> str:
        """The name of this network's record in a table: its structure, input, and precision."""
        shape = ",".join("x".join(str(size) for size in part.shape) for part in parts(self.example))
        floats = sorted(name for name, kind in self.layers.items() if kind == "float")
        mixed = f" float:{','.join(floats)}" if floats and self.precision == "int8" else ""
        ends = f" {self.ends.title}" if self.ends else ""
        return f"{self.structure.fingerprint} {shape} {self.precision}{mixed}{ends}"

    def float_graph(self, variant: Configuration) -> onnx.ModelProto:
        """The variant's float ONNX: the dense one sliced, or, where that is not valid, cut and exported."""
        sliced = narrow(self.dense, self.structure, variant) if not variant.options else None
        if sliced is not None:
            return sliced
        kept = {name: range(units) for name, units in variant.widths.items()}
        plan = self.structure.plan(kept, variant.removed, variant.options)
        return export_onnx(plan.apply(self.model), self.example, self.folder / "variant.float.onnx")

    def build(self, variant: Configuration, name: str) -> Built:
        """Make one artifact.

        Raises ModelError where the runtime refuses the graph, RunError where the folder cannot be written.
        """
        graph = self.float_graph(variant)
        network = read_network(graph)
        if self.precision == "int8":
            dialect = runtimes.DIALECTS[self.target.dialect]
            ranges = quantize.dummy_ranges(graph)
            present = {node: kind for node, kind in self.layers.items() if node in network.nodes}
            graph = quantize.apply(graph, ranges, dialect, present)
        self.folder.mkdir(parents=True, exist_ok=True)
        source = self.folder / f"{name}.source.onnx"
        onnx.save(self.ends.around(graph), source)
        try:
            artifact = runtimes.build(source, self.folder, self.target, name, self.precision)
        finally:
            source.unlink(missing_ok=True)
        return Built(variant, artifact, network, precisions(graph))

    def examples(self, count: int = 3) -> list[Example]:
        """Narrowed networks with all blocks, as graphs alone: they tell what follows which layer's channels."""
        found: list[Example] = []
        for variant in draw(self.structure, self.target.channels, count, EXAMPLES, blocks=False):
            sliced = narrow(self.dense, self.structure, variant)
            if sliced is not None:
                found.append((variant.widths, read_network(sliced)))
        return found

    def forget(self, built: Built) -> None:
        """Delete an artifact's files."""
        for path in built.artifact.files.values():
            path.unlink(missing_ok=True)


def maker(
    model: nn.Module,
    structure: Structure,
    example: Examples,
    target: Target,
    folder: Path,
    precision: str = "int8",
    layers: Mapping[str, str] | None = None,
    float_onnx: onnx.ModelProto | None = None,
    ends: Ends | None = None,
) -> ArtifactBuilder:
    """Export the dense network (unless `float_onnx` has it already) and be ready to make variants in `folder`."""
    example = _of_batch(example, target.execution.batch)
    if float_onnx is None:
        float_onnx = export_onnx(model, example, folder / "dense.float.onnx")
    return ArtifactBuilder(
        float_onnx, structure, target, folder, model, example, precision, layers or {}, ends or Ends()
    )


def _of_batch(example: Examples, batch: int) -> Examples:
    """The first example, `batch` times."""

    def whole(part: Tensor) -> Tensor:
        return part[:1].expand(batch, *part.shape[1:]).contiguous()

    if isinstance(example, Mapping):
        return {name: whole(part) for name, part in example.items()}
    made = tuple(whole(part) for part in parts(example))
    return made if isinstance(example, tuple | list) else made[0]
