"""Where examples come from: one file each. What is left out is counted, by reason, and said.

A source gives `Examples`, a map-style dataset that also knows its classes and what it left out. Images by class
folder and .npz arrays are in `edgeprune.model.data`; a function of the user's is `function`. A file here with a
`SOURCE` is a kind of [data]; nothing else has to know of it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from edgeprune.workload.sources.coco import coco_boxes
from edgeprune.workload.sources.examples import Examples, SourceKind, function
from edgeprune.workload.sources.masks import mask_folder
from edgeprune.workload.sources.table import head_of, rows_of, text_table, tokens_of
from edgeprune.workload.sources.voc import voc_boxes
from edgeprune.workload.sources.wav import wav_folders
from edgeprune.workload.sources.yolo import yolo_boxes

__all__ = [
    "KINDS",
    "Examples",
    "SourceKind",
    "coco_boxes",
    "function",
    "head_of",
    "mask_folder",
    "rows_of",
    "text_table",
    "tokens_of",
    "voc_boxes",
    "wav_folders",
    "yolo_boxes",
]

HELPERS = frozenset({"__init__", "examples"})  # files here that are no source


def _found() -> Mapping[str, SourceKind]:
    """Every source, by the name that a recipe has for it."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in HELPERS)
    found = [importlib.import_module(f"edgeprune.workload.sources.{name}").SOURCE for name in names]
    return MappingProxyType({source.name: source for source in found})


KINDS = _found()
