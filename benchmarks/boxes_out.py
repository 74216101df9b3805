"""What boxes out of the artifact cost ([export] output = "nms"), beside the decoder on the host; and whether mAP stays.

    python benchmarks/boxes_out.py [--out FILE] [--rounds 5] [--only NAME ...]
    python benchmarks/boxes_out.py --table         # docs/data.md, from benchmarks/results/boxes_out.json

Two dense detectors in INT8, calibrated on pictures that are not judged: FastestDet at 352 x 352 (484 places, 80
classes, `../shared/data/tasks`) and the detector of examples/detection at 96 x 96 (144 places, 6 classes). Each is
built as it is and with boxes out, for OpenVINO and ONNX Runtime; one thread. Suppression takes longer the more it
finds, so real pictures are timed: every picture goes through both artifacts and the host's decoder, one after the
other, and a round's figure is the sum over its pictures. Times are CPU time: other work takes the core away, but not
its time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from common import EXAMPLES, RESULTS, ROOT, beside, heads, kept, line, put, save

from edgeprune import Data, devices, model, quantize, runtimes, tasks
from edgeprune import target as targets
from edgeprune.tasks import decoders

OUT, PAGE = RESULTS / "boxes_out.json", ROOT / "docs" / "data.md"
TIMED, CALIBRATING = 32, 64  # pictures


def fastestdet() -> tuple[Any, Data, Any]:
    """Network, data, decoder."""
    import task_networks

    return task_networks.fastestdet(), task_networks.fastestdet_data(), decoders.FastestDet()


def clothes() -> tuple[Any, Data, Any]:
    """Those of examples/detection."""
    beside("examples")
    import scenes

    network = model.load_factory(str(EXAMPLES / "detection/detector.py:detector"))()
    network.load_state_dict(model.load_weights(EXAMPLES / "detection/detector.safetensors"))
    return network.eval(), scenes.detection(), decoders.YoloAnchorFree(size=(96, 96), bins=1)


CASES: dict[str, Callable[[], tuple[Any, Data, Any]]] = {
    "FastestDet, 352 x 352": fastestdet,
    "clothes, 96 x 96": clothes,
}


def row(name: str, target: Any, rounds: int, folder: Path) -> dict[str, Any]:
    """One detector on one target."""
    network, data, decode = CASES[name]()
    pictures = [data.split("test")[n] for n in range(len(data.split("test")))]
    inputs = [np.asarray(one, np.float32)[None] for one, _ in pictures]
    graph = model.export_onnx(network, torch.from_numpy(inputs[0]), folder / "float.onnx")
    train = data.split("train")
    learn = [np.asarray(train[n][0], np.float32)[None] for n in range(min(CALIBRATING, len(train)))]
    dialect = runtimes.DIALECTS[target.dialect]
    quantised = quantize.apply(graph, quantize.calibrate(graph, lambda: iter(learn), dialect), dialect)
    forms = {"raw": model.Ends(), "boxes": model.Ends(output="nms", decode=decode)}
    runs = {}
    with devices.connect(target, "local") as device:
        for form, ends in forms.items():
            path = folder / f"{form}.onnx"
            onnx.save(ends.around(quantised), path)
            runs[form] = device.load(runtimes.build(path, folder / form, target, form, "int8"))
        found = {form: [device.infer(one, batch) for batch in inputs] for form, one in runs.items()}
    opened = {form: _opened(one, target) for form, one in runs.items()}
    times = _timed(opened, decode, inputs[:TIMED], rounds)
    wanted = [one for _, one in pictures]
    judges = {"raw": tasks.Detection(decode), "boxes": tasks.Detection(decoders.EndToEnd())}
    scores = {
        form: judge.score(tuple(np.concatenate(column) for column in zip(*found[form], strict=True)), wanted).value
        for form, judge in judges.items()
    }
    ratio = {what: [one / raw for one, raw in zip(times[what], times["raw"], strict=True)] for what in times}
    return {
        "ratios": ratio,
        "median": {what: statistics.median(each) for what, each in ratio.items()},
        "raw_ms": statistics.median(times["raw"]),
        "boxes": float(np.mean([(rows[0][0][:, 5] >= 0).sum() for rows in found["boxes"][:TIMED]])),
        "mAP": scores,
        "pictures": len(pictures),
        "load": round(os.getloadavg()[0], 1),
    }


def _opened(loaded: Any, target: Any) -> Callable[[Any], Any]:
    """A call of an artifact in this process, on one thread."""
    path = next(iter(loaded.artifact.files.values()))
    if target.runtime == "openvino":
        import openvino

        settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
        request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
        return lambda batch: list(request.infer([batch]).values())
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda batch: session.run(None, {name: batch})


def _timed(opened: dict[str, Any], decode: Any, inputs: list[Any], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of CPU a picture: raw, boxes, and the host's decoder on what is raw."""
    times: dict[str, list[float]] = {"raw": [], "boxes": [], "host": []}
    for turn in range(rounds + 1):
        sums = dict.fromkeys(times, 0.0)
        for batch in inputs:
            raw = None
            for what, call in (*opened.items(), ("host", None)):
                start = time.process_time()
                if call is None:
                    decode(tuple(part[0] for part in raw))  # type: ignore[union-attr]
                else:
                    made = call(batch)
                sums[what] += time.process_time() - start
                raw = made if what == "raw" else raw
        if turn:  # the first warms up
            for what, one in sums.items():
                times[what].append(1000 * one / len(inputs))
    return times


def table(rows: dict[str, Any]) -> str:
    """Markdown: a line a detector and target."""
    lines = heads(
        "dense INT8 detector", "boxes out", "raw, and the host's decoder", "boxes a picture", "mAP: boxes out, host"
    )
    for name, one in rows.items():
        median, score = one["median"], one["mAP"]
        ends = f"{score['boxes']:.2f}, {score['raw']:.2f}"
        lines.append(line(name, f"{median['boxes']:.2f}", f"{1 + median['host']:.2f}", f"{one['boxes']:.0f}", ends))
    return "\n".join(lines)


def main() -> None:
    """Every detector on every target of this machine; the rows of the others are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--targets", nargs="*", default=["intel-cpu", "x86-onnxruntime"])
    parser.add_argument("--only", nargs="*", default=list(CASES))
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if given.table:
        put(PAGE, "boxes_out.py", table(kept(OUT)))
        return
    found = kept(given.out)
    for target in map(targets.load, given.targets):
        for name in given.only:
            with tempfile.TemporaryDirectory(prefix="edgeprune-") as folder:
                found[f"{name} on {target.name}"] = made = row(name, target, given.rounds, Path(folder))
            print(name, target.name, made["median"], made["mAP"], made["boxes"], flush=True)
            save(given.out, found)


if __name__ == "__main__":
    main()
