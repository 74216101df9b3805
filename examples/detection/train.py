"""Train the detector on scenes.

    python examples/detection/train.py [--epochs 12] [--minutes M]

Varifocal loss on the classes, generalised IoU on the boxes; mirrored pictures are the only augmentation, since every
scene is new anyway. Writes `detector.safetensors` beside this file and prints mAP on the test scenes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import fit  # noqa: E402
import scenes  # noqa: E402
from detector import CLASSES, SIDE, STRIDE, decode, detector  # noqa: E402

from edgeprune import tasks  # noqa: E402

BATCH = 16
GRID = SIDE // STRIDE


def assigned(boxes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every place its box [4, G, G] in strides and its class [G, G], -1: none.

    A place belongs to the box whose centre is within 0.8 strides of its own, the nearest one.
    """
    wanted, kind = np.zeros((4, GRID, GRID), np.float32), np.full((GRID, GRID), -1, np.int64)
    nearest = np.full((GRID, GRID), 0.8)
    y, x = np.mgrid[:GRID, :GRID] + 0.5
    for box, label in zip(boxes * GRID, labels, strict=True):
        away = np.maximum(np.abs(x - (box[0] + box[2]) / 2), np.abs(y - (box[1] + box[3]) / 2))
        mine = away < nearest
        nearest[mine], kind[mine] = away[mine], label
        wanted[:, mine] = box[:, None]
    return wanted, kind


def overlap(found: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(IoU, generalised IoU) of boxes [K, 4]."""
    low, high = torch.maximum(found[:, :2], wanted[:, :2]), torch.minimum(found[:, 2:], wanted[:, 2:])
    shared = (high - low).clamp_min(0).prod(1)
    both = sum((b[:, 2:] - b[:, :2]).clamp_min(1e-3).prod(1) for b in (found, wanted)) - shared
    hull = (torch.maximum(found[:, 2:], wanted[:, 2:]) - torch.minimum(found[:, :2], wanted[:, :2])).clamp_min(0)
    around = hull.prod(1).clamp_min(1e-3)
    iou = shared / both.clamp_min(1e-3)
    return iou, iou - (around - both) / around


def loss(maps: object, targets: object) -> Tensor:
    """Varifocal loss of the classes plus twice 1 - GIoU of the boxes, for each place that has one."""
    assert isinstance(maps, Tensor) and isinstance(targets, tuple)
    wanted, kind = targets
    rows = maps.permute(0, 2, 3, 1).reshape(-1, 4 + CLASSES)
    boxes, kinds = wanted.permute(0, 2, 3, 1).reshape(-1, 4), kind.reshape(-1)
    mine = kinds >= 0
    y, x = torch.meshgrid(*[torch.arange(GRID) + 0.5] * 2, indexing="ij")
    centre = torch.stack([x, y], -1).reshape(-1, 2).repeat(len(maps), 1)[mine]
    sides = rows[mine, :4]
    iou, giou = overlap(torch.cat([centre - sides[:, :2], centre + sides[:, 2:]], 1), boxes[mine])
    truth = torch.zeros(len(rows), CLASSES)
    truth[mine, kinds[mine]] = iou.detach().clamp(0, 1)
    logits = rows[:, 4:]
    chance = logits.detach().sigmoid()
    weight = torch.where(truth > 0, truth, 0.75 * chance**2)
    classes = functional.binary_cross_entropy_with_logits(logits, truth, weight, reduction="sum")
    return (classes + 2 * (1 - giou).sum()) / mine.sum().clamp_min(1)


def main() -> None:
    """Draw the scenes, train, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=1e9, help="at most")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    pictures, wanted, kinds = [], [], []
    for made in scenes.drawn("train"):
        for flip in (False, True):
            boxes = np.stack([1 - made.boxes[:, 2], made.boxes[:, 1], 1 - made.boxes[:, 0], made.boxes[:, 3]], 1)
            box, kind = assigned(boxes if flip else made.boxes, made.labels)
            pictures.append(made.picture[:, ::-1] if flip else made.picture)
            wanted.append(box)
            kinds.append(kind)
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    table, classes = torch.from_numpy(np.stack(wanted)), torch.from_numpy(np.stack(kinds))
    print(f"{len(images)} pictures", flush=True)

    def batches(epoch: int) -> Iterator[fit.Batch]:
        """Each scene once an epoch, mirrored or not."""
        draw = np.random.default_rng(epoch)
        order = 2 * draw.permutation(len(images) // 2) + draw.integers(0, 2, len(images) // 2)
        for start in range(0, len(order) - BATCH + 1, BATCH):
            chosen = torch.from_numpy(order[start : start + BATCH])
            yield images[chosen].float() / 255, (table[chosen], classes[chosen])

    network = detector()
    torch.nn.init.constant_(network.head.bias[4:], -4.0)  # nothing nearly everywhere
    steps = len(images) // 2 // BATCH
    trained = fit.fit(
        network, batches, loss, epochs=arguments.epochs, steps=steps, rate=3e-3, minutes=arguments.minutes
    )
    fit.save(trained, HERE / "detector.safetensors")
    test = scenes.Scenes("test")
    task = tasks.Detection(decode)
    print(task.score(*fit.outputs(trained, test, len(test))))


if __name__ == "__main__":
    main()
