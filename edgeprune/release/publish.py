"""Making a bundle and giving it its name only when it has passed the project's own `verify`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edgeprune import files
from edgeprune.errors import BundleError, GateError
from edgeprune.release.bundle import UNVERIFIED, bundle, name_of, profile_of
from edgeprune.release.verify import Check, verify


def publish(
    run_dir: Path, result: Mapping[str, object], folder: Path, *, licences: Sequence[Path] = (), device: str = ""
) -> tuple[Path, tuple[Check, ...]]:
    """The bundle of a run in `folder`, and what `verify` said of it; nothing is left there when it does not pass.

    Args:
        device: where verify runs the samples, instead of how the target's profile reaches its device.

    Raises:
        GateError: a gate has not passed, or the bundle does not pass `verify`: its samples must have been run again.
        RunError: a file is not the one that was measured.
        BundleError: something that belongs in it is missing.
    """
    path = folder / name_of(result)
    with files.replacing(path) as partial:
        bundle(run_dir, result, partial, licences=licences)
        try:
            rerun = result.get("verdict") != UNVERIFIED
            checks = verify(partial, device=device, rerun=rerun, profile=profile_of(result)).checks
        except BundleError as cause:
            message = cause.message.replace(str(partial), str(path))
            raise GateError(
                f"the bundle does not pass its own verify, and was not kept: {message}", cause.remedy
            ) from None
        idle = [check for check in checks if check.name == "samples" and not check.passed]
        if idle and rerun:
            raise GateError(
                f"the bundle does not pass its own verify, and was not kept: its samples were {idle[0].message}",
                "The device that measured it must run them: repeat the command.",
            )
    return path, checks
