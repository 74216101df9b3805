"""A process of its own that reads a stream of arrays of 100 kB, and how much memory it took."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import resource, sys
import numpy as np
from edgeprune import Data

def made():
    for n in range(int(sys.argv[1])):
        yield np.full(25_000, n, np.float32), n

data = Data(train=made, test=[(np.zeros(25_000, np.float32), 0)] * 9, selection_examples=8)
assert sum(len(targets) for _, targets in data.batches("train", data.inputs())) == int(sys.argv[1]) - 8
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak_of_a_stream(count: int) -> int:
    """Bytes at most, while `count` examples are written and read in a shuffled order."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(count)], capture_output=True, text=True, check=True)
    return int(done.stdout)
