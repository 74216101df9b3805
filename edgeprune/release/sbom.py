"""The bill of materials of a bundle (CycloneDX 1.6, JSON): the artifact, and what the device needs to run it.

The document is made by OWASP's own library, which holds it against the standard's rules as it writes it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import msgspec
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, License, LicenseExpression
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.spdx import is_expression
from packageurl import PackageURL

from edgeprune import runtimes

_SPACE = uuid.UUID("6b1f2f3e-5d0c-5c8e-9f0e-2a7d3f5b9c11")  # of edgeprune's bundles; any fixed value does


def components(runtime: str, version: str) -> list[Component]:
    """The runtime's packages; the runtime's own version is the one that was measured with."""
    own, packages = runtimes.load(runtime).package, runtimes.load(runtime).packages
    found = [_package(name, version if name == own else _version(name)) for name in packages]
    if not own:
        found.insert(0, Component(name=runtime, version=version, bom_ref=f"{runtime}@{version}"))
    return found


def document(
    name: str, artifact: Sequence[Mapping[str, object]], runtime: str, version: str, edgeprune: str
) -> dict[str, object]:
    """The whole document; the same inputs give the same bytes (no time, and a serial number made of the hashes).

    Args:
        artifact: `name` and `sha256` of each of its files.
    """
    hashes = "".join(str(file["sha256"]) for file in artifact)
    parts = [
        Component(
            name=str(file["name"]),
            type=ComponentType.FILE,
            bom_ref=f"artifact/{file['name']}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=str(file["sha256"]))],
        )
        for file in artifact
    ]
    model = Component(
        name=name,
        type=ComponentType.MACHINE_LEARNING_MODEL,
        version=hashes[:12],
        bom_ref=f"{name}@{hashes[:12]}",
        components=parts,
    )
    needed = components(runtime, version)
    maker = Component(name="edgeprune", type=ComponentType.APPLICATION, version=edgeprune, bom_ref="edgeprune")
    about = BomMetaData(component=model, tools=ToolRepository(components=[maker]))
    about.timestamp = None  # type: ignore[assignment] # the standard does not ask for one, and it is never the same
    bom = Bom(components=needed, serial_number=uuid.uuid5(_SPACE, hashes), metadata=about)
    bom.register_dependency(model, [*parts, *needed])
    return msgspec.json.decode(JsonV1Dot6(bom).output_as_string(), type=dict[str, object])


def requirements(runtime: str, version: str) -> str:
    """requirements.txt for the device: the runtime as it was measured, and numpy as the device has it."""
    known = runtimes.load(runtime)
    lines = [f"{name}=={version}" if name == known.package and version else name for name in known.packages]
    return "\n".join(lines) + "\n"


def _package(name: str, version: str) -> Component:
    place = PackageURL("pypi", None, name, version or None)
    licence = _licence(name)
    return Component(
        name=name,
        version=version or None,
        bom_ref=place.to_string(),
        purl=place,
        licenses=[licence] if licence else [],
    )


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _licence(name: str) -> License | None:
    """The licence as the installed package declares it: an SPDX expression, or its name; None when not installed."""
    try:
        fields: Any = metadata.metadata(name)  # an email.message.Message, which typeshed does not say
    except metadata.PackageNotFoundError:
        return None
    expression = fields.get("License-Expression") or ""
    if is_expression(expression):
        return LicenseExpression(expression)
    words = (fields.get("License") or "").strip().splitlines()
    classifiers = [item for item in fields.get_all("Classifier") or [] if item.startswith("License ::")]
    text = words[0] if words and len(words[0]) < 80 else (classifiers[0].split(" :: ")[-1] if classifiers else "")
    return DisjunctiveLicense(name=text) if text else None
