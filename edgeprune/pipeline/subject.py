"""What a run is about: the network, its data and its task, each loaded when it is first asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune import files
from edgeprune.errors import RecipeError
from edgeprune.recipe import Recipe

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import nn

    from edgeprune.engine import Fitted, Session
    from edgeprune.graph import Capture, Structure
    from edgeprune.model import Ends, ImageData
    from edgeprune.pipeline.workloads import Examples, Objects
    from edgeprune.workload import Task, Workload

TRIED = 8  # real images of each split, whenever a run begins; the plan tries more


class Subject:
    """The dense network, and what is known of it. Needs neither a target nor a run directory.

    Args:
        batch: how many examples the target runs at once.
        say: is told what was found: of what ("model", "data"), and a sentence.
        objects: in place of the recipe's names, where Python handed them over.
        model: the dense network, where it is loaded already.
    """

    def __init__(
        self,
        recipe: Recipe,
        batch: int,
        say: Callable[[str, str], None],
        objects: Objects | None = None,
        model: nn.Module | None = None,
    ) -> None:
        self.recipe, self._batch, self._say, self.objects = recipe, batch, say, objects
        self._exported = b""  # the dense network's float graph
        if model is not None:
            self.__dict__["model"] = model

    @cached_property
    def factory(self) -> Callable[[], nn.Module]:
        """Makes the user's network anew, as code alone has it: the weights may still be missing."""
        from edgeprune.model import factory_of

        return self.objects.factory if self.objects is not None else factory_of(self.recipe)

    @cached_property
    def model(self) -> nn.Module:
        """The dense network, in eval mode."""
        return self._build(lambda line: self._say("model", line))

    def _build(self, say: Callable[[str], None] | None = None) -> nn.Module:
        from edgeprune import model
        from edgeprune.pipeline import workloads

        if self.objects is not None:
            return workloads.network(self.objects.factory)
        if self.pictured and not self.recipe.model.input:
            raise RecipeError("[model] input is missing.", "Images need it, such as input = [3, 224, 224].")
        logits = self.pictured and workloads.is_top_class(self.task)
        return model.load_model(self.recipe, say, logits)

    @cached_property
    def task(self) -> Task:
        """What the network is for."""
        from edgeprune.pipeline import tasking

        return self.objects.task if self.objects is not None else tasking.of_recipe(self.recipe)

    @cached_property
    def _returned(self) -> Any:
        """What the function that [data] source names gave; None where it names none."""
        from edgeprune import model

        named = self.objects is None and self.recipe.data.kind in ("images", "function")
        return model.call_source(self.recipe) if named and model.is_function(self.recipe) else None

    @cached_property
    def pictured(self) -> bool:
        """Do the examples come from images that edgeprune reads and prepares itself? Then `data` has them."""
        from edgeprune.pipeline import reading

        kind = self.recipe.data.kind
        return self.objects is None and kind == "images" and not reading.is_datasets(self._returned)

    @cached_property
    def data(self) -> ImageData:
        """The images, where the run is `pictured`; `workload.data` has the examples of every run."""
        import torch

        from edgeprune.model import check_outputs, load_data
        from edgeprune.pipeline import workloads

        assert self.pictured, "the examples are not images that edgeprune prepares: ask workload.data"
        data = load_data(self.recipe, self._returned)
        if workloads.is_top_class(self.task):
            with torch.no_grad():
                check_outputs(data, int(self.model(self.example).shape[1]))
        for line in data.skipped:
            self._say("data", line)
        if workloads.is_top_class(self.task):
            _check_finite(data, self.model)
        return data

    @cached_property
    def workload(self) -> Workload:
        """The network, its inputs, its data and its task: what every stage asks, whatever the task is."""
        from edgeprune.model import digest
        from edgeprune.pipeline import reading, workloads

        if self.pictured:
            return workloads.of_images(self.recipe, self._build, self.data, self.task, self.model, digest(self.model))
        data = (
            self.objects.data
            if self.objects is not None
            else reading.of_recipe(self.recipe, self._returned, lambda line: self._say("data", line))
        )
        made = workloads.of_objects(self._build, self.model, data, self.task, self.recipe)
        for line in made.data.said():
            self._say("data", line)
        return made

    @cached_property
    def ends(self) -> Ends:
        """What stands before and behind the network in its artifacts, as [export] says."""
        from edgeprune.model import Ends

        prepare = self.workload.data.prepare if self.recipe.export.input and not self.pictured else None
        place, decode = getattr(self.task, "output", 0), getattr(self.task, "decode", None)
        return Ends.of_recipe(self.recipe, place, prepare, decode)

    @cached_property
    def example(self) -> Examples:
        """One batch as the target runs it: one tensor, several, or several by name."""
        from edgeprune.model import example_input
        from edgeprune.pipeline import workloads

        return (
            example_input(self.recipe, self._batch) if self.pictured else workloads.example(self.workload, self._batch)
        )

    @cached_property
    def distance(self) -> Fitted | None:
        """How far a network is from the dense one, as search and repair take it; None: softened KL of its logits."""
        from edgeprune import engine
        from edgeprune.pipeline import workloads

        task = self.workload.task
        if workloads.is_top_class(task) and len(engine.call(self.model, self.example)) == 1:
            return None
        given = engine.Given(task.distance, f"distance of {task.metric}")
        return lambda dense: given

    def export(self, network: nn.Module, path: Path) -> ModelProto:
        """The float graph of the network, dense or pruned, which computes what it does; raises ModelError.

        The dense network's is made once a run, from the capture that found its structure.
        """
        import onnx

        from edgeprune import model

        dense = network is self.model
        if dense and self._exported:
            files.write_bytes(path, self._exported)
            return onnx.load_from_string(self._exported)
        capture = self.capture if dense else None
        program = capture.program if capture is not None else None
        made = model.export_onnx(network, self.example, path, self.workload.inputs.names, program)
        model.check_export(network, self.example, made)
        if dense:
            self._exported = path.read_bytes()
        return made

    @cached_property
    def structure(self) -> Structure:
        """What may go."""
        from edgeprune.graph import trace

        return trace(self.model, self.example, opaque=self.recipe.model.opaque, repeats=self.recipe.search.repeats)

    @cached_property
    def capture(self) -> Capture | None:
        """The dense network as it is: the trace's own, or, where that walked another form (attention with heads of
        its own, opaque parts), one more. None where torch cannot capture it.
        """
        import torch

        from edgeprune.graph import as_inputs, capture_model

        if self.structure.capture is not None:
            return self.structure.capture
        with contextlib.suppress(Exception), torch.no_grad():
            return capture_model(self.model, as_inputs(self.example))
        return None

    @cached_property
    def session(self) -> Session:
        """The dense network on a tape, with the search's examples; search and recovery share it."""
        from edgeprune.engine import Session
        from edgeprune.pipeline import workloads

        examples = workloads.examples(self.workload, "train", self.recipe.search.images)
        options = self.recipe.search
        return Session(self.model, examples, distance=self.distance, seed=options.seed, capture=self.capture)

    @property
    def trainer(self) -> list[str]:
        """The user's own trainer, by its source; empty without one."""
        from edgeprune.workload import described

        trainer = self.objects.trainer if self.objects is not None else None
        return [] if trainer is None else [described(trainer)]


def _check_finite(data: ImageData, model: nn.Module) -> None:
    """The network on a few real images of each split; raises ModelError when an output is NaN or infinite."""
    import numpy as np
    import torch

    from edgeprune.errors import ModelError

    for split in (data.train, data.selection, data.test):
        chosen = np.random.default_rng(0).permutation(len(split))[:TRIED].tolist()
        if not chosen:
            continue
        with torch.no_grad():
            outputs = model(torch.from_numpy(split.arrays(chosen)))
        broken = int((~torch.isfinite(outputs)).any(1).sum())
        if broken:
            raise ModelError(
                f"[model] the network's output is NaN or infinite on {broken} of {len(chosen)} images of the "
                f"{split.name} split.",
                "Check the weights, and [data] scale, mean and std: a random example was finite.",
            )
