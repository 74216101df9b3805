"""The user's network and images: load them, check them, and write the float ONNX graph.

Nothing here imports torch before it is needed.
"""

from edgeprune.model.data import ImageData, Preprocess, Split, check_outputs, load_data
from edgeprune.model.ends import Ends
from edgeprune.model.export import check_export, export_onnx
from edgeprune.model.network import (
    check_finite,
    digest,
    example_input,
    factory_of,
    load_factory,
    load_model,
    load_weights,
)
from edgeprune.model.npz import read_npz
from edgeprune.model.sources import call_source, is_function
from edgeprune.model.twins import channels, has_twins, merge_twins
from edgeprune.model.usercode import load_callable, short
from edgeprune.model.weights import assign, read_checkpoint

__all__ = [
    "Ends",
    "ImageData",
    "Preprocess",
    "Split",
    "assign",
    "call_source",
    "channels",
    "check_export",
    "check_finite",
    "check_outputs",
    "digest",
    "example_input",
    "export_onnx",
    "factory_of",
    "has_twins",
    "is_function",
    "load_callable",
    "load_data",
    "load_factory",
    "load_model",
    "load_weights",
    "merge_twins",
    "read_checkpoint",
    "read_npz",
    "short",
]
