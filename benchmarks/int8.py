"""INT8 side by side: edgeprune against NNCF, onnxruntime.quantization and NVIDIA ModelOpt.

The cases are those of benchmarks/int8_cases.py, in DIR; what the others do is in benchmarks/int8_peers.py. Each step
keeps what it made and goes on where it stopped:

    python benchmarks/int8.py quantise DIR    # edgeprune's and onnxruntime.quantization's graphs
    python benchmarks/int8.py nncf DIR        # may run in another environment: NNCF 3.4
    python benchmarks/int8.py modelopt DIR    # may run in another environment: ModelOpt pins other versions
    python benchmarks/int8.py profile DIR     # kernel times of float and INT8; timed
    python benchmarks/int8.py fallback DIR    # what should stay in float by these
    python benchmarks/int8.py accuracy DIR    # outputs of every graph on its runtime; not timed
    python benchmarks/int8.py emulator DIR    # the ARM64 graphs on the true runtime, a few images
    python benchmarks/int8.py latency DIR     # all graphs of a network interleaved, through the device agent
    python benchmarks/int8.py compiler DIR    # TensorRT-RTX: which convolutions became INT8 kernels
    python benchmarks/int8.py table DIR       # figures into benchmarks/results/int8.json, tables into docs/int8.md

ARM64 figures are x86 with session.qdqisint8allowed, which computes the same bits but for QLinearAdd near ties. TensorRT
figures are ONNX Runtime without optimisation on the very graph that is shipped. No test image took part in a choice of
settings.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import int8_peers
import numpy as np
from common import RESULTS, ROOT, kept, save
from numpy.typing import NDArray

TARGETS = {"openvino": "intel-cpu", "ort-x86": "x86-onnxruntime"}  # runtimes that this machine has
OURS = ("edgeprune", "edgeprune-reconstruct")
FALLBACK = "edgeprune-fallback"
AGAIN = "edgeprune-again"  # the same graph, loaded a second time: what two equal artifacts differ by when timed
ROUNDS = 5  # for each order of the artifacts
NOISE = 0.003  # over the signal at the logits, that fallback leaves: what the pipeline asks for
ORT = tuple(int8_peers.ORT)
MODELOPT = tuple(int8_peers.MODELOPT)
MAKERS = {
    "openvino": (*OURS, FALLBACK, "nncf", *ORT),
    "ort-x86": (*OURS, FALLBACK, *ORT),
    "ort-arm64": (*OURS, *ORT),
    "tensorrt-a": (*OURS, *MODELOPT),
    "tensorrt-b": (*OURS, *MODELOPT),
}


class Case:
    """One network with its images, and where its files are."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.model = folder / f"{name}.onnx"
        self.data = np.load(folder / f"{name}.npz")  # images, labels, calibration, held_out; read when asked for

    def makers(self, runtime: str) -> tuple[str, ...]:
        """Who quantises for a runtime, ourselves first."""
        return MAKERS[runtime]

    def graph(self, runtime: str, maker: str) -> Path:
        """Where a maker's graph for a runtime is; onnxruntime.quantization's x86 graphs serve OpenVINO too."""
        if maker == "fp32":
            return self.model
        maker = "edgeprune" if maker == AGAIN else maker
        place = "ort-x86" if maker in ORT and runtime == "openvino" else runtime
        suffix = ".xml" if maker == "nncf" else ".onnx"
        return self.folder / "graphs" / self.name / place / f"{maker}{suffix}"

    def outputs(self, runtime: str, maker: str) -> Path:
        """Where a graph's outputs are kept; FP32 runs once where ONNX Runtime stands in for other runtimes."""
        place = "ort-x86" if maker == "fp32" and runtime != "openvino" else runtime
        return self.folder / "outputs" / f"{self.name}.{place}.{maker}.npy"


def cases(given: argparse.Namespace) -> Iterator[Case]:
    """The cases that are in the folder, or those that were asked for."""
    names = sorted(path.stem for path in given.folder.glob("*.npz") if path.with_suffix(".onnx").exists())
    yield from (Case(given.folder, name) for name in given.case or names)


