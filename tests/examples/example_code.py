"""The examples' own files as modules, and what their tests need to be there."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "examples"


def module(path: str) -> ModuleType:
    """examples/PATH.py, imported once; its neighbours are found as when it is run."""
    name = "example_" + path.replace("/", "_")
    if name not in sys.modules:
        file = EXAMPLES / f"{path}.py"
        for folder in (str(EXAMPLES), str(file.parent)):
            if folder not in sys.path:
                sys.path.append(folder)
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None
        made = importlib.util.module_from_spec(spec)
        sys.modules[name] = made
        spec.loader.exec_module(made)
    return sys.modules[name]


def cached(what: str, how: str) -> None:
    """Skip where `.cache/examples` lacks what only a fetch from a registry brings."""
    if not list((ROOT / ".cache" / "examples").glob(what)):
        pytest.skip(f"{what} is not in .cache/examples: {how}")


def items() -> None:
    """Skip where Fashion-MNIST is not there."""
    cached("dataset-fashion-mnist", "python examples/scenes.py")


def spoken() -> None:
    """Skip where words were not spoken, and cannot be."""
    cached("words.npz", "python examples/keywords/words.py (espeak-ng)")


def speaker() -> None:
    """Skip where there is no espeak-ng."""
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed: apt-get install espeak-ng")


def trained(path: str, factory: str, weights: str) -> Any:
    """The example's network with its committed weights, every tensor in its place; skip where there are none."""
    from safetensors.torch import load_file

    if not (EXAMPLES / weights).exists():
        pytest.skip(f"{weights} is not there: python examples/{path.partition('/')[0]}/train.py")
    network = getattr(module(path), factory)()
    network.load_state_dict(load_file(EXAMPLES / weights))
    return network.eval()


def outputs(network: Any, dataset: Any, count: int, size: int = 50) -> tuple[tuple[np.ndarray, ...], list[Any]]:
    """(outputs, targets) of the first `count` examples, through `fit.outputs`' like: one array an output."""
    found, targets = [], []
    with torch.inference_mode():
        for start in range(0, count, size):
            part = [dataset[i] for i in range(start, min(start + size, count))]
            if isinstance(part[0][0], dict):
                columns = {name: torch.from_numpy(np.stack([one[name] for one, _ in part])) for name in part[0][0]}
                made = network(**columns)
            else:
                made = network(torch.from_numpy(np.stack([one for one, _ in part])))
            found.append(made.numpy())
            targets += [target for _, target in part]
    return (np.concatenate(found),), targets
