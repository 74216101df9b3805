"""How often the accuracy gate passes a network that is too bad, and refuses an honest one: summed exactly, not drawn.

python benchmarks/gates.py --examples 10 50 100 300 1000 2000 --out benchmarks/results/gates.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from common import save
from scipy.stats import binom

from edgeprune.workload import paired

ERRORS = 0.06  # of the dense network
MAX_DROPS = (0.5, 1.0, 2.0, 5.0)  # points
CHANCES = (0.0, ERRORS / 3, ERRORS)  # that the pruned network alone is right


def chance_to_pass(examples: int, max_drop: float, second_only: float, drop: float, confidence: float) -> float:
    """Over all answers: that a network passes at `max_drop` whose true drop is `drop` (fractions)."""
    total = 0.0
    for second in range(int(binom.ppf(1 - 1e-7, examples, second_only)) + 1):
        low, high = -1, examples - second
        while low < high:
            middle = (low + high + 1) // 2
            good = paired.p_value(middle, second, examples, max_drop) <= 1 - confidence
            low, high = (middle, high) if good else (low, middle - 1)
        share = (second_only + drop) / (1 - second_only)
        total += float(binom.pmf(second, examples, second_only) * binom.cdf(low, examples - second, share))
    return total


def main() -> None:
    """Write one row a number of examples and max_drop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, nargs="+", default=[10, 50, 100, 300, 1000, 2000])
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gates.json"))
    asked = parser.parse_args()
    rows = []
    for examples in asked.examples:
        for points in MAX_DROPS:
            limit = points / 100
            bad = [chance_to_pass(examples, limit, chance, limit, asked.confidence) for chance in CHANCES]
            as_good = chance_to_pass(examples, limit, ERRORS / 3, 0.0, asked.confidence)
            half = chance_to_pass(examples, limit, ERRORS / 3, limit / 2, asked.confidence)
            rows.append(
                {
                    "examples": examples,
                    "max_drop": points,
                    "truly_at_the_limit_passes": max(bad),
                    "as_good_as_dense_is_refused": 1 - as_good,
                    "half_the_limit_is_refused": 1 - half,
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    facts = {"confidence": asked.confidence, "dense_errors": ERRORS, "pruned_alone_right": CHANCES, "rows": rows}
    save(asked.out, facts)


if __name__ == "__main__":
    main()
