"""INT8: ranges, Q/DQ placement, corrections, fallback, lint, training.

Only `fine_tune` needs torch, and is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgeprune.quantize.calibrate import RUNS as RUNS
from edgeprune.quantize.calibrate import calibrate as calibrate
from edgeprune.quantize.calibrate import check_overrides as check_overrides
from edgeprune.quantize.check import rtx as rtx
from edgeprune.quantize.check.findings import LintFinding as LintFinding
from edgeprune.quantize.check.lint import lint as lint
from edgeprune.quantize.effort import uncrowded as uncrowded
from edgeprune.quantize.ranges.observe import inference_session as inference_session
from edgeprune.quantize.ranges.ranges import Ranges as Ranges
from edgeprune.quantize.ranges.ranges import TensorRange as TensorRange
from edgeprune.quantize.ranges.ranges import dummy_ranges as dummy_ranges
from edgeprune.quantize.view import View as View
from edgeprune.quantize.write.insert import apply as apply
from edgeprune.quantize.write.placement import tail as tail
from edgeprune.quantize.write.weights import weights_asked as weights_asked
from edgeprune.quantize.write.weights import weights_chosen as weights_chosen

if TYPE_CHECKING:
    from edgeprune.quantize.train.qat import fine_tune as fine_tune


def __getattr__(name: str) -> Any:
    if name == "fine_tune":
        from edgeprune.quantize.train import qat

        return qat.fine_tune
    raise AttributeError(f"module 'edgeprune.quantize' has no attribute '{name}'")
