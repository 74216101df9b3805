"""Making a bundle: everything that the device needs, and the evidence that it is good, in one archive.

What is read, besides the result:

    RUN/artifacts/                  result["artifact"]: `files` (name -> path in RUN), `options`; or else pruned-int8.*
    RUN/search/plan.json            or recover/plan.json
    RUN/validate/samples.npz        `input`, `input_1`, ... [N, ...] as the artifact takes them, in the order of
                                    result["inputs"]; `output`, `output_1`, ... as it gave them
    RUN/validate/preprocessing.json
    RUN/validate/input/             files that make an input, such as a tokenizer's
    RUN/validate/pruned-int8-optimised.onnx    where an ARM device has made it (result["artifact"]["optimised"])
    RUN/validate/labels.json        the names of the classes, where they are known
    RUN/validate/answers.npz        what each test example left, so that two releases can be compared
    RUN/recipe.lock.toml, weights and graphs: only their hashes
    RUN/validate/measured.json      `sha256`: of every file above, as it was when it was measured

The same inputs give the same bytes (see archive.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path
from typing import Any, TypeGuard

from edgeprune import files, runtimes, stage
from edgeprune import result as results
from edgeprune import target as targets
from edgeprune._version import __version__
from edgeprune.config import convert
from edgeprune.errors import BundleError, GateError, RunError, TargetError
from edgeprune.release import archive, provenance, readme
from edgeprune.release.signature import SUMS
from edgeprune.result import ArtifactFiles, Facts
from edgeprune.target import Target

MANIFEST = "manifest.json"
SOURCES = ("recipe.lock.toml", "recover/weights.safetensors", "quantize/pruned-fp32.onnx", "quantize/pruned-int8.onnx")
FIGURES = ("dense_fp32", "dense_int8", "pruned_fp32", "pruned_int8", "speedup_vs_dense_int8", "budget_ms", "budget")
MEASURE = "Measure again: the same command with --from validate."
UNVERIFIED = "unverified"  # the verdict on what no device has measured, and the mark in the bundle's name
MAIN = (".xml", ".onnx", ".engine", ".plan")  # what a runtime opens comes first


def bundle(run_dir: Path, result: Mapping[str, object], out: Path, *, licences: Sequence[Path] = ()) -> Path:
    """Write the bundle of a run.

    Args:
        run_dir: the run directory.
        result: what result.json holds; its verdict must be "release", or "unverified" where no device has measured.
        out: a folder, where it is called NAME-TARGET.tar (NAME-TARGET-unverified.tar), or a file that ends in .tar.
        licences: licence texts of the network and its data, to travel along.

    Raises:
        GateError: a gate has not passed.
        RunError: a file is not the one that was measured.
        BundleError: something that belongs in it is missing.
    """
    read = results.glance(result)
    failed = [gate.name for gate in read.gates if not gate.passed]
    unverified = read.verdict == UNVERIFIED and failed == ["measurement"]
    if not unverified and (read.verdict != "release" or failed or not read.gates):
        reason = f"these gates failed: {', '.join(failed)}" if failed else "no gate has been passed"
        raise GateError(f"{run_dir}: no bundle, as {reason}.", "The report says by how much, and what would help.")
    profile = profile_of(result)
    artifact = _artifact(run_dir, read.artifact, profile)
    members = _contents(run_dir, result, profile, artifact, licences)
    _check_evidence(run_dir, members)
    return archive.write(out if out.suffix == ".tar" else out / name_of(result), members)


def name_of(result: Mapping[str, object]) -> str:
    """The bundle's file name: NAME-TARGET.tar, or NAME-TARGET-unverified.tar."""
    mark = f"-{UNVERIFIED}" if result.get("verdict") == UNVERIFIED else ""
    return f"{result['name']}-{result['target']}{mark}.tar"


def profile_of(result: Mapping[str, object]) -> Target:
    """The target as measured (`profile`, as the command line may have changed it), or else as it is known."""
    if result.get("profile"):
        return convert(result["profile"], Target, TargetError, "result.json: profile")
    return targets.load(str(result["target"]))


