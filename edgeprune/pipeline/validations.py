"""Every latency that was ever measured of these very artifacts in this run directory.

`validations.json` lies beside the stages, so that `--from validate` does not throw it away, and it is written before
anything is judged: a repeat adds to what is known and cannot take its place. An entry belongs to the artifacts' sha256
and the device.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from edgeprune import files, latency, validate
from edgeprune.devices import Artifact, Loaded, Timing
from edgeprune.errors import RunError
from edgeprune.pipeline.bench import Bench
from edgeprune.pipeline.events import Voice
from edgeprune.pipeline.rundir import RunDirectory, holds, key_of, read_json, write_json
from edgeprune.recipe import Recipe
from edgeprune.result import Latency, Validation

FILE = "validations.json"
REPEATS = 3  # where one measurement is too near to the budget to tell, whatever the patience
MOST_REPEATS = 8  # with it: on a noisy device each tells less
INVALID = 20  # measurements that do not count, with patience


def measure(
    recipe: Recipe,
    bench: Bench,
    run: RunDirectory,
    voice: Voice,
    artifacts: Mapping[str, Artifact],
    loaded: Mapping[str, Loaded],
    fingerprint: Mapping[str, object],
) -> tuple[dict[str, Timing], list[Validation]]:
    """Time all artifacts interleaved; again, where it is too near to the budget to tell.

    Returns:
        The last timings, and all validations of these artifacts on this device, the earlier runs' too.
    """
    named, unit = identity(artifacts, fingerprint), bench.target.protocol.unit
    wait = latency.Patience(recipe.measure.patience, lambda line: voice.say("validate", line))
    invalid = repeats = 0
    while True:
        with wait.again() if invalid or repeats else contextlib.nullcontext():
            found = bench.device.measure(list(loaded.values()), bench.target.protocol)
        timings = dict(zip(loaded, found, strict=True))
        kept = _keep(run, named, timings)
        share = validate.latency_share(kept, recipe.budget, unit)
        if unit != "ms":
            break
        if not kept[-1].valid and (share is None or share.near):  # no figure: it neither counts nor is it chosen
            invalid += 1
            if not wait.left or invalid > INVALID:
                break
            wait.tell(bench.device, f"this measurement does not count ({kept[-1].reasons[0]})")
            continue
        limit = REPEATS if not wait.left else MOST_REPEATS
        if share is None or not share.near or repeats >= limit:
            break
        repeats += 1
        voice.say("validate", f"{100 * share.ratio:.1f} % of the latency budget, too near to tell: measuring once more")
    return timings, kept


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
    kept = [*known.get(identity, ()), validate.entry(networks, date=date)]
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
