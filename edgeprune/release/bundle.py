"""Making a bundle: everything that the device needs, and the evidence that it is good, in one archive.

What is read, besides the result:

    RUN/artifacts/                  result["artifact"]: `files` (name -> path in RUN), `options`; or else pruned-int8.*
    RUN/search/plan.json            or recover/plan.json
    RUN/validate/samples.npz        `input` [N, ...] as the artifact takes it; `output`, `output_1`, ... as it gave them
    RUN/validate/preprocessing.json
    RUN/validate/pruned-int8-optimised.onnx    where an ARM device has made it (result["artifact"]["optimised"])
    RUN/validate/labels.json        the names of the classes, where they are known
    RUN/recipe.lock.toml, weights and graphs: only their hashes

The same inputs give the same bytes (see archive.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import edgeprune
from edgeprune import target as targets
from edgeprune.config import convert
from edgeprune.errors import BundleError, GateError, TargetError
from edgeprune.release import archive, readme, sbom
from edgeprune.release.signature import SUMS
from edgeprune.target import Target

MANIFEST = "manifest.json"
SOURCES = ("recipe.lock.toml", "recover/weights.safetensors", "quantize/pruned-fp32.onnx", "quantize/pruned-int8.onnx")
FIGURES = ("dense_fp32", "dense_int8", "pruned_fp32", "pruned_int8", "speedup_vs_dense_int8", "budget_ms", "budget")
UNVERIFIED = "unverified"  # the verdict on what no device has measured, and the mark in the bundle's name
SINCE = {"tensorrt-b": "11"}  # the runtime's version from which on a flavour is the one to open
MAIN = (".xml", ".onnx", ".engine", ".plan")  # what a runtime opens comes first


def bundle(run_dir: Path, result: Mapping[str, Any], out: Path, *, licences: Sequence[Path] = ()) -> Path:
    """Write the bundle of a run.

    Args:
        run_dir: the run directory.
        result: what result.json holds; its verdict must be "release", or "unverified" where no device has measured.
        out: a folder, where it is called NAME-TARGET.tar (NAME-TARGET-unverified.tar), or a file that ends in .tar.
        licences: licence texts of the network and its data, to travel along.

    Raises:
        GateError: a gate has not passed.
        BundleError: something that belongs in it is missing.
    """
    failed = [str(gate["name"]) for gate in result.get("gates", ()) if not gate["passed"]]
    unverified = result.get("verdict") == UNVERIFIED and failed == ["measurement"]
    if not unverified and (result.get("verdict") != "release" or failed or not result.get("gates")):
        reason = f"these gates failed: {', '.join(failed)}" if failed else "no gate has been passed"
        raise GateError(f"{run_dir}: no bundle, as {reason}.", "The report says by how much, and what would help.")
    profile = _profile(result)
    artifact = _artifact(run_dir, result, profile)
    members = _contents(run_dir, result, profile, artifact, licences)
    mark = f"-{UNVERIFIED}" if unverified else ""
    path = out if out.suffix == ".tar" else out / f"{result['name']}-{result['target']}{mark}.tar"
    return archive.write(path, members)


def _profile(result: Mapping[str, Any]) -> Target:
    """The target as measured (`profile`, as the command line may have changed it), or else as it is known."""
    if result.get("profile"):
        return convert(result["profile"], Target, TargetError, "result.json: profile")
    return targets.load(str(result["target"]))


def _contents(
    run_dir: Path, result: Mapping[str, Any], profile: Target, artifact: dict[str, Path], licences: Sequence[Path]
) -> dict[str, bytes | Path]:
    runtime, version = profile.runtime, str(result["runtime"]["version"])
    flavours = result.get("artifact", {}).get("flavours", {})
    more = {name: run_dir / path for entry in flavours.values() for name, path in entry["files"].items()}
    second = result.get("artifact", {}).get("optimised", {})
    if second.get("file"):
        more[second["file"]] = _one(run_dir, f"validate/{second['file']}")
    members: dict[str, bytes | Path] = {f"artifact/{name}": path for name, path in {**artifact, **more}.items()}
    members["plan.json"] = _one(run_dir, "search/plan.json", "recover/plan.json")
    members["samples.npz"] = _one(run_dir, "validate/samples.npz")
    members["preprocessing.json"] = _one(run_dir, "validate/preprocessing.json")
    if (run_dir / "validate/labels.json").is_file():
        members["labels.json"] = run_dir / "validate/labels.json"
    members["result.json"] = dump(result)
    members["requirements.txt"] = sbom.requirements(runtime, version).encode()
    members["LICENSES/edgeprune.txt"] = _own_licence()
    for number, text in enumerate(licences):
        members[f"LICENSES/model-{number}.txt"] = text
    members.update(_program())
    hashes = {name: digest(content) for name, content in members.items()}
    files = [{"name": name, "sha256": hashes[f"artifact/{name}"]} for name in {**artifact, **more}]
    document = sbom.document(str(result["name"]), files, runtime, version, edgeprune.__version__)
    members["sbom.json"] = dump(document)
    manifest = _manifest(run_dir, result, profile, list(artifact))
    members["README.md"] = readme.text(manifest, result, profile, sorted([*members, "README.md", MANIFEST, SUMS]))
    manifest["files"] = {name: {"sha256": digest(members[name]), "bytes": _size(members[name])} for name in members}
    members[MANIFEST] = dump(manifest)
    members[SUMS] = "".join(f"{digest(members[name])}  {name}\n" for name in sorted(members)).encode()
    return members


def _manifest(run_dir: Path, result: Mapping[str, Any], profile: Target, files: list[str]) -> dict[str, Any]:
    hashed = {name: digest(run_dir / name) for name in SOURCES if (run_dir / name).is_file()}
    options = {**profile.execution.options, **_options(run_dir, result)}
    return {
        "version": 1,
        "edgeprune": edgeprune.__version__,
        "name": result["name"],
        "target": profile.to_dict(),
        "runtime": dict(result["runtime"]),
        "device": result.get("device", {}),
        "unit": result.get("unit", "ms"),
        "artifact": {
            "runtime": profile.runtime,
            "precision": "int8",
            "files": files,
            "options": options,
            "threads": profile.execution.threads,
            **({"flavours": _flavours(result, profile)} if result.get("artifact", {}).get("flavours") else {}),
            **_optimised(result, profile),
        },
        "sources": {**hashed, **result.get("sources", {})},
        "figures": {name: result[name] for name in FIGURES if name in result},
        "gates": list(result["gates"]),
        "proof": dict(result.get("proof", {})),
        "evidence": list(result.get("evidence", ())),
        "verdict": result["verdict"],
    }


def _flavours(result: Mapping[str, Any], profile: Target) -> list[dict[str, Any]]:
    """The other flavours of the artifact: files, options, and the version of the runtime that they are for."""
    return [
        {
            "dialect": dialect,
            "files": list(entry["files"]),
            "options": {**profile.execution.options, **entry["options"]},
            "since": SINCE.get(dialect, ""),
        }
        for dialect, entry in result["artifact"]["flavours"].items()
    ]


def _optimised(result: Mapping[str, Any], profile: Target) -> dict[str, Any]:
    """The graph as the device's runtime rewrote it, or why there is none; nothing for a runtime that ships as it is."""
    found = result.get("artifact", {}).get("optimised")
    if not found:
        return {}
    options = {"options": {**profile.execution.options, **found["options"]}} if "file" in found else {}
    return {"optimised": {**found, **options}}


