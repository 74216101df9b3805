"""Texts of a CSV or parquet table, as token ids and a mask by a tokenizer file of the tokenizers library."""

from __future__ import annotations

import contextlib
import csv
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import DataError, MissingDependency, did_you_mean
from edgeprune.workload.sources.examples import Examples, SourceKind

DIGITS = 18  # of a class number
PARTS = ("train", "test")


def text_table(
    table: Path,
    tokenizer: Path,
    length: int,
    text: str = "text",
    label: str = "label",
    names: Sequence[str] = ("input_ids", "attention_mask"),
    classes: Sequence[str] = (),
    where: Mapping[str, str] | None = None,
    part: str = "",
) -> Examples:
    """Rows as ({ids, mask}, class): int64 of [length], cut or padded.

    Args:
        table: .csv (with a head), .tsv or .parquet.
        tokenizer: a tokenizer.json, the one that the network was trained with.
        length: of ids and mask.
        text, label: names of columns.
        names: of the network's arguments for the ids and for the mask; one: no mask.
        classes: names of labels by number; empty: whole numbers are taken as they are, else the labels, sorted.
        where: column -> the value that rows must have; others are counted.
        part: "train" or "test": of a table that is not split the four fifths or the fifth of the texts that a hash
            deals out, so that no text is in both, in whatever order the rows are.

    Raises:
        MissingDependency: tokenizers or pyarrow is not installed.
        DataError: an unknown column, a label that is none.
    """
    if part not in ("", *PARTS):
        raise DataError(f"[data] {table}: part is '{part[:40]}'.", "'train' or 'test'; without it, all rows.")
    encode = _tokenizer(tokenizer, length)
    left_out: Counter[str] = Counter()
    texts: list[str] = []
    labels: list[str] = []
    seen: set[tuple[str, str]] = set()
    wanted = [text, label, *(where or {})]
    for row in rows_of(table, wanted):
        if any(str(row[column]) != value for column, value in (where or {}).items()):
            left_out["rows of another kind"] += 1
        elif part and _part(str(row[text])) != part:
            left_out["rows of the other part"] += 1
        elif not str(row[text] or "").strip():
            left_out["rows without text"] += 1
        elif (str(row[text]), str(row[label])) in seen:
            left_out["rows that stand twice"] += 1
        else:
            seen.add((str(row[text]), str(row[label])))
            texts.append(str(row[text]))
            labels.append(str(row[label]).strip())
    if not texts:
        raise DataError(f"[data] {table} has no row with text.", "Check the columns.")
    numbers, known = _numbered(labels, tuple(classes), table)

    def read(number: int) -> tuple[Any, int]:
        ids, mask = encode(texts[number])
        return dict(zip(names, (ids, mask), strict=False)), numbers[number]

    return Examples(tuple(str(n) for n in range(len(texts))), read, known, left_out)


def head_of(table: Path) -> list[str]:
    """The names of a table's columns; raises MissingDependency, DataError."""
    if table.suffix == ".parquet":
        pyarrow, parquet = _pyarrow()
        try:
            return list(parquet.ParquetFile(table).schema_arrow.names)
        except (OSError, pyarrow.ArrowException) as cause:
            raise DataError(f"[data] {table} cannot be read as parquet: {cause}.") from None
    with _opened(table) as reader:
        return list(reader.fieldnames or ())


def tokens_of(tokenizer: Path, texts: Sequence[str]) -> list[int]:
    """How many tokens each text has, uncut; raises MissingDependency, DataError."""
    made = _loaded(tokenizer)
    made.no_truncation()
    made.no_padding()
    return [len(found.ids) for found in made.encode_batch(list(texts))]


def _part(text: str) -> str:
    """A fifth of all texts is the test part."""
    return PARTS[hashlib.sha256(text.strip().encode("utf-8", "replace")).digest()[0] % 5 == 0]


def _numbered(labels: list[str], classes: tuple[str, ...], table: Path) -> tuple[list[int], tuple[str, ...]]:
    if classes:
        place = {name: number for number, name in enumerate(classes)}
        for label in labels:
            if label not in place:
                raise DataError(f"[data] {table}: label '{label[:40]}' is no class.", did_you_mean(label, classes))
        return [place[label] for label in labels], classes
    if all(len(label) <= DIGITS and label.removeprefix("+").isdecimal() for label in labels):
        return [int(label) for label in labels], ()
    known = tuple(sorted(set(labels)))
    if "" in known:
        raise DataError(f"[data] {table} has rows without a label.", "Fill them or remove the rows.")
    if len(known) > len(labels) // 2 and len(labels) > 20:
        raise DataError(f"[data] {table}: nearly every row has a label of its own.", "Is it the right column?")
    return [known.index(label) for label in labels], known


def rows_of(table: Path, wanted: Sequence[str]) -> Iterator[Mapping[str, object]]:
    """The rows, with these columns at least; raises MissingDependency, DataError."""
    if table.suffix == ".parquet":
        pyarrow, parquet = _pyarrow()
        try:
            found = parquet.ParquetFile(table)
            _columns(table, found.schema_arrow.names, wanted)
            for batch in found.iter_batches(columns=list(dict.fromkeys(wanted))):
                yield from batch.to_pylist()
        except (OSError, pyarrow.ArrowException) as cause:
            raise DataError(f"[data] {table} cannot be read as parquet: {cause}.") from None
        return
    with _opened(table) as reader:
        _columns(table, reader.fieldnames or (), wanted)
        for row in reader:
            if None in row or None in row.values():
                raise DataError(f"[data] {table}:{reader.line_num}: the row has not as many cells as the head.")
            yield row


@contextlib.contextmanager
def _opened(table: Path) -> Iterator[csv.DictReader[str]]:
    if table.suffix not in (".csv", ".tsv"):
        raise DataError(f"[data] {table}: a table is .csv, .tsv or .parquet.")
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            yield csv.DictReader(file, delimiter="\t" if table.suffix == ".tsv" else ",", strict=True)
    except (OSError, UnicodeDecodeError, csv.Error) as cause:
        raise DataError(f"[data] {table} cannot be read as a table: {cause}.", "It must be UTF-8.") from None


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise MissingDependency("pyarrow is not installed.", "pip install 'edgeprune[text]'") from None
    return pyarrow, parquet


def _columns(table: Path, there: Sequence[str], wanted: Sequence[str]) -> None:
    for column in wanted:
        if column not in there:
            raise DataError(f"[data] {table} has no column '{column}'.", did_you_mean(column, there))


def _loaded(file: Path) -> Any:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise MissingDependency("tokenizers is not installed.", "pip install 'edgeprune[text]'") from None
    try:
        return Tokenizer.from_file(str(file))
    except Exception as cause:  # the library raises Exception itself
        raise DataError(f"[data] {file} cannot be read as a tokenizer: {cause}.", "It is a tokenizer.json.") from None


def _tokenizer(file: Path, length: int) -> Any:
    if length < 1:
        raise DataError(f"[data] length is {length}; it must be at least 1.")
    made = _loaded(file)
    padding = made.padding or {}
    made.enable_truncation(length)
    made.enable_padding(length=length, pad_id=padding.get("pad_id", 0), pad_token=padding.get("pad_token", "[PAD]"))

    def encode(text: str) -> tuple[Any, Any]:
        found = made.encode(text)
        return np.array(found.ids, np.int64), np.array(found.attention_mask, np.int64)

    return encode


SOURCE = SourceKind("text", text_table, ("table", "tokenizer"), classes=True, tokenizer="tokenizer")
