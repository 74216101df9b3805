"""What a device may answer: one struct an answer, and limits. A device is not trusted to be well, or to be honest.

An answer that does not fit is a DeviceError that says what was wrong. Every text of a device is made plain here,
once: control characters, which a terminal would obey, become visible escapes.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from edgeprune.errors import DeviceError

LINE_BYTES = 16 << 20  # a line of an agent
FILE_BYTES = 1 << 30  # a file that is fetched from it
WORDS = 2000  # characters of an error's message
TOLERANCE = 1e-6  # relative, of figures that follow from others
# C0, DEL, C1, line and paragraph separators, and what changes the direction of text.
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

Text = Annotated[str, Meta(max_length=65536)]
Path = Annotated[str, Meta(pattern=r"^/[^\x00-\x1f\x7f-\x9f]{0,4095}\Z")]  # absolute, and plain as it stands
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Whole = Annotated[int, Meta(ge=0, le=1 << 62)]
Size = Annotated[int, Meta(ge=1, le=1 << 31)]
Positive = Annotated[float, Meta(gt=0, lt=1e18)]
NotNegative = Annotated[float, Meta(ge=0, lt=1e18)]
T = TypeVar("T")


class Nothing(msgspec.Struct, frozen=True):
    """Done."""


class Greeting(msgspec.Struct, frozen=True):
    """hello: the runtime's version, the agent's folder and process."""

    version: Text
    home: Path
    pid: Whole


class Missing(msgspec.Struct, frozen=True):
    """missing: which files are not there."""

    missing: list[Digest]


class Fingerprint(msgspec.Struct, frozen=True, omit_defaults=True):
    """What latency depends on, as agent/state.py reads it. What is left out is not in the fingerprint."""

    machine: Text
    cpus: list[Text]
    features: list[Text]
    model: Text
    governor: Text
    kernel: Text
    python: Text
    libc: Text
    l4t: Text
    power_mode: Text
    kernel_machine: Text = ""


class DeviceState(msgspec.Struct, frozen=True):
    """How the device is doing."""

    temperatures_c: dict[Text, float]
    frequencies_khz: dict[Text, Whole]
    load: Text
    cpus: Size
    throttled: Whole
    throttle_events: Whole
    memory_bytes: dict[Text, Whole]
    uptime_s: NotNegative
    affinity: list[Whole]
    oom_kills: Whole


class Probed(msgspec.Struct, frozen=True):
    """probe."""

    fingerprint: Fingerprint
    state: DeviceState


class Opening(msgspec.Struct, frozen=True):
    """load: the artifact's handle, its first input's shape, the names of its ends, and what the runtime says of it."""

    handle: Digest
    shape: Annotated[tuple[Size, ...], Meta(min_length=1, max_length=16)]
    outputs: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=4096)]
    info: dict[Text, Any]
    inputs: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=4096)] = ("input",)


class FetchAnswer(msgspec.Struct, frozen=True):
    """infer, optimise, timing_cache: a file to fetch."""

    path: Path
    sha256: Digest


class Summary(msgspec.Struct, frozen=True):
    """One artifact's latency, in nanoseconds."""

    median: Positive
    p90: Positive
    p99: Positive
    minimum: Positive
    mean: Positive
    spread: NotNegative
    count: Size
    rounds: Annotated[list[Positive], Meta(min_length=1)]
    drift: Annotated[float, Meta(gt=-1e18, lt=1e18)]


class MeasureAnswer(msgspec.Struct, frozen=True):
    """measure."""

    summaries: list[Summary]
    reasons: list[Text]
    notes: list[Text]
    others: NotNegative = 0.0


class KernelRow(msgspec.Struct, frozen=True):
    """One kernel, in nanoseconds."""

    name: Text
    kind: Text
    layers: list[Text]
    median: NotNegative
    mad: NotNegative
    count: Size
    implementation: Text


class Profiled(msgspec.Struct, frozen=True):
    """profile: every kernel, and the graph as the runtime fused it, where it writes one."""

    kernels: list[KernelRow]
    fused: Text
    sha256: Text = ""


class Installed(msgspec.Struct, frozen=True):
    """A release on the device, and what it was held against when it was taken."""

    release: Text
    damage: Text
    bundle: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")] = (
        ""  # empty, as the rest: what was written down is lost
    )
    signed_by: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    samples: Text = ""
    latency: NotNegative = 0.0
    claimed: NotNegative = 0.0
    unit: Text = "ms"
    judged: bool = False
    at: Whole = 0


class Releases(msgspec.Struct, frozen=True):
    """rollout: the release in use, and the one before it."""

    name: Text
    folder: Path
    current: Installed | None
    previous: Installed | None


