"""Where training runs: device, precision and processes, through Hugging Face Accelerate.

Accelerate (Apache-2.0) rather than Lightning Fabric: it imports in a tenth of a second beside torch, needs one package
that the rest does not have, knows XPU, and brings trackers for TensorBoard, MLflow and W&B. Processes are started by
torchrun; Accelerate reads its environment.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from edgeprune.errors import RecipeError, RunError
from edgeprune.recipe import RecoverSection

if TYPE_CHECKING:
    from accelerate import Accelerator

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets, and every launcher like it
NAMES = {"cuda": "CUDA GPU", "mps": "Apple GPU (MPS)", "xpu": "Intel GPU (XPU)"}


def process_count() -> int:
    """How many processes the launcher started; 1 without a launcher."""
    size = os.environ.get("WORLD_SIZE", "")
    return max(1, int(size)) if all(os.environ.get(name) for name in LAUNCHED) and size.isdecimal() else 1


def process_number() -> int:
    """This process's number among them; 0 leads."""
    rank = os.environ.get("RANK", "")
    return int(rank) if process_count() > 1 and rank.isdecimal() else 0


def available() -> tuple[str, ...]:
    """The kinds of device that torch finds here, the best one first."""
    found = [name for name in NAMES if _present(name)]
    return (*found, "cpu")


def _present(name: str) -> bool:
    module = getattr(torch, name, None) if name != "mps" else torch.backends.mps
    return bool(module is not None and module.is_available())


def device_kind(options: RecoverSection) -> str:
    """The kind of device that `[recover] device` means here; see `find_device`."""
    return find_device(options.device, options.precision, "[recover] ")


def find_device(device: str, precision: str, keys: str, without: tuple[str, ...] = ()) -> str:
    """The kind of device that a recipe means here.

    Args:
        keys: what stands before `device` and `precision` in the recipe: "[recover] ".
        without: kinds that "auto" passes over.

    Raises:
        RecipeError: it is not there, or cannot train in this precision.
    """
    here = [name for name in available() if name not in without]
    wanted, key = here[0] if device == "auto" else device, keys.rpartition(" ")[2]
    if wanted not in here:
        raise RecipeError(
            f"{keys}device is '{wanted}', but torch {torch.__version__} finds no {NAMES[wanted]} here.",
            f'Found: {", ".join(here)}. Use {key}device = "auto", or install a torch that supports it.',
        )
    if precision == "fp16" and wanted == "cpu":
        raise RecipeError(f"{keys}precision is 'fp16', which no CPU trains in.", 'Use "bf16" or "auto".')
    if precision == "bf16" and wanted == "cuda" and not torch.cuda.is_bf16_supported():
        raise RecipeError(f"{keys}precision is 'bf16', which this GPU does not have.", "Use another one.")
    return wanted


def precision(options: RecoverSection, device: str) -> str:
    """fp32, bf16 or fp16: what was asked for, or for "auto" what the device is fast in without losing range."""
    if options.precision != "auto":
        return options.precision
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if device == "xpu":
        return "bf16"
    capable = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return "bf16" if device == "cpu" and capable() else "fp32"


@contextlib.contextmanager
def placed(options: RecoverSection) -> Iterator[Accelerator]:
    """An Accelerator for this training run; its process-wide state goes with it, unless the caller's program had one.

    Raises:
        RecipeError: see `device_kind`. RunError: see `companions`.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    device = device_kind(options)
    mixed = {"fp32": "no"}.get(precision(options, device), precision(options, device))
    joined = torch.distributed.is_initialized()
    others = bool(PartialState._shared_state)  # the user's own program runs under Accelerate: leave it as it is
    with _environment_kept(), torch.random.fork_rng(devices=[]):
        try:
            accelerator = Accelerator(mixed_precision=mixed, cpu=device == "cpu")
        except ValueError as cause:
            raise RecipeError(f"[recover] device '{device}' in {mixed}: {cause}.") from cause
        if torch.distributed.is_initialized() and not joined:  # once a process: its store keeps the addresses of before
            atexit.register(_part)
        try:
            with companions(accelerator):
                yield accelerator
        finally:
            accelerator.free_memory()
            if not others:
                AcceleratorState._reset_state(reset_partial_state=True)


def _part() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _environment_kept() -> Iterator[None]:
    """Accelerate tells its parts by variables of the environment; they go when it goes."""
    before = {name: value for name, value in os.environ.items() if name.startswith("ACCELERATE_")}
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
            del os.environ[name]
        os.environ.update(before)


def device_of(accelerator: Any) -> torch.device:
    """The device of this process. Several processes number their CPU too; no file can be read back onto "cpu:0"."""
    return torch.device("cpu") if accelerator.device.type == "cpu" else torch.device(accelerator.device)


def agreed(accelerator: Any, value: float) -> float:
    """The largest of the processes' values: what all of them decide by."""
    if accelerator.num_processes == 1:
        return value
    import torch.distributed as distributed

    shared = torch.tensor(value, dtype=torch.float64).to(accelerator.device)
    distributed.all_reduce(shared, op=distributed.ReduceOp.MAX)
    return float(shared)


def from_first(accelerator: Any, value: Any) -> Any:
    """Process 0's value, in every process; plain data and tensors."""
    if accelerator.num_processes == 1:
        return value
    import torch.distributed as distributed

    held = [value if accelerator.is_main_process else None]
    distributed.broadcast_object_list(held, 0, device=accelerator.device)
    return held[0]


@contextlib.contextmanager
def companions(accelerator: Any) -> Iterator[None]:
    """Where another process has ended, say that, and what to do; PyTorch speaks of a lost socket. Raises RunError."""
    try:
        yield
    except RuntimeError as cause:
        if accelerator.num_processes == 1 or not _lost(cause):
            raise
        raise RunError(
            f"[recover] process {accelerator.process_index} has lost another one of the {accelerator.num_processes} "
            "that train together.",
            "Run the same command again: training goes on from its checkpoint.",
        ) from cause


def _lost(cause: RuntimeError) -> bool:
    import torch.distributed as distributed

    signs = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out waiting")
    return isinstance(cause, distributed.DistError) or any(sign in str(cause).lower() for sign in signs)
