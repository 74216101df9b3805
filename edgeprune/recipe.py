"""What the user asked for: `recipe.toml` -> a frozen `Recipe`.

Unknown keys, wrong types and impossible values are refused with the file, the key, what was expected and the nearest
valid name. Paths in a recipe are relative to the folder that the command runs in, then to the recipe's own folder.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edgeprune.config import convert, read_toml
from edgeprune.errors import RecipeError, did_you_mean
from edgeprune.files import read_toml as read_file

NAME_BYTES = 120  # of a name: with the target and a suffix it stays a file name everywhere
Count = Annotated[int, Meta(ge=1, le=10**9)]
Seed = Annotated[int, Meta(ge=0, le=2**62)]
Passes = Annotated[float, Meta(ge=0, le=100_000)]  # over the training split
Share = Annotated[float, Meta(ge=0, lt=1)]
Weight = Annotated[float, Meta(ge=0, le=1e6)]
Value = Annotated[float, Meta(ge=-1e6, le=1e6)]  # of a pixel, or what is added to and multiplied by it
Side = Annotated[int, Meta(ge=0, le=16384)]  # pixels
# Height and width. Not tuple[Side, Side]: in a union of a bounded int and a tuple of fixed length msgspec 0.22 reads
# memory that is not its own, and the interpreter dies at the next garbage collection.
Sides = Annotated[tuple[Side, ...], Meta(min_length=2, max_length=2)]
LARGEST = 2**31  # numbers in one example
Saliency = Literal["obs", "l1", "l2", "bn-scale", "taylor", "fisher", "random"]
Distill = Literal["auto", "kl", "dist", "mse", "soft", "distance", "features", "attention", "none"]
Augmentation = Literal["crop", "flip", "erasing", "mixup", "cutmix", "randaugment"]
DISTILL = ("kl", "dist", "mse", "soft", "distance", "features", "attention")  # losses that can be weighted
Method = Literal["auto", "minmax", "moving-average", "percentile", "mse", "entropy"]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class InputSection(_Section, frozen=True):
    """One tensor of an example, called as forward's argument."""

    shape: tuple[Count, ...] = ()  # without the batch axis
    dtype: Literal["float32", "float16", "int64", "int32", "bool", "uint8"] = "float32"
    below: Annotated[int, Meta(ge=1, le=2**31)] | None = None  # whole numbers are below this: the vocabulary's size


class ModelSection(_Section, frozen=True):
    """The trained network."""

    factory: str  # "path/to/file.py:callable" or "package.module:callable"
    input: tuple[Count, ...] = ()  # one float example without its batch axis, such as [3, 224, 224]
    weights: str = ""  # safetensors or a state dict; empty: what the factory returns is trained
    weights_key: str = ""  # the entry of a checkpoint that holds them, such as "state_dict_ema"; empty: the usual one
    opaque: tuple[str, ...] = ()  # submodules that capture goes round; they are left as they are
    arguments: dict[str, object] = {}  # keyword arguments that the factory is called with
    inputs: dict[str, InputSection] = {}  # several inputs, or of other types, by the names of forward's arguments


class DataSection(_Section, frozen=True):
    """Examples, targets, and the preprocessing, said once for training, calibration and the device."""

    source: str = ""  # folder (train/ and test/ of class folders, or .npz files), one .npz, or "module:function"
    kind: str = "images"  # of what lies there; "arrays", "function", or a source of files ("coco", "masks", ...)
    splits: dict[Literal["train", "calibration", "selection", "test"], dict[str, object]] = {}  # where each split lies
    options: dict[str, object] = {}  # of the kind, for all splits
    resize: Side | Sides = 0  # shorter side in pixels, or [height, width]; 0: leave
    crop: Side | Sides = 0  # centre crop in pixels, or [height, width]; 0: leave
    fit: Literal["squash", "letterbox"] = "squash"  # into resize = [height, width]: letterbox keeps the aspect
    order: Literal["RGB", "BGR"] = "RGB"  # of the network's three channels, and of mean and std
    scale: Value = 1 / 255  # applied to 0..255 pixels before mean and std
    mean: tuple[Value, ...] = (0.0,)
    std: tuple[Annotated[float, Meta(ge=1e-6, le=1e6)], ...] = (1.0,)
    augment: tuple[Augmentation, ...] = ()  # while training
    calibration: Count = 256  # images, from the training split
    selection: Count = 512  # training images held out to choose by, where the source has no selection split of its own
    test: Annotated[int, Meta(ge=0, le=10**9)] = 0  # images of the test split that the gate uses; 0: all
    workers: Annotated[int, Meta(ge=0, le=1024)] = 0
    classes: tuple[str, ...] = ()  # their names in the order of the network's outputs; empty: as the source has them

    def as_read(self) -> dict[str, object]:
        """The examples as they are read: how training augments them is of recovery, and who reads them of no matter."""
        said: dict[str, object] = msgspec.to_builtins(self)
        return {name: value for name, value in said.items() if name not in ("augment", "workers")}


