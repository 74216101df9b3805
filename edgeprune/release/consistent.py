"""Does result.json agree with itself: scores with what was compared, a claim with the device that answered?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgeprune import claims, validate
from edgeprune.errors import BundleError
from edgeprune.recipe import BudgetSection
from edgeprune.release.archive import Archive
from edgeprune.result import Result
from edgeprune.target import Target, latency_key
from edgeprune.validate import Answers

OTHER = "The bundle contradicts itself; make it again, or fetch it from where it was made."


def check(found: Archive, result: Result, budget: BudgetSection, profile: Target) -> None:
    """Everything that follows from something else; raises BundleError."""
    _derived(found, result, budget)
    _latencies(found, result)
    _scores(found, result)
    _claim(found, result, profile)


def _derived(found: Archive, result: Result, budget: BudgetSection) -> None:
    dense, pruned = (result.network(name).latency(result.unit).median for name in ("dense_int8", "pruned_int8"))
    pooled = validate.speedup(result, budget.confidence) if result.version > 1 else dense / pruned
    pairs = [
        ("speedup_vs_dense_int8", result.speedup_vs_dense_int8, pooled),
        (latency_key(result.unit, "budget"), result.allowed, validate.deadline(dense, budget, result.unit)),
    ]
    for name, stated, wanted in pairs:
        if stated is None or wanted is None or not math.isclose(stated, wanted, rel_tol=1e-4):
            raise BundleError(f"{found.path}: '{name}' does not follow from the latencies.", OTHER)
    for name, figures in result.networks.items():
        if figures.accuracy is None or not figures.images or figures.correct is None:
            continue
        share = figures.correct / figures.images
        if not 0 <= share <= 1 or not math.isclose(share, figures.accuracy, abs_tol=1e-9):
            raise BundleError(f"{found.path}: the accuracy of '{name}' does not follow from its counts.", OTHER)


def _latencies(found: Archive, result: Result) -> None:
    """The latencies that are shown are those of the last validation; the gates take all of them."""
    if not result.validations:
        return
    last = result.validations[-1].networks
    for name, figures in result.networks.items():
        if name not in last or not math.isclose(last[name].median, figures.latency(result.unit).median, rel_tol=1e-9):
            raise BundleError(f"{found.path}: the latency of '{name}' is not the one that was measured last.", OTHER)


def _scores(found: Archive, result: Result) -> None:
    """The scores of the networks, of the comparison and of the look at chance are the same, in the task's metric."""
    compared, task = result.compared, result.task
    stated = {"dense_fp32": compared.reference, "pruned_int8": compared.value}
    for name, value in stated.items():
        rated, sane = result.network(name).rated, result.sanity.get(name)
        values = [value, rated.value if rated else None, sane.value if sane else value]
        if any(one is None or not math.isclose(one, value or 0.0, rel_tol=1e-6, abs_tol=1e-6) for one in values):
            raise BundleError(f"{found.path}: the score of '{name}' is not the one that was compared.", OTHER)
    for rated in (one.rated for one in result.networks.values()):
        if rated and (rated.metric, rated.unit, rated.higher_is_better) != (
            compared.metric, compared.unit, compared.higher_is_better
        ):  # fmt: skip
            raise BundleError(f"{found.path}: scores of two metrics.", OTHER)
    if result.version > 1 and (task.metric, task.unit, task.higher_is_better) != (
        compared.metric, compared.unit, compared.higher_is_better
    ):  # fmt: skip
        raise BundleError(f"{found.path}: the task's metric is not the one that was compared.", OTHER)
    if compared.drop is not None and compared.value is not None and compared.reference is not None:
        drop = compared.reference - compared.value
        if not math.isclose(compared.drop, drop if compared.higher_is_better else -drop, rel_tol=1e-6, abs_tol=1e-6):
            raise BundleError(f"{found.path}: the drop does not follow from the scores.", OTHER)


def _claim(found: Archive, result: Result, profile: Target) -> None:
    """What is claimed is what the device's own fingerprint allows (edgeprune.claims)."""
    if result.version < 2 and not result.claim.answer:  # made before there were claims
        return
    way: claims.Way = {"instructions": "qemu-board", "modelled ms": "model"}.get(result.unit, "local")  # type: ignore[assignment]
    if result.unit == "modelled ms" and result.device.get("host"):
        way = "local"
    allowed = claims.judge(profile, way, result.device)
    if (result.claim.verdict, result.claim.unit) != (allowed.verdict, allowed.unit):
        raise BundleError(
            f"{found.path}: it claims {result.claim.verdict} in {result.claim.unit or 'no unit'}; the device that "
            f"answered allows {allowed.verdict} in {allowed.unit or 'no unit'}. {allowed.why}".strip(),
            OTHER,
        )


def artifact(found: Archive, files: Sequence[str], result: Result) -> None:
    """The files in the bundle are those that were measured, as far as the result says which."""
    for name, digest in result.artifact.sha256.items():
        if f"artifact/{name}" not in found.members or found.sha256(f"artifact/{name}") != digest:
            raise BundleError(f"{found.path}: 'artifact/{name[:100]}' is not the file that was measured.", OTHER)
    if result.version > 1 and not set(files) <= set(result.artifact.sha256):
        raise BundleError(f"{found.path}: 'result.json' does not say which artifact was measured.", OTHER)


def answers(found: Archive, given: Answers | None, result: Result) -> None:
    """The answers to single examples, where they travel, are as many and as good as the score says."""
    if given is None:
        return
    network = result.network("pruned_int8")
    rated = network.rated
    if rated is None or len(given.ids) != rated.examples:
        raise BundleError(f"{found.path}: 'answers.npz' is not of the examples that were judged.", OTHER)
    right = None if given.right is None else 100 * float(given.right.mean())
    if right is not None and not math.isclose(right, rated.value or 0.0, rel_tol=1e-6, abs_tol=1e-6):
        raise BundleError(f"{found.path}: 'answers.npz' has {right:.2f} % right; the score is {rated.text}.", OTHER)