class ReleasesAnswer(msgspec.Struct, frozen=True):
    """releases: of every network."""

    releases: Annotated[list[Releases], Meta(max_length=10_000)]


class Complaint(msgspec.Struct, frozen=True):
    """A job that failed."""

    kind: Text
    message: Text


class Reply(msgspec.Struct, frozen=True):
    """The line around every answer; an event has no `ok`."""

    protocol: int
    id: int | None = None
    ok: bool | None = None
    event: str | None = None
    result: Any = None
    error: Any = None


def plain(text: str, limit: int = WORDS) -> str:
    r"""Text with control characters as escapes (such as \x1b) and newlines as spaces, cut to `limit` characters."""
    text = text.replace("\n", " ").replace("\t", " ")
    cut = text if len(text) <= limit else text[: limit - 3] + "..."
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode(), cut)


def reply(line: bytes, where: str) -> Reply | None:
    """Read one line; None when it is not an agent's. Raises DeviceError when it is longer than any answer."""
    if len(line) > LINE_BYTES:
        raise DeviceError(f"{where}: an answer is longer than {LINE_BYTES >> 20} MiB.", UNTRUE)
    try:
        return msgspec.json.decode(line, type=Reply)
    except (msgspec.DecodeError, RecursionError, ValueError):  # ValueError: not UTF-8
        return None


UNTRUE = "The device's agent does not do as it should: is something else in its place there?"


def read(found: Any, kind: type[T], where: str) -> T:
    """An answer as the struct that it must be; raises DeviceError that says what was wrong."""
    try:
        return msgspec.convert(_plain(found), kind, strict=True)
    except (msgspec.ValidationError, RecursionError, OverflowError) as cause:
        what = kind.__name__.lower()
        raise DeviceError(f"{where}: what it answered ({what}) cannot be: {plain(str(cause), 300)}.", UNTRUE) from None


def check_summaries(found: MeasureAnswer, wanted: int, where: str) -> None:
    """Figures must follow from one another: as many summaries as artifacts, each as its own rounds say."""
    if len(found.summaries) != wanted:
        raise DeviceError(f"{where}: {len(found.summaries)} latencies for {wanted} artifacts.", UNTRUE)
    for one in found.summaries:
        middle = statistics.median(one.rounds)
        spread = statistics.median([abs(value - middle) for value in one.rounds]) / middle
        wrong = {
            f"median {one.median:g} of rounds whose median is {middle:g}": not _same(one.median, middle),
            f"spread {one.spread:g} of rounds that spread by {spread:g}": not _same(one.spread, spread),
            f"{one.count} runs in {len(one.rounds)} rounds": one.count < len(one.rounds),
            f"minimum {one.minimum:g} above a median": one.minimum > min(one.rounds) * (1 + TOLERANCE),
            f"p90 {one.p90:g}, p99 {one.p99:g} below it": one.p90 > one.p99 * (1 + TOLERANCE),
            f"mean {one.mean:g} below minimum {one.minimum:g}": one.mean < one.minimum * (1 - TOLERANCE),
            f"p90 {one.p90:g} below minimum {one.minimum:g}": one.p90 < one.minimum * (1 - TOLERANCE),
        }
        for what, is_so in wrong.items():
            if is_so:
                raise DeviceError(f"{where}: a latency cannot be: {what}.", UNTRUE)


def check_info(found: Opening, where: str) -> None:
    """Seconds to load are a number."""
    seconds = found.info.get("load_s")
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds < math.inf:
        raise DeviceError(f"{where}: what it answered (opening) cannot be: load_s = {str(seconds)[:40]}.", UNTRUE)


def check_rows(arrays: Sequence[Any], outputs: int, images: int, where: str) -> None:
    """As many outputs as the artifact has, each numeric, each with a row for every input."""
    if len(arrays) != outputs:
        raise DeviceError(f"{where}: {len(arrays)} outputs of {outputs}.", UNTRUE)
    for array in arrays:
        if array.dtype.kind not in "fiub":
            raise DeviceError(f"{where}: outputs of type {plain(str(array.dtype), 40)}, which are no numbers.", UNTRUE)
        if array.ndim == 0 or len(array) != images:
            rows = len(array) if array.ndim else "no"
            raise DeviceError(f"{where}: {rows} rows of outputs for {images} inputs.", UNTRUE)


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=1e-9)


def _plain(found: Any) -> Any:
    """Plain data with plain text, at any depth."""
    if isinstance(found, str):
        return plain(found, len(found) + 3)
    if isinstance(found, dict):
        return {_plain(key): _plain(value) for key, value in found.items()}
    return [_plain(one) for one in found] if isinstance(found, list) else found
