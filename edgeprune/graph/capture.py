"""Capture: the user's network as an ATen graph, for reasoning only.

`capture` exports a *shadow* of the model: a deep copy whose tensors are the model's own (no memory), in eval mode.
`torch.export` traces on fake tensors, so nothing is computed and nothing of the user's is changed.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.fx import config as fx_config
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._pytree import tree_flatten, tree_map

from edgeprune.errors import CaptureError, EdgepruneError, ModelError
from edgeprune.graph.state import changed_attributes, kept, plain_tensors, same_dice

_LOG = logging.getLogger(__name__)
_HERE = str(Path(__file__).parent)

Inputs = tuple[tuple[Any, ...], dict[str, object]]


@dataclass(frozen=True)
class Forward:
    """One call of a module.

    Attributes:
        given: the shape of its first argument; () where that is no tensor.
        count: how many values it returned, the first a tensor; 1: that tensor alone, 0: anything else.
    """

    given: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class Capture:
    """An exported graph and what its placeholders are.

    Attributes:
        module: the graph; parameters, buffers and constants are placeholders.
        parameters: placeholder name -> qualified name of the parameter or buffer.
        constants: placeholder name -> tensor lifted from a plain attribute or a literal.
        inputs: the names of the placeholders of the user's inputs, in order.
        program: what torch.export gave, with the inputs that it was given.
        forwards: what each module's forward was given and returned.
    """

    module: GraphModule
    parameters: dict[str, str]
    constants: dict[str, object]
    inputs: tuple[str, ...]
    buffers: frozenset[str]
    program: ExportedProgram
    forwards: Mapping[str, Forward] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where in the user's code something happened."""

    module: str
    source: str
    message: str = ""


def as_inputs(example: Any) -> Inputs:
    """Return (args, kwargs) from a tensor, a tuple or list of them, or a dict of keyword arguments."""
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, tuple | list):
        return tuple(example), {}
    if isinstance(example, torch.Tensor):
        return (example,), {}
    raise ModelError(
        f"example_inputs is a {type(example).__name__}, not a tensor, a tuple of tensors or a dict.",
        "Pass what the model's forward takes, such as torch.randn(1, 3, 224, 224).",
    )


def doubled(inputs: Inputs) -> Inputs:
    """The same inputs at twice the batch."""
    twice = tree_map(lambda v: torch.cat([v, v]) if isinstance(v, torch.Tensor) and v.ndim else v, inputs)
    return tuple(twice[0]), dict(twice[1])


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer by each of its qualified names, aliases and non-persistent ones too."""
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found[name] = parameter
    for name, buffer in model.named_buffers(remove_duplicate=False):
        found[name] = buffer
    return found


def shadow(model: nn.Module, replace: Mapping[int, torch.Tensor] | None = None) -> nn.Module:
    """A deep copy of the module tree that shares the model's tensors, or holds `replace[id(tensor)]` in their place."""
    memo: dict[int, Any] = {id(t): t for t in tensors_of(model).values()}
    memo.update(replace or {})
    for module in model.modules():
        for value in plain_tensors(module):
            memo.setdefault(id(value), value)
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, ValueError) as error:
        raise ModelError(
            f"The model cannot be copied: {error}.",
            "edgeprune never edits your own module; keep locks, files and generators out of module attributes.",
        ) from error


def shadow_to_run(model: nn.Module) -> nn.Module:
    """A shadow with buffers of its own, which a forward may write to."""
    return shadow(model, {id(b): b.detach().clone() for b in model.buffers()})


