"""What of two releases is compared, each with a word: metric, size, operators, provenance. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgeprune import validate
from edgeprune.errors import UsageError
from edgeprune.release import Contents
from edgeprune.result import Precision, ScoreInfo, number, quantity

Word = Literal["better", "same", "worse", "regression", "unknown"]
SIGN = 1e-12  # below which nothing differs


@dataclass(frozen=True)
class Tolerance:
    """What the newer one may be worse by.

    Attributes:
        max_drop: of the metric, in its own unit.
        max_slower, max_larger: shares of the older one's latency and bytes.
        confidence: one-sided, that a regression is one.
    """

    max_drop: float = 0.0
    max_slower: float = 0.0
    max_larger: float = 0.01
    confidence: float = 0.95


@dataclass(frozen=True)
class Aspect:
    """One thing that was compared.

    Attributes:
        word: "regression": worse by more than is allowed, and more than noise; "worse": more than noise, but allowed;
            "same": nothing that could be told apart from noise; "unknown": it could not be compared here.
        old, new: the figures, in `unit`; None where there are none.
        change: how much worse the newer one is, in `change_unit`; negative is better.
        low, high: its one-sided limits.
        message: in a sentence.
    """

    name: str
    word: Word
    message: str
    old: float | None = None
    new: float | None = None
    unit: str = ""
    change: float | None = None
    low: float | None = None
    high: float | None = None
    change_unit: str = ""

    def to_dict(self) -> Mapping[str, object]:
        """For JSON."""
        return asdict(self)


def word(low: float | None, high: float | None, allowed: float) -> Word:
    """From the limits of how much worse it is, and how much is allowed."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return "unknown"
    if low > allowed + SIGN:
        return "regression"
    if low > SIGN:
        return "worse"
    return "better" if high < -SIGN else "same"


WORDS: Mapping[Word, str] = {
    "better": "better",
    "same": "not told apart from noise",
    "worse": "worse, within what is allowed",
    "regression": "a regression",
    "unknown": "not known",
}


def metric(old: Contents, new: Contents, given: Tolerance) -> Aspect:
    """The scores of the released artifacts, paired on the same examples where both bundles have their answers.

    Raises:
        UsageError: of two metrics, or of opposite directions.
    """
    scores = _rated(new), _rated(old)
    mine, theirs = scores
    if (mine.metric, mine.unit, mine.higher_is_better) != (theirs.metric, theirs.unit, theirs.higher_is_better):
        raise UsageError(
            f"{old.path} was judged by {theirs.title}, {new.path} by {mine.title}.", "Compare bundles of one task."
        )
    found, unpaired = validate.on_the_same(new.answers, old.answers, scores, given.confidence)
    said = word(found.low, found.high, given.max_drop)
    if found.drop is not None and unpaired and abs(found.drop) < SIGN and said == "unknown":
        said = "same"
    where = f"{found.worse if (found.drop or 0) >= 0 else found.better} the older"
    text = (
        f"{found.metric} {quantity(found.value, found.unit)} against {quantity(found.reference, found.unit)} on "
        f"{found.examples:,} examples: {_size(found.drop, found.unit)} {where} "
        f"({100 * given.confidence:.0f} % limits "
        f"{_signed(found.low, found.unit)} to {_signed(found.high, found.unit)} worse"
        f"{f'; {given.max_drop:g} allowed' if given.max_drop else ''}), {WORDS[said]}"
    )
    return Aspect(
        "metric",
        said,
        f"{text}{f'; {unpaired}' if unpaired else ''}.",
        found.reference,
        found.value,
        found.scale,
        found.drop,
        found.low,
        found.high,
        found.unit,
    )


def _rated(one: Contents) -> ScoreInfo:
    rated = one.result.network("pruned_int8").rated
    if rated is None:
        raise UsageError(f"{one.path}: its result has no score.", "Make it again with this version of edgeprune.")
    return rated