def _contents(
    run_dir: Path, result: Mapping[str, object], profile: Target, artifact: dict[str, Path], licences: Sequence[Path]
) -> dict[str, bytes | Path]:
    from edgeprune.release import sbom  # its library takes a tenth of a second to import; who verifies needs none of it

    read = results.glance(result)
    runtime, version = profile.runtime, read.runtime.version
    flavours = read.artifact.flavours.values()
    more = {name: run_dir / path for entry in flavours for name, path in entry.files.items()}
    if second := str(read.artifact.optimised.get("file") or ""):
        more[second] = _one(run_dir, f"validate/{second}")
    members: dict[str, bytes | Path] = {f"artifact/{name}": path for name, path in {**artifact, **more}.items()}
    members["plan.json"] = _one(run_dir, "search/plan.json", "recover/plan.json")
    members["samples.npz"] = _one(run_dir, "validate/samples.npz")
    members["preprocessing.json"] = _one(run_dir, "validate/preprocessing.json")
    for name in ("labels.json", "answers.npz", "selftest.json"):
        if (run_dir / "validate" / name).is_file():
            members[name] = run_dir / "validate" / name
    for path in sorted((run_dir / "validate" / "input").glob("*")):
        members[f"input/{path.name}"] = path
    members["result.json"] = dump(result)
    members["requirements.txt"] = sbom.requirements(runtime, version).encode()
    members["LICENSES/edgeprune.txt"] = _own_licence()
    for number, text in enumerate(licences):
        members[f"LICENSES/model-{number}.txt"] = text
    members.update(_program())
    hashes = {name: digest(content) for name, content in members.items()}
    files = [{"name": name, "sha256": hashes[f"artifact/{name}"]} for name in {**artifact, **more}]
    document = sbom.document(str(result["name"]), files, runtime, version, __version__)
    members["sbom.json"] = dump(document)
    manifest = _manifest(run_dir, result, profile, list(artifact))
    sources = {name: str(found) for name, found in Facts(manifest).part("sources")}
    members[provenance.MEMBER] = dump(provenance.statement(result, sources, hashes, __version__))
    members["README.md"] = readme.text(manifest, result, profile, sorted([*members, "README.md", MANIFEST, SUMS]))
    manifest["files"] = {name: {"sha256": digest(members[name]), "bytes": _size(members[name])} for name in members}
    members[MANIFEST] = dump(manifest)
    members[SUMS] = "".join(f"{digest(members[name])}  {name}\n" for name in sorted(members)).encode()
    return members


def _check_evidence(run_dir: Path, members: Mapping[str, bytes | Path]) -> None:
    """Every file of the run that goes into the bundle, or is named in it, is the one that was measured."""
    measured = _one(run_dir, "validate/measured.json")
    found = files.read_json(measured, RunError, MEASURE)
    known = found.get("sha256") if isinstance(found, dict) else None
    if not isinstance(known, dict):
        raise RunError(f"{measured}: it does not say which files were measured.", MEASURE)
    taken = {path.relative_to(run_dir).as_posix() for path in members.values() if _inside(path, run_dir)}
    named = {name for name in SOURCES[1:] if name in known or (run_dir / name).is_file()}
    for name in sorted(taken | named):
        if not (run_dir / name).is_file() or digest(run_dir / name) != known.get(name):
            folder = name.partition("/")[0]
            step = stage.named(folder).step if folder in stage.SHIPPED else "validate"
            raise RunError(
                f"{run_dir / name} is not the file that was measured: no bundle.",
                f"Repeat that step: the same command with --from {step}.",
            )


def _inside(content: bytes | Path, folder: Path) -> TypeGuard[Path]:
    return isinstance(content, Path) and content.is_relative_to(folder)


