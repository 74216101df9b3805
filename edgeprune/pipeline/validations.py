"""Every latency that was ever measured of these very artifacts in this run directory.

`validations.json` lies beside the stages, so that `--from validate` does not throw it away, and it is written before
anything is judged: a repeat adds to what is known and cannot take its place. An entry belongs to the artifacts' sha256
and the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from edgeprune import files, latency, validate
from edgeprune.devices import Artifact, Loaded, Timing
from edgeprune.errors import RunError
from edgeprune.pipeline.bench import Bench
from edgeprune.pipeline.events import Voice
from edgeprune.pipeline.precision import in_float
from edgeprune.pipeline.rundir import RunDirectory, holds, key_of, read_json, write_json
from edgeprune.recipe import Recipe
from edgeprune.result import Facts, Latency, Validation

FILE = "validations.json"
REPEATS = 3  # where one measurement is too near to the budget to tell, whatever the patience
MOST_REPEATS = 8  # with it: on a noisy device each tells less
ROUGH = 0.03  # a speed-up that is known less well than this is measured again
INVALID = 20  # measurements that do not count, with patience


class Measuring:
    """Times all artifacts of a run interleaved, at several moments of one stage; all measurements count together.

    Attributes:
        earlier: the network that is released as the search measured it.
        wait: patience, for the whole stage.
    """

    def __init__(
        self,
        recipe: Recipe,
        bench: Bench,
        run: RunDirectory,
        voice: Voice,
        artifacts: Mapping[str, Artifact],
        loaded: Mapping[str, Loaded],
        fingerprint: Mapping[str, object],
    ) -> None:
        self.recipe, self.bench, self.run, self.voice, self.loaded = recipe, bench, run, voice, loaded
        self.named, self.unit = identity(artifacts, fingerprint), bench.target.protocol.unit
        self.earlier = searched(run)
        self.wait = latency.Patience(recipe.measure.patience, lambda line: voice.say("validate", line))
        self.invalid = self.repeats = 0

    def __call__(self) -> tuple[dict[str, Timing], list[Validation]]:
        """Measure once; again, where that does not tell yet.

        It does not where it is too near to the budget, where the search had measured the same network otherwise, and,
        while there is patience, where other work took the device's CPUs or the speed-up is known too roughly.

        Returns:
            The last timings, and all validations of these artifacts on this device, the earlier runs' too.
        """
        again = False
        while True:
            with self.wait.again() if again else contextlib.nullcontext():
                found = self.bench.device.measure(list(self.loaded.values()), self.bench.target.protocol)
            timings = dict(zip(self.loaded, found, strict=True))
            kept = _keep(self.run, self.named, timings)
            again = self.unit == "ms" and self._more(kept)
            if not again:
                return timings, kept

    def later(self, timings: dict[str, Timing], kept: list[Validation]) -> tuple[dict[str, Timing], list[Validation]]:
        """The same at another moment; what was found (`timings`, `kept`) where the clock repeats itself."""
        return self() if self.unit == "ms" else (timings, kept)

    def _more(self, kept: Sequence[Validation]) -> bool:
        share = validate.latency_share(kept, self.recipe.budget, self.unit, self.earlier)
        if not kept[-1].valid and (share is None or share.near):  # no figure: it neither counts nor is it chosen
            self.invalid += 1
            if not self.wait.left or self.invalid > INVALID:
                return False
            self.wait.tell(self.bench.device, f"this measurement does not count ({kept[-1].reasons[0]})")
            return True
        why = _why_again(kept, self.recipe, self.earlier, self.repeats, bool(self.wait.left)) if share else ""
        if why:
            self.repeats += 1
            self.voice.say("validate", f"{why}: measuring once more")
        return bool(why)


def _why_again(
    kept: Sequence[Validation], recipe: Recipe, earlier: Sequence[Validation], repeats: int, patient: bool
) -> str:
    """What a further measurement may tell; "" where these do, or where there were enough (`repeats`)."""
    share = validate.latency_share(kept, recipe.budget, "ms", earlier)
    assert share is not None
    if share.near:
        few = repeats < (MOST_REPEATS if patient else REPEATS)
        return f"{100 * share.ratio:.1f} % of the latency budget, too near to tell" if few else ""
    if repeats >= REPEATS:
        return ""
    if shares := validate.disagreement(kept, recipe.budget, "ms", earlier):
        now, then = (f"{100 * one:.1f} %" for one in shares)
        return f"{now} of the latency budget, where the search had measured {then} for this network"
    if patient and not validate.quiet(kept):
        return f"other work takes {100 * kept[-1].others:.0f} % of the device's CPUs"
    if patient and share.high / share.ratio - 1 > ROUGH:
        return f"the speed-up is good to {100 * (share.high / share.ratio - 1):.0f} % so far"
    return ""


def searched(run: RunDirectory) -> tuple[Validation, ...]:
    """The network that is released as the search measured it; () where it was another one.

    It was where the search did not know of all layers that calibration left in float, or measured no network at all.
    """
    found, precision = run.folder("search") / "search.json", run.folder("quantize") / "precision.json"
    known = Facts(read_json(found) if found.is_file() else {}).part("closure").listed("judged")
    floats = Facts(read_json(precision) if precision.is_file() else {}).listed("float")
    if floats and {str(layer) for layer in floats} - in_float(run, "dense").keys():
        return ()
    return msgspec.convert(known, tuple[Validation, ...])


def identity(artifacts: Mapping[str, Artifact], fingerprint: Mapping[str, object]) -> str:
    """What validations belong to: these very artifacts on this device."""
    return key_of(digests(artifacts), fingerprint)


def whose(artifacts: Mapping[str, Artifact], fingerprint: Mapping[str, object]) -> dict[str, object]:
    """What measured.json says of whom it is: the device, and the name that its validations have in validations.json."""
    return {"device": fingerprint, "identity": identity(artifacts, fingerprint)}


def restore(run: RunDirectory, voice: Voice) -> None:
    """Before anything is forgotten: what validate/ holds under its seal stands in validations.json, or is put back."""
    if not holds(run.folder("validate")):
        return
    sealed = read_json(run.folder("validate") / "measured.json")
    whose, path = sealed.get("identity"), run.path / FILE
    if not whose:  # of a version before
        return
    mine = msgspec.convert(sealed["validations"], list[Validation])
    try:
        known = _known(path)
    except RunError:
        known = {}
    if known.get(whose, [])[: len(mine)] != mine:
        write_json(path, msgspec.to_builtins({**known, whose: mine}))
        voice.say("validate", f"{path} was not as the run left it: put back from validate/.")


def digests(artifacts: Mapping[str, Artifact]) -> dict[str, dict[str, str]]:
    """artifact -> file -> sha256."""
    return {
        name: {file: files.sha256(path) for file, path in artifact.files.items()}
        for name, artifact in artifacts.items()
    }


def _keep(run: RunDirectory, identity: str, timings: Mapping[str, Timing]) -> list[Validation]:
    path = run.path / FILE
    known = _known(path)
    networks = {name.replace("-", "_"): facts(one) for name, one in timings.items()}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    others = max(one.others for one in timings.values())
    kept = [*known.get(identity, ()), validate.entry(networks, date, others)]
    write_json(path, msgspec.to_builtins({**known, identity: kept}))
    return kept


def _known(path: Path) -> dict[str, list[Validation]]:
    try:
        return msgspec.convert(read_json(path) if path.is_file() else {}, dict[str, list[Validation]])
    except msgspec.ValidationError as cause:
        raise RunError(f"{path} is damaged: {cause}.", "Delete it and repeat: --from validate.") from None


def facts(timing: Timing) -> Latency:
    """A timing as in result.json."""
    return Latency(
        median=timing.median,
        p90=timing.p90,
        p99=timing.p99,
        min=timing.minimum,
        mean=timing.mean,
        spread=timing.spread,
        count=timing.count,
        rounds=timing.rounds,
        valid=timing.valid,
        reasons=timing.reasons,
    )
