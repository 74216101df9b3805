"""A known load: one busy process on each core, for as long as asked, so that measuring under noise can be repeated.

    python benchmarks/load.py [--seconds 600] [--per-core 1] [--share 1.0] [-- COMMAND ...]

Each process is pinned to its core and multiplies matrices that do not fit the core's own cache (4 MB), so it competes
for time and for memory alike. `--share 0.35` keeps each core busy 35 % of the time, in turns of 50 ms. With a command
the load lasts as long as the command does, and its exit code is ours; Ctrl-C ends both.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import time

TURN = 0.05  # seconds


def busy(core: int, share: float, seconds: float, parent: int) -> None:
    """Work on one core, as long as `parent` lives: it may be killed."""
    import numpy as np

    os.sched_setaffinity(0, {core})
    matrix = np.random.default_rng(core).standard_normal((512, 1024), np.float32)
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end and os.getppid() == parent:
        while time.monotonic() < now + TURN * share:
            matrix @ matrix.T
        if share < 1:
            time.sleep(TURN * (1 - share))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--per-core", type=int, default=1)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    cores = [core for core in sorted(os.sched_getaffinity(0)) for _ in range(arguments.per_core)]
    start = multiprocessing.get_context("spawn").Process
    command = [part for part in arguments.command if part != "--"]
    seconds = 86_400.0 if command else arguments.seconds
    workers = [start(target=busy, args=(core, arguments.share, seconds, os.getpid()), daemon=True) for core in cores]
    for worker in workers:
        worker.start()
    try:
        if command:
            return subprocess.run(command, check=False).returncode
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        return 130
    finally:
        for worker in workers:
            worker.terminate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
