"""Kernels of layers that became something else beside narrower: a few networks that have them, built and measured.

The table needs no rule of an option's kernels: what the runtime made of them is read from its profile, like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from edgeprune.devices import Device
from edgeprune.graph import Configuration, Structure
from edgeprune.latency.build import ArtifactBuilder
from edgeprune.latency.noise import Patience
from edgeprune.latency.sample import Progress, extend
from edgeprune.latency.table import Table
from edgeprune.latency.timing import QUICK
from edgeprune.latency.variants import draw
from edgeprune.target import Channels

NETWORKS = 6
SEED = 17


def with_options(
    table: Table,
    device: Device,
    maker: ArtifactBuilder,
    choices: Mapping[str, Sequence[str]],
    progress: Progress | None = None,
    keep: Callable[[Table], None] | None = None,
    patience: Patience | None = None,
    networks: int = NETWORKS,
) -> Table:
    """The table with kernels of these choices (layer -> "low-rank:16", ...) and the networks that have them.

    Raises DeviceError for the device's own trouble, ModelError where the runtime refuses such a network.
    """
    drawn = draw_options(maker.structure, maker.target.channels, choices, networks)
    return extend(table, device, maker, drawn, QUICK, progress, keep, patience=patience) if drawn else table


def draw_options(
    structure: Structure, channels: Channels, choices: Mapping[str, Sequence[str]], count: int = NETWORKS
) -> list[Configuration]:
    """Random networks with all blocks: every layer that may become something else does, by a random choice of its."""
    if not choices:
        return []
    random, found = np.random.default_rng(SEED), []
    for network in draw(structure, channels, count, SEED, blocks=False):
        options = {layer: texts[int(random.integers(len(texts)))] for layer, texts in choices.items()}
        found.append(replace(network, options=options))
    return found
