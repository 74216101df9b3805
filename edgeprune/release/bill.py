"""Is the bill of materials that travels in a bundle the one of its artifact? sbom.py makes it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from edgeprune.errors import BundleError
from edgeprune.release.archive import DAMAGED, Archive

MEMBER, MAX_BYTES = "sbom.json", 4 << 20


class _Hash(msgspec.Struct, frozen=True):
    content: str


class _File(msgspec.Struct, frozen=True):
    name: str
    hashes: Annotated[list[_Hash], Meta(max_length=10)] = []


class _Model(msgspec.Struct, frozen=True):
    components: Annotated[list[_File], Meta(max_length=1000)]


class _About(msgspec.Struct, frozen=True):
    component: _Model


class _Bill(msgspec.Struct, frozen=True, rename={"kind": "bomFormat"}):
    kind: Literal["CycloneDX"]
    metadata: _About


def check(found: Archive) -> None:
    """A bundle's bill is of this artifact: its files and their hashes; raises BundleError."""
    where = f"{found.path}: '{MEMBER}'"
    read = found.struct(MEMBER, _Bill, MAX_BYTES, "bill of materials")
    stated = {
        f"artifact/{one.name}": [each.content for each in one.hashes] for one in read.metadata.component.components
    }
    held = {name: [found.sha256(name)] for name in found.members if name.startswith("artifact/")}
    if stated != held:
        raise BundleError(f"{where} is of another artifact.", DAMAGED)
