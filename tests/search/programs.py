"""Programs to test with: random small ones, and ones of the size and shape of known networks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from edgeprune.search.program import (
    Array,
    Assignment,
    ChannelGroup,
    Kernel,
    KernelPrecision,
    Program,
    RemovableBlock,
    Replacement,
    kernel,
)


def random_program(seed: int) -> Program:
    """2-4 groups, 0-2 blocks, step-function times, ties, kernels of 0-3 groups, now and then two precisions."""
    rng = np.random.default_rng(seed)
    blocks = []
    for b in range(int(rng.integers(0, 3))):
        variants = tuple(Replacement(f"m{m}", *rng.uniform(0, 3, 2), bytes=5.0) for m in range(int(rng.integers(0, 2))))
        blocks.append(
            RemovableBlock(f"b{b}", float(rng.uniform(0, 3)) if rng.random() < 0.8 else float("inf"), variants)
        )
    groups = []
    for g in range(int(rng.integers(2, 5))):
        count = int(rng.integers(1, 5))
        losses = np.sort(np.round(rng.uniform(0, 4, count), int(rng.integers(0, 4))))[::-1]
        home = blocks[int(rng.integers(len(blocks)))].name if blocks and rng.random() < 0.5 else ""
        groups.append(ChannelGroup(f"g{g}", tuple(8 * (i + 1) for i in range(count)), tuple(map(float, losses)), home))
    kernels: list[Kernel] = []
    for k in range(int(rng.integers(2, 7))):
        home = blocks[int(rng.integers(len(blocks)))].name if blocks and rng.random() < 0.5 else ""
        legal = [group for group in groups if group.block in ("", home)]
        picked = [legal[i] for i in rng.permutation(len(legal))[: int(rng.integers(0, 4))]]
        ways = tuple(
            KernelPrecision(f"p{p}", _times(rng, picked), float(p * rng.uniform(0, 1)), _times(rng, picked))
            for p in range(1 + int(rng.random() < 0.25))
        )
        kernels.append(Kernel(f"k{k}", tuple(group.name for group in picked), ways, home))
    return Program(tuple(groups), tuple(kernels), tuple(blocks), beta=float(rng.uniform(0, 1))).check()


def _times(rng: np.random.Generator, groups: list[ChannelGroup]) -> Array:
    table = np.full([len(g.widths) for g in groups], 0.1)
    for axis, group in enumerate(groups):
        steps = np.ceil(np.arange(1, len(group.widths) + 1) / int(rng.integers(1, 3)))
        shape = [-1 if a == axis else 1 for a in range(len(groups))]
        table = table * (1 + rng.uniform(0, 2) * steps.reshape(shape))
    return table + (rng.uniform(0, 0.1, table.shape) if rng.random() < 0.5 else 0.0)


def every_choice(program: Program) -> Iterator[Assignment]:
    """All networks of a small program."""
    states = [[("keep", "")] for _ in program.blocks]
    for options, block in zip(states, program.blocks, strict=True):
        options += [("removed", "")] if np.isfinite(block.loss) else []
        options += [("variant", item.name) for item in block.variants]
    for picked in itertools.product(*states):
        kept = {b.name: state for b, state in zip(program.blocks, picked, strict=True)}
        removed = tuple(name for name, (kind, _) in kept.items() if kind == "removed")
        variants = {name: which for name, (kind, which) in kept.items() if kind == "variant"}
        alive = [g for g in program.groups if g.block not in {*removed, *variants}]
        double = [k for k in program.kernels if len(k.precisions) > 1 and k.block not in {*removed, *variants}]
        for widths in itertools.product(*(g.widths for g in alive)):
            for ways in itertools.product(*([p.name for p in k.precisions] for k in double)):
                yield Assignment(
                    {g.name: w for g, w in zip(alive, widths, strict=True)},
                    removed,
                    variants,
                    {k.name: w for k, w in zip(double, ways, strict=True)},
                )


def roofline(c_in: Array, c_out: Array, pixels: int, taps: int, rng: np.random.Generator) -> Array:
    """Milliseconds of an INT8 kernel: overhead + the larger of arithmetic (steps of 16 and 4) and memory, noise."""
    rows, columns = np.ceil(c_in / 4)[:, None] * 4, np.ceil(c_out / 16)[None, :] * 16
    compute = rows * columns * pixels * taps / 400e6
    memory = (rows * pixels + columns * pixels + rows * columns * taps) / 20e6
    return (0.002 + np.maximum(compute, memory)) * rng.uniform(0.95, 1.05, compute.shape)


def chain_losses(widths: tuple[int, ...], scale: float) -> tuple[float, ...]:
    """A convex curve that is 0 at the dense width."""
    share = np.array(widths) / widths[-1]
    return tuple(float(v) for v in scale * ((1 - share) ** 2 + 0.3 * (1 - share)))


def resnet50(step: int, seed: int = 0) -> Program:
    """ResNet-50 at 224x224: 16 bottlenecks, 12 of them removable; residual widths are groups too."""
    rng = np.random.default_rng(seed)
    groups, kernels, blocks = [], [], []

    def group(name: str, size: int, block: str = "") -> ChannelGroup:
        widths = tuple(range(step, size + 1, step)) if size > step else (size,)
        groups.append(ChannelGroup(name, widths, chain_losses(widths, float(rng.uniform(0.05, 1.0))), block))
        return groups[-1]

    def conv(name: str, a: ChannelGroup, b: ChannelGroup, pixels: int, taps: int, block: str) -> None:
        table = roofline(np.array(a.widths, float), np.array(b.widths, float), pixels, taps, rng)
        kernels.append(kernel(name, (a.name, b.name), table, block))

    previous = group("stem", 64)
    kernels.append(kernel("conv1", ("stem",), np.array(previous.widths) * 2e-3))
    for stage, (count, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True)):
        side = 56 // 2**stage
        stream = group(f"s{stage}", 4 * width)
        for b in range(count):
            name = f"s{stage}.{b}"
            home = name if b else ""
            if home:
                blocks.append(RemovableBlock(name, float(rng.uniform(0.1, 1.5))))
            one, two = group(f"{name}.1", width, home), group(f"{name}.2", width, home)
            conv(f"{name}.conv1", previous, one, side * side, 1, home)
            conv(f"{name}.conv2", one, two, side * side, 9, home)
            conv(f"{name}.conv3", two, stream, side * side, 1, home)
            if not b:
                conv(f"{name}.down", previous, stream, side * side, 1, home)
            previous = stream
    kernels.append(kernel("fc", (previous.name,), np.array(previous.widths) * 1e-5))
    return Program(tuple(groups), tuple(kernels), tuple(blocks), beta=0.1).check()


def mobilenet_v2(step: int, seed: int = 0) -> Program:
    """MobileNetV2 at 224x224: 17 inverted residual blocks, 10 of them removable."""
    rng = np.random.default_rng(seed)
    groups, kernels, blocks = [], [], []

    def group(name: str, size: int, block: str = "") -> ChannelGroup:
        widths = tuple(range(step, size + 1, step)) if size > step else (size,)
        groups.append(ChannelGroup(name, widths, chain_losses(widths, float(rng.uniform(0.05, 1.0))), block))
        return groups[-1]

    def pointwise(name: str, a: ChannelGroup, b: ChannelGroup, pixels: int, block: str = "") -> None:
        table = roofline(np.array(a.widths, float), np.array(b.widths, float), pixels, 1, rng)
        kernels.append(kernel(name, (a.name, b.name), table, block))

    previous = group("stem", 32)
    side = 112
    settings = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    for t, channels, count, stride in settings:
        stream = group(f"c{channels}", channels)
        for b in range(count):
            name, home = f"c{channels}.{b}", f"c{channels}.{b}" if b else ""
            if home:
                blocks.append(RemovableBlock(name, float(rng.uniform(0.1, 1.5))))
            inner = previous
            if t > 1:
                inner = group(f"{name}.e", t * previous.widths[-1], home)
                pointwise(f"{name}.expand", previous, inner, side * side, home)
            side = side // stride if not b else side
            kernels.append(kernel(f"{name}.dw", (inner.name,), np.array(inner.widths) * side * side * 9 / 40e6, home))
            pointwise(f"{name}.project", inner, stream, side * side, home)
            previous = stream
    last = group("head", 1280)
    pointwise("head", previous, last, side * side)
    kernels.append(kernel("fc", ("head",), np.array(last.widths) * 1e-4))
    return Program(tuple(groups), tuple(kernels), tuple(blocks), beta=0.05).check()
