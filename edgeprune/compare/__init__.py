"""Two bundles of one target, the older and the newer: is the newer one worse, and is that more than noise?"""

from __future__ import annotations

from edgeprune.compare.aspects import Aspect, Tolerance
from edgeprune.compare.bundles import Compared, compare
from edgeprune.compare.ci import github_annotations, github_summary, junit

__all__ = ["Aspect", "Compared", "Tolerance", "compare", "github_annotations", "github_summary", "junit"]
