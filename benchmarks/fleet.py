"""Two emulated boards as a fleet: how long a latency table takes on one and on two, and when one of two is killed.

    python benchmarks/fleet.py --out benchmarks/results/fleet.json
    python benchmarks/fleet.py --standin --out benchmarks/results/fleet_standin.json

Every board is a qemu-system-aarch64 of its own (Cortex-A76, instruction clock), one thread of this machine each, so two
need two cores that are free: what else ran is in the file as the load. Booting is not counted. Tables are of ResNet-20
with random weights, which latency does not depend on; one and two boards take turns. The killed board's emulator gets
SIGKILL in the middle of shared work, and does not boot again.

--standin: boards that take no processor of this machine, as real ones do: the tests' simulated device, which sleeps for
as long as a board thirty times as slow as its formula would measure. It shows how work is shared, and nothing of a
board.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from common import beside, save

beside("examples/cifar10", "tests/latency")

from resnet import resnet20  # noqa: E402
from simulated import SimulatedDevice  # noqa: E402

from edgeprune import devices, latency  # noqa: E402
from edgeprune import target as targets  # noqa: E402
from edgeprune.errors import DeviceUnreachable  # noqa: E402
from edgeprune.graph import trace  # noqa: E402

TARGET, BOARD = "raspberry-pi-5", "qemu-board://cortex-a76"


class StandIn(SimulatedDevice):
    """A simulated board on which time passes."""

    slower, opening_s = 30.0, 0.3

    def __init__(self) -> None:
        super().__init__(noise=0.002)
        self.dead = False

    def load(self, artifact: Any) -> Any:
        time.sleep(self.opening_s)
        return super().load(artifact)

    def measure(self, loaded: Any, protocol: Any) -> Any:
        time.sleep(self.slower * protocol.rounds * protocol.runs * sum(one.truth for one in loaded) / 1e3)
        if self.dead:
            raise DeviceUnreachable("the stand-in was switched off.")
        return super().measure(loaded, protocol)


def switch_off(fleet: Any, after: float, said: dict[str, float]) -> None:
    """The second stand-in, for good."""
    time.sleep(after)
    said["killed_after_s"] = round(after, 1)
    fleet._every["stand-in 2"].dead = True


def opened(boards: int, standin: bool) -> Any:
    """One board, or a fleet."""
    if not standin:
        return devices.connect(targets.load(TARGET), ",".join([BOARD] * boards))
    made = {f"stand-in {number}": StandIn() for number in range(1, boards + 1)}
    return devices.Fleet(made) if boards > 1 else made["stand-in 1"]


def kill(fleet: Any, after: float, said: dict[str, float]) -> None:
    """SIGKILL the second board's emulator, for good."""
    time.sleep(after)
    board = fleet._every[f"{BOARD} #2"]._transport

    def refuse(*_: object) -> None:
        raise DeviceUnreachable("its emulator was killed, and does not boot again.")

    board._boot = refuse
    said["killed_after_s"] = round(after, 1)
    os.kill(board._process.pid, signal.SIGKILL)


def table(
    maker: latency.ArtifactBuilder,
    boards: int,
    networks: int,
    unseen: int,
    kill_after: float = 0.0,
    standin: bool = False,
) -> dict[str, Any]:
    """One table; `kill_after`: seconds after which one of two boards is killed."""
    said: dict[str, float] = {}
    began = time.monotonic()
    with opened(boards, standin) as device:
        booted = time.monotonic() - began
        made = latency.Table(device.probe().fingerprint, "ms" if standin else "instructions")
        if kill_after:
            threading.Thread(
                target=switch_off if standin else kill, args=(device, kill_after, said), daemon=True
            ).start()
        began = time.monotonic()
        found = latency.profile(made, device, maker, networks, unseen, latency.Effort())
        seconds = time.monotonic() - began
        states = device.states if isinstance(device, devices.Fleet) else ()
    runs = {run.key: run.ratio for run in found.table.networks[maker.network].runs}
    row = {
        "boards": boards,
        "seconds": round(seconds, 1),
        "boot_s": round(booted, 1),
        "networks": found.networks,
        "median_error": found.errors.median,
        "load": round(os.getloadavg()[0], 2),
        "pieces": {one.name: one.pieces for one in states},
        "gone": {one.name: one.gone for one in states if one.gone},
        **said,
    }
    print(json.dumps(row), flush=True)
    return {**row, "runs": runs}


def differ(one: dict[str, float], other: dict[str, float]) -> float:
    """The largest relative difference of a network's latency over the dense one's."""
    return max(abs(one[key] / other[key] - 1) for key in one.keys() & other.keys())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=16)
    parser.add_argument("--unseen", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--standin", action="store_true", help="Boards that sleep, in place of emulated ones.")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    model, example = resnet20().eval(), torch.zeros(1, 3, 32, 32)
    target = targets.load(TARGET)
    rows, began = [], time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime())
    with tempfile.TemporaryDirectory() as folder:
        target = target if given.standin else devices.reached(target, BOARD)
        maker = latency.maker(model, trace(model, example), example, target, Path(folder))
        for _ in range(given.repeats):
            rows += [table(maker, boards, given.networks, given.unseen, 0.0, given.standin) for boards in (1, 2)]
        typical = statistics.median(row["seconds"] for row in rows if row["boards"] == 2)
        killed = table(maker, 2, given.networks, given.unseen, typical / 3, given.standin)
    seconds = {n: [row["seconds"] for row in rows if row["boards"] == n] for n in (1, 2)}
    found = {
        "began": began,
        "boards": "stand-ins that sleep" if given.standin else "emulated Cortex-A76, instruction clock",
        "cpus": os.cpu_count(),
        "ratio_two_over_one": [round(two / one, 3) for one, two in zip(seconds[1], seconds[2], strict=True)],
        "differ_two_and_one": differ(rows[0]["runs"], rows[1]["runs"]),
        "differ_killed_and_one": differ(rows[0]["runs"], killed["runs"]),
        "networks_killed": len(killed["runs"]),
        "networks_one": len(rows[0]["runs"]),
        "rows": [{key: value for key, value in row.items() if key != "runs"} for row in [*rows, killed]],
    }
    print(json.dumps({key: value for key, value in found.items() if key != "rows"}, indent=1))
    if given.out:
        save(given.out, found)


if __name__ == "__main__":
    main()
