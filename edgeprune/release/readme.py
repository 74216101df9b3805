"""The README that travels in a bundle, for whoever unpacks it on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template

from edgeprune import result as results
from edgeprune import runtimes
from edgeprune.result import Facts
from edgeprune.target import Target

NEXT = Template(
    """## What a device's owner runs next

On the host that has edgeprune and the recipe:

    ssh-copy-id USER@HOST
    edgeprune devices add mine ssh://USER@HOST --target $target
    edgeprune doctor $target --device mine
$clocks    edgeprune $target plan recipe.toml --device mine
    edgeprune $target run recipe.toml --device mine

The last searches again with latencies measured on the device, validates there, and writes the bundle that takes the
place of this one.

"""
)
CLOCKS = '    ssh -t USER@HOST "sudo nvpmodel -m 0 && sudo jetson_clocks"\n'
WHAT = {
    "artifact/": "the network, as the runtime opens it",
    "agent/": "the code that opens and runs it, as it was measured",
    "LICENSES/": "licence texts",
    "README.md": "this page",
    "SHA256SUMS": "the sha256 of every file",
    "check.py": "what `run.py --check` asks: runtime, clock, drift of what the network is given",
    "selftest.json": "statistics of the test examples, for `run.py --check`",
    "show.py": "what run.py does with your own files",
    "features.py": "from sound to the network's input",
    "decoders.py": "from a detector's outputs to boxes (with boxes.py)",
    "input/": "what makes an input, such as a tokenizer",
    "labels.json": "the names of the classes",
    "answers.npz": "what each test example left, for `edgeprune compare`",
    "manifest.json": "what this is: target, runtime, hashes, figures, gates, proof, evidence",
    "plan.json": "which channels were kept",
    "preprocessing.json": "from a picture, sound or text to the network's input",
    "requirements.txt": "what the device needs",
    "result.json": "every figure of the run",
    "run.py": "runs the samples, or your own pictures, sounds, texts or arrays",
    "samples.npz": "inputs, and the outputs that they gave",
    "sbom.json": "bill of materials (CycloneDX)",
}


def text(manifest: Mapping[str, object], result: Mapping[str, object], profile: Target, names: Sequence[str]) -> bytes:
    """The page, in Markdown."""
    template = Template((resources.files("edgeprune") / "release/device/README.md.in").read_text("utf-8"))
    brought = not runtimes.load(profile.runtime).package
    found = Facts(manifest)
    runtime = found.part("runtime")
    return template.substitute(
        title=f"{manifest['name']} for {profile.name}",
        target=profile.name,
        target_title=profile.title,
        edgeprune=manifest["edgeprune"],
        rows="\n".join(_rows(result)),
        where=_where(found, profile, f"{runtime.text('name', profile.runtime)} {runtime.text('version')}".strip())
        + _fleet(result),
        next=_next(profile) if manifest["verdict"] == "unverified" else "",
        install_note="'s Python packages; TensorRT itself comes with JetPack" if brought else "",
        own=_own(found.part("task"), found.parts("inputs")),
        optimised=_optimised(found.part("artifact").part("optimised")),
        contents="\n".join(_contents(names)),
    ).encode()


def _own(task: Facts, inputs: Sequence[Facts]) -> str:
    """What run.py does with the owner's own files."""
    bytes_in = len(inputs) == 1 and inputs[0].text("dtype") == "uint8"
    fed = " The network is fed bytes: scale, mean and std are in it." if bytes_in else ""
    return f"{_runs(task, inputs)}{fed}"


def _runs(task: Facts, inputs: Sequence[Facts]) -> str:
    """In a sentence."""
    kind, names = task.text("kind", "classification"), ", ".join(part.text("name") for part in inputs)
    if len(inputs) > 1:
        return f"`python3 run.py inputs.npz` runs arrays called {names} (one example each)."
    if kind == "detection" and not task.part("settings").part("decode"):
        return (
            "`python3 run.py picture.png` saves the raw outputs: a `decode` of your own makes boxes of them, which is "
            "not in the bundle."
        )
    if kind == "detection":
        return "`python3 run.py picture.png` draws boxes on a picture."
    if kind == "segmentation":
        return "`python3 run.py picture.png` draws the class of each pixel over a picture."
    if kind == "classification":
        return "`python3 run.py FILE` classifies a picture, a sound (.wav) or a text, whichever the network takes."
    return "`python3 run.py FILE` runs a picture, a sound (.wav) or an array (.npy) and saves what comes out."


