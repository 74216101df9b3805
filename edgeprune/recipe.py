"""What the user asked for: `recipe.toml` -> a frozen `Recipe`.

Unknown keys, wrong types and impossible values are refused with the file, the key, what was expected and the nearest
valid name. Paths in a recipe are relative to the folder that the command runs in, then to the recipe's own folder.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from edgeprune.config import read_toml
from edgeprune.errors import RecipeError

Fraction = Annotated[float, Meta(gt=0, lt=1)]
Count = Annotated[int, Meta(ge=1)]
Saliency = Literal["obs", "l1", "l2", "bn-scale", "taylor", "fisher", "random"]
Method = Literal["auto", "minmax", "moving-average", "percentile", "mse", "entropy"]


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class ModelSection(_Section, frozen=True):
    """The trained network."""

    factory: str  # "path/to/file.py:callable" or "package.module:callable"; called without arguments
    input: tuple[Count, ...]  # one example without its batch axis, such as [3, 224, 224]
    weights: str = ""  # safetensors or a state dict; empty: what the factory returns is trained
    opaque: tuple[str, ...] = ()  # submodules that capture goes round; they are left as they are


class DataSection(_Section, frozen=True):
    """Images, labels, and the preprocessing, said once for training, calibration and the device."""

    source: str  # folder (train/ and test/ of class folders, or .npz files), one .npz, or "module:function"
    resize: Annotated[int, Meta(ge=0)] = 0  # shorter side in pixels; 0: leave
    crop: Annotated[int, Meta(ge=0)] = 0  # centre crop in pixels; 0: leave
    scale: float = 1 / 255  # applied to 0..255 pixels before mean and std
    mean: tuple[float, ...] = (0.0,)
    std: tuple[Annotated[float, Meta(gt=0)], ...] = (1.0,)
    augment: tuple[Literal["crop", "flip"], ...] = ()  # while training: random shifts by 1/8, mirror images
    calibration: Count = 256  # images, from the training split
    selection: Count = 512  # training images held out to choose by, where the source has no selection split of its own
    test: int = 0  # images of the test split that the gate uses; 0: all
    workers: Annotated[int, Meta(ge=0)] = 0


class BudgetSection(_Section, frozen=True):
    """What must be met, on the device's runtime. Exactly one of speedup and latency_ms."""

    speedup: float | None = None  # over the dense INT8 artifact
    latency_ms: float | None = None
    max_drop: Annotated[float, Meta(ge=0)] = 0.5  # points of top-1 below the dense FP32 network
    max_bytes: Count | None = None  # of the artifact


class SearchSection(_Section, frozen=True):
    """How the network that fits the budget is chosen."""

    method: Literal["joint", "uniform"] = "joint"  # joint: blocks and widths together; uniform: one fraction everywhere
    saliency: Saliency = "obs"
    blocks: bool = True  # may whole residual blocks go?
    images: Count = 512  # for the loss curves
    rounds: Count = 3  # of interaction correction
    trials: Annotated[int, Meta(ge=0)] = 8  # of random corrections near the best, evaluated
    time_limit: Annotated[float, Meta(gt=0)] = 60.0  # seconds for one solve
    seed: Annotated[int, Meta(ge=0)] = 0


class RecoverSection(_Section, frozen=True):
    """How accuracy is won back."""

    epochs: Annotated[float, Meta(ge=0)] = 10.0  # passes over the training split; 0: repair only
    batch: Count = 128
    lr: Annotated[float, Meta(gt=0)] = 0.002  # a repaired network is close already: ten times this destroys it
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Meta(ge=0)] = 5e-4
    warmup: Annotated[float, Meta(ge=0, lt=1)] = 0.05  # share of all steps
    ema: Annotated[float, Meta(ge=0, lt=1)] = 0.999  # 0: none
    distill: Literal["dist", "kl", "none"] = "kl"
    distill_weight: Annotated[float, Meta(ge=0)] = 1.0
    label_weight: Annotated[float, Meta(ge=0)] = 0.0  # of cross-entropy; 0: label-free
    temperature: Annotated[float, Meta(gt=0)] = 4.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # of training; auto: bf16 where the processor has it
    seed: Annotated[int, Meta(ge=0)] = 0


