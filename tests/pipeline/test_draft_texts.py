"""Tables of text become a recipe: the columns, the tokenizer, the length and the test rows are found."""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from edgeprune import pipeline, target
from edgeprune.errors import DataError, ModelError, RunError, UsageError
from edgeprune.pipeline import Wanted, layout_folders, layout_tables
from edgeprune.workload import sources

tokenizers = pytest.importorskip("tokenizers")

WORDS = {"bill": 2, "crash": 3, "parcel": 4, "invoice": 5, "error": 6, "delivery": 7, "please": 8, "today": 9}
KINDS = {"billing": ("bill", "invoice"), "bug": ("crash", "error"), "shipping": ("parcel", "delivery")}
NETWORK = """
import torch
from torch import nn

class Bag(nn.Module):
    '''Knows the words of three kinds of ticket; positions 0..39 only.'''

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(10, 8)
        self.places = nn.Embedding(40, 8)
        self.inner = nn.Linear(8, 16)
        self.head = nn.Linear(16, 3)
        with torch.no_grad():
            for one in self.parameters():
                one.zero_()
            for kind in range(3):
                self.words.weight[[2 + kind, 5 + kind], kind] = 1.0
                self.inner.weight[kind, kind] = 1.0
                self.head.weight[kind, kind] = 30.0

    def forward(self, ids, mask):
        found = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        return self.head(torch.relu(self.inner((found * mask[..., None]).mean(1))))

def net():
    return Bag().eval()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("bag.py").write_text(NETWORK)
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[PAD]": 0, "[UNK]": 1, **WORDS}, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save("tokenizer.json")
    return tmp_path


def tickets(count: int = 300, longest: int = 20) -> list[list[str]]:
    """(number, subject, kind): texts of up to so many words, each with a word of its kind, no two alike."""
    random, rows = np.random.default_rng(0), []
    for number in range(count):
        kind = list(KINDS)[number % 3]
        fill = [f"n{number}", *random.choice(["please", "today"], random.integers(2, longest))]
        fill.insert(int(random.integers(len(fill))), str(random.choice(KINDS[kind])))
        rows.append([str(number), " ".join(fill), kind])
    return rows


def write(path: str, rows: list[list[str]], head: tuple[str, ...] = ("number", "subject", "kind")) -> None:
    with Path(path).open("w", newline="") as file:
        csv.writer(file, delimiter="\t" if path.endswith("tsv") else ",").writerows([head, *rows])


@pytest.mark.long
def test_one_table_becomes_a_recipe_that_holds(here: Path) -> None:
    write("tickets.csv", tickets())
    said = list[str]()
    made = pipeline.draft(Wanted("bag.py:net", "tickets.csv", speedup=1.2), here, lambda about, text: said.append(text))
    data = made.recipe.data
    assert data.kind == "text" and data.splits["test"] == {"table": "tickets.csv", "part": "test"}
    assert data.options["text"] == "subject" and data.options["label"] == "kind"
    assert data.options["names"] == ["ids", "mask"] and data.options["length"] == 32
    assert made.dense.value == 100.0 and made.dense.metric == "top-1"
    assert any("texts in 'subject', labels in 'kind'; 32 tokens hold 100 % of them" in line for line in said)


def test_no_text_is_in_both_parts_whatever_the_order_of_the_rows(here: Path) -> None:
    rows = tickets()
    write("a.csv", [*rows, *rows[:50]])
    write("b.csv", rows[::-1])
    parts = {
        (file, part): {
            tuple(one[0]["input_ids"].tolist())
            for one in sources.text_table(Path(file), Path("tokenizer.json"), 32, "subject", "kind", part=part)
        }
        for file in ("a.csv", "b.csv")
        for part in ("train", "test")
    }
    assert parts["a.csv", "test"] == parts["b.csv", "test"]
    count = len(sources.text_table(Path("a.csv"), Path("tokenizer.json"), 32, "subject", "kind", part="test"))
    assert 0.1 * len(rows) < count < 0.3 * len(rows)
    with pytest.raises(DataError, match="part is 'dev'"):
        sources.text_table(Path("a.csv"), Path("tokenizer.json"), 32, "subject", "kind", part="dev")


def test_a_column_of_splits_and_files_of_splits_are_taken(here: Path) -> None:
    rows = tickets()
    write(
        "one.csv", [[*row, "train" if k % 4 else "test"] for k, row in enumerate(rows)], ("n", "text", "label", "split")
    )
    found = layout_folders.look(Path("one.csv"))
    assert found.splits["test"] == {"table": "one.csv", "where": {"split": "test"}} and "text" not in found.options
    (here / "split").mkdir()
    write("split/train.tsv", rows[:200])
    write("split/valid.tsv", rows[200:])
    found = layout_folders.look(Path("split"), tokenizer="tokenizer.json")
    assert found.splits == {"train": {"table": "split/train.tsv"}, "test": {"table": "split/valid.tsv"}}


def test_a_sorted_table_shows_its_labels(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_tables, "LOOK", 60)
    write("sorted.csv", sorted(tickets(), key=lambda row: row[2]))
    assert layout_folders.look(Path("sorted.csv")).options["label"] == "kind"


@pytest.mark.long
def test_a_network_of_fewer_places_gets_shorter_texts(here: Path) -> None:
    write("long.csv", tickets(longest=90))
    made = pipeline.draft(Wanted("bag.py:net", "long.csv"), here, lambda *_: None)
    assert made.recipe.data.options["length"] == 32
    stated = pipeline.draft(Wanted("bag.py:net", "long.csv", input=(24,)), here, lambda *_: None)
    assert stated.recipe.data.options["length"] == 24 and not stated.recipe.model.input
    with pytest.raises(ModelError):
        pipeline.draft(Wanted("bag.py:net", "long.csv", input=(64,)), here, lambda *_: None)
    with pytest.raises(UsageError, match="a number of tokens"):
        pipeline.draft(Wanted("bag.py:net", "long.csv", input=(24, 2)), here, lambda *_: None)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda here: (here / "tokenizer.json").unlink(), "no tokenizer.json beside it or beside the network"),
        (lambda here: write("t.csv", [[str(n), f"text {n}", f"own {n}"] for n in range(60)]), "looks like labels"),
        (lambda here: write("t.csv", []), "0 rows"),
    ],
)
def test_what_is_missing_is_asked_for(here: Path, change, says: str) -> None:
    write("t.csv", tickets(60))
    change(here)
    with pytest.raises(DataError) as caught:
        pipeline.draft(Wanted("bag.py:net", "t.csv"), here, lambda *_: None)
    assert says in caught.value.message and not list(here.glob("*-data*"))


@pytest.mark.slow
def test_the_tokenizer_that_was_measured_is_bundled(here: Path) -> None:
    """The tokenizer lies in a folder of its own in the run: it is evidence as all other files are."""
    write("tickets.csv", tickets())
    wide = NETWORK.replace("8, 16", "8, 1024").replace("16, 3", "1024, 3")
    Path("wide.py").write_text(wide.replace("(found * mask[..., None]).mean(1))", "found * mask[..., None])).mean(1"))
    made = pipeline.draft(Wanted("wide.py:net", "tickets.csv", speedup=1.1), here, lambda *_: None)
    asked = pipeline.override(made.recipe, "recover", epochs=0)
    asked = pipeline.override(asked, "search", method="uniform")
    asked = pipeline.override(asked, "budget", max_drop=100.0)
    run = pipeline.run(asked, target.load("x86-onnxruntime"), here / "run", until="validate").run_dir
    tokenizer = run / "validate" / "input" / "tokenizer.json"
    # the package has a function of that name
    check = importlib.import_module("edgeprune.release.bundle")._check_evidence
    known = json.loads((run / "validate" / "measured.json").read_text())["sha256"]
    assert known["validate/input/tokenizer.json"] == hashlib.sha256(Path("tokenizer.json").read_bytes()).hexdigest()
    check(run, {"input/tokenizer.json": tokenizer})
    tokenizer.write_text("{}")
    with pytest.raises(RunError, match=r"tokenizer\.json is not the file that was measured"):
        check(run, {"input/tokenizer.json": tokenizer})
