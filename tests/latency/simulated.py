"""A device whose truth is known: it reads the INT8 graph and adds up a formula's kernel times, with drift and noise.

Times are steps of 8 output channels with a cliff below 16, as real runtimes have; so neither a bilinear function nor
multiply-accumulates describe it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgeprune.devices.types import Artifact, KernelTime, Probe, Timing
from edgeprune.target import Protocol

OVERHEAD = 0.005  # milliseconds that no kernel shows
PROFILER = 0.002  # milliseconds that the profiler adds to each kernel


def kernel_ms(c_in: int, c_out: int, area: int, taps: int) -> float:
    """The truth for one convolution."""
    blocks = -(-c_out // 8)
    cliff = 1.4 if c_out < 16 else 1.0
    return 0.004 + cliff * 2e-6 * c_in * blocks * 8 * area * taps / 64


@dataclass(frozen=True)
class Open:
    artifact: Artifact
    kernels: tuple[tuple[str, str, float], ...]

    @property
    def truth(self) -> float:
        """End-to-end milliseconds."""
        return OVERHEAD + sum(ms for _, _, ms in self.kernels)


class SimulatedDevice:
    """Implements the door's Device; `speed` grows with every call when `drift` is set."""

    def __init__(self, noise: float = 0.0, drift: float = 0.0, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.noise, self.drift, self.speed = noise, drift, 1.0
        self.opened: list[Open] = []
        self.measured: list[Artifact] = []

    def __enter__(self) -> SimulatedDevice:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def probe(self) -> Probe:
        return Probe({"cpu": "simulated", "runtime": "onnxruntime", "runtime_version": "0.1", "threads": 1}, {})

    def load(self, artifact: Artifact) -> Open:
        opened = Open(artifact, tuple(_kernels(next(iter(artifact.files.values())))))
        self.opened.append(opened)
        return opened

    def unload(self, loaded: Any) -> None:
        self.opened.remove(loaded)

    def measure(self, loaded: Sequence[Any], protocol: Protocol) -> list[Timing]:
        rounds: list[list[float]] = [[] for _ in loaded]
        for _ in range(protocol.rounds):
            for found, one in zip(rounds, loaded, strict=True):
                found.append(one.truth * self._now())
        self.measured += [one.artifact for one in loaded]
        return [self._timing(found) for found in rounds]

    def profile(self, loaded: Any, runs: int = 20) -> list[KernelTime]:
        now = self._now()
        return [
            KernelTime(f"{name}_token_{i}", kind, (), (ms + PROFILER) * now * self._jitter(), 0.02 * ms, runs)
            for i, (name, kind, ms) in enumerate(loaded.kernels)
        ]

    def infer(self, loaded: Any, images: Any) -> list[Any]:
        raise NotImplementedError

    def _now(self) -> float:
        self.speed *= 1 + self.drift
        return self.speed * self._jitter()

    def _jitter(self) -> float:
        return 1 + abs(float(self.random.normal(0, self.noise)))

    @staticmethod
    def _timing(rounds: list[float]) -> Timing:
        middle = float(np.median(rounds))
        spread = float(np.median(np.abs(np.array(rounds) - middle))) / middle
        return Timing(middle, max(rounds), max(rounds), min(rounds), middle, spread, len(rounds), tuple(rounds))


def _kernels(path: Path) -> list[tuple[str, str, float]]:
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.value_info, *model.graph.input, *model.graph.output)
    }
    found = []
    for node in model.graph.node:
        out = shapes.get(node.output[0], [1])
        if node.op_type == "Conv":
            group = next((a.i for a in node.attribute if a.name == "group"), 1)
            kernel = next(a.ints for a in node.attribute if a.name == "kernel_shape")
            c_in = shapes[node.input[0]][1] // group
            found.append((node.name, "QLinearConv", kernel_ms(c_in, out[1], out[2] * out[3], kernel[0] * kernel[1])))
        elif node.op_type in ("Add", "GlobalAveragePool", "Gemm"):
            found.append((node.name, f"QLinear{node.op_type}", 0.002 + 1e-7 * float(np.prod(out))))
    found.append(("input/Q", "QuantizeLinear", 0.003))
    return found
