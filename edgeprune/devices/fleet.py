"""Several boards of one kind as one device: they measure in parallel, and take each other's place when one drops.

What is asked of the fleet as a whole goes to its first board that still answers, so a measurement that is interleaved
is of one board. `share` hands independent pieces of work to all boards at once. A board that drops (it does not answer,
or somebody else holds it) loses nothing but what it was doing: that is done again on another one. The last board's
error is the fleet's.

Each board has a thread of its own for as long as the fleet is there, in which it is reached and does its work: a
process that a board's transport starts may end with the thread that started it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, TypeVar, cast
from typing import Protocol as Shape

from numpy.typing import NDArray

from edgeprune.devices.types import Artifact, Device, Examples, KernelTime, Loaded, Probe, Timing
from edgeprune.errors import DeviceBusy, DeviceUnreachable, TargetError
from edgeprune.target import Protocol

log = logging.getLogger(__name__)
DROPS = (DeviceUnreachable, DeviceBusy)
W = TypeVar("W")
R = TypeVar("R")


class Optimises(Shape):
    """A board whose agent writes the graph as its runtime optimised it."""

    def optimised(self, loaded: Loaded) -> bytes:
        """An ONNX file."""
        ...


@dataclass(frozen=True, eq=False)
class FleetLoaded:
    """An artifact, and where it is open: by board, opened when that board first needs it."""

    artifact: Artifact
    opened: dict[str, Loaded] = field(default_factory=dict)

    @property
    def info(self) -> dict[str, object]:
        """What the runtime says about it, on the board that opened it last."""
        known = [getattr(one, "info", {}) for one in self.opened.values()]
        return dict(known[-1]) if known else {}


@dataclass(frozen=True)
class BoardState:
    """How a board of a fleet is doing.

    Attributes:
        where: in words.
        gone: why it is not used any longer; "" for one that is.
        pieces: of shared work that it did.
    """

    name: str
    where: str
    gone: str
    pieces: int


class Fleet:
    """A `Device` of several boards. Use as a context manager.

    Args:
        boards: by name, not yet entered; the first that answers leads.
    """

    def __init__(self, boards: Mapping[str, Device]) -> None:
        self._every, self._boards = dict(boards), dict[str, Device]()
        self._gone: dict[str, str] = {}
        self._pieces = dict.fromkeys(boards, 0)
        self._where: dict[str, str] = {}
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._changing = threading.Lock()
        self.runtime_version = ""

    def __enter__(self) -> Fleet:
        """Reach all boards at once; one that does not answer is left out, one of another kind is an error.

        Raises:
            DeviceUnreachable, DeviceBusy: of the last board, where none answers.
            TargetError: two of them are not of one kind.
        """
        self._threads = {name: ThreadPoolExecutor(1, f"board {name}") for name in self._every}
        try:
            waiting = {name: thread.submit(self._reach, name) for name, thread in self._threads.items()}
            found = {name: one.result() for name, one in waiting.items()}
            probes = {name: one for name, one in found.items() if isinstance(one, Probe)}
            with self._changing:
                self._boards = {name: self._every[name] for name in probes}
            for name, one in found.items():
                if not isinstance(one, Probe):
                    if not probes:
                        raise one
                    self._note(name, one.message)
            _one_kind(probes)
            self._where = {name: str(one.state.get("where", "")) for name, one in probes.items()}
            self.runtime_version = str(probes[self.lead].fingerprint.get("runtime_version", ""))
        except BaseException:
            self.__exit__()
            raise
        return self

    def _reach(self, name: str) -> Probe | DeviceUnreachable | DeviceBusy:
        board, entered = self._every[name], False
        try:
            board.__enter__()
            entered = True
            found = board.probe()
        except DROPS as why:
            if entered:
                _leave(board)
            return why
        with self._changing:
            self._boards[name] = board
        return found

    def __exit__(self, *exc: object) -> None:
        for name, board in self.boards.items():
            self._threads[name].submit(_leave, board)
        with self._changing:
            self._boards = {}
        for thread in self._threads.values():
            thread.shutdown()

    @property
    def boards(self) -> dict[str, Device]:
        """Those that still answer; the first one leads."""
        with self._changing:
            return dict(self._boards)

    @property
    def lead(self) -> str:
        """The name of the board that measures what is asked of the fleet as a whole."""
        return next(iter(self.boards))

    @property
    def states(self) -> tuple[BoardState, ...]:
        """All boards, those that dropped too."""
        return tuple(
            BoardState(name, self._where.get(name, ""), self._gone.get(name, ""), self._pieces[name])
            for name in self._every
        )

    def drop(self, name: str, why: str) -> bool:
        """Use a board no longer; False for the last one, which stays."""
        with self._changing:
            if name not in self._boards:
                return True
            if len(self._boards) == 1:
                return False
            board = self._boards.pop(name)
        self._note(name, why)
        self._threads[name].submit(_leave, board)  # after what it is doing
        return True

    def _note(self, name: str, why: str) -> None:
        self._gone[name] = why
        left = ", ".join(self._boards) or "none"
        log.warning("%s is out of the fleet: %s Still in it: %s.", name, why, left)

    def share(self, pieces: Sequence[W], work: Callable[[str, Device, W], R]) -> Generator[tuple[str, R], None, None]:
        """Do every piece on some board, several at once; the boards' names and what came of it, as it comes.

        Args:
            work: called in a thread of the board's own, with its name, the board and the piece.
        """
        plan = _Shared(deque(pieces))
        served = [
            self._threads[name].submit(self._serve, plan, name, board, work) for name, board in self.boards.items()
        ]
        try:
            for _ in range(len(pieces)):
                name, found, error = plan.done.get()
                if error is not None:
                    raise error
                self._pieces[name] += 1
                yield name, found
        finally:
            plan.stop()
            wait(served)

    def each(self, work: Callable[[str, Device], R]) -> dict[str, R]:
        """Do something on every board, at once; what came of it, by board, without those that dropped.

        Raises:
            DeviceUnreachable, DeviceBusy: of the last board.
        """
        waiting = {name: self._threads[name].submit(work, name, board) for name, board in self.boards.items()}
        found = {}
        for name, one in waiting.items():
            try:
                found[name] = one.result()
            except DROPS as cause:
                if not self.drop(name, cause.message):
                    raise
        return found

    def _serve(self, plan: _Shared, name: str, board: Device, work: Callable[[str, Device, Any], Any]) -> None:
        while name in self.boards and (piece := plan.take()) is not None:
            try:
                found = work(name, board, piece[0])
            except DROPS as cause:
                plan.give_back(piece)
                if self.drop(name, cause.message):
                    return
                plan.done.put((name, None, cause))
                return
            except BaseException as cause:
                plan.done.put((name, None, cause))
                return
            plan.finish()
            plan.done.put((name, found, None))

    def _somewhere(self, work: Callable[[str, Device], R]) -> R:
        """On the leading board; on the next one where that drops."""
        while True:
            name, board = next(iter(self.boards.items()))
            try:
                return self._threads[name].submit(work, name, board).result()
            except DROPS as cause:
                if not self.drop(name, cause.message):
                    raise

    # The Device's own.

    def probe(self) -> Probe:
        """Look at the leading board now."""
        return self._somewhere(lambda name, board: board.probe())

    def load(self, artifact: Artifact) -> FleetLoaded:
        """Open it on the leading board; the others open it when they need it."""
        loaded = FleetLoaded(artifact)
        self._somewhere(lambda name, board: _open(loaded, name, board))
        return loaded

    def unload(self, loaded: Loaded) -> None:
        """Forget an artifact on every board."""
        mine = _mine(loaded)
        for name, board in self.boards.items():
            if name in mine.opened:
                try:
                    board.unload(mine.opened.pop(name))
                except DROPS as cause:
                    if not self.drop(name, cause.message):
                        raise

    def measure(self, loaded: Sequence[Loaded], protocol: Protocol) -> list[Timing]:
        """Measure all of them on one board, interleaved."""
        return self._somewhere(
            lambda name, board: board.measure([_open(_mine(one), name, board) for one in loaded], protocol)
        )

    def profile(self, loaded: Loaded, runs: int = 20) -> list[KernelTime]:
        """Time each fused kernel."""
        return self._somewhere(lambda name, board: board.profile(_open(_mine(loaded), name, board), runs))

    def infer(self, loaded: Loaded, images: Examples) -> list[NDArray[Any]]:
        """Run every example."""
        return self._somewhere(lambda name, board: board.infer(_open(_mine(loaded), name, board), images))

    def optimised(self, loaded: Loaded) -> bytes:
        """The artifact's graph as a board's runtime rewrites it; see `AgentDevice.optimised`."""
        return self._somewhere(lambda name, board: _agent(board).optimised(_open(_mine(loaded), name, board)))


class _Shared:
    """Pieces that wait, and those that are being done: a board that has nothing left waits for what may come back."""

    def __init__(self, waiting: deque[Any]) -> None:
        self._waiting, self._open, self._ended = waiting, 0, False
        self._change = threading.Condition()
        self.done: SimpleQueue[tuple[str, Any, BaseException | None]] = SimpleQueue()

    def take(self) -> tuple[Any] | None:
        """The next piece; None when there will be no more."""
        with self._change:
            while not self._ended and not self._waiting and self._open:
                self._change.wait()
            if self._ended or not self._waiting:
                return None
            self._open += 1
            return (self._waiting.popleft(),)

    def finish(self) -> None:
        with self._change:
            self._open -= 1
            self._change.notify_all()

    def give_back(self, piece: tuple[Any]) -> None:
        with self._change:
            self._waiting.appendleft(piece[0])
            self._open -= 1
            self._change.notify_all()

    def stop(self) -> None:
        with self._change:
            self._ended = True
            self._change.notify_all()


def _leave(board: Device) -> None:
    try:
        board.__exit__(None, None, None)
    except DROPS as cause:
        log.info("%s", cause.message)


def _agent(board: Device) -> Optimises:
    if not hasattr(board, "optimised"):
        raise TypeError("a board without an agent")
    return cast(Optimises, board)


def _open(loaded: FleetLoaded, name: str, board: Device) -> Loaded:
    if name not in loaded.opened:
        loaded.opened[name] = board.load(loaded.artifact)
    return loaded.opened[name]


def _mine(loaded: Loaded) -> FleetLoaded:
    if not isinstance(loaded, FleetLoaded):
        raise TypeError("not an artifact that this fleet loaded")
    return loaded


def _one_kind(probes: Mapping[str, Probe]) -> None:
    """Raise TargetError where two boards differ in what latency depends on."""
    first, *others = probes
    for name in others:
        one, other = probes[first].fingerprint, probes[name].fingerprint
        differ = [
            f"{key} is {one.get(key, 'unknown')!r} on {first} and {other.get(key, 'unknown')!r} on {name}"
            for key in sorted({*one, *other})
            if one.get(key) != other.get(key)
        ]
        if differ:
            raise TargetError(
                f"{first} and {name} are no fleet: {'; '.join(differ[:3])}.",
                "A fleet is of one kind: the same board, kernel, runtime and version. Leave one of them out.",
            )
