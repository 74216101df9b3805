"""Several processes, started by torchrun: process 0 runs the pipeline; the others wait, and take part where it trains.

They talk through the store that torchrun (or any launcher that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT)
has between them. Nothing but training is shared: a device is measured by one process, on a machine that is quiet.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edgeprune._version import __version__
from edgeprune.errors import EdgepruneError, RunError
from edgeprune.files import parse_json
from edgeprune.pipeline import recovery
from edgeprune.pipeline.context import Context
from edgeprune.pipeline.events import silent
from edgeprune.pipeline.rundir import RunDirectory, key_of
from edgeprune.recover import process_count, process_number

if TYPE_CHECKING:
    from edgeprune.pipeline.workloads import Objects
    from edgeprune.recipe import Recipe
    from edgeprune.target import Target
from edgeprune.workload import Workload

KEPT = ("plan.json", "weights.safetensors")  # of a pruned network
POLL = 0.1  # seconds
PIECE = 32 << 20  # bytes in one value of the store
PATIENCE = 10.0  # seconds that one end waits for the other's last word
_groups = itertools.count()


class Message(dict[str, Any]):
    """What one process tells the others, as JSON."""


class ProcessGroup:
    """The processes of one run, and what they say to each other: messages by number, from process 0 to all others.

    Raises:
        RunError: the others cannot be reached.
    """

    def __init__(self) -> None:
        import torch.distributed as distributed

        self.count, self.number, self.said = process_count(), process_number(), 0
        if os.environ.get("MASTER_PORT") == "0":  # torchrun hands it on as it is, and every process waits for ever
            raise RunError(
                f"the {self.count} processes of this run do not find each other: MASTER_PORT is 0.",
                "Start them by torchrun --standalone, or give a --master-port that is free.",
            )
        try:
            store, _, _ = next(
                iter(
                    distributed.rendezvous(  # type: ignore[attr-defined]
                        "env://", timeout=timedelta(minutes=30)
                    )
                )
            )
            self.store = distributed.PrefixStore(f"edgeprune/{next(_groups)}", store)  # type: ignore[attr-defined]
        except (RuntimeError, ValueError, OSError) as cause:
            raise RunError(
                f"the {self.count} processes of this run do not find each other: {str(cause).splitlines()[0][:200]}.",
                "Start them by torchrun; MASTER_ADDR and MASTER_PORT are those of process 0.",
            ) from None

    def gather(self, digest: str) -> None:
        """Wait until every other process is ready; raises RunError where one is not, or has another recipe or data."""
        for other in range(1, self.count):
            self._wait(f"ready/{other}")
            if self.store.get(f"ready/{other}").decode() != digest:
                raise RunError(
                    f"process {other} has another recipe, other data or another edgeprune than process 0.",
                    "Every machine needs the same files; paths may not lead elsewhere.",
                )

    def ready(self, digest: str) -> None:
        """Tell process 0 that this one can train."""
        self.store.set(f"ready/{self.number}", digest)

    def failed(self, why: str) -> None:
        """Tell process 0 that this one cannot."""
        with contextlib.suppress(RuntimeError):
            self.store.set("failed", f"process {self.number}: {why}")

    def train(self, folder: Path) -> None:
        """Let the others train too: the repaired network that `folder` holds."""
        pieces = [self._send(folder / name) for name in KEPT]
        self._say({"train": str(folder.resolve()), "pieces": pieces})

    def end(self, last: Mapping[str, object]) -> None:
        """The last word; it waits a moment, so that a store that lives in this process is still there to be asked."""
        with contextlib.suppress(RuntimeError):
            self._say({"end": last})
            until = time.monotonic() + PATIENCE
            while self.store.add("gone", 0) < self.count - 1 and time.monotonic() < until:
                time.sleep(POLL)

    def gone(self) -> None:
        """This process has heard the last word."""
        with contextlib.suppress(RuntimeError):
            self.store.add("gone", 1)

    def hear(self, seconds: float | None = None) -> Message:
        """The next message; empty after so many seconds without one. Raises RunError where process 0 is gone."""
        key, until = f"message/{self.said}", None if seconds is None else time.monotonic() + seconds
        if not self._wait(key, until):
            return Message()
        self.said += 1
        found: Message = parse_json(self.store.get(key), RunError, "what process 0 said")
        return found

    def fetch(self, message: Message, folder: Path) -> None:
        """Write what came with `train` into `folder`."""
        for name, keys in zip(KEPT, message["pieces"], strict=True):
            with (folder / name).open("wb") as file:
                for key in keys:
                    file.write(self.store.get(key))

    def _send(self, path: Path) -> list[str]:
        keys: list[str] = []
        with path.open("rb") as file:
            while piece := file.read(PIECE):
                keys.append(f"piece/{self.said}/{path.name}/{len(keys)}")
                self.store.set(keys[-1], piece)  # type: ignore[arg-type]
        return keys

    def _say(self, message: Mapping[str, object]) -> None:
        self.store.set(f"message/{self.said}", json.dumps(message, default=str))
        self.said += 1

    def _wait(self, key: str, until: float | None = None) -> bool:
        """Until `key` is there. By asking, not by a wait inside the store: Ctrl-C must come through."""
        try:
            while not self.store.check([key]):
                if self.number == 0 and self.store.check(["failed"]):
                    raise RunError(
                        f"{self.store.get('failed').decode()}", "Mend it there, and start all of them again."
                    )
                if until is not None and time.monotonic() > until:
                    return False
                time.sleep(POLL)
        except RuntimeError as cause:
            raise RunError(
                f"process {self.number} has lost process 0: {str(cause).splitlines()[0][:200]}.",
                "Run the same command again: training goes on from its checkpoint.",
            ) from None
        return True


@contextlib.contextmanager
def leading() -> Iterator[ProcessGroup | None]:
    """The group that process 0 leads; None where there is one process. The others hear how it ended."""
    if process_count() == 1:
        yield None
        return
    group = ProcessGroup()
    try:
        yield group
    except EdgepruneError as cause:
        group.end({"error": [cause.message, cause.remedy, cause.exit_code]})
        raise
    except BaseException as cause:
        group.end({"error": [f"process 0 ended: {type(cause).__name__}.", "See what it said.", RunError.exit_code]})
        raise


def digest(recipe: Recipe, work: Workload) -> str:
    """What all processes must have alike: the recipe, the data, the weights, the code's version."""
    plain = msgspec.to_builtins(msgspec.structs.replace(recipe, path=""))
    return key_of(__version__, plain, work.digest)