class LayerOverride(_Section, frozen=True):
    """What the user knows better about one layer."""

    precision: Literal["int8", "float"] | None = None
    method: Method | None = None
    range: tuple[float, float] | None = None


class QuantizeSection(_Section, frozen=True):
    """INT8 calibration."""

    method: Method = "auto"
    images: Count = 256
    percentile: Annotated[float, Meta(gt=50, le=100)] = 99.99
    equalize: bool = True  # cross-layer equalisation
    bias_correction: bool = True
    reconstruct: bool = False  # learned rounding for layers whose SQNR is bad
    fallback: Literal["auto", "greedy", "none"] = "auto"  # which layers may stay in float
    qat_epochs: Annotated[float, Meta(ge=0)] = 0.0
    layers: dict[str, LayerOverride] = {}


class Recipe(_Section, frozen=True):
    """One recipe, checked."""

    model: ModelSection
    data: DataSection
    budget: BudgetSection
    search: SearchSection = SearchSection()
    recover: RecoverSection = RecoverSection()
    quantize: QuantizeSection = QuantizeSection()
    name: str = ""
    path: str = ""  # the file it was read from; set by load()

    def resolve(self, name: str) -> Path:
        """The file or folder that a path in this recipe means."""
        beside = Path(self.path).parent / name if self.path else Path(name)
        return next((path for path in (Path(name), beside) if path.exists()), Path(name))

    def section(self, name: str) -> dict[str, Any]:
        """One section as plain data."""
        data: dict[str, Any] = msgspec.to_builtins(getattr(self, name))
        return data


def load(path: str | Path) -> Recipe:
    """Read and check a recipe; raises RecipeError."""
    file = Path(path)
    if file.is_dir():
        file = file / "recipe.toml"
    recipe = read_toml(file, Recipe, RecipeError)
    recipe = msgspec.structs.replace(recipe, path=str(file), name=recipe.name or _name(file))
    check(recipe)
    return recipe


def check(recipe: Recipe) -> None:
    """Refuse values that have the right type and are impossible all the same."""
    budget = recipe.budget
    where = recipe.path or "recipe"
    if (budget.speedup is None) == (budget.latency_ms is None):
        raise RecipeError(
            f"{where}: [budget] needs exactly one of speedup and latency_ms.", "speedup = 2.0, for example."
        )
    if budget.speedup is not None and not (math.isfinite(budget.speedup) and budget.speedup > 1):
        raise RecipeError(
            f"{where}: [budget] speedup is {budget.speedup:g}; it must be more than 1.",
            "It is the speed-up over the dense INT8 artifact; 2.0 halves the latency.",
        )
    if budget.latency_ms is not None and not (math.isfinite(budget.latency_ms) and budget.latency_ms > 0):
        raise RecipeError(f"{where}: [budget] latency_ms is {budget.latency_ms:g}; it must be more than 0.")
    if not recipe.model.input:
        raise RecipeError(f"{where}: [model] input is empty.", "Give one example's shape, such as [3, 224, 224].")
    if len(recipe.data.mean) not in (1, recipe.model.input[0]) or len(recipe.data.std) not in (
        1,
        recipe.model.input[0],
    ):
        raise RecipeError(
            f"{where}: [data] mean and std need 1 or {recipe.model.input[0]} values, as [model] input has "
            f"{recipe.model.input[0]} channels."
        )


def _name(file: Path) -> str:
    """A run's name: the folder for a file called recipe.toml, else the file's own stem."""
    return file.resolve().parent.name if file.stem == "recipe" else file.stem
