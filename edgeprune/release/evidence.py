"""The evidence in a bundle, held against itself: every part is there, of the right kind, and says what the others say.

The gates are computed again from the figures of result.json, by the function that a run uses. Who writes a false figure
everywhere can still lie; the signature says who that would be.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta
from numpy.typing import NDArray

from edgeprune import files, runtimes, validate
from edgeprune import result as results
from edgeprune import target as targets
from edgeprune.config import convert
from edgeprune.errors import BundleError, EdgepruneError, UsageError
from edgeprune.recipe import BudgetSection
from edgeprune.release import bill, consistent, precision, provenance, samples, signature
from edgeprune.release.archive import DAMAGED, Archive
from edgeprune.release.bundle import FIGURES, MANIFEST, UNVERIFIED
from edgeprune.release.consistent import OTHER
from edgeprune.target import Target

NOT_PASSED = "It was not made by a passing run."
LIMITS = {MANIFEST: 16 << 20, "result.json": 16 << 20, "plan.json": 16 << 20}
SMALL = 1 << 20  # bytes of every other text
REQUIRED = (
    "LICENSES/edgeprune.txt", "README.md", "agent/__init__.py", "manifest.json", "plan.json", "preprocessing.json",
    "requirements.txt", "result.json", "run.py", "samples.npz", "sbom.json",
)  # fmt: skip
OPTIONAL = re.compile(
    r"labels\.json|selftest\.json|answers\.npz|(check|show|features|decoders|boxes)\.py|input/[^/]+|artifact/[^/]+|agent/\w+\.py|LICENSES/[^/]+|SHA256SUMS|SIGNATURE|model\.sig|provenance\.json"
)
# In manifest and result.
SAME = ("name", "unit", "runtime", "device", "verdict", "gates", "proof", "evidence", "task", "inputs")

PLAIN = r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}"
T = TypeVar("T", bound=msgspec.Struct)

Sha = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Plain = Annotated[str, Meta(pattern=f"^{PLAIN}$")]
Version = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.+-]{0,64}$")]
Text = Annotated[str, Meta(max_length=4_000)]
Files = Annotated[list[Plain], Meta(min_length=1, max_length=8)]
Options = dict[str, object]


class BundledRuntime(msgspec.Struct, frozen=True):
    """Name and version."""

    name: Plain
    version: Version


class BundledFlavour(msgspec.Struct, frozen=True):
    """Another flavour of the artifact."""

    dialect: Plain
    files: Files
    options: Options
    since: Version = ""


class BundledArtifact(msgspec.Struct, frozen=True):
    """What the runtime opens."""

    runtime: Plain
    precision: Literal["int8"]
    files: Files
    options: Options
    threads: Annotated[int, Meta(ge=1, le=1024)]
    flavours: list[BundledFlavour] = []
    optimised: dict[str, Any] = {}


class FileHash(msgspec.Struct, frozen=True):
    """Hash and size of a member."""

    sha256: Sha
    bytes: Annotated[int, Meta(ge=0)]


class GateEntry(msgspec.Struct, frozen=True):
    """One gate as it was written down."""

    name: Plain
    passed: bool
    value: float | None
    limit: float | None
    unit: Text
    message: Text
    remedy: Text = ""


class BundledTask(msgspec.Struct, frozen=True):
    """What the network is for; without it, classification, as version 1 of a result had nothing else."""

    kind: Plain = "classification"
    metric: Text = "top-1"
    unit: Text = "points"
    higher_is_better: bool = True


class Part(msgspec.Struct, frozen=True):
    """One input, without the batch axis."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:/-]{1,200}$")]
    shape: Annotated[list[Annotated[int, Meta(ge=1)]], Meta(max_length=8)]
    dtype: Literal["float32", "float16", "int64", "int32", "bool", "uint8"] = "float32"


class Manifest(msgspec.Struct, frozen=True):
    """manifest.json; further keys are kept by the file's hash and read by nobody here."""

    version: int
    edgeprune: Version
    name: Text
    target: dict[str, object]
    runtime: BundledRuntime
    device: dict[str, object]
    unit: Literal["ms", "instructions", "modelled ms"]
    artifact: BundledArtifact
    sources: dict[str, str]
    figures: dict[str, object]
    gates: Annotated[list[GateEntry], Meta(min_length=1, max_length=50)]
    proof: dict[str, object]
    evidence: list[Any]
    verdict: Literal["release", "unverified", "refused"]
    files: dict[str, FileHash]
    task: BundledTask = BundledTask()
    inputs: Annotated[list[Part], Meta(max_length=32)] = []

    @property
    def classifies(self) -> bool:
        """Is the best of an output's scores the answer?"""
        return self.task.kind == "classification"


