"""All aspects of two bundles, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeprune.compare import aspects, timed
from edgeprune.compare.aspects import Aspect, Tolerance
from edgeprune.errors import RegressionError, UsageError
from edgeprune.release import Contents, contents

COULD = ("metric", "latency")  # what --strict insists on


@dataclass(frozen=True)
class Compared:
    """Two bundles, compared."""

    old: Path
    new: Path
    name: str
    target: str
    aspects: tuple[Aspect, ...]

    @property
    def regressions(self) -> tuple[Aspect, ...]:
        """Where the newer one is worse by more than is allowed, and more than noise."""
        return tuple(one for one in self.aspects if one.word == "regression")

    def check(self, strict: bool = False) -> None:
        """Raise RegressionError where there is a regression; `strict`: or where metric or latency is not known."""
        unknown = [one for one in self.aspects if strict and one.word == "unknown" and one.name in COULD]
        bad = [*self.regressions, *unknown]
        if bad:
            more = f" ({len(bad)} of {len(self.aspects)} aspects)" if len(bad) > 1 else ""
            remedy = "Look at both reports; allow for it with --max-drop, --max-slower or --max-larger, if it is meant."
            raise RegressionError(f"{self.new} against {self.old}: {bad[0].name}: {bad[0].message}{more}", remedy)

    def to_dict(self) -> Mapping[str, object]:
        """As `edgeprune compare --json` prints it."""
        return {
            "old": str(self.old),
            "new": str(self.new),
            "name": self.name,
            "target": self.target,
            "regression": bool(self.regressions),
            "aspects": [one.to_dict() for one in self.aspects],
        }


def compare(
    old: Path,
    new: Path,
    given: Tolerance | None = None,
    *,
    key: Path | None = None,
    device: str = "",
    rerun: bool = True,
    repeats: int = 5,
    progress: timed.Listener = lambda done, total: None,
) -> Compared:
    """Compare two bundles; both are verified first, and what can be rerun here is rerun.

    Args:
        key: the public key that must have signed both.
        rerun: False: open nothing, and compare what is recorded.
        repeats: measurements of both together.

    Raises:
        BundleError: one of them is bad.
        UsageError: they are of two targets or two metrics.
    """
    given = given or Tolerance()
    before, after = (contents(path, key=key, device=device, rerun=rerun) for path in (old, new))
    _comparable(before, after)
    found = [aspects.metric(before, after, given)]
    if rerun:
        found.append(timed.latency(before, after, given, device, repeats, progress))
    else:
        found.append(Aspect("latency", "unknown", "not measured: --no-rerun was given."))
    found += [aspects.size(before, after, given), aspects.operators(before, after)]
    found += [_samples(before, after), aspects.provenance(before, after)]
    return Compared(old, new, after.manifest.name, after.profile.name, tuple(found))


def _comparable(old: Contents, new: Contents) -> None:
    if old.profile.name != new.profile.name:
        raise UsageError(
            f"{old.path} is for {old.profile.name}, {new.path} for {new.profile.name}.",
            "Compare bundles of one target; latency does not carry over.",
        )
    if [(part.name, part.shape) for part in old.manifest.inputs] != [(p.name, p.shape) for p in new.manifest.inputs]:
        raise UsageError(f"{old.path} and {new.path} take different inputs.", "Compare bundles of one network's task.")


def _samples(old: Contents, new: Contents) -> Aspect:
    """Do both still compute what they did when they were made? A bundle that does not is refused before this."""
    told = [next(check for check in one.verified.checks if check.name == "samples") for one in (old, new)]
    if not all(check.passed for check in told):
        missed = next(check for check in told if not check.passed)
        return Aspect("samples", "unknown", missed.message)
    return Aspect("samples", "same", f"both give again what travels with them: {told[1].message}")
