"""Where a bundle comes from, as the field writes it: an in-toto statement with SLSA's provenance, in one JSON file.

The subjects are the artifact's files, by their sha256. The predicate has what it was made from (the recipe with every
value, the sources' hashes, the packages) and by what. Formats: in-toto Attestation Framework v1, statement
(https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md); SLSA v1.0, provenance
(https://slsa.dev/spec/v1.0/provenance). It is covered by the bundle's signature; it is no signature itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edgeprune.errors import BundleError
from edgeprune.release.archive import DAMAGED, Archive
from edgeprune.result import Facts

MEMBER = "provenance.json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
MAX_BYTES = 1 << 20
MEASURED = ("result.json", "samples.npz", "answers.npz", "plan.json")  # what a run leaves beside the artifact

Text = Annotated[str, Meta(max_length=4_000)]
Sha = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


def package(name: str, version: str) -> str:
    """The package URL of something from the Python Package Index."""
    return f"pkg:pypi/{name}@{version}" if version else f"pkg:pypi/{name}"


def statement(
    result: Mapping[str, object], sources: Mapping[str, str], hashes: Mapping[str, str], edgeprune: str
) -> dict[str, object]:
    """The whole document; the same inputs give the same bytes.

    Args:
        result: what result.json holds.
        sources: of what the artifact was made, by file, as the manifest has them; sha256, or "sha256:..." of data.
        hashes: of the bundle's members, by name.
        edgeprune: its version.
    """
    builder = package("edgeprune", edgeprune)
    packages = dict(Facts(result).part("environment").part("packages"))
    when = _when(result)
    return {
        "_type": STATEMENT,
        "subject": [_file(name, hashes[name]) for name in sorted(hashes) if name.startswith("artifact/")],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": f"{builder}#run",
                "externalParameters": {"recipe": result.get("recipe", {}), "target": result["target"]},
                "internalParameters": {"device": result.get("device", {})},
                "resolvedDependencies": [
                    *(_file(name, digest.removeprefix("sha256:")) for name, digest in sorted(sources.items())),
                    *({"uri": package(name, str(packages[name]))} for name in sorted(packages)),
                ],
            },
            "runDetails": {
                "builder": {"id": builder, "version": {"edgeprune": edgeprune}},
                "metadata": {"invocationId": hashes["result.json"], **({"finishedOn": when} if when else {})},
                "byproducts": [_file(name, hashes[name]) for name in MEASURED if name in hashes],
            },
        },
    }


def _file(name: str, digest: str) -> dict[str, object]:
    return {"name": name, "digest": {"sha256": digest}}


def _when(result: Mapping[str, object]) -> str:
    """When it was last measured, in UTC, as RFC 3339 has it; empty where nothing says."""
    try:
        last = datetime.fromisoformat(Facts(result).parts("validations")[-1].text("date"))
    except (IndexError, ValueError, TypeError):
        return ""
    return last.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Digest(msgspec.Struct, frozen=True):
    sha256: Sha


class Named(msgspec.Struct, frozen=True):
    """A file and its hash, as in-toto's resource descriptor has it."""

    name: Text
    digest: _Digest


class Resource(msgspec.Struct, frozen=True):
    """A file by name and hash, or something by its URI."""

    name: Text = ""
    uri: Text = ""
    digest: dict[Text, Text] = {}


class Definition(msgspec.Struct, frozen=True, rename="camel"):
    """What was to be built, of what."""

    build_type: Text
    external_parameters: dict[str, object]
    resolved_dependencies: Annotated[list[Resource], Meta(max_length=1000)] = []


class RunDetails(msgspec.Struct, frozen=True):
    """Who built it."""

    builder: dict[str, object]
    metadata: dict[str, object] = {}
    byproducts: Annotated[list[Named], Meta(max_length=1000)] = []


class Predicate(msgspec.Struct, frozen=True, rename="camel"):
    """SLSA's provenance."""

    build_definition: Definition
    run_details: RunDetails


class Statement(msgspec.Struct, frozen=True, rename={"kind": "_type", "predicate_type": "predicateType"}):
    """in-toto's statement."""

    kind: Literal["https://in-toto.io/Statement/v1"]
    subject: Annotated[list[Named], Meta(min_length=1, max_length=1000)]
    predicate_type: Literal["https://slsa.dev/provenance/v1"]
    predicate: Predicate


def check(found: Archive, target: str, recipe: Any, sources: Mapping[str, str]) -> None:
    """Where a bundle has a statement, it is of this artifact, recipe, target and sources; raises BundleError.

    Args:
        target: the target's name.
        recipe: as result.json has it.
        sources: of the manifest.
    """
    if MEMBER not in found.members:
        return  # made before there was one
    where = f"{found.path}: '{MEMBER}'"
    read = found.struct(MEMBER, Statement, MAX_BYTES, "provenance")
    definition, details = read.predicate.build_definition, read.predicate.run_details
    artifact = {name for name in found.members if name.startswith("artifact/")}
    stated = {one.name: one.digest.sha256 for one in read.subject}
    made = {one.name: one.digest.get("sha256") for one in definition.resolved_dependencies if one.name}
    pairs = {
        "names other files than the artifact's": set(stated) != artifact or len(stated) != len(read.subject),
        "is of another recipe": definition.external_parameters.get("recipe") != recipe,
        "is of another target": definition.external_parameters.get("target") != target,
        "has other sources": made != {name: one.removeprefix("sha256:") for name, one in sources.items()},
    }
    for what, is_so in pairs.items():
        if is_so:
            raise BundleError(f"{where} {what}.", DAMAGED)
    for one in (*read.subject, *details.byproducts):
        if one.name not in found.members or found.sha256(one.name) != one.digest.sha256:
            raise BundleError(f"{where} has another sha256 of '{one.name[:100]}'.", DAMAGED)
