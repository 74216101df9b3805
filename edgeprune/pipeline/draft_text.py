"""A recipe as text, with what each line means; the page of all keys is docs/recipe.md."""

from __future__ import annotations

from collections.abc import Mapping

from edgeprune.pipeline.context import toml_value

Sections = dict[str, dict[str, object]]
COMMENTS: Mapping[tuple[str, str], str] = {
    ("model", "factory"): "any callable that builds your network",
    ("model", "arguments"): "what it is called with",
    ("model", "weights"): "safetensors, or a state dict",
    ("model", "input"): "one example, without the batch",
    ("data", "source"): "what the network is compressed and judged with",
    ("data", "kind"): "of what lies there",
    ("data", "resize"): "[height, width], or the shorter side; pixels",
    ("data", "crop"): "of the middle",
    ("data", "scale"): "of pixels 0..255",
    ("data", "mean"): "a channel, after scale",
    ("data", "std"): "a channel, after mean",
    ("data", "classes"): "in the order of the network's outputs",
    ("data", "selection"): "training examples held out to choose by",
    ("data", "calibration"): "training examples for INT8 ranges",
    ("task", "kind"): "its metric is what max_drop is of",
    ("task", "decode"): "outputs of one picture to boxes, scores, labels",
    ("budget", "speedup"): "over the dense INT8 artifact; or latency_ms = 1.4",
    ("budget", "latency_ms"): "median of one run on the device; or speedup = 2.0",
    ("budget", "max_drop"): "below the dense FP32 network, in the metric's unit, at 95 % confidence",
    ("recover", "epochs"): "passes over the training examples; 0: repair only, minutes instead of hours",
    ("recover", "hours"): "of training at most",
    ("recover", "batch"): "examples a step",
    ("recover", "lr"): "at the top of the schedule; ten times this destroys a repaired network",
    ("search", "images"): "for the loss curves: more is surer and slower",
    ("quantize", "effort"): "or default, best",
    ("measure", "patience"): "seconds that a stage may wait for a quieter device",
}
WHY = {
    "model": "The trained network.",
    "data": "Examples, targets, and the preprocessing.",
    "task": "What the network is for.",
    "budget": "What must be met, on the device's runtime.",
    "search": "How the network that fits is chosen.",
    "recover": "How accuracy is won back.",
    "quantize": "INT8.",
    "measure": "How long a noisy device is waited for.",
}


def written(name: str, sections: Mapping[str, Mapping[str, object]], head: str) -> str:
    """recipe.toml: a line a key, each with its comment."""
    lines = [*(f"# {line}" for line in head.splitlines()), f"name = {toml_value(name)}"]
    for section, why in WHY.items():
        keys = sections.get(section)
        if keys:
            lines += ["", f"[{section}]  # {why}"]
            lines += [_line(section, key, value) for key, value in keys.items()]
    return "\n".join(lines) + "\n"


def _line(section: str, key: str, value: object) -> str:
    comment = COMMENTS.get((section, key), "")
    return f"{key} = {toml_value(value)}" + (f"  # {comment}" if comment else "")
