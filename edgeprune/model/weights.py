"""Checkpoints as they are found: which tensors are the weights, under which names, and whether they fit.

A pickle's code is never run: torch reads with `weights_only=True`. What is done to a checkpoint is said in notes, so
that nothing is chosen, renamed or cast in silence.
"""

from __future__ import annotations

import os
import stat
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.errors import ModelError
from edgeprune.model.usercode import short

if TYPE_CHECKING:
    import torch
    from torch import nn

# Where checkpoints keep the weights that were trained, the usual ones first. A moving average beside them (`ema`,
# `state_dict_ema`, `model_ema`) is never taken unasked: [model] weights_key names it.
HOLDERS = ("state_dict", "model_state_dict", "model", "net", "network", "module", "params", "weights")
# What wrappers put between two names, anywhere: torch.compile, FSDP, activation checkpointing.
_INSERTED = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
_DEPTH = 3  # of mappings inside each other
_TOLD = 3  # tensors that one message names
_ASK = "Save the weights alone: safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one file by name, and what the user should know of how they were found."""

    state: dict[str, torch.Tensor]
    notes: tuple[str, ...] = ()


def read_checkpoint(path: Path, key: str = "") -> Checkpoint:
    """Read a safetensors file, or what torch.save wrote of tensors, numbers and text; never runs a pickle's code.

    Args:
        key: the entry that holds the weights, such as "state_dict_ema" or "nets.student"; empty: the usual one.

    Raises:
        ModelError: no such file, not whole, a pickle of objects, no tensors, or several entries that could be meant.
    """
    _check_file(path)
    if path.suffix == ".safetensors":
        if key:
            raise ModelError(f"[model] weights_key is '{key}', but {path} has no entries.", "Leave it out.")
        return Checkpoint(_safetensors(path))
    found = _torch(path)
    if key:
        for part in key.split("."):
            if not isinstance(found, Mapping) or part not in found:
                raise ModelError(f"[model] weights_key: {path} has no '{key}'.", _holds(found))
            found = found[part]
        return Checkpoint(_tensors(found, path, key))
    taken: list[str] = []
    notes: list[str] = []
    while not _is_state(found) and len(taken) < _DEPTH:
        name, beside = _choose(found, path, taken)
        if name is None:
            break
        taken.append(name)
        found = found[name]
        if beside:
            notes.append(
                f"[model] weights: {path.name}: '{'.'.join(taken)}' was taken; {', '.join(beside)} beside it "
                "was not (weights_key chooses)"
            )
    return Checkpoint(_tensors(found, path, ".".join(taken)), tuple(notes))


def _check_file(path: Path) -> None:
    remedy = "Check the path; it is relative to where you are, then to the recipe."
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        raise ModelError(f"[model] weights: {str(path)[:300]}: no such file.", remedy) from None
    if not stat.S_ISREG(mode):
        raise ModelError(f"[model] weights: {path} is {'a folder' if stat.S_ISDIR(mode) else 'not a file'}.", remedy)
    if not os.access(path, os.R_OK):
        raise ModelError(f"[model] weights: {path} may not be read.", "Check its permissions.")


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as cause:  # the reader and torch raise many kinds for a damaged header
        raise ModelError(f"[model] weights: {path} is not a whole safetensors file: {short(cause)}.") from None