# One side, or height and width; not a bounded int in a union (recipe.py says why): bounds are checked below.
Pixels = int | Annotated[list[int], Meta(min_length=2, max_length=2)]


class Preprocessing(msgspec.Struct, frozen=True):
    """From pixels to the network's input, as far as run.py reads it; other kinds are read there."""

    kind: Literal["image", "features", "text", "arrays"] = "image"
    scale: float = 0.0
    mean: Annotated[tuple[float, ...], Meta(max_length=64)] = ()
    std: Annotated[tuple[float, ...], Meta(max_length=64)] = ()
    resize: Pixels = 0
    crop: Pixels = 0


def json_of(found: Archive, name: str) -> Any:
    """A member as JSON: bounded, no key twice."""
    data = found.read(name, LIMITS.get(name, SMALL))
    if data.count(b"{") + data.count(b"[") > 2_000_000:
        raise BundleError(f"{found.path}: '{name}' has too many parts.", DAMAGED)
    return files.parse_json(data, BundleError, f"{found.path}: '{name}'", DAMAGED)


def manifest(found: Archive) -> tuple[Manifest, dict[str, object], Target]:
    """The manifest, as it is checked and as it stands, and the target in it; it lists what is in the archive."""
    raw = json_of(found, MANIFEST)
    read = _typed(found, raw, Manifest, MANIFEST, before=_version(found))
    names = set(found.members)
    for name in (*REQUIRED, *(f"artifact/{file}" for file in read.artifact.files)):
        if name not in names:
            raise BundleError(f"{found.path}: '{name}' is missing.", DAMAGED)
    for name in sorted(names - set(REQUIRED)):
        if not OPTIONAL.fullmatch(name):
            raise BundleError(f"{found.path}: '{name}' does not belong in a bundle.", DAMAGED)
    listed = names - {MANIFEST, signature.SUMS} - signature.MEMBERS
    for name in sorted(listed ^ set(read.files)):
        state = "is missing" if name in read.files else f"is not listed in '{MANIFEST}'"
        raise BundleError(f"{found.path}: '{name[:200]}' {state}.", DAMAGED)
    for name, entry in read.files.items():
        if found.sha256(name) != entry.sha256 or found.member(name).size != entry.bytes:
            raise BundleError(f"{found.path}: '{name}' is not the file of the manifest.", DAMAGED)
    profile = _convert(read.target, Target, f"{found.path}: '{MANIFEST}': target")
    if not re.fullmatch(PLAIN, profile.name):
        raise BundleError(f"{found.path}: '{MANIFEST}' names no target.", DAMAGED)
    if read.runtime.name not in runtimes.names():
        raise BundleError(f"{found.path}: '{MANIFEST}': no runtime is called '{read.runtime.name}' here.", OTHER)
    if not read.artifact.runtime == read.runtime.name == profile.runtime:
        raise BundleError(f"{found.path}: '{MANIFEST}' names two runtimes.", OTHER)
    return read, raw, profile


def check(found: Archive, read: Manifest, raw: Mapping[str, object], profile: Target) -> str:
    """All of the evidence; what was found, in a sentence."""
    _artifact(found, read)
    _small_parts(found)
    result = json_of(found, "result.json")
    if not isinstance(result, dict):
        raise BundleError(f"{found.path}: 'result.json' is no result.", DAMAGED)
    _same(found, raw, result)
    gates = _gates(found, read, result, profile)
    parts = [precision.check(found, f"artifact/{name}") for name in _graphs(read)]
    consistent.artifact(found, list(read.artifact.files), results.read(result))
    bill.check(found)
    provenance.check(found, profile.name, result.get("recipe", {}), read.sources)
    consistent.answers(found, samples.answers(found), results.read(result))
    where = f"{profile.name}, {read.runtime.name} {read.runtime.version}".strip()
    return f"{gates} gates computed again, the proof is there, {parts[0]} operators with weights in INT8 ({where})."


def _version(found: Archive) -> Callable[[Any], None]:
    def look(raw: Any) -> None:
        version = raw.get("version") if isinstance(raw, dict) else None
        if type(version) is int and version != 1:
            raise BundleError(
                f"{found.path}: '{MANIFEST}' has version {version}; only 1 is known.", "Update edgeprune."
            )

    return look


