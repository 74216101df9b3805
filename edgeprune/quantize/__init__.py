"""INT8: ranges, Q/DQ placement, corrections, fallback, lint."""

from edgeprune.quantize.calibrate import calibrate as calibrate
from edgeprune.quantize.insert import apply as apply
from edgeprune.quantize.lint import Finding as Finding
from edgeprune.quantize.lint import lint as lint
from edgeprune.quantize.ranges import Ranges as Ranges
from edgeprune.quantize.ranges import TensorRange as TensorRange
from edgeprune.quantize.ranges import dummy_ranges as dummy_ranges
