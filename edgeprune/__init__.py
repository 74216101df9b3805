"""edgeprune: a trained PyTorch network, a device and a latency in; an INT8 release that meets it, with evidence, out.

The public names are imported on first use: `import edgeprune` loads neither torch nor any runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgeprune._version import __version__

_HOME = {
    "trace": "edgeprune.graph",
    "Structure": "edgeprune.graph",
    "Plan": "edgeprune.graph",
    "Proof": "edgeprune.graph",
    "load": "edgeprune.graph",
    "Recipe": "edgeprune.recipe",
    "Recover": "edgeprune.recipe",
    "Target": "edgeprune.target",
    "search": "edgeprune.search",
    "Data": "edgeprune.workload",
    "Streamed": "edgeprune.workload",
    "Budget": "edgeprune.workload",
    "Workload": "edgeprune.workload",
    "compress": "edgeprune.pipeline",
    "Job": "edgeprune.pipeline",
    "EdgepruneError": "edgeprune.errors",
}

_MODULES = ("tasks",)  # public modules, imported on first use too

__all__ = [*_HOME, *_MODULES, "__version__"]  # noqa: PLE0604 - lazily imported below

if TYPE_CHECKING:
    from edgeprune import tasks as tasks
    from edgeprune.errors import EdgepruneError as EdgepruneError
    from edgeprune.graph import Plan as Plan
    from edgeprune.graph import Proof as Proof
    from edgeprune.graph import Structure as Structure
    from edgeprune.graph import load as load
    from edgeprune.graph import trace as trace
    from edgeprune.pipeline import Job as Job
    from edgeprune.pipeline import compress as compress
    from edgeprune.recipe import Recipe as Recipe
    from edgeprune.recipe import Recover as Recover
    from edgeprune.search import search as search
    from edgeprune.target import Target as Target
    from edgeprune.workload import Budget as Budget
    from edgeprune.workload import Data as Data
    from edgeprune.workload import Streamed as Streamed
    from edgeprune.workload import Workload as Workload


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"edgeprune.{name}")
    raise AttributeError(f"module 'edgeprune' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
