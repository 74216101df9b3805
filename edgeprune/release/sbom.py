"""The bill of materials of a bundle (CycloneDX 1.6, JSON): the artifact, and what the device needs to run it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from edgeprune import runtimes

_SPACE = uuid.UUID("6b1f2f3e-5d0c-5c8e-9f0e-2a7d3f5b9c11")  # of edgeprune's bundles; any fixed value does


def components(runtime: str, version: str) -> list[dict[str, object]]:
    """The runtime's packages as CycloneDX components; the runtime's own version is the one that was measured with."""
    own, packages = runtimes.load(runtime).package, runtimes.load(runtime).packages
    found = [_package(name, version if name == own else _version(name)) for name in packages]
    if not own:
        found.insert(0, {"type": "library", "name": runtime, "version": version, "bom-ref": f"{runtime}@{version}"})
    return found


def document(
    name: str, artifact: Sequence[Mapping[str, object]], runtime: str, version: str, edgeprune: str
) -> dict[str, object]:
    """The whole document; the same inputs give the same bytes (no time, and a serial number made of the hashes).

    Args:
        artifact: `name` and `sha256` of each of its files.
    """
    hashes = "".join(str(file["sha256"]) for file in artifact)
    files = [
        {"type": "file", "name": file["name"], "hashes": [{"alg": "SHA-256", "content": file["sha256"]}]}
        for file in artifact
    ]
    reference = f"{name}@{hashes[:12]}"
    model = {
        "type": "machine-learning-model",
        "bom-ref": reference,
        "name": name,
        "version": hashes[:12],
        "components": files,
    }
    needed = components(runtime, version)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_SPACE, hashes)}",
        "version": 1,
        "metadata": {
            "component": model,
            "tools": {"components": [{"type": "application", "name": "edgeprune", "version": edgeprune}]},
        },
        "components": needed,
        "dependencies": [{"ref": reference, "dependsOn": [part["bom-ref"] for part in needed]}],
    }


def requirements(runtime: str, version: str) -> str:
    """requirements.txt for the device: the runtime as it was measured, and numpy as the device has it."""
    known = runtimes.load(runtime)
    lines = [f"{name}=={version}" if name == known.package and version else name for name in known.packages]
    return "\n".join(lines) + "\n"


def _package(name: str, version: str) -> dict[str, object]:
    purl = f"pkg:pypi/{name}@{version}" if version else f"pkg:pypi/{name}"
    licence = _licence(name)
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        **({"version": version} if version else {}),
        "purl": purl,
        **({"licenses": [licence]} if licence else {}),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _licence(name: str) -> dict[str, object]:
    """The licence as the installed package declares it: an SPDX expression, or its name; empty when not installed."""
    try:
        fields: Any = metadata.metadata(name)  # an email.message.Message, which typeshed does not say
    except metadata.PackageNotFoundError:
        return {}
    expression = fields.get("License-Expression")
    if expression:
        return {"expression": expression}
    words = (fields.get("License") or "").strip().splitlines()
    classifiers = [item for item in fields.get_all("Classifier") or [] if item.startswith("License ::")]
    text = words[0] if words and len(words[0]) < 80 else (classifiers[0].split(" :: ")[-1] if classifiers else "")
    return {"license": {"name": text}} if text else {}