def fresh(path: Path, *sources: Path) -> bool:
    """Whether `path` is there and no older than what it was made from."""
    return path.exists() and all(path.stat().st_mtime >= source.stat().st_mtime for source in sources)


def wanted(given: argparse.Namespace, makers: Sequence[str]) -> list[str]:
    """Those of `makers` that were asked for."""
    return [maker for maker in makers if not given.maker or maker in given.maker]


def quantise(given: argparse.Namespace) -> None:
    """Our graphs for every runtime, then the peer's."""
    for case in cases(given):
        for runtime in given.runtime or MAKERS:
            for maker in wanted(given, OURS):
                out = case.graph(runtime, maker)
                if not fresh(out, case.model):
                    timed(case, runtime, maker, lambda case=case, r=runtime, m=maker, o=out: ours(case, r, m, o))
        for runtime, signed in (("ort-x86", False), ("ort-arm64", True)):
            if runtime in (given.runtime or MAKERS):
                prepared = case.folder / "graphs" / case.name / "prepared.onnx"
                for maker in wanted(given, ORT):
                    peer(case, runtime, maker, int8_peers.onnxruntime_quantization, prepared=prepared, signed=signed)


def peer(case: Case, runtime: str, maker: str, work: Callable[..., None], **options: Any) -> None:
    """Another tool's graph, if it is not there yet."""
    out = case.graph(runtime, maker)
    if not fresh(out, case.model):
        given = {"model": case.model, "images": case.data["calibration"], "out": out, **options}
        given |= {} if maker == "nncf" else {"maker": maker}
        timed(case, runtime, maker, lambda: work(**given))


def timed(case: Case, runtime: str, maker: str, work: Callable[[], None]) -> None:
    """Do the work and say how long it took."""
    case.graph(runtime, maker).parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    work()
    print(f"{case.name} {runtime} {maker}: {time.perf_counter() - began:.0f} s", flush=True)


def ours(case: Case, runtime: str, maker: str, out: Path) -> None:
    """edgeprune with its defaults, or with reconstruction of rounding; the ranges are kept beside the graph.

    The grids of ARM64 are those of x86 less 128, so that the calibration of one serves both.
    """
    from dataclasses import replace

    import onnx

    from edgeprune import quantize
    from edgeprune.recipe import QuantizeSection
    from edgeprune.runtimes import DIALECTS

    kept = out.with_suffix(".ranges.json")
    twin = case.graph("ort-x86", maker).with_suffix(".ranges.json")
    if runtime == "ort-arm64" and fresh(twin, case.model):
        ranges = replace(quantize.Ranges.load(twin), dialect=runtime)
    else:
        images = case.data["calibration"]
        options = QuantizeSection(images=len(images), reconstruct=maker == "edgeprune-reconstruct")
        ranges = quantize.calibrate(case.model, images, DIALECTS[runtime], options)
    ranges.save(kept)
    onnx.save(quantize.apply(onnx.load(case.model), ranges, DIALECTS[runtime]), out)


def profile(given: argparse.Namespace) -> None:
    """Time the kernels of the float and of the INT8 artifact with the runtime's profiler, for `fallback`; timed."""
    from edgeprune import devices, target
    from edgeprune.quantize.view import View

    for case in cases(given):
        layers = list(View.of(read(case.model)).layers)
        for runtime in given.runtime or TARGETS:
            out = case.folder / "profile" / f"{case.name}.{runtime}.json"
            if runtime not in TARGETS or fresh(out, case.graph(runtime, "edgeprune")):
                continue
            found: dict[str, Any] = {}
            with devices.connect(target.load(TARGETS[runtime])) as device:
                for maker in ("fp32", "edgeprune"):
                    kernels = device.profile(device.load(artifact(case, runtime, maker)), 60)
                    found[maker] = times(layers, kernels)
                    moves = [kernel.median for kernel in kernels if "quantize" in kernel.kind.lower()]
            found["per_element"] = min(moves, default=0.0) / case.data["calibration"][0].size
            out.parent.mkdir(exist_ok=True)
            out.write_text(json.dumps(found))
            print(f"{case.name} {runtime}: profiled", flush=True)