class TaskSection(_Section, frozen=True):
    """What the network is for: a built-in task, a metric, or a class of your own."""

    kind: str = ""  # "classification", "detection", ..., "custom", or "mytask.py:MyTask"; empty: as `metric` says
    metric: str = ""  # of the kind; or "torchmetrics.x:Y"; or "mymetric.py:function" of (outputs, targets)
    decode: str = ""  # of detection: "mynet.py:boxes", or the name of a built-in decoder
    name: str = ""  # of a metric of your own
    unit: str = ""  # of a metric of your own, and of max_drop
    higher_is_better: bool = True  # of a metric of your own
    distance: str = ""  # "mytask.py:distance" of (reference, outputs) -> [batch]; empty: as the task has it
    loss: str = ""  # "mytask.py:loss" of (outputs, targets) -> scalar; empty: only the dense network teaches
    arguments: dict[str, object] = {}  # of the task, the torchmetrics metric, or the class


class BudgetSection(_Section, frozen=True):
    """What must be met, on the device's runtime: speedup or latency_ms, or max_drop alone: the fastest within it."""

    speedup: float | None = None  # over the dense INT8 artifact
    latency_ms: float | None = None
    fastest: bool = False  # the fastest network within max_drop; what max_drop alone means
    max_drop: Annotated[float, Meta(ge=0, le=1e6)] = 0.5  # in the metric's unit, below the dense FP32 network
    confidence: Annotated[float, Meta(gt=0.5, lt=1)] = 0.95  # that the drop is not larger; one-sided
    max_bytes: Annotated[int, Meta(ge=1, le=2**50)] | None = None  # of the artifact

    def of_latency(self, speedup: float | None, latency_ms: float | None) -> BudgetSection:
        """This latency in place of what was asked for; all else stays."""
        return msgspec.structs.replace(self, speedup=speedup, latency_ms=latency_ms, fastest=False)


class SearchSection(_Section, frozen=True):
    """How the network that fits the budget is chosen."""

    # joint: blocks and widths together; learned: the same by masks learnt by gradient; uniform: one fraction everywhere
    method: Literal["joint", "learned", "uniform"] = "joint"
    mask_steps: Count = 400  # of learning the masks, a batch each
    saliency: Saliency = "obs"
    blocks: bool = True  # may whole residual blocks go?
    repeats: bool = False  # also parts that keep their input's shape, without a sum? ties the widths at their ends
    options: tuple[str, ...] = ()  # what single layers may become beside narrower: files of graph/options
    images: Count = 512  # for the loss curves
    rounds: Annotated[int, Meta(ge=1, le=1000)] = 3  # of interaction correction
    trials: Annotated[int, Meta(ge=0, le=100_000)] = 8  # of random corrections near the best, evaluated
    time_limit: Annotated[float, Meta(gt=0, le=604_800)] = 60.0  # seconds for one solve
    seed: Seed = 0

    @property
    def by_program(self) -> bool:
        """Do the latency table and the exact program choose?"""
        return self.method != "uniform"