def _typed(found: Archive, raw: Any, kind: type[Any], name: str, before: Callable[[Any], None] | None = None) -> Any:
    if before is not None:
        before(raw)
    try:
        return msgspec.convert(raw, kind)
    except (msgspec.ValidationError, ValueError, TypeError, OverflowError) as cause:
        kinds = {MANIFEST: "a manifest", "preprocessing.json": "preprocessing"}
        raise BundleError(f"{found.path}: '{name}' is not {kinds[name]} ({str(cause)[:300]}).", DAMAGED) from None


def _convert(data: Any, kind: type[T], where: str) -> T:
    """As config.convert; what does not fit is the bundle's fault, and not of who asks."""
    try:
        return convert(data, kind, UsageError, where)
    except UsageError as cause:
        raise BundleError(cause.message, OTHER) from None


def _artifact(found: Archive, read: Manifest) -> None:
    """Files of the kinds that the runtime opens, none besides; options of the list."""
    entry, second = read.artifact, read.artifact.optimised
    groups = [(entry.files, entry.options), *((one.files, one.options) for one in entry.flavours)]
    if second and "missing" not in second:
        if not isinstance(second.get("file"), str) or not isinstance(second.get("made_on"), dict):
            raise BundleError(f"{found.path}: '{MANIFEST}' is not a manifest (artifact.optimised).", DAMAGED)
        groups.append(([second["file"]], second.get("options", {})))
    named = {f"artifact/{name}" for names, _ in groups for name in names}
    for name in sorted(named ^ {name for name in found.members if name.startswith("artifact/")}):
        state = "is missing" if name in named else f"is no part of the artifact of '{MANIFEST}'"
        raise BundleError(f"{found.path}: '{name[:200]}' {state}.", DAMAGED)
    for names, options in groups:
        if wrong := runtimes.wrong_options(entry.runtime, options):
            raise BundleError(f"{found.path}: '{MANIFEST}': {wrong}", "An option never names a file or a folder.")
        suffixes = tuple(name[name.rfind(".") :] for name in names)
        if suffixes != runtimes.load(entry.runtime).suffixes:
            raise BundleError(f"{found.path}: '{names[0]}' is no artifact of {entry.runtime}.", OTHER)


def _graphs(read: Manifest) -> list[str]:
    second = read.artifact.optimised.get("file")
    names = [read.artifact.files[0], *(one.files[0] for one in read.artifact.flavours), *([second] if second else [])]
    return list(dict.fromkeys(names))


def _small_parts(found: Archive) -> None:
    """The parts that no gate reads, but a device does."""
    spec = _typed(found, json_of(found, "preprocessing.json"), Preprocessing, "preprocessing.json")
    sides = [side for given in (spec.resize, spec.crop) for side in (given if isinstance(given, list) else [given])]
    numbers = all(map(math.isfinite, (spec.scale, *spec.mean, *spec.std))) and 0 not in spec.std
    if spec.kind == "image":
        numbers = numbers and bool(spec.scale and spec.mean and spec.std)
    if not numbers or not all(0 <= side <= 65536 for side in sides):
        raise BundleError(f"{found.path}: 'preprocessing.json' is not preprocessing (not finite, or zero).", DAMAGED)
    for name, fits in (
        ("plan.json", lambda data: isinstance(data, dict) and data),
        ("selftest.json", lambda data: isinstance(data, dict) and data.get("version") == 1 and data.get("inputs")),
        ("labels.json", lambda data: isinstance(data, list) and all(isinstance(one, str) for one in data)),
    ):
        if name in found.members and not fits(json_of(found, name)):
            raise BundleError(f"{found.path}: '{name}' is not what it should be.", DAMAGED)
    for name in ("LICENSES/edgeprune.txt", "README.md", "requirements.txt", "run.py"):
        if not found.member(name).size:
            raise BundleError(f"{found.path}: '{name}' is empty.", DAMAGED)


