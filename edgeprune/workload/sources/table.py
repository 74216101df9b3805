"""Texts of a CSV or parquet table, as token ids and a mask by a tokenizer file of the tokenizers library."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeprune.errors import DataError, MissingDependency, did_you_mean
from edgeprune.workload.sources.examples import Examples, SourceKind

DIGITS = 18  # of a class number


def text_table(
    table: Path,
    tokenizer: Path,
    length: int,
    text: str = "text",
    label: str = "label",
    names: Sequence[str] = ("input_ids", "attention_mask"),
    classes: Sequence[str] = (),
    where: Mapping[str, str] | None = None,
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

    Raises:
        MissingDependency: tokenizers or pyarrow is not installed.
        DataError: an unknown column, a label that is none.
    """
    encode = _tokenizer(tokenizer, length)
    left_out: Counter[str] = Counter()
    texts: list[str] = []
    labels: list[str] = []
    seen: set[tuple[str, str]] = set()
    wanted = [text, label, *(where or {})]
    for row in _rows(table, wanted):
        if any(str(row[column]) != value for column, value in (where or {}).items()):
            left_out["rows of another kind"] += 1
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


def _rows(table: Path, wanted: Sequence[str]) -> Iterator[Mapping[str, object]]:
    if table.suffix == ".parquet":
        try:
            from pyarrow import ArrowException, parquet
        except ModuleNotFoundError:
            raise MissingDependency("pyarrow is not installed.", "pip install 'edgeprune[text]'") from None
        try:
            found = parquet.ParquetFile(table)
            _columns(table, found.schema_arrow.names, wanted)
            for batch in found.iter_batches(columns=list(dict.fromkeys(wanted))):
                yield from batch.to_pylist()
        except (OSError, ArrowException) as cause:
            raise DataError(f"[data] {table} cannot be read as parquet: {cause}.") from None
        return
    if table.suffix not in (".csv", ".tsv"):
        raise DataError(f"[data] {table}: a table is .csv, .tsv or .parquet.")
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if table.suffix == ".tsv" else ",", strict=True)
            _columns(table, reader.fieldnames or (), wanted)
            for row in reader:
                if None in row or None in row.values():
                    raise DataError(f"[data] {table}:{reader.line_num}: the row has not as many cells as the head.")
                yield row
    except (OSError, UnicodeDecodeError, csv.Error) as cause:
        raise DataError(f"[data] {table} cannot be read as a table: {cause}.", "It must be UTF-8.") from None


def _columns(table: Path, there: Sequence[str], wanted: Sequence[str]) -> None:
    for column in wanted:
        if column not in there:
            raise DataError(f"[data] {table} has no column '{column}'.", did_you_mean(column, there))


def _tokenizer(file: Path, length: int) -> Any:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise MissingDependency("tokenizers is not installed.", "pip install 'edgeprune[text]'") from None
    if length < 1:
        raise DataError(f"[data] length is {length}; it must be at least 1.")
    try:
        made = Tokenizer.from_file(str(file))
    except Exception as cause:  # the library raises Exception itself
        raise DataError(f"[data] {file} cannot be read as a tokenizer: {cause}.", "It is a tokenizer.json.") from None
    padding = made.padding or {}
    made.enable_truncation(length)
    made.enable_padding(length=length, pad_id=padding.get("pad_id", 0), pad_token=padding.get("pad_token", "[PAD]"))

    def encode(text: str) -> tuple[Any, Any]:
        found = made.encode(text)
        return np.array(found.ids, np.int64), np.array(found.attention_mask, np.int64)

    return encode


SOURCE = SourceKind("text", text_table, ("table", "tokenizer"), classes=True, tokenizer="tokenizer")