def warm(model: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """Run a shadow once, so that it holds what a forward leaves behind; the attributes that this changed, by name."""

    def run() -> None:
        with contextlib.suppress(Exception), torch.no_grad(), quiet(), same_dice():
            model(*copy.deepcopy(inputs[0]), **copy.deepcopy(inputs[1]))

    return changed_attributes(model, run)


def check_model(model: Any) -> None:
    """Refuse what cannot be analysed, with a remedy."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError("The model is a scripted module.", "Pass the nn.Module that it was scripted from.")
    if not isinstance(model, nn.Module):
        raise ModelError(f"The model is a {type(model).__name__}, not an nn.Module.", "Pass the built network.")
    for name, tensor in tensors_of(model).items():
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise ModelError(f"Parameter '{name}' has no shape yet.", "Run the model once on an input, then trace it.")
        if tensor.is_meta:
            raise ModelError(f"Parameter '{name}' is on the meta device.", "Load the weights before tracing.")


def capture_model(model: nn.Module, inputs: Inputs, *, lines: bool = True) -> Capture:
    """Export `model` (used as it is: pass a shadow) for these inputs; its attributes are afterwards as they were.

    Args:
        lines: note the source lines and the modules of the graph's nodes; a trial, which is compared with a graph that
            has them, is faster without.

    Raises:
        CaptureError: the network's Python depends on data, or its forward fails; names the line.
    """
    args, kwargs = inputs
    forwards: dict[str, Forward] = {}
    noting = _noting(model, forwards) if lines else _without_lines()
    with quiet(), kept(model), same_dice(), noting:
        program = torch.export.export(model, args, kwargs, strict=False)
    signature = program.graph_signature
    parameters: dict[str, str] = {}
    constants: dict[str, object] = {}
    user: list[str] = []
    for spec in signature.input_specs:
        kind, name = spec.kind.name, getattr(spec.arg, "name", "")
        if kind in ("PARAMETER", "BUFFER") and spec.target is not None:
            parameters[name] = spec.target
        elif kind == "USER_INPUT":
            user.append(name)
        elif spec.target is not None:
            constants[name] = program.constants.get(spec.target)
    if lines:
        _name_modules(program.graph_module, model)
    buffers = frozenset(signature.buffers)
    return Capture(program.graph_module, parameters, constants, tuple(user), buffers, program, forwards)


def first_argument(module: nn.Module) -> str:
    """The name of the first argument of a module's forward."""
    return next(iter(inspect.signature(module.forward).parameters), "input")


@contextlib.contextmanager
def _noting(model: nn.Module, forwards: dict[str, Forward]) -> Iterator[None]:
    """Note what modules take and return while they are traced."""
    names = {id(vars(module)): name for name, module in model.named_modules()}  # export calls proxies with these

    def note(module: nn.Module, args: tuple[Any, ...], named: Mapping[str, object], result: Any) -> None:
        name = names.get(id(vars(module)))
        if name is None:
            return
        parts = result if type(result) in (tuple, list) else (result,)
        good = type(result) is not list and bool(parts) and isinstance(parts[0], torch.Tensor)
        first = args[0] if args else named.get(first_argument(module))
        given = tuple(int(n) for n in first.shape) if isinstance(first, torch.Tensor) else ()
        forwards[name] = Forward(given, len(parts) if good else 0)

    handle = torch.nn.modules.module.register_module_forward_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _without_lines() -> Iterator[None]:
    """Export notes no stack trace a node, where this torch can be told so."""
    name = "do_not_emit_stack_traces"
    before = getattr(fx_config, name, None)
    if before is None:
        yield
        return
    setattr(fx_config, name, True)
    try:
        yield
    finally:
        setattr(fx_config, name, before)


def _name_modules(graph: GraphModule, model: nn.Module) -> None:
    """Give nodes their modules' own names: export calls an item of `layers[2:]` "layers.slice(2, None, None).0"."""
    known: dict[str, str] = {}
    for part in graph.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            stack = node.meta.get("nn_module_stack") or {}
            if any("slice(" in str(path) for path, _ in stack.values()):
                for path, _ in stack.values():
                    known.setdefault(str(path), _unsliced(str(path), model))
                node.meta["nn_module_stack"] = {k: (known[str(path)], kind) for k, (path, kind) in stack.items()}


def _unsliced(path: str, model: nn.Module) -> str:
    """The name of a module without the slices that led to it."""
    found: list[str] = []
    name, again, call = path.partition("@")
    at: nn.Module = model
    items: list[tuple[str, nn.Module]] | None = None
    for part in re.split(r"\.(?![^(]*\))", name) if name else []:
        children = list(at._modules.items()) if items is None else items
        if part.startswith("slice("):
            bounds = [None if x.strip() == "None" else int(x) for x in part[6:-1].split(",")]
            items = [(k, m) for k, m in children[slice(*bounds)] if m is not None]
            continue
        if items is not None and not isinstance(at, nn.Sequential):  # a sliced list counts anew
            part = items[int(part)][0] if part.isdigit() and int(part) < len(items) else part
        items = None
        found.append(part)
        at = at._modules.get(part) or at
    return ".".join(found) + again + call


def capture_steady(model: nn.Module, inputs: Inputs, *, lines: bool = True) -> tuple[nn.Module, Capture]:
    """A network and its graph: as it came, or, where that cannot be captured, as one forward leaves it.

    A first forward may read numbers out of tensors that later ones find in an attribute.

    Raises:
        Exception: as `capture` does, of the network as it came.
    """
    try:
        return model, capture_model(model, inputs, lines=lines)
    except Exception:
        run = shadow_to_run(model)
        if not warm(run, inputs):
            raise
        try:
            return run, capture_model(run, inputs, lines=lines)
        except Exception as again:
            _LOG.debug("nor after one forward: %s", again)
        raise


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What torch warns, logs and prints of a trace is not ours to pass on; a failure comes as an exception."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def place_of_error(model: nn.Module, error: BaseException) -> list[Place]:
    """The frames of `error` inside the model's modules, innermost first."""
    names = {id(vars(module)): name for name, module in model.named_modules()}  # export calls proxies with these
    places: list[Place] = []
    frames: list[tuple[str, str]] = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        where = f"{code.co_filename}:{line}"
        name = names.get(id(getattr(owner, "__dict__", None)))
        if name is not None and not _machinery(code.co_filename):
            frames.append((name, where))
        elif frames and "/torch/" not in code.co_filename:
            frames.append((frames[-1][0], where))
    for module, where in reversed(frames):
        places.append(Place(module, where, str(error).strip().split("\n")[0]))
    return places


def _machinery(path: str) -> bool:
    """Whether a file of torch's only passes calls on: everything but the layers themselves."""
    return "/torch/" in path and ("/torch/nn/" not in path or path.endswith("/torch/nn/modules/module.py"))


def capture_error(model: nn.Module, inputs: Inputs, error: BaseException) -> EdgepruneError:
    """What the user reads when capture fails: its own fault, Python that depends on data, or torch's limit."""
    own = None if _depends_on_data(error) else _own_failure(model, inputs)
    if own is not None:
        private, failure = own
        where, first = _where(place_of_error(private, failure)), first_line(failure)
        given = ", ".join(_spoken(v) for v in tree_flatten(inputs)[0]) or "nothing"
        return ModelError(
            f"The network's own forward fails on the example input{where}: {type(failure).__name__}: {first}",
            f"It was given {given}. Check that this is the shape and type that it takes.",
        )
    places = place_of_error(model, error)
    where, first = _where(places), first_line(error)
    if _depends_on_data(error):
        opaque = places[0].module if places and places[0].module else "name.of.submodule"
        return CaptureError(
            f"The network's Python depends on data{where}: {first}",
            f"Cut that part out with opaque=['{opaque}'], or rewrite the branch without .item() or an if on a tensor.",
        )
    return CaptureError(
        f"torch.export could not capture the network{where}: {type(error).__name__}: {first}",
        "If the line is in a part that need not be pruned, cut it out with opaque=['name.of.submodule'].",
    )


def _depends_on_data(error: BaseException) -> bool:
    return any(word in type(error).__name__ + str(error) for word in ("DataDependent", "data-dependent", "GuardOn"))


def _own_failure(model: nn.Module, inputs: Inputs) -> tuple[nn.Module, Exception] | None:
    """The error of a plain run of a private copy; None where it runs."""
    private = copy.deepcopy(model)
    try:
        with torch.no_grad(), quiet():
            private(*copy.deepcopy(inputs[0]), **copy.deepcopy(inputs[1]))
    except Exception as error:
        return private, error
    return None


def _where(places: Sequence[Place]) -> str:
    """The innermost line of the user's own code, else torch's, and the innermost module."""
    if not places:
        return ""
    own = next((p for p in places if "/torch/" not in p.source), places[0])
    return f" at {own.source} (module '{places[0].module}')"


def _spoken(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return type(value).__name__


def first_line(error: BaseException) -> str:
    """The first line of a message, at most 300 characters."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


def source_of(node: Node) -> str:
    """`file:line` of the innermost frame of the user's code (not torch's own) that made this node."""
    frames = frames_of(node)
    for frame in reversed(frames):
        if not in_layer(frame):
            return frame
    return frames[-1] if frames else ""


def in_layer(frame: str) -> bool:
    """Whether a frame is inside a layer of torch.nn (or one that stands for it), so that every such layer shares it."""
    return "/torch/" in frame or frame.startswith(_HERE)


def frames_of(node: Node) -> list[str]:
    """All `file:line` frames that export recorded for this node, outermost first."""
    frames = []
    for line in (node.meta.get("stack_trace") or "").splitlines():
        line = line.strip()
        if line.startswith('File "') and '", line ' in line:
            path, rest = line[6:].split('", line ', 1)
            frames.append(f"{path}:{rest.split(',')[0]}")
    return frames


def owner_of(node: Node) -> str:
    """The qualified name of the innermost module that ran this node ('' for the model itself)."""
    stack = node.meta.get("nn_module_stack") or {}
    name = ""
    for path, _ in stack.values():
        name = path
    return str(name).split("@")[0]