def _artifact(run_dir: Path, result: Mapping[str, Any], profile: Target) -> dict[str, Path]:
    """The artifact's files, the one that the runtime opens first."""
    named = result.get("artifact", {}).get("files")
    if named:
        files = {str(name): run_dir / str(path) for name, path in named.items()}
    else:
        found = sorted((run_dir / "artifacts").glob("**/pruned-int8.*"))
        files = {path.name: path for path in sorted(found, key=lambda path: (path.suffix not in MAIN, path.name))}
    missing = [path for path in files.values() if not path.is_file()]
    if missing or not files:
        what = missing[0] if missing else run_dir / "artifacts/pruned-int8.*"
        raise BundleError(f"{what}: the artifact is missing.", f"Make it: edgeprune {profile.name} export RECIPE.")
    return files


def _options(run_dir: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """What the runtime needs to open this artifact: of the result, or else as the artifacts stage wrote it down."""
    stated = result.get("artifact", {}).get("options")
    listed = run_dir / "artifacts" / "artifacts.json"
    if stated is None and listed.is_file():
        stated = json.loads(listed.read_text("utf-8")).get("pruned-int8", {}).get("options")
    return dict(stated or {})


def _one(run_dir: Path, *names: str) -> Path:
    for name in names:
        if (run_dir / name).is_file():
            return run_dir / name
    raise BundleError(
        f"{run_dir / names[0]} is missing.", "Make it again: edgeprune TARGET run RECIPE --from validate."
    )


def _program() -> dict[str, bytes | Path]:
    """run.py, and the part of edgeprune that runs on devices: it opens the artifact just as it was measured."""
    package = Path(str(resources.files("edgeprune")))
    agent = {f"agent/{path.name}": path for path in sorted((package / "devices" / "agent").glob("*.py"))}
    return {"run.py": package / "release" / "device" / "run.py", **agent}


def _own_licence() -> bytes | Path:
    beside = Path(edgeprune.__file__).resolve().parent.parent / "LICENSE"
    if beside.is_file():
        return beside
    for file in metadata.files("edgeprune") or ():
        if file.name == "LICENSE":
            return file.read_binary()
    raise BundleError("edgeprune's own LICENSE is missing from this installation.", "Install edgeprune again.")


def dump(data: Any) -> bytes:
    """JSON with one spelling."""
    return (json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def digest(content: bytes | Path) -> str:
    """The sha256 of bytes or of a file."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
