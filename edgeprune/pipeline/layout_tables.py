"""Tables of text: which column is the text and which the label, how long the texts are, where the test rows are.

`[data] kind = "text"` reads them with the tokenizer.json that the network was trained with, and no other: other token
numbers are other words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeprune.errors import DataError
from edgeprune.pipeline.layout import HELD, Layout, Tree, by_role, role, told
from edgeprune.workload import sources

TABLES = frozenset({".csv", ".tsv", ".parquet"})
FILE = "tokenizer.json"
LOOK = 2000  # rows that are looked at
USUAL, STEP, MOST = 0.95, 16, 128  # share of texts that are not cut; what lengths are multiples of, at most
CLASSES = 0.2  # of the rows: a column with more values than that is no label
_TEXTS = ("text", "sentence", "review", "content", "body", "message", "comment", "utterance", "question", "title")
_LABELS = ("label", "labels", "class", "target", "category", "sentiment", "intent", "topic", "y")
_SPLITS = ("split", "subset", "fold", "part")


@dataclass(frozen=True)
class End:
    """Where a split lies: a table, and which of its rows."""

    table: str
    where: Mapping[str, str] | None = None
    part: str = ""

    def stated(self) -> dict[str, object]:
        """As [data] splits has it."""
        return {key: value for key, value in vars(self).items() if value}


def of_file(path: Path, tokenizer: str, beside: Sequence[Path] = ()) -> Layout:
    """One table: its own column of splits, or a draw of its texts. Raises DataError."""
    columns, rows = _looked(path)
    splits = _of_column(columns, rows)
    if splits:
        said, name = f"{path.name}, split by its column '{splits[0]}'", splits[0]
        ends = {split: End(str(path), {name: value}) for split, value in splits[1].items()}
    else:
        said = f"{path.name}, not split: a seeded draw of {100 * HELD:.0f} % of the texts is the test split"
        ends = {split: End(str(path), part=split) for split in ("train", "test")}
    return _made(path, columns, rows, ends, said, _tokenizer(tokenizer, (path.parent, *beside)))


def of_folder(tree: Tree, tokenizer: str, beside: Sequence[Path] = ()) -> Layout | None:
    """train.csv and test.csv and the like, or one table; None where there is none."""
    found = tree.of(tree.root, TABLES)
    splits = by_role((path.stem, path) for path in found)
    if not splits:
        if len(found) != 1 or role(found[0].stem):
            return None
        return of_file(found[0], tokenizer, (tree.root, *beside))
    first = splits["train"]
    columns, rows = _looked(first)
    ends = {split: End(str(path)) for split, path in splits.items()}
    said = ", ".join(f"{split} in {path.name}" for split, path in splits.items())
    return _made(first, columns, rows, ends, said, _tokenizer(tokenizer, (tree.root, *beside)))


def _made(
    path: Path,
    columns: Sequence[str],
    rows: Sequence[Mapping[str, str]],
    ends: Mapping[str, End],
    said: str,
    tokenizer: Path,
) -> Layout:
    text, label = _columns(path, columns, rows)
    longest = sources.tokens_of(tokenizer, [row[text] for row in rows if row[text].strip()])
    if not longest:
        raise DataError(f"--data {path}: the column '{text}' has no text.", "Give the recipe the columns.")
    length = min(MOST, STEP * max(1, math.ceil(float(np.quantile(longest, USUAL)) / STEP)))
    options: dict[str, object] = {"tokenizer": str(tokenizer), "length": length}
    options |= {"text": text} if text != "text" else {}
    options |= {"label": label} if label != "label" else {}
    counts = {split: len(_read(options, end, tokenizer, length)) for split, end in ends.items()}
    said = f"{said}: {told(counts)}"
    held = float(np.mean(np.asarray(longest) <= length))
    where = f"texts in '{text}', labels in '{label}'; {length} tokens hold {100 * held:.0f} % of them"
    where += " (--input says otherwise)"
    splits = {split: end.stated() for split, end in ends.items()}
    return Layout("text", f"{said}; {where}", splits=splits, options=options, task="classification", counts=counts)


def _read(options: Mapping[str, object], end: End, tokenizer: Path, length: int) -> sources.Examples:
    """A split, as the recipe will have it."""
    text, label = (str(options.get(name, name)) for name in ("text", "label"))
    return sources.text_table(Path(end.table), tokenizer, length, text, label, where=end.where, part=end.part)


def _looked(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns, and some rows, drawn from all, as tables are often sorted; raises DataError."""
    columns = sources.head_of(path)
    held, random = list[dict[str, str]](), np.random.default_rng(0)
    for number, row in enumerate(sources.rows_of(path, columns)):
        place = number if number < LOOK else int(random.integers(number + 1))
        if place < LOOK:
            held[place : place + 1] = [{name: str(row[name] or "") for name in columns}]
    if len(held) < 2:
        raise DataError(f"--data {path}: {len(held)} rows.", "A table has a head, and a row for each text.")
    return columns, held


def _columns(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> tuple[str, str]:
    """Text and label: by name, or else the longest texts, and the column of fewest values beside it."""
    lengths = {name: sum(len(row[name]) for row in rows) / len(rows) for name in columns}
    text = next(_called(columns, _TEXTS), max(columns, key=lambda name: lengths[name]))
    others = [name for name in columns if name != text and name.lower() not in _SPLITS]
    values = {name: len({row[name] for row in rows}) for name in others}
    some = [name for name in others if 1 < values[name] <= max(2, CLASSES * len(rows))]
    label = next(_called(some, _LABELS), min(some, key=lambda name: values[name], default=""))
    if not label:
        raise DataError(
            f"--data {path}: of its columns ({', '.join(columns)[:200]}) none looks like labels of '{text}'.",
            "Name them text and label, or write [data] options text and label (your-text.md).",
        )
    return text, label


def _called(columns: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    return (column for name in names for column in columns if column.lower() == name)


def _of_column(columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> tuple[str, dict[str, str]] | None:
    """A column that says each row's split, and the split's value; None where there is none."""
    for name in _called(columns, _SPLITS):
        values = {value: value for value in dict.fromkeys(row[name] for row in rows)}
        found = by_role((value, Path(value)) for value in values)
        if found:
            return name, {split: str(value) for split, value in found.items()}
    return None


def _tokenizer(given: str, folders: Sequence[Path]) -> Path:
    if given:
        if not Path(given).is_file():
            raise DataError(f"--tokenizer {given}: no such file.", "Give the tokenizer.json of the network's training.")
        return Path(given)
    for folder in folders:
        if (folder / FILE).is_file():
            return folder / FILE
    raise DataError(
        "a table of text, and no tokenizer.json beside it or beside the network.",
        "Give the one that the network was trained with: --tokenizer tokenizer.json.",
    )