def fallback(given: argparse.Namespace) -> None:
    """Leave in float what is too noisy or no faster, by the profile's times; and greedily, to compare."""
    import onnx

    from edgeprune import quantize
    from edgeprune.quantize import fallback as program
    from edgeprune.runtimes import DIALECTS

    for case in cases(given):
        for runtime in given.runtime or TARGETS:
            source, out = case.graph(runtime, "edgeprune"), case.graph(runtime, FALLBACK)
            timed_at = case.folder / "profile" / f"{case.name}.{runtime}.json"
            if not timed_at.exists() or fresh(out, source, timed_at):
                continue
            measured, model = json.loads(timed_at.read_text()), read(case.model)
            ranges = quantize.Ranges.load(source.with_suffix(".ranges.json"))
            losses = program.sensitivities(model, ranges, DIALECTS[runtime], case.data["calibration"], 12)
            costs = {
                n: program.LayerCost(measured["fp32"][n], measured["edgeprune"][n], loss) for n, loss in losses.items()
            }
            edges = program.layer_edges(model, measured["per_element"])
            found = {kind: program.choose(kind, costs, edges, NOISE) for kind in ("none", "auto", "greedy")}
            onnx.save(quantize.apply(model, ranges, DIALECTS[runtime], found["auto"].precision), out)
            report = {
                kind: {"float": sorted(n for n, p in c.precision.items() if p == "float"), "ms": c.ms, "noise": c.loss}
                for kind, c in found.items()
            }
            (case.folder / "fallback").mkdir(exist_ok=True)
            (case.folder / "fallback" / f"{case.name}.{runtime}.json").write_text(json.dumps(report))
            print(f"{case.name} {runtime}: {[(k, len(r['float']), r['ms'], r['noise']) for k, r in report.items()]}")


def read(path: Path) -> Any:
    """An ONNX model."""
    return importlib.import_module("onnx").load(path)


def times(layers: Sequence[str], kernels: Any) -> dict[str, float]:
    """Milliseconds a layer."""
    from edgeprune.quantize import fallback as program

    return program.times(layers, kernels)


def nncf(given: argparse.Namespace) -> None:
    """NNCF's post-training quantisation with its defaults."""
    note(given.folder, "nncf")
    for case in cases(given):
        peer(case, "openvino", "nncf", int8_peers.nncf)


def modelopt(given: argparse.Namespace) -> None:
    """NVIDIA ModelOpt with its two INT8 methods; FP32 around INT8 beside flavour A, FP16 beside B."""
    note(given.folder, "nvidia-modelopt")
    for case in cases(given):
        for runtime, kind in (("tensorrt-a", "fp32"), ("tensorrt-b", "fp16")):
            for maker in wanted(given, MODELOPT) if runtime in (given.runtime or MAKERS) else ():
                peer(case, runtime, maker, int8_peers.modelopt, kind=kind)


def accuracy(given: argparse.Namespace) -> None:
    """Run every graph that is there over all images, and keep its outputs."""
    (given.folder / "outputs").mkdir(exist_ok=True)
    for case in cases(given):
        if "untrained" in case.data:
            continue
        for runtime in given.runtime or MAKERS:
            for maker in ("fp32", *wanted(given, MAKERS[runtime])):
                source, out = case.graph(runtime, maker), case.outputs(runtime, maker)
                if source.exists() and not fresh(out, source):
                    began = time.perf_counter()
                    run = on_device if runtime in TARGETS else in_process
                    np.save(out, run(case, runtime, maker, case.data["images"][: given.images]))
                    print(f"{case.name} {runtime} {maker}: {time.perf_counter() - began:.0f} s", flush=True)


