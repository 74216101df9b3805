"""Two processes on the CPU, as torchrun starts them: one is killed, the run is resumed and ends as one process does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgeprune.recipe import RecoverSection
from edgeprune.recover import Job, own_training, train
from edgeprune.tasks import Classification
from edgeprune.workload import Data, Inputs

SCRIPT = """
import os, signal, sys
sys.path[:0] = [{here!r}]
import test_processes
from edgeprune.errors import EdgepruneError
try:
    test_processes.work(sys.argv[1], int(sys.argv[2]))
except EdgepruneError as error:
    print(error.message, file=sys.stderr)
    sys.exit(3)
"""


class Points:
    """Points and the side of a plane that they lie on."""

    def __init__(self, count: int, seed: int) -> None:
        self.points = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, place: int) -> Any:
        return self.points[place], int(self.points[place].sum() > 0)


def network(seed: int, width: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, 2)).eval()


def work(folder: str, dies: int) -> None:
    """Train; process 1 kills itself after so many steps. The trained weights lie in `folder` afterwards."""
    loop = sys.modules["edgeprune.recover.loop"]
    loop.CHECKPOINT_SECONDS = 0.0  # type: ignore[attr-defined]
    rank = int(os.environ.get("RANK", "0"))
    student = network(1 if rank == 0 else 7, 6)  # process 0's weights are the ones that are trained
    step = loop.TrainingRun._one_step  # type: ignore[attr-defined]

    def count(self: Any) -> float:
        if rank == 1 and self.step == dies:
            os.kill(os.getpid(), 9)
        value: float = step(self)
        return value

    loop.TrainingRun._one_step = count  # type: ignore[attr-defined]
    options = RecoverSection(epochs=4.0, batch=32, lr=0.05, ema=0.9, precision="fp32", device="cpu")
    found = train(student, network(0, 32), Points(256, 0), Points(64, 1), options, Path(folder))
    _by_the_example(folder, rank)
    if rank == 0:
        torch.save(student.state_dict(), Path(folder) / "weights.pt")
        (Path(folder) / "found.json").write_text(json.dumps(found.to_dict()))


def _by_the_example(folder: str, rank: int) -> None:
    """A trainer of one's own with DistributedDataParallel: that of the examples."""
    from test_example_trainers import module

    teacher, student, items = network(0, 32), network(1, 6), Points(256, 0)
    data = Data(train=items, test=Points(64, 1), selection=Points(64, 1))
    made = Job(
        student, teacher, data, Inputs.of(items[0][0]), Classification(), {}, Path(folder),
        lambda _: None, lambda _: None, 4.0, 0.0, 0, "cpu", rank, 2,
    )  # fmt: skip
    trainer, plain = module("ddp"), module("plain")
    trainer.BATCH, trainer.RATE = 16, 1e-2  # type: ignore[attr-defined]
    before = plain.distance(made, student, teacher, plain._held_out(made))
    own_training(trainer.fit, made)
    assert plain.distance(made, student, teacher, plain._held_out(made)) < 0.7 * before


def _port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


def _two(folder: Path, dies: int) -> list[tuple[int, str]]:
    common = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_port())}
    common.update(GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
    script = SCRIPT.format(here=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, str(folder), str(dies)]
    started = [
        subprocess.Popen(command, env={**common, "RANK": n, "LOCAL_RANK": n}, stderr=subprocess.PIPE, text=True)
        for n in ("0", "1")
    ]
    return [(one.wait(240), one.communicate()[1]) for one in started]


@pytest.mark.long
@pytest.mark.timeout(600)
def test_one_is_killed_the_run_is_resumed_and_ends_as_one_process_does(tmp_path: Path) -> None:
    first, second = _two(tmp_path, 13)
    assert second[0] == -9
    assert first[0] == 3 and "process 0 has lost another one of the 2" in first[1], first[1]
    assert (tmp_path / "checkpoint.pt").is_file()
    ended = _two(tmp_path, -1)
    assert [code for code, _ in ended] == [0, 0], ended
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["resumed"], found["steps"], found["processes"]) == (13, 32, 2)

    (tmp_path / "alone").mkdir()
    student = network(1, 6)
    options = RecoverSection(epochs=4.0, batch=32, lr=0.05, ema=0.9, precision="fp32", device="cpu")
    alone = train(student, network(0, 32), Points(256, 0), Points(64, 1), options, tmp_path / "alone")
    together = torch.load(tmp_path / "weights.pt", weights_only=True)
    for name, value in student.state_dict().items():
        torch.testing.assert_close(together[name], value, rtol=1e-3, atol=1e-4)
    assert found["best_score"] == pytest.approx(alone.best_score)
