"""What all stages of one run share: the recipe, the target, the run directory, and what is loaded once on demand."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgeprune import __version__
from edgeprune.pipeline.rundir import RunDirectory, key_of
from edgeprune.recipe import Recipe
from edgeprune.target import Target

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgeprune.devices import Device, Probe
    from edgeprune.graph import Structure
    from edgeprune.model import Data
    from edgeprune.runtimes.dialects import Dialect


@dataclass(frozen=True)
class Event:
    """Something to show: kind "stage" (begins), "progress" (done of total), "line" (said once) or "done" (whole)."""

    kind: str
    stage: str
    message: str = ""
    done: float = 0.0
    total: float = 0.0


Listener = Callable[[Event], None]


def silent(event: Event) -> None:
    """Show nothing."""


class Context:
    """One run. `model`, `data`, `structure` and `device` are made when they are first asked for."""

    def __init__(self, recipe: Recipe, target: Target, run: RunDirectory, device: str, listener: Listener) -> None:
        from edgeprune.devices import reached
        from edgeprune.validate import deadline

        self.recipe, self.run, self.device_name, self.listener = recipe, run, device, listener
        self.target = reached(target, device)
        deadline(1.0, recipe.budget, self.target.protocol.unit)  # milliseconds mean nothing to an instruction clock
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *exc: Any) -> None:
        self.stack.__exit__(*exc)

    def folder(self, stage: str) -> Path:
        """The folder of a whole stage."""
        return self.run.path / stage

    def progress(self, stage: str) -> Callable[[float, float, str], None]:
        """A callback (done, total, message) that shows progress at most ten times a second."""
        last = [0.0]

        def show(done: float, total: float, message: str = "") -> None:
            now = time.monotonic()
            if now - last[0] > 0.1 or done >= total:
                last[0] = now
                self.listener(Event("progress", stage, message, done, total))

        return show

    def say(self, stage: str, message: str) -> None:
        """One line for the user and the event log."""
        self.listener(Event("line", stage, message))
        self.run.event("line", stage=stage, message=message)

    @cached_property
    def model(self) -> nn.Module:
        """The dense network, in eval mode."""
        from edgeprune.model import load_model

        return load_model(self.recipe)

    @cached_property
    def data(self) -> Data:
        """The images."""
        from edgeprune.model import load_data

        data = load_data(self.recipe)
        _check_classes(data, self.model, self.example)
        return data

    @cached_property
    def example(self) -> torch.Tensor:
        """One batch as the target runs it."""
        from edgeprune.model import example_input

        return example_input(self.recipe, self.target.execution.batch)

    @cached_property
    def structure(self) -> Structure:
        """What may go."""
        from edgeprune.graph import trace

        return trace(self.model, self.example, opaque=self.recipe.model.opaque)

    @cached_property
    def device(self) -> Device:
        """The connected device; closed at the end of the run."""
        from edgeprune.devices import connect

        device: Device = connect(self.target, self.device_name)
        return self.stack.enter_context(device)

    @cached_property
    def probe(self) -> Probe:
        """The device as it was when the run first looked."""
        return self.device.probe()

    @cached_property
    def dialect(self) -> Dialect:
        """The target's Q/DQ scheme."""
        from edgeprune.runtimes.dialects import DIALECTS

        return DIALECTS[self.target.dialect]

    @cached_property
    def keys(self) -> dict[str, str]:
        """What each stage depends on, as a hash: its own settings and the stage before."""
        from edgeprune.model import digest

        recipe, target = self.recipe, self.target.to_dict()
        for said in ("title", "evidence", "notes"):
            target.pop(said)
        data = recipe.section("data")
        budget = recipe.section("budget")
        graph = key_of(__version__, recipe.section("model"), digest(self.model))
        device = key_of(graph, target, self.device_name, self.probe.fingerprint)
        speed = {key: budget[key] for key in ("speedup", "latency_ms", "max_bytes")}
        choice = recipe.section("search")
        plan = key_of(device, speed, choice["method"], choice["blocks"])
        latency = key_of(device, choice["method"], choice["blocks"])
        search = key_of(latency, speed, choice, data, self.data.digest)
        recover = key_of(search, recipe.section("recover"))
        quantize = key_of(recover, recipe.section("quantize"))
        artifacts = key_of(quantize)
        validate = key_of(artifacts, budget)
        return {
            "graph": graph,
            "plan": plan,
            "latency": latency,
            "search": search,
            "recover": recover,
            "quantize": quantize,
            "artifacts": artifacts,
            "validate": validate,
            "release": key_of(validate, recipe.name),
        }

    def environment(self) -> dict[str, Any]:
        """Versions of what computed on this host."""
        from importlib import metadata

        packages = ("edgeprune", "torch", "onnx", "onnxruntime", "openvino", "numpy", "scipy")
        versions = {}
        for name in packages:
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions[name] = metadata.version(name)
        return {"python": platform.python_version(), "system": platform.platform(terse=True), "packages": versions}


def _check_classes(data: Data, model: nn.Module, example: torch.Tensor) -> None:
    import torch

    from edgeprune.errors import DataError

    with torch.no_grad():
        outputs = int(model(example).shape[1])
    highest = int(max(data.train.labels.max(), data.test.labels.max()))
    if highest >= outputs:
        raise DataError(
            f"[data] labels go up to {highest}, but the network has {outputs} outputs.", "Labels count from 0."
        )


def lock_recipe(recipe: Recipe, target: Target) -> str:
    """recipe.lock.toml: the recipe with every default, as TOML."""
    lines = [f"# The recipe with every default, as it ran on {target.name}.", f'target = "{target.name}"', ""]
    for name in ("model", "data", "budget", "search", "recover", "quantize"):
        lines += [f"[{name}]", *_toml(msgspec.to_builtins(getattr(recipe, name))), ""]
    return "\n".join(lines)


def _toml(section: dict[str, Any]) -> list[str]:
    return [f"{key} = {_toml_value(value)}" for key, value in section.items() if value is not None]


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{k}" = {_toml_value(v)}' for k, v in value.items() if v is not None) + "}"
    return repr(value)