def artifact(case: Case, runtime: str, maker: str) -> Any:
    """What the device runs."""
    from edgeprune import runtimes, target
    from edgeprune.devices.types import Artifact

    source = case.graph(runtime, maker)
    profile = target.load(TARGETS[runtime])
    if maker == "nncf":
        pair = {f"nncf{suffix}": source.with_suffix(suffix) for suffix in (".xml", ".bin")}
        return Artifact("nncf", "openvino", "int8", pair)
    folder = case.folder / "artifacts" / case.name / runtime
    return runtimes.build(source, folder, profile, maker, "fp32" if maker == "fp32" else "int8")


def on_device(case: Case, runtime: str, maker: str, images: NDArray[Any]) -> NDArray[np.float32]:
    """Outputs of the artifact on the runtime itself, through the device agent."""
    from edgeprune import devices, target

    with devices.connect(target.load(TARGETS[runtime])) as device:
        return np.asarray(device.infer(device.load(artifact(case, runtime, maker)), images)[0], np.float32)


def in_process(case: Case, runtime: str, maker: str, images: NDArray[Any]) -> NDArray[np.float32]:
    """Outputs where x86 stands in: ARM64 with the flag that makes the kernels equal, TensorRT without optimisation."""
    ort = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if runtime == "ort-arm64":
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    elif maker != "fp32":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(case.graph(runtime, maker)), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([np.asarray(session.run(None, {name: image[None]})[0], np.float32) for image in images])


def latency(given: argparse.Namespace) -> None:
    """All graphs of a network on a runtime, interleaved; one thread, batch 1.

    The order is turned between sets of rounds: what runs after FP32 finds the caches cold.
    """
    import msgspec

    from edgeprune import devices, target

    for case in cases(given):
        for runtime, name in TARGETS.items():
            makers = [m for m in (*MAKERS[runtime], "fp32") if m != "edgeprune-reconstruct"]  # it has the same kernels
            makers = [AGAIN, *(maker for maker in makers if case.graph(runtime, maker).exists())]
            out = case.folder / "latency" / f"{case.name}.{runtime}.json"
            if runtime not in (given.runtime or MAKERS) or fresh(out, *(case.graph(runtime, m) for m in makers)):
                continue
            profile = target.load(name)
            protocol = msgspec.structs.replace(profile.protocol, rounds=ROUNDS, runs=given.runs, max_spread=10.0)
            rounds: dict[str, list[float]] = {maker: [] for maker in makers}
            with devices.connect(profile) as device:
                loaded = {maker: device.load(artifact(case, runtime, maker)) for maker in makers}
                for turn in range(len(makers)):  # each is once the first, once the second, ...
                    turned = [*makers[turn:], *makers[:turn]]
                    timings = device.measure([loaded[maker] for maker in turned], protocol)
                    for maker, timing in zip(turned, timings, strict=True):
                        rounds[maker] += timing.rounds
            out.parent.mkdir(exist_ok=True)
            out.write_text(json.dumps(rounds))
            found = {maker: round(float(np.median(times)), 3) for maker, times in rounds.items()}
            print(f"{case.name} {runtime}:", found, flush=True)


def emulator(given: argparse.Namespace) -> None:
    """The ARM64 graph on the true aarch64 runtime, emulated, against what stands for it here: a few images."""
    import msgspec

    from edgeprune import devices, target
    from edgeprune.devices.types import Artifact

    profile = target.load("raspberry-pi-5")
    connection = msgspec.structs.replace(profile.connection, transport="qemu-user")
    profile = msgspec.structs.replace(profile, connection=connection)
    for case in cases(given):
        source, here = case.graph("ort-arm64", "edgeprune"), case.outputs("ort-arm64", "edgeprune")
        out = case.folder / "emulator" / f"{case.name}.ort-arm64.json"
        if not here.exists() or fresh(out, source):
            continue
        images = case.data["images"][: given.emulated]
        with devices.connect(profile) as device:
            loaded = device.load(Artifact("edgeprune", "onnxruntime", "int8", {source.name: source}))
            found = np.asarray(device.infer(loaded, images)[0], np.float32)
        out.parent.mkdir(exist_ok=True)
        equal = bool(np.array_equal(found, np.load(here)[: len(images)]))
        out.write_text(json.dumps({"images": len(images), "core": connection.cpu, "bits_equal": equal}))
        print(f"{case.name} on {connection.cpu}, emulated: {len(images)} images, bits equal: {equal}", flush=True)