def _same(found: Archive, raw: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """What stands in the manifest and in result.json is the same in both."""
    absent = {"unit": "ms", "evidence": [], "inputs": []}
    pairs = [(key, raw.get(key, absent.get(key, {})), result.get(key, absent.get(key, {}))) for key in SAME]
    pairs.append(("target", raw["target"].get("name"), result.get("target")))
    if result.get("profile"):
        pairs.append(("target", raw["target"], result["profile"]))
    pairs += [(key, raw["figures"].get(key), result.get(key)) for key in sorted({*FIGURES, *raw["figures"]})]
    for key, one, other in pairs:
        if one != other or _infinite(one):
            raise BundleError(f"{found.path}: '{key[:80]}' in '{MANIFEST}' and in 'result.json' differ.", OTHER)


def _gates(found: Archive, read: Manifest, result: dict[str, object], profile: Target) -> int:
    """The gates, computed again; how many there are."""
    wrong = f"{found.path}: 'result.json'"
    if read.verdict == "refused":
        raise BundleError(f"{found.path}: no verdict to release.", NOT_PASSED)
    written = [(gate.name, gate.passed) for gate in read.gates]
    if len({gate.name for gate in read.gates}) < len(read.gates):
        raise BundleError(f"{found.path}: a gate stands twice in its manifest.", OTHER)
    for gate in read.gates:
        if not _finite(gate.value) or not _finite(gate.limit):
            raise BundleError(f"{found.path}: the '{gate.name}' gate has a figure that is not finite.", NOT_PASSED)
    try:
        budget = _budget(result, wrong)
        figures = results.read(result)
        again = validate.gates(figures, budget, profile.protocol.max_spread)
        verdict = validate.verdict(again, read.unit, figures.claim.verdict)
        consistent.check(found, figures, budget, profile)
    except BundleError:
        raise
    except EdgepruneError as cause:
        raise BundleError(f"{wrong}: {cause.message}", NOT_PASSED) from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as cause:
        kind = type(cause).__name__
        raise BundleError(
            f"{wrong} does not have the figures of a run ({kind}: {str(cause)[:200]}).", DAMAGED
        ) from None
    failed = [gate for gate in again if not gate.passed]
    known = {gate.name for gate in again}
    for name in sorted(known ^ {name for name, _ in written}):
        state = (
            f"its manifest has no '{name}' gate" if name in known else f"'{name}' is no gate of a run with its recipe"
        )
        raise BundleError(f"{found.path}: {state}.", f"{NOT_PASSED} It was made by edgeprune {read.edgeprune}.")
    open_ones = {"measurement"} if read.verdict == UNVERIFIED else set()
    for one in failed:
        if one.name not in open_ones:
            raise BundleError(f"{found.path}: the '{one.name}' gate did not pass: {one.message}", NOT_PASSED)
    for name, passed in written:
        if passed != (name not in open_ones):
            raise BundleError(f"{found.path}: the '{name}' gate did not pass.", NOT_PASSED)
    if verdict != read.verdict or read.proof.get("passed") is not True:
        raise BundleError(f"{found.path}: no proof, or no verdict to release.", NOT_PASSED)
    return len(again)


def _budget(result: Mapping[str, object], where: str) -> BudgetSection:
    """What was asked for: the recipe's own words, which `budget` repeats."""
    budget = _convert(result["budget"], BudgetSection, f"{where}: budget")
    asked = _convert(results.Facts(result["recipe"]).data["budget"], BudgetSection, f"{where}: recipe.budget")
    if asked != budget:
        raise BundleError(f"{where}: the recipe's budget is not the one that was judged.", OTHER)
    if not all(_finite(value) for value in msgspec.structs.asdict(budget).values()):
        raise BundleError(f"{where}: a budget that is not finite.", NOT_PASSED)
    return budget


def fits(found: Archive, read: Manifest, inputs: Sequence[NDArray[Any]]) -> None:
    """The samples are what the manifest says that the network takes; raises BundleError."""
    if not read.inputs and len(inputs) > 1:
        raise BundleError(f"{found.path}: 'samples.npz' has {len(inputs)} inputs; '{MANIFEST}' names none.", OTHER)
    if read.inputs and len(inputs) != len(read.inputs):
        raise BundleError(
            f"{found.path}: 'samples.npz' has {len(inputs)} inputs; '{MANIFEST}' names {len(read.inputs)}.", OTHER
        )
    for part, array in zip(read.inputs, inputs, strict=False):
        if str(array.dtype) != part.dtype or list(array.shape[1:]) != part.shape:
            raise BundleError(
                f"{found.path}: the samples' '{part.name}' is {array.dtype} {list(array.shape[1:])}; '{MANIFEST}' says "
                f"{part.dtype} {part.shape}.",
                OTHER,
            )


def _finite(value: Any) -> bool:
    return value is None or math.isfinite(value)


def _infinite(value: Any) -> bool:
    """Does a number in it lack an end, or is none?"""
    level: Iterable[Any] = [value]
    while level := list(level):
        if any(isinstance(one, float) and not math.isfinite(one) for one in level):
            return True
        nested = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [item for group in nested for item in group]
    return False


def known_here(read: Manifest) -> Target:
    """The target of that name as it is known on this machine; raises TargetError."""
    return targets.load(str(read.target.get("name", "")))
