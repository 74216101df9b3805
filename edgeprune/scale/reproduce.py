"""A release made again: the locked recipe of a bundle, run anew, and what came out differently.

The recipe with every value, the target and the hashes of what it was made from travel in the bundle; the code, weights
and data that the recipe names do not, and lie in a folder that the user gives. Latency is measured anew, so the search
may choose another network: then the two bundles are compared as two releases are (`compare`), on the same examples and
side by side on the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgeprune import compare, files, pipeline, release
from edgeprune import recipe as recipes
from edgeprune import target as targets
from edgeprune.errors import BundleError, EdgepruneError, GateError, NotAuthenticated, RegressionError, UsageError
from edgeprune.pipeline import Listener, silent
from edgeprune.recipe import Recipe
from edgeprune.result import Facts
from edgeprune.target import Target

HANDED = "<objects>"  # what stands in a recipe where Python handed over a network and data
SHOWN = 5


@dataclass(frozen=True)
class Reproduced:
    """One thing, then and now; `same` is None where it could not be told."""

    name: str
    same: bool | None
    message: str


@dataclass(frozen=True)
class Reproduction:
    """What running a bundle's recipe again came to.

    Attributes:
        verdict: of the new run.
        parts: what went in and what came out, in the order in which things are made.
        compared: the two bundles as releases; None where the new run made none.
    """

    bundle: Path
    run_dir: Path
    verdict: str
    parts: tuple[Reproduced, ...]
    compared: compare.Compared | None

    @property
    def identical(self) -> bool:
        """The artifact is the same, byte for byte."""
        return any(one.name == "artifact" and one.same for one in self.parts)

    def check(self, strict: bool = False) -> None:
        """Raise where the release was not made again.

        Args:
            strict: also where the artifact is not the same, byte for byte.

        Raises:
            GateError: the new run made no bundle.
            RegressionError: the new bundle is worse by more than noise, or (`strict`) another one.
        """
        if self.compared is None:
            raise GateError(
                f"{self.bundle} was not made again: the new run is {self.verdict or 'unfinished'}.",
                f"Its report says why: {self.run_dir / 'report.html'}",
            )
        self.compared.check()
        if strict and not self.identical:
            other = next((one for one in self.parts if one.same is False), None)
            raise RegressionError(
                f"{self.bundle} was not made again byte for byte{f': {other.name}: {other.message}' if other else '.'}",
                "Without --strict an artifact that is as good is enough.",
            )

    def to_dict(self) -> dict[str, object]:
        """As `edgeprune reproduce --json` prints it."""
        return {
            "bundle": str(self.bundle),
            "run_dir": str(self.run_dir),
            "verdict": self.verdict,
            "identical": self.identical,
            "parts": [asdict(one) for one in self.parts],
            "compared": None if self.compared is None else self.compared.to_dict(),
        }


def reproduce(
    bundle: Path,
    source: Path,
    run_dir: Path | None = None,
    *,
    key: Path | None = None,
    trusted: bool = False,
    device: str = "",
    events: Listener = silent,
) -> Reproduction:
    """Run a bundle's recipe again and compare.

    Args:
        source: the folder in which the recipe lay: what it names is looked for here and in the current folder.
        run_dir: default `runs/NAME-TARGET-again`; an interrupted call goes on there.
        key: the public key that must have signed it. The recipe names code that will run.
        trusted: run what a bundle names that nobody has signed.

    Raises:
        NotAuthenticated: neither `key` nor `trusted`.
        BundleError, UsageError: a bad bundle, or one whose recipe cannot be run.
        EdgepruneError: of the run, but for a refusal by a gate, which is an outcome.
    """
    if key is None and not trusted:
        raise NotAuthenticated(
            f"{bundle}: its recipe names code, which would run here, and no key says whose it is.",
            "Give --key release.pub; or --unsigned, if you know where it comes from.",
        )
    old = release.contents(bundle, key=key, rerun=False)
    recipe, target = recipe_of(old, source), targets.load(old.profile.name)
    path = run_dir or Path("runs") / f"{recipe.name}-{target.name}-again"
    try:
        made: pipeline.Outcome | None = pipeline.run(recipe, target, path, device=device, events=events)
    except GateError as refused:
        made = getattr(refused, "outcome", None)
        if made is None:
            raise
    assert made is not None
    compared = None
    parts = [*_inputs(old, made.result, path, target), *_outputs(old, path)]
    if made.bundle is not None and made.verdict == old.manifest.verdict == "release":
        compared = compare.compare(bundle, made.bundle, device=device)
    return Reproduction(bundle, path, made.verdict, tuple(parts), compared)


def recipe_of(old: release.Contents, source: Path) -> Recipe:
    """The recipe as it was locked, with its paths in `source`.

    Raises:
        UsageError: no such folder, or the network and its data came from Python.
        BundleError: it has no recipe, or one of another version.
    """
    if not source.is_dir():
        raise UsageError(f"{source}: no such folder.", "Give the one in which the recipe lay: --in FOLDER.")
    sections = {str(name): value for name, value in old.raw.part("recipe")}
    if not sections:
        raise BundleError(f"{old.path}: its result has no recipe.", "It was made by an older version.")
    if Facts(sections).part("model").text("factory") == HANDED:
        raise UsageError(
            f"{old.path}: its network and data were handed over by Python, not named by a recipe.",
            "Run the program that made it again, and compare: edgeprune compare OLD.tar NEW.tar",
        )
    try:
        made = recipes.of_python({**sections, "name": old.manifest.name}, f"{old.path}: recipe")
    except UsageError as cause:
        raise BundleError(f"{cause.message}", "Its recipe is not one of this version of edgeprune.") from None
    return msgspec.structs.replace(made, path=str(source / "recipe.toml"))


def _inputs(old: release.Contents, new: Mapping[str, object], path: Path, target: Target) -> Iterator[Reproduced]:
    """What went in."""
    then, now = old.raw, Facts(new)
    digests = [old.manifest.sources.get("recipe.lock.toml", ""), _sha(path / "recipe.lock.toml")]
    yield Reproduced("recipe", digests[0] == digests[1], "every value" if digests[0] == digests[1] else "other text")
    profiles = [Facts(old.profile.to_dict()), Facts(target.to_dict())]
    keys = _other(profiles[0], profiles[1], without=("folder", "evidence", "connection"))
    yield Reproduced("target", not keys, f"its profile differs: {_some(keys)}" if keys else target.name)
    packages = [one.part("environment").part("packages") for one in (then, now)]
    names = _other(packages[0], packages[1])
    told = [f"{name} {packages[0].text(name, 'none')} then, {packages[1].text(name, 'none')} now" for name in names]
    yield Reproduced("packages", not names, _some(told) if names else "the same versions")
    devices = [one.part("device") for one in (then, now)]
    keys = _other(devices[0], devices[1])
    yield Reproduced("device", not keys, f"it differs in {_some(keys)}" if keys else "the same fingerprint")
    ids = _answers(path)
    if old.answers is None or ids is None:
        yield Reproduced("test examples", None, "a bundle, or the run, does not say which they were")
    else:
        same = np.array_equal(np.sort(old.answers.ids), np.sort(ids))
        yield Reproduced("test examples", same, f"{len(ids):,} of them" if same else "others than then")


def _outputs(old: release.Contents, path: Path) -> Iterator[Reproduced]:
    """What came out, in the order in which it is made."""
    plans = [old.read("plan.json"), _bytes(path / "search" / "plan.json")]
    chosen = [_plan(one, path) for one in plans]
    differ = _plans_differ(chosen[0], chosen[1])
    yield Reproduced("chosen network", not differ, differ or "the same channels and blocks")
    for title, name in (("weights", "recover/weights.safetensors"), ("INT8 graph", "quantize/pruned-int8.onnx")):
        then, now = old.manifest.sources.get(name, ""), _sha(path / name)
        if not then or not now:
            yield Reproduced(title, None, "not there" if then else "the bundle does not say")
        else:
            yield Reproduced(title, then == now, "the same bytes" if then == now else "other bytes")
    listed = _artifacts(path)
    stated = {name: old.manifest.files[f"artifact/{name}"].sha256 for name in old.manifest.artifact.files}
    same = bool(listed) and all(listed.get(name) == digest for name, digest in stated.items())
    yield Reproduced("artifact", same, "the same, byte for byte" if same else "other bytes")


def _plan(data: bytes, path: Path) -> Facts:
    return Facts(files.parse_json(data, BundleError, f"{path}: plan.json") if data else {})


def _plans_differ(then: Facts, now: Facts) -> str:
    """What of two plans is not the same, in words; "" where nothing is."""
    if not now:
        return "the new run chose none"
    blocks = sorted(set(map(str, then.listed("removed"))) ^ set(map(str, now.listed("removed"))))
    widths = _other(then.part("kept"), now.part("kept"))
    told = [f"{len(blocks)} blocks ({_some(blocks)})"] if blocks else []
    told += [f"channels of {len(widths)} groups ({_some(widths)})"] if widths else []
    if told:
        return f"other {' and '.join(told)}: latency was measured anew"
    return "" if dict(then) == dict(now) else "another plan of the same channels"


def _other(one: Facts, other: Facts, without: tuple[str, ...] = ()) -> list[str]:
    """Names whose values differ."""
    names = sorted({str(name) for found in (one, other) for name, _ in found} - set(without))
    return [name for name in names if one.get(name) != other.get(name)]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


def _bytes(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _sha(path: Path) -> str:
    return files.sha256(path) if path.is_file() else ""


def _answers(path: Path) -> NDArray[np.uint64] | None:
    file = path / "validate" / "answers.npz"
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as found:
        return np.asarray(found["ids"])


def _artifacts(path: Path) -> dict[str, object]:
    try:
        found = Facts(files.read_json(path / "artifacts" / "artifacts.json", BundleError))
    except EdgepruneError:
        return {}
    return {str(name): digest for name, digest in found.part("pruned-int8").part("sha256")}