def _torch(path: Path) -> Any:
    import torch

    _check_zip(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickle protocols that it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as cause:  # the unpickler raises whatever a damaged or hostile stream makes it
        raise ModelError(
            f"[model] weights: {path} is not a plain state dict ({short(cause)}).",
            f"Pickled modules run code when they are read and are refused. {_ASK}",
        ) from None


def _check_zip(path: Path) -> None:
    """Refuse an archive that is encrypted or whose checksums do not fit; torch itself does not look at them."""
    try:
        if not zipfile.is_zipfile(path):  # raises too, for one that says it spans several disks
            return  # torch's older form, which has no checksum
        with zipfile.ZipFile(path) as archive:
            if any(info.flag_bits & 1 for info in archive.infolist()):
                raise ModelError(f"[model] weights: {path} is an encrypted archive.", "Unpack it first.")
            damaged = archive.testzip()
    except ModelError:
        raise
    except Exception as cause:  # zipfile and zlib raise whatever damage makes them
        raise ModelError(f"[model] weights: {path} is a damaged archive ({short(cause)}).", "Copy it again.") from None
    if damaged:
        raise ModelError(
            f"[model] weights: {path} is damaged: the checksum of '{damaged}' is wrong.",
            "Copy it again. If it was saved with torch.serialization.set_crc32_options(False), save it without that.",
        )


def _is_state(found: Any) -> bool:
    import torch

    return isinstance(found, Mapping) and bool(found) and all(isinstance(v, torch.Tensor) for v in found.values())


def _holding(found: Any, depth: int = 0) -> bool:
    """Are there tensors in this mapping, at most `_DEPTH` deep?"""
    if _is_state(found):
        return True
    return depth < _DEPTH and isinstance(found, Mapping) and any(_holding(v, depth + 1) for v in found.values())


def _choose(found: Any, path: Path, inside: list[str]) -> tuple[str | None, list[str]]:
    """The entry that holds the weights, and the others that could; None where this level has none.

    Optimisers keep tensors too, but not by themselves: their entries hold them under numbers.
    """
    if not isinstance(found, Mapping):
        return None, []
    fit = [name for name, value in found.items() if isinstance(name, str) and _holding(value) and _named(value)]
    known = [name for name in HOLDERS if name in fit]
    plain = [name for name in fit if "ema" not in name.lower().split("_")]
    if known:
        name = known[0]
    elif len(plain) == 1 or (not plain and len(fit) == 1):
        name = (plain or fit)[0]
    elif not fit:
        return None, []
    else:
        where = f" in '{'.'.join(inside)}'" if inside else ""
        raise ModelError(
            f"[model] weights: {path} holds several sets of weights{where}: {_some(fit)}.",
            f'Say which: [model] weights_key = "{".".join([*inside, fit[0]])}".',
        )
    return name, [f"'{other}'" for other in fit if other != name]


def _named(found: Any) -> bool:
    """Are the entries named as a module's are? An optimiser's state is not."""
    return isinstance(found, Mapping) and all(isinstance(n, str) for n in found) and "param_groups" not in found


def _holds(found: Any) -> str:
    return f"It holds {_some([str(name)[:60] for name in found])}." if isinstance(found, Mapping) and found else ""


def _tensors(found: Any, path: Path, key: str) -> dict[str, torch.Tensor]:
    import torch

    where = f"{path}" + (f": '{key}'" if key else "")
    if not isinstance(found, Mapping) or not found:
        raise ModelError(f"[model] weights: {where} holds {type(found).__name__}, not a state dict of tensors.", _ASK)
    for name, value in found.items():
        if not isinstance(name, str):
            raise ModelError(
                f"[model] weights: {where} has the key {str(name)[:60]} ({type(name).__name__}), not a tensor's name.",
                f"Names are those of model.state_dict(). {_ASK}",
            )
        if not isinstance(value, torch.Tensor):
            raise ModelError(
                f"[model] weights: {where}: {name[:100]} is {type(value).__name__}, not a tensor.",
                f"{_holds(found)} [model] weights_key names the entry that holds the weights. {_ASK}",
            )
        if value.is_sparse or value.is_quantized or value.is_meta:
            raise ModelError(
                f"[model] weights: {where}: {name[:100]} is a sparse, quantised or empty (meta) tensor.",
                "Give the dense floating-point weights.",
            )
    return {name: value.detach() for name, value in found.items()}


def assign(model: nn.Module, state: Mapping[str, torch.Tensor], path: str) -> tuple[str, ...]:
    """Give `model` the weights of `state`; returns what was renamed, left out, filled in or cast.

    Raises:
        ModelError: names, shapes or kinds of numbers differ; names what differs.
    """
    own = model.state_dict()
    found, notes = _renamed(dict(state), own)
    counters = [n for n in own if n not in found and n.rpartition(".")[2] == "num_batches_tracked"]
    if counters and set(own) - set(found) == set(counters):  # saved before PyTorch 0.4.1, which torch accepts too
        found.update({name: own[name] for name in counters})
        notes.append(f"{len(counters)} num_batches_tracked are missing, as in old checkpoints, and stay as they are")
    tied = {name: twin for name in set(own) - set(found) for twin in found if _tied(own, name, twin)}
    found.update({name: found[twin] for name, twin in tied.items()})
    notes += [f"{name} was filled in from {tied[name]}, to which the network ties it" for name in sorted(tied)]
    _check_names(found, own, path)
    _check_shapes(found, own, path)
    notes += _check_kinds(found, own, path)
    model.load_state_dict(found)
    return tuple(f"[model] weights: {path}: {note}" for note in notes)


def _tied(own: Mapping[str, torch.Tensor], one: str, other: str) -> bool:
    """Are both names of one tensor? safetensors.torch.save_model keeps a single name of those."""
    if other not in own or own[one].numel() == 0:
        return False
    a, b = own[one], own[other]
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype


def _renamed(state: dict[str, torch.Tensor], own: Mapping[str, object]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """`state` without what wrappers added to its names, where that makes them the network's."""
    if set(state) == set(own):
        return state, []
    plain, notes, taken = dict(state), [], []
    for word in _INSERTED:
        if any(word in name for name in plain) and not any(word in name for name in own):
            plain = {name.replace(word, ""): value for name, value in plain.items()}
            taken.append(word)
    averaged = plain.pop("n_averaged", None) if "n_averaged" not in own else None  # torch's AveragedModel
    while plain and not set(plain) & set(own):
        heads = {name.partition(".")[0] for name in plain if "." in name}
        if len(heads) != 1 or not all("." in name for name in plain):
            break
        head = f"{heads.pop()}."
        plain = {name.removeprefix(head): value for name, value in plain.items()}
        taken.append(head)
    if len(plain) + (averaged is not None) != len(state) or not set(plain) & set(
        own
    ):  # two names became one, or no gain
        return state, []
    if taken:
        notes.append(f"{' and '.join(repr(word) for word in taken)} was taken off the names")
    if averaged is not None:
        notes.append("n_averaged of torch's AveragedModel was left out")
    return plain, notes


def _check_names(found: Mapping[str, object], own: Mapping[str, object], path: str) -> None:
    missing, extra = sorted(set(own) - set(found)), sorted(set(found) - set(own))
    if not missing and not extra:
        return
    parts = [f"{word} {_some(keys)}" for word, keys in (("lacks", missing), ("has the unknown", extra)) if keys]
    if not set(found) & set(own):
        remedy = "No name is the same: the factory builds another network, or wraps it differently."
    elif missing and extra:
        remedy = "The factory builds a network with other parts than the one that was trained."
    elif missing:
        remedy = "The factory builds more than was saved: these parts would stay random."
    else:
        remedy = "The factory builds less than was trained: remove these entries, if they were for training only."
    same = len(set(found) & set(own))
    raise ModelError(f"[model] weights: {path} {' and '.join(parts)}; {same} of {len(own)} names are right.", remedy)


def _check_shapes(found: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], path: str) -> None:
    wrong = [key for key, value in own.items() if found[key].shape != value.shape]
    if wrong:
        key = wrong[0]
        more = f" So it is with {len(wrong)} tensors: {_some(wrong)}." if len(wrong) > 1 else ""
        raise ModelError(
            f"[model] weights: {path}: {key} has the shape {list(found[key].shape)}; "
            f"the network wants {list(own[key].shape)}.{more}",
            "Give the factory the arguments (classes, widths) that the trained network had.",
        )


def _check_kinds(found: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], path: str) -> list[str]:
    """Refuse another kind of number; say which floats are of another precision."""
    cast: dict[str, int] = {}
    for key, value in own.items():
        given = found[key]
        if _kind(given) != _kind(value):
            raise ModelError(
                f"[model] weights: {path}: {key} holds {_dtype(given)}; the network wants {_dtype(value)}.",
                "They are not the trained numbers: a quantised or damaged file. Save the floating-point weights."
                if value.is_floating_point()
                else "Save it as the network has it.",
            )
        if given.dtype != value.dtype and given.is_floating_point():
            what = f"{_dtype(given)} became {_dtype(value)}"
            cast[what] = cast.get(what, 0) + 1
    return [f"{count} tensors of {what}" for what, count in cast.items()]


def _kind(value: torch.Tensor) -> str:
    import torch

    if value.is_complex():
        return "complex"
    if value.is_floating_point():
        return "float"
    return "bool" if value.dtype == torch.bool else "integer"


def _dtype(value: torch.Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _some(keys: list[str]) -> str:
    shown = ", ".join(key[:100] for key in keys[:_TOLD])
    return shown + (f" and {len(keys) - _TOLD} more" if len(keys) > _TOLD else "")