def _size(value: float | None, unit: str) -> str:
    return "unknown" if value is None else f"{number(abs(value), unit)} {unit}".strip()


def _signed(value: float | None, unit: str) -> str:
    return "unknown" if value is None else ("-" if value < 0 else "") + number(abs(value), unit)


def size(old: Contents, new: Contents, given: Tolerance) -> Aspect:
    """Bytes of the artifact: exact, so every byte more is worse, and a regression above what is allowed."""
    before, after = (_bytes(one) for one in (old, new))
    change = after / before - 1
    said = word(change, change, given.max_larger)
    allowed = f"{100 * given.max_larger:.0f} % allowed"
    text = f"{after:,} bytes against {before:,} ({100 * change:+.2f} %; {allowed}), {WORDS[said]}."
    if said == "same":
        text = f"{after:,} bytes, as before."
    return Aspect("size", said, text, before, after, "bytes", change, change, change, "share")


def _bytes(one: Contents) -> int:
    return sum(one.manifest.files[f"artifact/{name}"].bytes for name in one.manifest.artifact.files)


def operators(old: Contents, new: Contents) -> Aspect:
    """How many operators with weights run in INT8, and which have come to run in float."""
    before, after = (one.result.precision or Precision() for one in (old, new))
    if not before.operators or not after.operators:
        return Aspect("operators", "unknown", "a result does not say which operators run in INT8.")
    shares = before.int8 / before.operators, after.int8 / after.operators
    lost = [name for name in after.floats if name not in before.floats]
    said: Word = "regression" if lost and shares[1] < shares[0] - SIGN else "worse" if lost else "same"
    if said == "same" and shares[1] > shares[0] + SIGN:
        said = "better"
    text = f"{after.int8} of {after.operators} run in INT8, against {before.int8} of {before.operators}"
    text += f"; now in float: {', '.join(lost[:5])}" if lost else ""
    return Aspect("operators", said, f"{text}.", shares[0], shares[1], "share", shares[0] - shares[1])


def provenance(old: Contents, new: Contents) -> Aspect:
    """What they were made from, with and for: told, and a regression only where the newer one was not measured."""
    told = list(_changes(old, new))
    if new.manifest.verdict == "unverified" and old.manifest.verdict == "release":
        return Aspect("provenance", "regression", f"its own device has not measured the newer one. {_list(told)}")
    return Aspect("provenance", "same", _list(told))


def _list(told: list[str]) -> str:
    return f"{'; '.join(told)}." if told else "made from, with and for the same."


def _changes(old: Contents, new: Contents) -> Iterator[str]:
    before, after = old.manifest, new.manifest
    pairs: list[tuple[str, Any, Any]] = [
        ("edgeprune", before.edgeprune, after.edgeprune),
        (
            "runtime",
            f"{before.runtime.name} {before.runtime.version}".strip(),
            f"{after.runtime.name} {after.runtime.version}".strip(),
        ),
        ("threads", before.artifact.threads, after.artifact.threads),
        ("options", before.artifact.options, after.artifact.options),
    ]
    yield from (f"{name}: {one} before, {other} now" for name, one, other in pairs if one != other)
    device = [key for key in sorted({*before.device, *after.device}) if before.device.get(key) != after.device.get(key)]
    if device:
        yield f"measured on another device or in another state ({', '.join(device[:5])})"
    sources = sorted({*before.sources, *after.sources})
    other = [name for name in sources if before.sources.get(name) != after.sources.get(name)]
    if other:
        yield f"other {', '.join(other)}"
    if _same_files(old, new):
        yield "the artifact is the same, byte for byte"
    signed = [any(c.name == "signature" and c.passed for c in one.verified.checks) for one in (old, new)]
    if signed[0] and not signed[1]:
        yield "the older one is signed by the key, the newer one is not"


def _same_files(old: Contents, new: Contents) -> bool:
    one, other = (
        [item.manifest.files[f"artifact/{name}"].sha256 for name in item.manifest.artifact.files] for item in (old, new)
    )
    return one == other
