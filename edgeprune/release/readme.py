"""The README that travels in a bundle, for whoever unpacks it on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template
from typing import Any

from edgeprune.target import Target, latency_key

NEXT = Template(
    """## What a device's owner runs next

On the host that has edgeprune and the recipe:

    ssh-copy-id USER@HOST
    edgeprune devices add mine ssh://USER@HOST --target $target
    edgeprune doctor $target --device mine
    ssh -t USER@HOST "sudo nvpmodel -m 0 && sudo jetson_clocks"
    edgeprune $target plan recipe.toml --device mine
    edgeprune $target run recipe.toml --device mine

The last builds the engines on the device, searches again with measured latencies, validates there, and writes the
bundle that takes the place of this one.

"""
)
WHAT = {
    "artifact/": "the network, as the runtime opens it",
    "agent/": "the code that opens and runs it, as it was measured",
    "LICENSES/": "licence texts",
    "README.md": "this page",
    "SHA256SUMS": "the sha256 of every file",
    "labels.json": "the names of the classes",
    "manifest.json": "what this is: target, runtime, hashes, figures, gates, proof, evidence",
    "plan.json": "which channels were kept",
    "preprocessing.json": "from pixels to the network's input",
    "requirements.txt": "what the device needs",
    "result.json": "every figure of the run",
    "run.py": "runs the samples, or your pictures",
    "samples.npz": "inputs, and the outputs that they gave",
    "sbom.json": "bill of materials (CycloneDX)",
}


def text(manifest: Mapping[str, Any], result: Mapping[str, Any], profile: Target, names: Sequence[str]) -> bytes:
    """The page, in Markdown."""
    template = Template((resources.files("edgeprune") / "release/device/README.md.in").read_text("utf-8"))
    jetson = profile.runtime == "tensorrt"
    runtime = manifest["runtime"]
    return template.substitute(
        title=f"{manifest['name']} for {profile.name}",
        target=profile.name,
        target_title=profile.title,
        edgeprune=manifest["edgeprune"],
        rows="\n".join(_rows(result)),
        where=_where(manifest, profile, f"{runtime.get('name', profile.runtime)} {runtime.get('version', '')}".strip()),
        next=NEXT.substitute(target=profile.name) if manifest["verdict"] == "unverified" else "",
        install_note="'s Python packages; TensorRT itself comes with JetPack" if jetson else "",
        optimised=_optimised(manifest["artifact"].get("optimised", {})),
        contents="\n".join(_contents(names)),
    ).encode()


def _optimised(found: Mapping[str, Any]) -> str:
    """The graph that the device's runtime optimised ahead, or why there is none."""
    if not found:
        return ""
    if "missing" in found:
        return f"\nThere is no graph optimised ahead for this CPU: {found['missing']}\n"
    made, load, median = found["made_on"], found["load_s"], found["median"]
    where = ", ".join(sorted(set(map(str, made.get("cpus") or [made["machine"]]))))
    emulated = " (emulated)" if made.get("emulation") else ""
    return (
        f"\n`artifact/{found['file']}` is the same network as {made['runtime']} {made['runtime_version']} rewrote it "
        f"on {where}{emulated}: the same outputs, bit for bit, on {found['images']} images; latency "
        f"{median['optimised'] / median['plain'] - 1:+.2%}, opening it takes {load['optimised'] / load['plain']:.0%} "
        "of the plain graph's time. It fits that version only: `python3 run.py --optimised`. All figures above are of "
        "the plain graph.\n"
    )


def _where(manifest: Mapping[str, Any], profile: Target, runtime: str) -> str:
    """What the figures above stand on."""
    device, run = manifest["device"], profile.execution
    how = f"{run.threads} thread{'s'[: run.threads > 1]}, batch {run.batch}"
    if manifest["verdict"] == "unverified":
        return (
            f"**NOT VERIFIED: no device has run this.** Latency is a model, not measured ({how}); accuracy is that of "
            "the same graphs in ONNX Runtime on the host, not of the device."
        )
    if device.get("emulation"):
        return (
            f"**Emulated, not a board:** {', '.join(device.get('cpus', []))}, {runtime}, {how}. Latency is a count of "
            "executed instructions, never a time; outputs are those of the device's own runtime."
        )
    return f"Measured on: {_device(device)}, {runtime}, {how}."


def _rows(result: Mapping[str, Any]) -> list[str]:
    unit = str(result.get("unit", "ms"))
    key = latency_key(unit)
    columns = [result.get(name) or {} for name in ("dense_fp32", "dense_int8", "pruned_int8")]
    rows = {
        "accuracy (top-1)": [f"{100 * column['accuracy']:.2f} %" if "accuracy" in column else "" for column in columns],
        f"latency, median ({unit})": [f"{column[key]['median']:.4g}" if key in column else "" for column in columns],
        "size (bytes)": [f"{column['bytes']:,}" if "bytes" in column else "" for column in columns],
    }
    return [f"| {label} | {' | '.join(cells)} |" for label, cells in rows.items()]


def _device(fingerprint: Mapping[str, Any]) -> str:
    """The most telling words of a device's fingerprint: the board, or its processors."""
    for key in ("model", "gpu", "cpu_model", "cpus", "machine"):
        found = fingerprint.get(key)
        words = sorted(set(map(str, found))) if isinstance(found, list) else [str(found or "")]
        if any(words):
            return ", ".join(filter(None, words))
    return "see manifest.json"


def _contents(names: Sequence[str]) -> list[str]:
    lines = []
    for prefix, what in WHAT.items():
        if any(name == prefix or (prefix.endswith("/") and name.startswith(prefix)) for name in names):
            lines.append(f"- `{prefix}`: {what}")
    return lines