def follow(recipe: Recipe, target: Target, given: Objects | None, weights: Path | None) -> Message:
    """What every process but 0 does: wait, train when process 0 trains, and give its last word.

    Raises:
        EdgepruneError: this process cannot take part; process 0 is told why.
    """
    group = ProcessGroup()
    with tempfile.TemporaryDirectory(prefix="edgeprune-") as place:
        run = RunDirectory(Path(place))
        with _told(group), Context(recipe, target, run, "", silent, given, weights) as context:
            recovery.check(context.subject, context.weights)
            group.ready(digest(recipe, context.subject.workload))
            while "end" not in (message := group.hear()):
                message = _train(group, context, message, Path(place))
                if message:
                    break
    group.gone()
    last: Message = message["end"]
    return last


def _train(group: ProcessGroup, context: Context, message: Message, place: Path) -> Message:
    """Take part in one training; gives process 0's last word where that ended it."""
    group.fetch(message, place)
    try:
        recovery.assist(context.subject, context.voice, context.group, place, Path(message["train"]))
    except EdgepruneError:
        last = group.hear(PATIENCE)  # what stops all of them is said by process 0
        if "end" in last:
            return last
        raise
    return Message()


@contextlib.contextmanager
def _told(group: ProcessGroup) -> Iterator[None]:
    """Process 0 hears what went wrong here, and says it; where it does not answer, it is said here."""
    try:
        yield
    except EdgepruneError as cause:
        group.failed(cause.message)
        followed = None
        with contextlib.suppress(RunError):
            followed = error_of(group.hear(PATIENCE).get("end", {}))
            group.gone()
        if followed is not None:
            raise followed from None
        raise


class Followed(EdgepruneError):
    """Process 0 ended by this error, and says it: no one else need."""


def error_of(last: Message) -> Followed | None:
    """The error that ended process 0, as its last word has it."""
    if "error" not in last:
        return None
    message, remedy, code = last["error"]
    found = Followed(message, remedy)
    found.exit_code = code
    return found
