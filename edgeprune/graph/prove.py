"""The proof of a prune: the edited module computes what the original would if the removed channels did not exist.

Shown by numbers, in float64 at 1e-6 of the output's spread, twice: with generic weights (random numbers of order one in
place of zeros, tiny layer scales and fresh norms, behind which a wrong prune could hide), and with the model's own.
And the edited module must capture and run at the example's batch, and at twice that where the original does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map

from edgeprune.errors import PlanError
from edgeprune.graph.analysis import Findings
from edgeprune.graph.capture import capture_steady, doubled, first_line, quiet, tensors_of
from edgeprune.graph.opaque import cut_out
from edgeprune.graph.options import merged
from edgeprune.graph.plan import Plan
from edgeprune.graph.reference import Reference
from edgeprune.graph.state import kept, plain_tensors
from edgeprune.graph.surgery import narrow

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}


@dataclass(frozen=True)
class OutputProof:
    """One output: its shape and the largest error over the spread (largest less smallest value) of the reference."""

    index: int
    shape: tuple[int, ...]
    max_error: float
    passed: bool


@dataclass(frozen=True)
class Proof:
    """What the proof showed.

    Attributes:
        passed: every check held.
        max_error: the largest error, in units of the output's spread.
        method: what was compared, with dtype and tolerance.
        outputs: one entry an output and set of weights.
        detail: the first thing that failed, '' when none did; of a vacuous proof, why nothing was removed.
        vacuous: the plan removes nothing, so that there was nothing to show.
    """

    passed: bool
    max_error: float
    method: str
    outputs: tuple[OutputProof, ...]
    detail: str = ""
    vacuous: bool = False

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "passed": self.passed,
            "max_error": self.max_error if np.isfinite(self.max_error) else None,
            "method": self.method,
            "outputs": [
                {"index": o.index, "shape": list(o.shape), "max_error": o.max_error, "passed": o.passed}
                for o in self.outputs
            ],
            "detail": self.detail,
            "vacuous": self.vacuous,
        }


def prove(structure: Findings, model: nn.Module, plan: Plan) -> Proof:
    """See Structure.prove.

    Raises:
        PlanError: the plan was made for another structure.
    """
    if plan.structure != structure.fingerprint:
        raise PlanError("The plan was made for another network.", "Make it with this structure's plan() or uniform().")
    for block in plan.removed:
        if block not in structure.analysis.spans:
            raise PlanError(f"'{block}' is not a removable block of this network.", "Make the plan again.")
    failures: list[str] = []
    for dtype in (torch.float64, torch.float32):
        try:
            narrowed = _vacuous(structure, plan.narrowing, _prove(structure, model, plan.narrowing, dtype))
            return _with_options(structure, model, plan, narrowed) if plan.options else narrowed
        except _Refused as refusal:
            failures.append(str(refusal))
    return Proof(False, float("inf"), "not run", (), failures[0])


def _vacuous(structure: Findings, plan: Plan, proof: Proof) -> Proof:
    """The proof, marked where the plan removes nothing."""
    if plan.cuts or plan.removed:
        return proof
    why = f"the plan removes nothing. {structure.obstacle()}".strip()
    method = f"nothing was removed, so that nothing was shown ({proof.method})"
    return replace(proof, vacuous=True, method=method, detail=proof.detail or why)


def _with_options(structure: Findings, model: nn.Module, plan: Plan, proof: Proof) -> Proof:
    """The proof of the narrowing, and that layers under an option compute what ordinary layers of their weights do.

    That their weights are other ones than the network's is their purpose: what it costs is for search to measure.
    """
    say = f"{proof.method}; {len(plan.options)} layers under an option held against ordinary layers of their weights"
    if not proof.passed:
        return proof
    dtype = torch.float64
    inputs = tree_map(lambda v: _cast(v, dtype), structure.analysis.inputs)
    with torch.no_grad(), quiet(), default_dtype(dtype), double_casts(dtype):
        plain = _private(structure, plan.narrowing.apply(model), dtype, generic=False)
        other = replace(plan, cuts=(), attributes=(), removed=(), stand_ins={}).apply(plain)
        for name, layer in merged(other, plan.options).items():
            parent, _, leaf = name.rpartition(".")
            plain.get_submodule(parent)._modules[leaf] = layer
        made = [_tensors(one(*tree_map(_clone, inputs[0]), **tree_map(_clone, inputs[1]))) for one in (plain, other)]
    found, why = _errors(made[0], made[1], TOLERANCE[dtype])
    outputs = (*proof.outputs, *found)
    return Proof(not why, max(one.max_error for one in outputs), say, outputs, why and f"under options: {why}")


class _Refused(Exception):
    """The original itself does not run in this number type."""


def _prove(structure: Findings, model: nn.Module, plan: Plan, dtype: torch.dtype) -> Proof:
    tolerance = TOLERANCE[dtype]
    name = str(dtype).removeprefix("torch.")
    method = (
        "reference with removed channels silenced, generic weights that keep the signal alive and own weights, "
        f"{name}, {tolerance:g} of the spread"
    )
    outputs: list[OutputProof] = []
    detail = ""
    for weights in ("generic", "own"):
        args, kwargs = tree_map(lambda v: _cast(v, dtype), structure.analysis.inputs)
        with torch.no_grad(), quiet(), default_dtype(dtype), double_casts(dtype):
            original = _private(structure, model, dtype, generic=weights == "generic")
            if weights == "generic" and not _rouse(original, args, kwargs):
                original = _private(structure, model, dtype, generic=True, loud=False)
            found, why = _compare(structure, original, plan, args, kwargs, dtype, tolerance)
        outputs.extend(found)
        detail = detail or (f"with {weights} weights: {why}" if why else "")
    worst = max((o.max_error for o in outputs), default=float("inf"))
    if not detail:
        detail = _runs(structure, model, plan)
    return Proof(not detail and bool(outputs), worst, method, tuple(outputs), detail)


def _private(
    structure: Findings, model: nn.Module, dtype: torch.dtype, *, generic: bool, loud: bool = True
) -> nn.Module:
    """A copy of the original to run, with its opaque parts cut out."""
    original = narrow(model, (), ()).eval()
    cut_out(original, structure.analysis.opaque)
    _convert(original, dtype, generic=generic, loud=loud)
    return original


def _compare(
    structure: Findings, original: nn.Module, plan: Plan, args: Any, kwargs: Any, dtype: torch.dtype, tolerance: float
) -> tuple[list[OutputProof], str]:
    """Errors by output, and what failed."""
    try:
        narrowed: nn.Module | Exception = plan.apply(original)  # before a forward has left anything behind
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError, PlanError) as error:
        narrowed = error
    try:
        dense = _tensors(original(*tree_map(_clone, args), **tree_map(_clone, kwargs)))
    except (RuntimeError, TypeError, ValueError) as error:
        raise _Refused(f"the original does not run in {dtype}: {error}") from error
    tensors = tensors_of(original)
    flat = tree_flatten((args, kwargs))[0]
    analysis = structure.analysis
    try:
        graph = Reference(analysis, {}, tensors, (), dtype).run(flat)
    except (RuntimeError, TypeError) as error:
        raise _Refused(f"the captured graph does not run in {dtype}: {error}") from error
    _, why = _errors(graph, dense, tolerance)
    if why:
        raise _Refused(f"the captured graph differs from the model in {dtype}: {why}")
    reference = Reference(analysis, analysis.masks(_kept(structure, plan)), tensors, plan.removed, dtype).run(flat)
    try:
        if isinstance(narrowed, Exception):
            raise narrowed
        got = _tensors(narrowed(*tree_map(_clone, args), **tree_map(_clone, kwargs)))
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError, PlanError) as error:
        return [
            OutputProof(0, (), float("inf"), False)
        ], f"the narrowed model fails: {str(error).strip().splitlines()[0]}"
    return _errors(reference, got, tolerance)


def _errors(
    reference: Sequence[torch.Tensor], got: Sequence[torch.Tensor], tolerance: float
) -> tuple[list[OutputProof], str]:
    if len(reference) != len(got):
        return [OutputProof(0, (), float("inf"), False)], f"{len(got)} outputs instead of {len(reference)}"
    results = []
    why = ""
    for i, (want, have) in enumerate(zip(reference, got, strict=True)):
        error = _error(want, have)
        results.append(OutputProof(i, tuple(want.shape), error, error <= tolerance))
        if not error <= tolerance:
            why = why or f"output {i} is off by {error:.3g} of its spread"
    return results, why


def _error(want: torch.Tensor, have: torch.Tensor) -> float:
    if want.shape != have.shape:
        return float("inf")
    if want.numel() == 0:
        return 0.0
    want, have = want.to(torch.float64), have.to(torch.float64)
    if not (torch.isfinite(want).all() and torch.isfinite(have).all()):
        same = torch.equal(torch.isfinite(want), torch.isfinite(have)) and torch.equal(want.isnan(), have.isnan())
        finite = torch.isfinite(want)
        if not same or not finite.any():
            return float("inf")
        want, have = want[finite], have[finite]
    spread = float(want.max() - want.min())
    scale = spread if spread > 0 else max(1.0, float(want.abs().max()))
    return float((want - have).abs().max()) / scale


def _kept(structure: Findings, plan: Plan) -> dict[str, tuple[int, ...]]:
    """Kept units by group; read from the cuts where the plan does not carry them."""
    if plan.kept or not plan.cuts:
        return dict(plan.kept)
    cuts = {(c.parameter, c.axis): set(c.kept) for c in plan.cuts}
    kept = {}
    for group in structure.groups:
        for member in group.members:
            positions = cuts.get((member.parameter, member.axis))
            if positions is not None:
                units = tuple(u for u, where in enumerate(member.indices) if positions.issuperset(where.tolist()))
                if len(units) < group.size:
                    kept[group.name] = units
                break
    return kept


def _runs(structure: Findings, model: nn.Module, plan: Plan) -> str:
    """The edited module captures, and runs at twice the batch where the original does. What failed, or ''."""
    analysis = structure.analysis
    pruned = plan.apply(model)
    private = narrow(pruned, (), (), empty=True).eval()
    cut_out(private, analysis.opaque)
    try:
        capture_steady(private, analysis.inputs, lines=False)
    except Exception as error:
        return f"the narrowed model does not capture: {first_line(error)}"
    twice = doubled(analysis.inputs)
    original = narrow(model, (), ()).eval()
    for private in (original, pruned):
        cut_out(private, analysis.opaque)
    with torch.no_grad(), quiet():
        try:
            original(*twice[0], **twice[1])
        except Exception:
            return ""
        try:
            pruned.eval()(*twice[0], **twice[1])
        except Exception as error:
            return f"the narrowed model fails at twice the batch: {error}"
    return ""


def _convert(model: nn.Module, dtype: torch.dtype, *, generic: bool, loud: bool) -> None:
    """Change every floating tensor of a private copy in place, and make the weights generic if asked; see _shake."""
    random = torch.Generator().manual_seed(0)
    model.to("cpu", dtype)
    for module in model.modules():
        for value in plain_tensors(module):
            value.data = _cast(value, dtype)
    if not generic:
        return
    done: set[int] = set()
    for name, tensor in tensors_of(model).items():
        if id(tensor) in done or not tensor.is_floating_point() or not tensor.numel():
            continue
        done.add(id(tensor))
        _shake(name, tensor.detach(), isinstance(tensor, nn.Parameter), random, loud=loud)


def _shake(name: str, data: torch.Tensor, parameter: bool, random: torch.Generator, *, loud: bool) -> None:
    """Fresh numbers of order one where a tensor is a vector, constant or tiny; others stay.

    `loud` also replaces weights that pass on less than they read: over many layers a fault would die out.
    """
    leaf = name.rpartition(".")[2]
    noise = torch.rand(data.shape, generator=random, dtype=torch.float64).to(data)
    if leaf == "running_var":
        data.copy_(0.5 + noise)
    elif leaf == "running_mean" or (parameter and "bias" in leaf and data.ndim == 1):
        data.copy_(0.4 * noise - 0.2)
    elif not parameter:
        return
    elif data.numel() == max(data.shape, default=1):
        data.copy_(0.5 + noise)
    else:
        fan, spread = max(1, data[0].numel()), float(data.std())
        if spread < 1e-2 or (loud and spread * fan**0.5 < 0.8):
            data.copy_((noise - 0.5) * (24.0 / fan) ** 0.5)


def _rouse(model: nn.Module, args: Any, kwargs: Any) -> bool:
    """Give batch norms about the statistics of what they read, so that a fault far from the outputs reaches them.

    Returns whether the outputs are finite.
    """
    random = torch.Generator().manual_seed(1)

    def look(norm: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        x = inputs[0]
        mean, var = norm.running_mean, norm.running_var
        if not isinstance(mean, torch.Tensor) or not isinstance(var, torch.Tensor) or x.ndim < 2:
            return
        places = [d for d in range(x.ndim) if d != 1]
        seen = x.var(places, unbiased=False)
        rough = torch.rand(seen.shape, generator=random, dtype=torch.float64).to(x)
        lives = torch.isfinite(seen) & (seen > 1e-12 * float(seen.max()))
        if x.numel() > x.shape[1] and bool(lives.any()):
            var.copy_(torch.where(lives, seen, seen[lives].mean()) * (0.5 + rough))
            mean.copy_(x.mean(places) + 0.4 * (rough - 0.5) * var.sqrt())

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    try:
        with kept(model):
            outputs = _tensors(model(*tree_map(_clone, args), **tree_map(_clone, kwargs)))
        return all(bool(torch.isfinite(v).all()) for v in outputs)
    except (RuntimeError, TypeError, ValueError):
        return True  # the comparison says what fails
    finally:
        for hook in hooks:
            hook.remove()


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype)
    return value


def _clone(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _tensors(value: Any) -> list[torch.Tensor]:
    return [v for v in tree_flatten(value)[0] if isinstance(v, torch.Tensor)]


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """What a network makes without naming a type is of this type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class double_casts(torch.overrides.TorchFunctionMode):
    """In a float64 proof, casts to float32 that are written in the network go to float64."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Replace `.float()` and `dtype=torch.float32`."""
        kwargs = dict(kwargs or {})
        if self.dtype != torch.float32:
            if func is torch.Tensor.float:
                return args[0].to(self.dtype)
            args = tuple(self.dtype if a is torch.float32 else a for a in args)
            kwargs = {k: self.dtype if v is torch.float32 else v for k, v in kwargs.items()}
        return func(*args, **kwargs)