def _next(profile: Target) -> str:
    """The commands that measure on the device."""
    return NEXT.substitute(target=profile.name, clocks=CLOCKS if runtimes.load(profile.runtime).clocks else "")


def _optimised(found: Facts) -> str:
    """The graph that the device's runtime optimised ahead, or why there is none."""
    if not found:
        return ""
    if found.get("missing") is not None:
        return f"\nThere is no graph optimised ahead for this CPU: {found.text('missing')}\n"
    made = found.part("made_on")
    latency, load = (_ratio(found.part(name)) for name in ("median", "load_s"))
    where = ", ".join(sorted(set(map(str, made.listed("cpus") or [made.text("machine")]))))
    emulated = " (emulated)" if made.get("emulation") else ""
    return (
        f"\n`artifact/{found.text('file')}` is the same network as {made.text('runtime')} "
        f"{made.text('runtime_version')} rewrote it "
        f"on {where}{emulated}: the same outputs, bit for bit, on {found.text('images')} images; latency "
        f"{100 * (latency - 1):+.2f} %, opening it takes {100 * load:.0f} % "
        "of the plain graph's time. It fits that version only: `python3 run.py --optimised`. All figures above are of "
        "the plain graph.\n"
    )


def _where(manifest: Facts, profile: Target, runtime: str) -> str:
    """What the figures above stand on."""
    device, run = manifest.part("device"), profile.execution
    how = f"{run.threads} thread{'s'[: run.threads > 1]}, batch {run.batch}"
    if manifest.get("verdict") == "unverified" and manifest.get("unit") != "modelled ms":
        figures = f"{_device(device)}, {runtime}, {how}"
        return f"**NOT VERIFIED: no {profile.title} has run this.** All figures are of {figures}."
    if manifest.get("verdict") == "unverified":
        return (
            f"**NOT VERIFIED: no device has run this.** Latency is a model, not measured ({how}); accuracy is that of "
            "the same graphs in ONNX Runtime on the host, not of the device."
        )
    if device.get("emulation"):
        return (
            f"**Emulated, not a board:** {', '.join(map(str, device.listed('cpus')))}, {runtime}, {how}. Latency is a "
            "count of executed instructions, never a time; outputs are those of the device's own runtime."
        )
    return f"Measured on: {_device(device)}, {runtime}, {how}."


def _fleet(result: Mapping[str, object]) -> str:
    """On which board of a fleet it was validated, and how far the boards differ."""
    found = results.glance(result).fleet
    return f" It was {found.text}" if found else ""


def _ratio(found: Facts) -> float:
    """Of the optimised graph to the plain one."""
    return (found.number("optimised") or 0.0) / (found.number("plain") or 1.0)


def _rows(result: Mapping[str, object]) -> list[str]:
    read = results.glance(result)
    columns = [one or results.Network() for one in (read.dense_fp32, read.dense_int8, read.pruned_int8)]
    rated = [one.rated for one in columns]
    name = next((f"accuracy ({one.metric})" if one.metric == "top-1" else one.metric for one in rated if one), "score")
    if not read.task.higher_is_better:
        name += " (lower is better)"
    rows = {
        name: [one.text if one else "" for one in rated],
        f"latency, median ({read.unit})": [f"{one.measured.median:.4g}" if one.measured else "" for one in columns],
        "size (bytes)": ["" if one.bytes is None else f"{one.bytes:,}" for one in columns],
    }
    return [f"| {label} | {' | '.join(cells)} |" for label, cells in rows.items()]


def _device(fingerprint: Facts) -> str:
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