def compiler(given: argparse.Namespace) -> None:
    """What TensorRT-RTX, for SM86 and on a machine without a GPU, makes of our graphs.

    With dummy ranges: where Q and DQ are, and so which kernels run, does not depend on the images.
    """
    from edgeprune import quantize
    from edgeprune.quantize import rtx
    from edgeprune.runtimes import DIALECTS

    for case in cases(given):
        for runtime in ("tensorrt-a", "tensorrt-b"):
            out = case.folder / "compiler" / f"{case.name}.{runtime}.json"
            if fresh(out, case.model):
                continue
            model = read(case.model)
            graph = quantize.apply(model, quantize.dummy_ranges(model), DIALECTS[runtime])
            compiled = rtx.compile_for(graph)
            out.parent.mkdir(exist_ok=True)
            found = {"accepted": compiled.accepted, "errors": list(compiled.errors), "version": compiled.version}
            missing = sorted(set(compiled.intended) - set(compiled.in_int8))
            counts = {"intended": len(compiled.intended), "int8": len(compiled.in_int8), "missing": missing}
            out.write_text(json.dumps({**found, **counts}))
            print(f"{case.name} {runtime}: {found | counts}", flush=True)


def environment(folder: Path) -> dict[str, str]:
    """What the figures were measured with."""
    wanted = ("onnxruntime", "openvino", "onnx", "numpy")
    flags = Path("/proc/cpuinfo").read_text() if platform.system() == "Linux" else ""
    model = next((line.split(":")[1].strip() for line in flags.splitlines() if line.startswith("model name")), "")
    instructions = [flag for flag in ("avx2", "avx512_vnni", "amx_int8") if f" {flag} " in flags]
    found = {package: importlib.metadata.version(package) for package in wanted}
    peers = {path.stem: path.read_text() for path in sorted(folder.glob("graphs/*.version"))}
    return {"cpu": f"{model}, {os.cpu_count()} cores, {' '.join(instructions)}", **found, **peers}


def note(folder: Path, package: str) -> None:
    """Keep a peer's version: its step may run in another environment."""
    (folder / "graphs").mkdir(exist_ok=True)
    (folder / "graphs" / f"{package}.version").write_text(importlib.metadata.version(package))


def table(given: argparse.Namespace) -> None:
    """Collect the figures, and write the tables."""
    report = importlib.import_module("int8_report")
    found = report.collect(list(cases(given)), environment(given.folder))
    found = report.merged(kept(given.out), found) if given.keep else found
    out: Path = given.out
    save(out, found)
    report.write(found, ROOT / "docs" / "int8.md")


STEPS = {
    step.__name__: step
    for step in (quantise, nncf, modelopt, profile, fallback, accuracy, emulator, latency, compiler, table)
}  # in the order of the text above


def main() -> None:
    """Parse the arguments and do one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--case", nargs="+")
    parser.add_argument("--maker", nargs="+", help="one of those in the tables")
    parser.add_argument("--runtime", nargs="+", choices=list(MAKERS))
    parser.add_argument("--images", type=int, help="the first so many only; the table says how many there were")
    parser.add_argument("--emulated", type=int, default=4, help="images on the emulated core")
    parser.add_argument("--runs", type=int, default=20, help="a round")
    parser.add_argument("--keep", action="store_true", help="rows of earlier runs that the folder does not have")
    parser.add_argument("--out", type=Path, default=RESULTS / "int8.json")
    given = parser.parse_args()
    STEPS[given.step](given)


if __name__ == "__main__":
    main()
