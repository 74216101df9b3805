"""result.json, typed: what every gate, the report, the bundle and the command line read. Version 2, and 1 as well.

Four networks, one spelling each: dense_fp32, dense_int8, pruned_fp32, pruned_int8. A score is in the metric's own
unit and direction; `accuracy`, `correct` and `images` stand beside it where an example is right or wrong, so that tools
that read version 1 go on. What only the report shows (search, recovery, ranges, layers) stays as the stages wrote it.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from edgeprune.errors import RunError
from edgeprune.result.fleets import FleetInfo
from edgeprune.result.words import quantity, scale
from edgeprune.target import latency_key

VERSION = 2
NAMES = {
    "dense_fp32": "dense FP32",
    "dense_int8": "dense INT8",
    "pruned_fp32": "pruned FP32",
    "pruned_int8": "pruned INT8",
}
AGAIN = "Run the step again: edgeprune TARGET validate RECIPE."


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Plain data; further keys of a newer version are left out."""

    def to_dict(self) -> dict[str, object]:
        """As in result.json."""
        found: dict[str, object] = msgspec.to_builtins(self)
        return found


class ScoreInfo(Record, frozen=True, kw_only=True):
    """One network's metric on the test examples.

    Attributes:
        value, low, high: in `unit`, and its two-sided 95 % interval; None where there is none.
        examples, broken: how many, and how many of them with NaN or infinity among the outputs, which count as failed.
    """

    metric: str
    unit: str
    higher_is_better: bool = True
    value: float | None = None
    low: float | None = None
    high: float | None = None
    examples: int = 0
    broken: int = 0

    @property
    def text(self) -> str:
        return quantity(self.value, self.unit)

    @property
    def title(self) -> str:
        """top-1, %; PSNR, dB; F1."""
        return ", ".join(filter(None, (self.metric, scale(self.unit))))


class Latency(Record, frozen=True, kw_only=True):
    """In the result's unit; `spread` is that of the rounds' medians, a fraction."""

    median: float
    p90: float | None = None
    p99: float | None = None
    min: float | None = None
    mean: float | None = None
    spread: float = 0.0
    count: int = 0
    rounds: tuple[float, ...] = ()
    valid: bool = True
    reasons: tuple[str, ...] = ()


class Emulated(Record, frozen=True, kw_only=True):
    """What the true runtime did on an emulated core, and how far it agrees with the pre-check.

    Attributes:
        images: examples that it did.
        same_class: the share with the pre-check's answer; None where the task has no one answer an example.
        same_bits: the share whose outputs are the pre-check's, bit for bit.
        close: the share whose outputs differ by less than what INT8 rounds to; where there is no class to compare.
        unproven: operators that may give other bits than the pre-check; None: an older run does not say.
    """

    runtime: str
    images: int
    accuracy: float | None = None
    correct: int | None = None
    low: float | None = None
    high: float | None = None
    same_class: float | None = None
    same_bits: float = 0.0
    close: float | None = None
    max_error: float | None = None
    score: ScoreInfo | None = None
    unproven: tuple[str, ...] | None = None


