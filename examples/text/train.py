"""Train the head of the text example: good or bad, from MiniLM's sentences; the encoder stays as published.

    python examples/text/train.py [--reviews 1000]

Logistic regression on the sentences of the training reviews. Writes `head.safetensors` beside this file (3 kB) and
prints the accuracy on the test reviews.
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
from minilm import MiniLM, encoder  # noqa: E402
from reviews import Reviews  # noqa: E402

from edgeprune import tasks  # noqa: E402


def sentences(network: MiniLM, split: str, count: int) -> tuple[Tensor, Tensor]:
    """([count, 384], labels) of the first reviews of a split."""
    found = []
    items = [Reviews(split)[i] for i in range(count)]
    with torch.inference_mode():
        for start in range(0, count, 50):
            part = [inputs for inputs, _ in items[start : start + 50]]
            ids, mask = (torch.from_numpy(np.stack([one[name] for one in part])) for name in ("ids", "mask"))
            found.append(network.sentence(ids, mask))
    return torch.cat(found).clone(), torch.tensor([label for _, label in items])


def main() -> None:
    """Encode, fit, measure, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviews", type=int, default=1000)
    count = parser.parse_args().reviews
    torch.manual_seed(0)
    network = encoder()
    inputs, labels = sentences(network, "train", count)
    print(f"{len(inputs)} sentences", flush=True)
    head = nn.Linear(inputs.shape[1], 2)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = functional.cross_entropy(head(inputs), labels) + 3e-3 * head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    fit.save(head, HERE / "head.safetensors")
    test, truth = sentences(network, "test", len(Reviews("test")))
    with torch.inference_mode():
        print(tasks.Classification().score((head(test).numpy(),), truth.tolist()))


if __name__ == "__main__":
    main()
