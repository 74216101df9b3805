"""The one list of stages. The command line's steps, the run directory, what --from forgets, and keys derive from it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """What a user asks for: `edgeprune TARGET NAME`. It makes sure of its stages and of all before them."""

    name: str
    text: str


@dataclass(frozen=True)
class Stage:
    """One stage: a folder of the run directory, whole or not there.

    Attributes:
        name: of the stage and its folder.
        step: the step of the command line that makes sure of it.
        work: "module:function", called with the folder to fill and the parts of the run that it names; empty:
            `release`, which the run itself makes last, from a verdict.
        after: stages on whose keys its own depends.
        reads: stages whose files it reads; what it made holds for these files alone.
        decides: the one file of it that what reads it depends on; empty: all of them.
        rooms: of edgeprune, whose code makes it, besides those of the stages before.
        facts: what else it depends on; the run works each out only when it is asked for (`pipeline.facts`).
        shipped: what a bundle is made of comes from it.
        trained: a fault in it is not healed unasked: that would throw a training away.
    """

    name: str
    step: str
    work: str = ""
    after: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    decides: str = ""
    rooms: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    shipped: bool = False
    trained: bool = False


STEPS = (
    Step("plan", "Can the budget be met, and at what widths? Measures the dense network; trains nothing."),
    Step("profile", "Build or extend the latency table on the device."),
    Step("prune", "Choose the widths that fit the budget, narrow the network, win the accuracy back."),
    Step("calibrate", "Choose INT8 ranges on real images."),
    Step("export", "Make the artifacts that the runtime opens."),
    Step("validate", "Run the artifacts on the device: accuracy, latency, every gate."),
    Step("package", "Write the report and, if every gate holds, the release bundle."),
)

_WORK = "edgeprune.pipeline.stages"
_MEASURED = ("devices", "latency", "quantize", "runtimes")
PIPELINE = (
    Stage(
        "graph",
        "plan",
        f"{_WORK}:graph_stage",
        rooms=("graph", "model", "workload"),
        facts=("version", "model", "weights"),
    ),
    Stage(
        "precision",
        "plan",
        "edgeprune.pipeline.precision:precision_stage",
        after=("graph",),
        rooms=_MEASURED,
        facts=("target", "device", "export", "floats"),
    ),
    Stage(
        "plan",
        "plan",
        "edgeprune.pipeline.feasible:plan_stage",
        after=("precision",),
        reads=("precision",),
        rooms=_MEASURED,
        facts=("target", "device", "speed", "cuts", "data", "export"),
    ),
    Stage(
        "dense",
        "profile",
        "edgeprune.pipeline.precision:dense_stage",
        after=("precision",),
        reads=("precision",),
        decides="precision.json",
        rooms=_MEASURED,
        facts=("target", "device", "data", "quantize", "export"),
    ),
    Stage(
        "latency",
        "profile",
        f"{_WORK}:latency_stage",
        after=("graph",),
        reads=("graph", "dense"),
        rooms=_MEASURED,
        facts=("target", "device", "cuts", "options", "max_error", "export"),
        trained=True,
    ),
    Stage(
        "search",
        "prune",
        f"{_WORK}:search_stage",
        after=("latency",),
        reads=("latency",),
        rooms=("engine", "recover", "search"),
        facts=("speed", "search", "data"),
        shipped=True,
        trained=True,
    ),
    Stage(
        "recover",
        "prune",
        f"{_WORK}:recover_stage",
        after=("search",),
        reads=("search",),
        rooms=("recover",),
        facts=("recover",),
        shipped=True,
        trained=True,
    ),
    Stage(
        "quantize",
        "calibrate",
        f"{_WORK}:quantize_stage",
        after=("recover", "dense"),
        reads=("recover", "dense"),
        rooms=("quantize",),
        facts=("quantize",),
        shipped=True,
    ),
    Stage(
        "artifacts",
        "export",
        f"{_WORK}:artifacts_stage",
        after=("quantize",),
        reads=("quantize",),
        rooms=("runtimes",),
        facts=("export",),
        shipped=True,
    ),
    Stage(
        "validate",
        "validate",
        f"{_WORK}:validate_stage",
        after=("artifacts",),
        reads=("artifacts",),
        rooms=("result", "validate"),
        facts=("budget",),
    ),
    Stage("release", "package", after=("validate",), facts=("name",)),
)
NAMES = tuple(stage.name for stage in PIPELINE)
ENDS = tuple(dict.fromkeys([*(step.name for step in STEPS), *NAMES[:-1]]))  # where a run may be told to end
SHIPPED = tuple(stage.name for stage in PIPELINE if stage.shipped)


def named(name: str) -> Stage:
    """The stage of this name; raises KeyError."""
    return {stage.name: stage for stage in PIPELINE}[name]


def until(name: str) -> tuple[Stage, ...]:
    """The stages that a step makes sure of, or a stage, and all before them; raises ValueError for another name."""
    steps = [one.name for one in STEPS]
    if name not in steps:
        return PIPELINE[: NAMES.index(name) + 1]
    return tuple(stage for stage in PIPELINE if steps.index(stage.step) <= steps.index(name))


def first(step: str) -> Stage:
    """The first stage of a step."""
    return next(stage for stage in PIPELINE if stage.step == step)


def kept_before(step: str) -> str:
    """What `--from` keeps and what it makes again, in words."""
    at = NAMES.index(first(step).name)
    kept = f"kept: {', '.join(NAMES[:at])}" if at else "nothing is kept"
    return f"--from {step}: {kept}; made again: {', '.join(NAMES[at:])}"