class RecoverSection(_Section, frozen=True):
    """How accuracy is won back."""

    epochs: Passes = 10.0  # passes over the training split; 0: repair only
    hours: Annotated[float, Meta(ge=0, le=8760)] = 0.0  # of training at most; 0: no limit
    patience: Annotated[int, Meta(ge=0, le=10**6)] = 0  # evaluations without a better one until it ends; 0: never
    batch: Count = 128  # examples a step, those of all processes together
    micro_batch: Annotated[int, Meta(ge=0, le=10**9)] = 0  # of them at once; 0: all, halved when memory runs out
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where the processor has it
    optimizer: Literal["sgd", "adamw", "muon"] = "sgd"
    lr: Annotated[float, Meta(gt=0, le=100)] = 0.002  # a repaired network is close already: ten times this destroys it
    momentum: Share = 0.9  # of sgd and muon
    weight_decay: Annotated[float, Meta(ge=0, le=10)] = 5e-4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Share = 0.05  # share of all steps
    clip: Annotated[float, Meta(ge=0, le=1e9)] = 0.0  # norm of all gradients at most; 0: none
    ema: Share = 0.999  # 0: none
    distill: Distill | dict[str, Weight] = "auto"  # one, or several with their weights: { kl = 1, features = 0.5 }
    distill_weight: Weight = 1.0
    label_weight: Weight = 0.0  # of the task's own loss; 0: label-free
    temperature: Annotated[float, Meta(ge=1e-3, le=1e4)] = 4.0
    temperature_end: Annotated[float, Meta(ge=0, le=1e4)] = 0.0  # at the end of training; 0: the same
    temperature_learnt: bool = False  # against the student (CTKD)
    feature_layers: tuple[str, ...] = ()  # for features and attention; empty: the ends of the network's stages
    teachers: tuple[str, ...] = ()  # factories of trained networks that teach beside the dense one
    combine: Literal["mean", "confidence"] = "mean"  # several teachers into one
    trainer: str = ""  # your own: "file.py:function", called with a Job; empty: edgeprune's training
    trainer_hours: Annotated[float, Meta(ge=0, le=8760)] = 0.0  # after which it is interrupted; 0: never
    sparsity: Literal["none", "l2", "l1", "group-lasso", "bn-scale"] = "none"  # before the cut, on what the plan cuts
    sparsity_epochs: Passes = 2.0  # of training before the cut, while the penalty grows
    sparsity_strength: Weight = 1.0  # times the penalty's own at its end
    seed: Seed = 0


class LayerOverride(_Section, frozen=True):
    """What the user knows better about one layer."""

    precision: Literal["int8", "float", "int8-weights", "int4-weights"] | None = None
    method: Method | None = None
    range: tuple[float, float] | None = None


class QuantizeSection(_Section, frozen=True):
    """INT8 calibration."""

    method: Method = "auto"
    images: Count = 256
    effort: Literal["fast", "default", "best"] = "default"  # how many images the parts beside ranges look at
    percentile: Annotated[float, Meta(gt=50, le=100)] = 99.99
    equalize: bool = True  # cross-layer equalisation
    bias_correction: bool = True
    reconstruct: bool = False  # learned rounding for layers whose SQNR is bad
    fallback: Literal["auto", "greedy", "none"] = "auto"  # which layers may stay in float
    qat_epochs: Passes = 0.0  # of training in INT8, after recovery
    qat_lr: Annotated[float, Meta(gt=0, le=100)] = 1e-4  # of Adam; half a cosine to zero
    qat_batch: Count = 32
    qat_scales: bool = False  # the scales of activations learn too (LSQ)
    qat_device: Literal["auto", "cpu", "cuda", "xpu"] = "auto"
    qat_precision: Literal["fp32", "bf16"] = "fp32"  # of layers; rounding to INT8 is done in float32 all the same
    weights: Literal["", "int8", "int4"] = ""  # of large linear layers alone; what these compute stays float
    weights_from: Count = 500_000  # weights that a linear layer has at least, to be large
    layers: dict[str, LayerOverride] = {}


class ExportSection(_Section, frozen=True):
    """What the artifact takes and gives, where that is not what the network does."""

    input: Literal["", "uint8 NHWC", "uint8 NCHW"] = ""  # bytes of a picture: [data] scale, mean, std in the artifact
    output: Literal["", "argmax", "softmax", "nms"] = ""  # best class, probabilities; of a detector: its best boxes


class MeasureSection(_Section, frozen=True):
    """How long a noisy device is waited for, and how well the latency table has to predict."""

    patience: Annotated[float, Meta(ge=0, le=604_800)] = 600.0  # seconds a stage, beyond what a quiet device takes
    max_error: Annotated[float, Meta(gt=0, lt=1)] = 0.08  # median, relative, on networks that the table has not seen


class RunSection(_Section, frozen=True):
    """What is told of the run while it goes on; nothing of it changes the outcome."""

    track: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()  # the numbers of training, besides events.jsonl


class TuneSection(_Section, frozen=True):
    """What `edgeprune TARGET tune` tries; nothing of it changes a run."""

    trials: Count = 20  # trainings, those that are stopped early too
    hours: Annotated[float, Meta(ge=0, le=8760)] = 0.0  # after which no trial begins; 0: no limit
    epochs: Passes = 0.0  # of one trial; 0: those of [recover]
    space: dict[str, list[Any]] = {}  # key of [recover] -> [low, high], or choices; empty: lr and what goes with it


SECTIONS = ("model", "data", "task", "budget", "search", "recover", "quantize", "export", "measure", "run", "tune")
Recover = RecoverSection  # as the Python interface calls it


