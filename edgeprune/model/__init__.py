"""The user's network and images: load them, check them, and write the float ONNX graph.

Nothing here imports torch before it is needed.
"""

from edgeprune.model.data import Data, Preprocess, Split, load_data
from edgeprune.model.export import export_onnx
from edgeprune.model.network import digest, example_input, load_factory, load_model, load_weights

__all__ = [
    "Data",
    "Preprocess",
    "Split",
    "digest",
    "example_input",
    "export_onnx",
    "load_data",
    "load_factory",
    "load_model",
    "load_weights",
]
