"""Raising a graph to the opset that a dialect writes, only where an operator's meaning changed in between."""

from __future__ import annotations

import onnx
from onnx import defs, helper, version_converter

from edgeprune.errors import GraphError


def version_of(model: onnx.ModelProto) -> int:
    """The ai.onnx opset of a model."""
    return max((int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def raised(model: onnx.ModelProto, wanted: int) -> onnx.ModelProto:
    """`model` at opset `wanted` or its own, whichever is higher; the given one is left as it was.

    Raises:
        GraphError: onnx's converter cannot raise it.
    """
    version = version_of(model)
    if version >= wanted:
        return model
    if all(_since(node, version) == _since(node, wanted) for node in model.graph.node):
        result = onnx.ModelProto()
        result.CopyFrom(model)
        others = [entry for entry in model.opset_import if entry.domain not in ("", "ai.onnx")]
        del result.opset_import[:]
        result.opset_import.extend([helper.make_opsetid("", wanted), *others])
        return result
    try:
        return version_converter.convert_version(model, wanted)
    except Exception as cause:  # the converter raises RuntimeError and onnx's own errors, without a common root
        raise GraphError(
            f"the graph has opset {version}, this runtime's Q/DQ needs {wanted}, and onnx cannot raise it ({cause}).",
            f"Export the network with opset {wanted}.",
        ) from None


def _since(node: onnx.NodeProto, version: int) -> int:
    """The opset that last changed `node`'s operator, as of `version`; -1 where onnx does not know the operator."""
    if not defs.has(node.op_type, node.domain):
        return -1
    try:
        return int(defs.get_schema(node.op_type, version, node.domain).since_version)
    except defs.SchemaError:
        return -1