class Recipe(_Section, frozen=True):
    """One recipe, checked."""

    model: ModelSection
    data: DataSection
    budget: BudgetSection
    task: TaskSection = TaskSection()
    search: SearchSection = SearchSection()
    recover: RecoverSection = RecoverSection()
    quantize: QuantizeSection = QuantizeSection()
    export: ExportSection = ExportSection()
    measure: MeasureSection = MeasureSection()
    run: RunSection = RunSection()
    tune: TuneSection = TuneSection()
    name: str = ""
    path: str = ""  # the file it was read from; set by load()

    def resolve(self, name: str) -> Path:
        """The file or folder that a path in this recipe means."""
        beside = Path(self.path).parent / name if self.path else Path(name)
        try:
            return next((path for path in (Path(name), beside) if path.exists()), Path(name))
        except (OSError, ValueError) as cause:  # longer than a name may be, for example
            why = cause.strerror if isinstance(cause, OSError) else str(cause)
            raise RecipeError(f"{self.path or 'recipe'}: '{name[:80]}...' cannot be a path: {why}.") from None

    def section(self, name: str) -> dict[str, object]:
        """One section as plain data."""
        data: dict[str, object] = msgspec.to_builtins(getattr(self, name))
        return data


def load(path: str | Path) -> Recipe:
    """Read and check a recipe; raises RecipeError."""
    file = Path(path)
    if file.is_dir():
        file = file / "recipe.toml"
    recipe = read_toml(file, Recipe, RecipeError)
    if not recipe.name and "name" in read_file(file, RecipeError):
        _check_name("", str(file))
    recipe = msgspec.structs.replace(recipe, path=str(file), name=recipe.name or _name(file))
    recipe = _alone(recipe, read_file(file, RecipeError))
    check(recipe)
    return recipe


def of_python(given: Any, where: str) -> Recipe:
    """A recipe that Python made, or its sections by name, held to the same as a file; raises RecipeError."""
    try:
        plain = msgspec.to_builtins(given, enc_hook=_plain)
    except (TypeError, ValueError, RecursionError) as cause:
        raise RecipeError(f"{where}: a value that no recipe can have: {str(cause)[:200]}.") from None
    made = _alone(convert(plain, Recipe, RecipeError, where), plain if isinstance(given, Mapping) else {})
    check(made)
    return made


def _alone(recipe: Recipe, given: Mapping[str, object]) -> Recipe:
    """A max_drop that stands alone in [budget] asks for the fastest network within it."""
    budget = given.get("budget")
    written = set(budget) if isinstance(budget, Mapping) else set[str]()
    if "max_drop" not in written or written & {"speedup", "latency_ms", "fastest"}:
        return recipe
    return msgspec.structs.replace(recipe, budget=msgspec.structs.replace(recipe.budget, fastest=True))


