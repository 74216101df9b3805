"""Train the head of the transfer example: 14 kinds of groceries, from MobileNetV2's features, which stay as published.

    python examples/transfer/train.py

Logistic regression on the features of the training photographs. Writes `head.safetensors` beside this file (72 kB) and
prints the accuracy on the test photographs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import fit  # noqa: E402
from groceries import Groceries  # noqa: E402
from mobilenet import CLASSES, pretrained  # noqa: E402

from edgeprune import tasks  # noqa: E402


def features(network: nn.Module, split: str) -> tuple[Tensor, Tensor]:
    """([N, 1280], labels) of a split."""
    dataset = Groceries(split)
    found, labels = [], []
    with torch.inference_mode():
        for start in range(0, len(dataset), 20):
            part = [dataset[i] for i in range(start, min(start + 20, len(dataset)))]
            found.append(network.pooled(torch.from_numpy(np.stack([inputs for inputs, _ in part]))))
            labels += [label for _, label in part]
            print(f"{split} {start + len(part)} of {len(dataset)}", flush=True)
    return torch.cat(found).clone(), torch.tensor(labels)


def main() -> None:
    """Look, fit, measure, save."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.manual_seed(0)
    network = pretrained().to(memory_format=torch.channels_last)
    inputs, labels = features(network, "train")
    head = nn.Linear(inputs.shape[1], CLASSES)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(head(inputs), labels) + 1e-3 * head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    fit.save(head, HERE / "head.safetensors")
    test, truth = features(network, "test")
    with torch.inference_mode():
        print(tasks.Classification().score((head(test).numpy(),), truth.tolist()))


if __name__ == "__main__":
    main()