class Network(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One artifact's figures.

    Attributes:
        accuracy, correct, images: a fraction and its counts, where an example is right or wrong.
        low, high: Wilson's 95 % interval of `accuracy`.
        agreement: the share of examples with the dense FP32 network's answer.
    """

    score: ScoreInfo | None = None
    accuracy: float | None = None
    correct: int | None = None
    images: int | None = None
    low: float | None = None
    high: float | None = None
    agreement: float | None = None
    broken: int = 0
    bytes: int | None = None
    latency_ms: Latency | None = None
    latency_instructions: Latency | None = None
    latency_modelled_ms: Latency | None = None
    emulated: Emulated | None = None

    def latency(self, unit: str) -> Latency:
        """Raises RunError without one, or with one that is no latency."""
        found: Latency | None = getattr(self, latency_key(unit), None)
        if found is None or not math.isfinite(found.median) or found.median <= 0:
            raise RunError(f"result.json has no {latency_key(unit)}.", AGAIN)
        return found

    @property
    def measured(self) -> Latency | None:
        """Its latency, whatever the unit."""
        return self.latency_ms or self.latency_instructions or self.latency_modelled_ms

    @property
    def rated(self) -> ScoreInfo | None:
        """The score; of version 1, whose only metric was top-1, its accuracy as one."""
        if self.score is not None or self.accuracy is None:
            return self.score
        low, high = (None if one is None else 100 * one for one in (self.low, self.high))
        return ScoreInfo(
            metric="top-1",
            unit="points",
            value=100 * self.accuracy,
            low=low,
            high=high,
            examples=self.images or 0,
            broken=self.broken,
        )


class Comparison(Record, frozen=True, kw_only=True):
    """How far the released artifact is below the dense FP32 network, on the same examples.

    Attributes:
        metric: such as "top-1"; `scale` its own unit, such as "%".
        unit: of all differences, such as "points".
        reference, value: the dense network's and the artifact's score, as they are shown.
        drop: how much worse the artifact is, whichever direction is better; negative where it is better.
        low, high: one-sided limits of `drop`, each at `confidence`: it is at most `high` with that confidence.
        examples: that both answered.
        smallest: the smallest `high` that so many examples could have given; None where it is not known.
        method: where the limits come from.
    """

    metric: str
    scale: str
    unit: str
    reference: float | None
    value: float | None
    drop: float | None
    low: float | None
    high: float | None
    confidence: float
    examples: int
    smallest: float | None = None
    method: str = ""
    higher_is_better: bool = True

    @property
    def worse(self) -> str:
        return "below" if self.higher_is_better else "above"

    @property
    def better(self) -> str:
        return "above" if self.higher_is_better else "below"


class Sanity(Record, frozen=True, kw_only=True):
    """Does one network compute anything? What it scores beside what one that knows nothing would.

    Attributes:
        examples: that it answered.
        broken: of them with NaN or infinity in an output.
        value, chance: its score and that of `blind`, in `scale`; None: it has none, nobody knows.
        blind: what scores `chance` without looking, in words.
        p_value: the chance that `blind` scores as well.
        constant: in words, what its outputs have in common over all examples; empty when they differ as they should.
        errors: the share of examples that it gets wrong, where the score is the share of right ones; None for others.
        smallest, deviation: of a score of another kind, in `unit`: the smallest limit of a drop that these examples
            could give, and the score's bootstrap deviation.
        missing: classes that no example shows, by name or number; empty where the task has no classes.
    """

    metric: str
    scale: str
    examples: int
    broken: int
    value: float | None
    chance: float | None
    blind: str
    p_value: float
    constant: str = ""
    errors: float | None = None
    missing: tuple[str, ...] = ()
    unit: str = "points"
    higher_is_better: bool = True
    smallest: float | None = None
    deviation: float | None = None


class DifferenceInfo(Record, frozen=True, kw_only=True):
    """Pruned INT8 minus dense FP32 where an example is right or wrong, in points: two-sided 95 % interval, McNemar."""

    points: float
    low: float
    high: float
    p_value: float
    only_first: int
    only_second: int
    images: int


class Precision(Record, frozen=True, kw_only=True):
    """How many operators with weights run in INT8; `share` of their time, `floats` the others.

    Of these `weights` hold integers of 4 or 8 bits and multiply by activations in float.
    """

    by: str = "graph"
    operators: int = 0
    int8: int = 0
    floats: tuple[str, ...] = msgspec.field(default=(), name="float")
    weights: tuple[str, ...] = ()
    share: float | None = None


class ProofInfo(Record, frozen=True, kw_only=True):
    """Does the pruned network compute what it must?"""

    passed: bool = False
    method: str = ""
    max_error: float | None = None
    detail: str = ""


class ClaimInfo(Record, frozen=True, kw_only=True):
    """What may be said of the target by the device that answered (edgeprune.claims)."""

    unit: str = ""
    verdict: Literal["release", "unverified", "refused"] = "release"
    answer: str = ""
    found: str = ""
    why: str = ""
    remedy: str = ""


class FloatDefault(Record, frozen=True, kw_only=True):
    """The float networks by the runtime's own choice of a type, which `option` of the target forbids it.

    Milliseconds, measured beside the INT8 networks; no score was measured.
    """

    option: str = ""
    type: str = ""
    dense_fp32: float | None = None
    pruned_fp32: float | None = None


class GateResult(Record, frozen=True, kw_only=True):
    """One gate's answer as it was written down."""

    name: str
    passed: bool
    value: float | None = None
    limit: float | None = None
    unit: str = ""
    message: str = ""
    remedy: str = ""


class SearchInfo(Record, frozen=True, kw_only=True):
    """What the gates ask of the search."""

    method: str = ""


class RuntimeInfo(Record, frozen=True, kw_only=True):
    """Name and version."""

    name: str = ""
    version: str = ""


class Timed(Record, frozen=True, kw_only=True):
    """One network in one validation: `error` is its median's relative standard error."""

    median: float
    error: float
    spread: float = 0.0


class Validation(Record, frozen=True, kw_only=True):
    """One measurement of artifacts together."""

    networks: dict[str, Timed]
    valid: bool = True
    reasons: tuple[str, ...] = ()
    date: str = ""
    others: float = 0.0  # share of the CPUs' time that other work took meanwhile
    wander: float = 0.0  # relative standard error of pruned over dense INT8 by batches of rounds


class BudgetInfo(Record, frozen=True, kw_only=True):
    """What was asked for, as far as it is shown."""

    speedup: float | None = None
    latency_ms: float | None = None
    max_drop: float | None = None
    confidence: float | None = None
    max_bytes: int | None = None


class FlavourInfo(Record, frozen=True, kw_only=True):
    """Another flavour of the artifact: file name -> path in the run."""

    files: dict[str, str]
    options: dict[str, object] = {}


class ArtifactFiles(Record, frozen=True, kw_only=True):
    """The released files, file name -> path in the run, and their sha256; `options` None: as `export` wrote them."""

    files: dict[str, str] = {}
    sha256: dict[str, str] = {}
    options: dict[str, object] | None = None
    flavours: dict[str, FlavourInfo] = {}
    optimised: dict[str, Any] = {}


class TaskInfo(Record, frozen=True, kw_only=True):
    """What the network is for: the kind as a recipe calls it, and its metric; `settings` are what run.py needs.

    `distance` says in words how far a network is from the dense one: what search, repair and distillation go by.
    """

    kind: str = "classification"
    metric: str = "top-1"
    unit: str = "points"
    higher_is_better: bool = True
    settings: dict[str, object] = {}
    distance: str = ""


class InputInfo(Record, frozen=True, kw_only=True):
    """One tensor of an example, without the batch axis."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"


class Result(Record, frozen=True, kw_only=True):
    """A run as far as it has come."""

    version: int = VERSION
    name: str = ""
    target: str = ""
    runtime: RuntimeInfo = RuntimeInfo()
    task: TaskInfo = TaskInfo()
    inputs: tuple[InputInfo, ...] = ()
    unit: str = "ms"
    verdict: str = ""
    dense_fp32: Network | None = None
    dense_int8: Network | None = None
    pruned_fp32: Network | None = None
    pruned_int8: Network | None = None
    others: dict[str, Network] = {}
    comparison: Comparison | None = None
    difference: DifferenceInfo | None = None
    sanity: dict[str, Sanity] = {}
    precision: Precision | None = None
    proof: ProofInfo | None = None
    search: SearchInfo = SearchInfo()
    claim: ClaimInfo = ClaimInfo()
    float_default: FloatDefault | None = None
    validations: tuple[Validation, ...] = ()
    earlier: tuple[Validation, ...] = ()
    gates: tuple[GateResult, ...] = ()
    budget: BudgetInfo = BudgetInfo()
    budget_ms: float | None = None
    budget_instructions: float | None = None
    budget_modelled_ms: float | None = None
    speedup_vs_dense_int8: float | None = None
    artifact: ArtifactFiles = ArtifactFiles()
    device: dict[str, object] = {}
    fleet: FleetInfo | None = None

    @property
    def networks(self) -> dict[str, Network]:
        """Those of the four that were validated, in their order."""
        found = {name: getattr(self, name) for name in NAMES}
        return {name: one for name, one in found.items() if one is not None}

    @property
    def validated(self) -> dict[str, Network]:
        """Every network that was validated, those of further flavours too."""
        return {**self.networks, **self.others}

    @property
    def allowed(self) -> float | None:
        """The latency that was asked for, in the result's unit."""
        found: float | None = getattr(self, latency_key(self.unit, "budget"), None)
        return found

    def network(self, name: str) -> Network:
        """Raises RunError without it."""
        found: Network | None = getattr(self, name)
        if found is None:
            raise RunError(f"result.json has no {name}.", AGAIN)
        return found

    @property
    def compared(self) -> Comparison:
        """Raises RunError without it."""
        if self.comparison is None:
            raise RunError("result.json has no comparison.", AGAIN)
        return self.comparison

    def sane(self, network: str) -> Sanity:
        """Raises RunError without it."""
        if network not in self.sanity:
            raise RunError(f"result.json has no sanity of {network}.", AGAIN)
        return self.sanity[network]