def _plain(value: Any) -> Any:
    """Paths as text, and single numbers of numpy and torch as numbers."""
    if isinstance(value, PurePath):
        return str(value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    raise TypeError(f"it is {type(value).__name__}")


def check(recipe: Recipe) -> None:
    """Refuse values that have the right type and are impossible all the same."""
    budget = recipe.budget
    where = recipe.path or "recipe"
    _check_finite(recipe, where)
    if (budget.speedup is not None) + (budget.latency_ms is not None) + budget.fastest != 1:
        raise RecipeError(
            f"{where}: [budget] needs exactly one of speedup and latency_ms; or max_drop alone.",
            "speedup = 2.0, for example; max_drop = 1.0 alone asks for the fastest network within it.",
        )
    if budget.fastest and recipe.search.method != "joint":
        raise RecipeError(
            f'{where}: [budget] max_drop alone needs [search] method = "joint"; it is "{recipe.search.method}".',
            "Or give speedup or latency_ms.",
        )
    if budget.speedup is not None and not 1 < budget.speedup <= 10_000:
        raise RecipeError(
            f"{where}: [budget] speedup is {budget.speedup:g}; it must be more than 1 and at most 10,000.",
            "It is the speed-up over the dense INT8 artifact; 2.0 halves the latency.",
        )
    if budget.latency_ms is not None and not 0 < budget.latency_ms <= 86_400_000:
        raise RecipeError(
            f"{where}: [budget] latency_ms is {budget.latency_ms:g}; it must be more than 0 and at most a day."
        )
    if recipe.name or recipe.path:
        _check_name(recipe.name, where)
    _check_inputs(recipe, where)
    if isinstance(recipe.recover.distill, dict):
        for name in recipe.recover.distill:
            if name not in DISTILL:
                raise RecipeError(
                    f"{where}: [recover] distill has no loss '{name[:100]}'.", did_you_mean(name[:100], DISTILL)
                )
    if math.prod(recipe.model.input) > LARGEST:
        raise RecipeError(f"{where}: [model] input has more than {LARGEST:,} numbers.", "Give one example's shape.")
    for name, layer in recipe.quantize.layers.items():
        if layer.range is not None and not layer.range[0] < layer.range[1]:
            low, high = layer.range
            raise RecipeError(
                f"{where}: [quantize.layers] '{name[:100]}': range is [{low:g}, {high:g}]; the first must be the lower."
            )
    _check_pictures(recipe, where)
    channels = recipe.model.input[0] if recipe.model.input else 1
    if recipe.model.input and not {len(recipe.data.mean), len(recipe.data.std)} <= {1, channels}:
        raise RecipeError(
            f"{where}: [data] mean and std need 1 or {channels} values, as [model] input has {channels} channels."
        )


def _check_pictures(recipe: Recipe, where: str) -> None:
    """How a picture is fitted and ordered is possible."""
    data = recipe.data
    if data.fit == "letterbox" and (isinstance(data.resize, int) or data.crop):
        raise RecipeError(
            f'{where}: [data] fit = "letterbox" needs resize = [height, width], and no crop.', "resize = [352, 352]."
        )
    if data.order == "BGR" and recipe.model.input and recipe.model.input[0] != 3:
        raise RecipeError(
            f'{where}: [data] order = "BGR" is of three channels; [model] input has {recipe.model.input[0]}.'
        )


def _check_name(name: str, where: str) -> None:
    """A name becomes a folder's and a bundle's: it must be one on every file system."""
    strange = not name.isprintable() or any(mark in name for mark in "/\\") or name != name.strip()
    if not name or strange or name in (".", "..") or len(name.encode("utf-8", "replace")) > NAME_BYTES:
        raise RecipeError(
            f"{where}: name is {name[:80]!r}; it becomes a folder and a file.",
            f'Use at most {NAME_BYTES} letters, digits, spaces and . _ + -, such as name = "resnet18".',
        )


def _check_inputs(recipe: Recipe, where: str) -> None:
    """The network's inputs and the data's source are said once, and fit each other."""
    section, data = recipe.model, recipe.data
    if section.input and section.inputs:
        raise RecipeError(f"{where}: [model] has input and inputs.", "Give one of them.")
    if data.kind == "images" and ":" not in data.source:
        if not section.input:
            raise RecipeError(f"{where}: [model] input is empty.", "Give one example's shape, such as [3, 224, 224].")
        if data.splits or data.options:
            raise RecipeError(
                f"{where}: [data] splits and options are of another kind than images.",
                'kind = "coco", for example; images lie in train/CLASS and test/CLASS.',
            )
    for name, given in section.inputs.items():
        if not name.isidentifier():
            raise RecipeError(f"{where}: [model.inputs] '{name[:100]}' is no name of an argument of forward.")
        if math.prod(given.shape) > LARGEST:
            raise RecipeError(f"{where}: [model.inputs] {name} has more than {LARGEST:,} numbers.")
        if given.below is not None and given.dtype not in ("int64", "int32", "uint8"):
            raise RecipeError(f"{where}: [model.inputs] {name}: below is for whole numbers, not {given.dtype}.")
    if data.kind in ("images", "arrays", "function") and not data.source:
        raise RecipeError(f"{where}: [data] source is missing.", "A folder, an .npz, or 'module:function'.")
    if data.kind not in ("images", "arrays", "function") and not {"train", "test"} <= set(data.splits):
        raise RecipeError(
            f'{where}: [data] kind = "{data.kind[:100]}" needs splits.train and splits.test.',
            "Each names the files of its split; see docs/tasks.md.",
        )


def _check_finite(recipe: Recipe, where: str) -> None:
    """Refuse NaN and infinity anywhere: TOML has both, and a bound holds off neither NaN nor, downwards, infinity."""
    for section in SECTIONS:
        for key, value in recipe.section(section).items():
            if not _finite(value):
                raise RecipeError(f"{where}: [{section}] {key} has a value that is not finite.", "Give a number.")


def _finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(_finite(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(_finite(item) for item in value)
    return True


def _name(file: Path) -> str:
    """A run's name: the folder for a file called recipe.toml, else the file's own stem."""
    return file.resolve().parent.name if file.stem == "recipe" else file.stem
