"""What accuracy is left before any training: the network that meets the budget, repaired, beside the dense one."""

from __future__ import annotations

import msgspec
import numpy as np
import torch
from torch import nn

from edgeprune import graph, validate
from edgeprune.pipeline import images, recovery
from edgeprune.pipeline.events import Voice
from edgeprune.pipeline.rundir import RunDirectory
from edgeprune.pipeline.subject import Subject
from edgeprune.result import Comparison
from edgeprune.workload import Score

LOOK, CHUNK = 5_000, 64  # held-out examples at most, and at once


def accuracy(subject: Subject, run: RunDirectory, voice: Voice) -> dict[str, object]:
    """The drop of the searched network after least-squares repair, in float, on held-out examples; nothing is trained.

    The search must be whole. Held-out examples are the selection split's, which chooses, not the test split's.

    Returns:
        A `Comparison` as plain data, `max_drop`, and `says`: the same in words.
    """
    voice.say("plan", "the network that meets the budget is repaired, to see what is left before training")
    plan = graph.Plan.load(run.folder("search") / "plan.json")
    student = recovery.repaired(subject, plan, plan.apply(subject.model))
    confidence = subject.recipe.budget.confidence
    dense, repaired = (_score(subject, one, confidence) for one in (subject.model, student))
    found = validate.comparison(repaired, dense, confidence)
    limit = subject.recipe.budget.max_drop
    return {**msgspec.to_builtins(found), "max_drop": limit, "says": in_words(found, limit)}


def in_words(found: Comparison, limit: float) -> str:
    """What is left, and what training has to win back."""

    def shown(value: float | None) -> str:
        return "no number" if value is None else f"{value:.2f}"

    of = f"{found.metric} {shown(found.value)} {found.unit}".rstrip()
    told = (
        f"Before any training: {of} where the dense network has {shown(found.reference)}: {shown(found.drop)} worse "
        f"({100 * found.confidence:.0f} %: {shown(found.low)} to {shown(found.high)}), in float, on "
        f"{found.examples:,} held-out examples; max_drop is {limit:g}."
    )
    if found.drop is None or found.high is None:
        return told
    if found.high <= limit:
        return f"{told} That is within it; INT8 and the test split are for the gates to judge."
    if found.drop <= limit:
        return f"{told} Training has to make it sure."
    return f"{told} Training has to win back {found.drop - limit:.2f} {found.unit}".rstrip() + " at least."


def _score(subject: Subject, network: nn.Module, confidence: float) -> Score:
    """On `LOOK` held-out examples, the same for every network."""
    work, judge = subject.workload, images.judge(subject.workload)
    split = work.data.split("selection")
    order = np.random.default_rng(0).permutation(len(split))[:LOOK]
    was = network.training
    network.eval()
    try:
        for start in range(0, len(order), CHUNK):
            inputs, targets = images.some(work, order[start : start + CHUNK].tolist(), "selection")
            with torch.no_grad():
                judge.add(work.inputs.call(network, inputs), targets)
    finally:
        network.train(was)
    return judge.score(confidence)