def _manifest(run_dir: Path, result: Mapping[str, object], profile: Target, files: list[str]) -> dict[str, object]:
    hashed = {name: digest(run_dir / name) for name in SOURCES if (run_dir / name).is_file()}
    read, raw = results.glance(result), Facts(result)
    artifact = read.artifact
    options = {**profile.execution.options, **_options(run_dir, artifact)}
    return {
        "version": 1,
        "edgeprune": __version__,
        "name": result["name"],
        "target": profile.to_dict(),
        "runtime": dict(raw.part("runtime")),
        "device": result.get("device", {}),
        "unit": result.get("unit", "ms"),
        **{key: result[key] for key in ("task", "inputs") if key in result},
        "artifact": {
            "runtime": profile.runtime,
            "precision": "int8",
            "files": files,
            "options": options,
            "threads": profile.execution.threads,
            **({"flavours": _flavours(artifact, profile)} if artifact.flavours else {}),
            **_optimised(artifact, profile),
        },
        "sources": {**hashed, **dict(raw.part("sources"))},
        "figures": {name: result[name] for name in FIGURES if name in result},
        "gates": list(raw.listed("gates")),
        "proof": dict(raw.part("proof")),
        "evidence": list(raw.listed("evidence")),
        "verdict": result["verdict"],
    }


def _flavours(artifact: ArtifactFiles, profile: Target) -> list[dict[str, object]]:
    """The other flavours of the artifact: files, options, and the version of the runtime that they are for."""
    return [
        {
            "dialect": dialect,
            "files": list(entry.files),
            "options": {**profile.execution.options, **entry.options},
            "since": runtimes.DIALECTS[dialect].since if dialect in runtimes.DIALECTS else "",
        }
        for dialect, entry in artifact.flavours.items()
    ]


def _optimised(artifact: ArtifactFiles, profile: Target) -> dict[str, object]:
    """The graph as the device's runtime rewrote it, or why there is none; nothing for a runtime that ships as it is."""
    found = artifact.optimised
    if not found:
        return {}
    options = {"options": {**profile.execution.options, **found["options"]}} if "file" in found else {}
    return {"optimised": {**found, **options}}


def _artifact(run_dir: Path, artifact: ArtifactFiles, profile: Target) -> dict[str, Path]:
    """The artifact's files, the one that the runtime opens first."""
    if artifact.files:
        files = {name: run_dir / path for name, path in artifact.files.items()}
    else:
        found = sorted((run_dir / "artifacts").glob("**/pruned-int8.*"))
        files = {path.name: path for path in sorted(found, key=lambda path: (path.suffix not in MAIN, path.name))}
    missing = [path for path in files.values() if not path.is_file()]
    if missing or not files:
        what = missing[0] if missing else run_dir / "artifacts/pruned-int8.*"
        raise BundleError(f"{what}: the artifact is missing.", f"Make it: edgeprune {profile.name} export RECIPE.")
    return files


def _options(run_dir: Path, artifact: ArtifactFiles) -> dict[str, object]:
    """What the runtime needs to open this artifact: of the result, or else as the artifacts stage wrote it down."""
    stated = artifact.options
    listed = run_dir / "artifacts" / "artifacts.json"
    if stated is None and listed.is_file():
        stated = files.read_json(listed, BundleError).get("pruned-int8", {}).get("options")
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
    device = package / "release" / "device"
    alone = {f"{name}.py": _alone(package / "workload" / f"{name}.py") for name in ("boxes", "decoders", "features")}
    own = {f"{name}.py": device / f"{name}.py" for name in ("run", "show", "check")}
    return {**own, **alone, **agent}


def _alone(file: Path) -> bytes:
    """A module of numpy alone as it runs on a board: Python 3.8, without edgeprune."""
    text = file.read_text("utf-8")
    text = re.sub(
        r"^from edgeprune\.errors import (.+)$", lambda m: m[1].replace(", ", " = ") + " = ValueError", text, flags=re.M
    )
    errors = re.compile(r"^from edgeprune\.errors import (.+)$", re.M)
    text = errors.sub(lambda found: found[1].replace(", ", " = ") + " = ValueError", text)
    text = re.sub(r"^from edgeprune\.workload\.", "from ", text, flags=re.M)
    text = re.sub(r"^(\w+) = (tuple|NDArray)\[.*\]$", r"\1 = Any", text, flags=re.M)
    text = re.sub(r", strict=(True|False)\)", ")", text)
    if "Any" in text and not re.search(r"^from typing import .*Any", text, flags=re.M):
        text = text.replace("import numpy as np\n", "from typing import Any\n\nimport numpy as np\n", 1)
    return text.encode()


def _own_licence() -> bytes | Path:
    beside = Path(__file__).resolve().parents[2] / "LICENSE"
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
    return files.sha256(content)


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size
