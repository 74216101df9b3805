"""edgeprune: a trained PyTorch network, a device and a latency in; an INT8 release that meets it, with evidence, out.

The public names are imported on first use: `import edgeprune` loads neither torch nor any runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "trace": "edgeprune.graph",
    "Structure": "edgeprune.graph",
    "Plan": "edgeprune.graph",
    "Proof": "edgeprune.graph",
    "load": "edgeprune.graph",
    "Recipe": "edgeprune.recipe",
    "Target": "edgeprune.target",
    "search": "edgeprune.search",
    "compress": "edgeprune.pipeline",
    "EdgepruneError": "edgeprune.errors",
}

__all__ = [*_HOME, "__version__"]  # noqa: PLE0604 - lazily imported below

if TYPE_CHECKING:
    from edgeprune.errors import EdgepruneError as EdgepruneError
    from edgeprune.graph import Plan as Plan
    from edgeprune.graph import Proof as Proof
    from edgeprune.graph import Structure as Structure
    from edgeprune.graph import load as load
    from edgeprune.graph import trace as trace
    from edgeprune.pipeline import compress as compress
    from edgeprune.recipe import Recipe as Recipe
    from edgeprune.search import search as search
    from edgeprune.target import Target as Target


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'edgeprune' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
