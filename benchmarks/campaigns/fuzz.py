"""Damaged and odd inputs of every kind a user hands in: each is used, or refused by one clear error.

    python benchmarks/campaigns/fuzz.py recipes profiles safetensors pt images sounds tables answers --tries 1000

Counted as failures: internal errors (what the command line calls a defect), deaths of the process, more than a
gibibyte, more than thirty seconds. Every try names the seed that makes it again.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
import mutate
import project
import trying

Work = Callable[[], Any]
Attempt = Callable[[random.Random], tuple[str, Work]]  # -> what was damaged, and the use of it
PICTURE_SUFFIXES = (".png", ".jpg", ".bmp", ".webp", ".tif", ".ppm")
ROOT = Path(__file__).resolve().parents[2]


def looked_at(folder: Path) -> str:
    """All of a project's `plan` but its timing: recipe, network, data, task, analysis, the look at real examples."""
    from edgeprune import recipe, target
    from edgeprune.pipeline import feasible
    from edgeprune.pipeline.context import Context
    from edgeprune.pipeline.events import silent
    from edgeprune.pipeline.rundir import RunDirectory

    asked = recipe.load(folder / "recipe.toml")
    device = target.load("quick", [folder])
    with RunDirectory(folder / "run") as directory, Context(asked, device, directory, "", silent) as context:
        found = feasible.dense_sanity(context.subject)
        context.subject.structure.to_dict()
        return f"{found.examples} examples, {context.bench.dialect.title}"


def in_folder(folder: Path, work: Work) -> Work:
    def inside() -> Any:
        os.chdir(folder)
        return work()

    return inside


def recipes(folder: Path) -> Attempt:
    """recipe.toml: odd values, keys, tables, bytes."""
    project.make(folder)

    def attempt(chance: random.Random) -> tuple[str, Work]:
        (folder / "recipe.toml").write_bytes(mutate.toml_of(project.RECIPE, chance))
        return "recipe.toml", in_folder(folder, lambda: looked_at(folder))

    return attempt


def profiles(folder: Path) -> Attempt:
    """profile.toml of a target: the same."""
    project.make(folder)

    def attempt(chance: random.Random) -> tuple[str, Work]:
        (folder / "quick/profile.toml").write_bytes(mutate.toml_of(project.PROFILE, chance))
        return "profile.toml", in_folder(folder, lambda: looked_at(folder))

    return attempt


def _weights(folder: Path, suffix: str) -> Attempt:
    import torch
    from safetensors.torch import save

    project.make(folder)
    state = _state()
    stream = io.BytesIO()
    torch.save({"state_dict": state, "epoch": 3}, stream)
    whole = save(state) if suffix == ".safetensors" else stream.getvalue()
    (folder / "recipe.toml").write_text(_with_weights(f"w{suffix}"))
    size = int.from_bytes(whole[:8], "little") if suffix == ".safetensors" else 0

    def attempt(chance: random.Random) -> tuple[str, Work]:
        data = mutate.bytes_of(whole, chance)
        if size and chance.random() < 0.5:
            data = _other_header(whole, size, chance)
        (folder / f"w{suffix}").write_bytes(data)
        return f"w{suffix}", in_folder(folder, lambda: looked_at(folder))

    return attempt


def _state() -> dict[str, Any]:
    """The small network's trained weights."""
    space: dict[str, Any] = {}
    exec(compile(project.NETWORK, "net.py", "exec"), space)
    found: dict[str, Any] = space["net"]().state_dict()
    return found


def _with_weights(name: str) -> str:
    """The recipe whose network gets its weights from a file, so that no try fits them anew."""
    return project.RECIPE.replace("net.py:net", "net.py:bare").replace("input =", f'weights = "{name}"\ninput =')


def _other_header(whole: bytes, size: int, chance: random.Random) -> bytes:
    """A safetensors file whose header says other things of the same bytes."""
    header = mutate.data_of(json.loads(whole[8 : 8 + size]), chance, (*mutate.ODD, "F16", "I32", "C64", "U8", [0, 0]))
    text = json.dumps(header).encode("utf-8", "replace")
    return len(text).to_bytes(8, "little") + text + whole[8 + size :]


def safetensors(folder: Path) -> Attempt:
    """Weights as safetensors: bytes, and headers that lie."""
    return _weights(folder, ".safetensors")


def pt(folder: Path) -> Attempt:
    """Weights as torch.save writes them."""
    return _weights(folder, ".pt")


def images(folder: Path) -> Attempt:
    """One image file of a folder source, of six formats."""
    from safetensors.torch import save_file

    project.make(folder)
    save_file(_state(), folder / "w.safetensors")
    whole = {suffix: project.pictures(folder / f"of{suffix}", suffix) for suffix in PICTURE_SUFFIXES}
    bytes_of = {path: path.read_bytes() for paths in whole.values() for path in paths}

    def attempt(chance: random.Random) -> tuple[str, Work]:
        suffix = chance.choice(PICTURE_SUFFIXES)
        for path in whole[suffix]:
            path.write_bytes(bytes_of[path])
        path = chance.choice(whole[suffix])
        path.write_bytes(mutate.bytes_of(bytes_of[path], chance))
        text = _with_weights("w.safetensors").replace("data.npz", f"of{suffix}").replace("test = 50", "test = 0")
        (folder / "recipe.toml").write_text(text.replace("calibration = 32\nselection = 60", "selection = 4"))
        return str(path.relative_to(folder)), in_folder(folder, lambda: looked_at(folder))

    return attempt


def _examples(folder: Path, data: str, inputs: str = "input = [3, 20, 40]") -> Work:
    """All examples of a source, read; the network's inputs are of the right form or refused."""
    text = f'name = "x"\n[model]\nfactory = "net.py:net"\n{inputs}\n[data]\ncalibration = 1\nselection = 1\n{data}\n'
    text += "[budget]\nspeedup = 2.0\n"
    (folder / "recipe.toml").write_text(text)

    def work() -> str:
        import numpy as np

        from edgeprune import recipe
        from edgeprune.errors import DataError
        from edgeprune.pipeline import reading

        asked = recipe.load(folder / "recipe.toml")
        found = reading.of_recipe(asked, None, lambda line: None)
        for split in ("train", "test"):
            examples = found.split(split)
            for number in range(len(examples)):
                given, _ = examples[number]
                parts = given.values() if isinstance(given, dict) else (given,)
                if not all(np.isfinite(np.asarray(part)).all() for part in parts):
                    raise DataError("not finite")
        return f"{len(found.split('train'))} examples"

    return in_folder(folder, work)


def _splits(where: str) -> str:
    return "\n".join(f"splits.{name} = {{ {where} }}" for name in ("train", "calibration", "selection", "test"))


def sounds(folder: Path) -> Attempt:
    """One wav file of a class folder."""
    project.make(folder, 8, 8)
    whole = project.sound()
    for name in project.NAMES[:2]:
        for split in ("train", "test"):
            (folder / split / name).mkdir(parents=True)
            (folder / split / name / "a.wav").write_bytes(whole)
    options = (
        'kind = "wav"\nclasses = ["ant", "bee"]\noptions = { rate = 8000, samples = 1000, '
        "features = { rate = 8000, window = 256, hop = 128, fft = 256, mels = 16, high = 4000.0 } }\n"
        + _splits('folder = "train"')
    )

    def attempt(chance: random.Random) -> tuple[str, Work]:
        (folder / "train/bee/a.wav").write_bytes(mutate.bytes_of(whole, chance))
        return "a.wav", _examples(folder, options, "input = [1, 16, 6]")

    return attempt


def tables(folder: Path) -> Attempt:
    """CSV, COCO, VOC, YOLO, tokenizers and .npz of arrays."""
    from PIL import Image

    project.make(folder, 8, 8)
    for place in ("JPEGImages", "images"):
        (folder / place).mkdir()
        Image.new("RGB", (40, 20)).save(folder / place / "a.png")
    for place in ("Annotations", "labels"):
        (folder / place).mkdir()
    boxes = 'resize = [20, 40]\nclasses = ["cat", "dog"]\n'
    forms: dict[str, tuple[bytes, str, str]] = {
        "table.csv": (project.csv_table(), 'kind = "text"\noptions = { tokenizer = "words.json", length = 8 }\n'
                      + _splits('table = "table.csv"'), TEXT),
        "words.json": (project.tokenizer(), 'kind = "text"\noptions = { tokenizer = "words.json", length = 8 }\n'
                       + _splits('table = "table.csv"'), TEXT),
        "boxes.json": (json.dumps(project.coco_table()).encode(), 'kind = "coco"\nresize = [20, 40]\n'
                       + _splits('annotations = "boxes.json", images = "images"'), "input = [3, 20, 40]"),
        "Annotations/a.xml": (project.VOC.encode(), f'kind = "voc"\n{boxes}' + _splits('folder = "."'),
                              "input = [3, 20, 40]"),
        "labels/a.txt": (project.YOLO.encode(), f'kind = "yolo"\n{boxes}' + _splits('folder = "."'),
                         "input = [3, 20, 40]"),
        "arrays.npz": (_arrays(), 'kind = "arrays"\nsource = "arrays.npz"', "input = [3]"),
    }  # fmt: skip
    if importlib.util.find_spec("tokenizers") is None:  # without the extra edgeprune[text], text cannot be read at all
        del forms["table.csv"], forms["words.json"]
    for name, (whole, _, _) in forms.items():
        (folder / name).write_bytes(whole)

    def attempt(chance: random.Random) -> tuple[str, Work]:
        if isinstance(chance, mutate.Whole):
            return "all", lambda: [_examples(folder, data, inputs)() for _, data, inputs in forms.values()]
        name = chance.choice(list(forms))
        for other, (whole, _, _) in forms.items():
            (folder / other).write_bytes(whole)
        whole, data, inputs = forms[name]
        if name.endswith((".csv", ".xml", ".txt")) and chance.random() < 0.7:
            made = mutate.text_of(whole, chance)
        else:
            made = mutate.bytes_of(whole, chance)
        if name.endswith(".json") and chance.random() < 0.6:
            made = json.dumps(mutate.data_of(json.loads(whole), chance)).encode("utf-8", "replace")
        (folder / name).write_bytes(made)
        return name, _examples(folder, data, inputs)

    return attempt


TEXT = 'inputs.input_ids = { shape = [8], dtype = "int64" }\ninputs.attention_mask = { shape = [8], dtype = "int64" }'


def _arrays() -> bytes:
    import numpy as np

    stream = io.BytesIO()
    values = np.linspace(0, 1, 24, dtype=np.float32).reshape(8, 3)
    np.savez(stream, train_inputs=values, train_targets=np.arange(8), test_inputs=values, test_targets=np.arange(8))
    return stream.getvalue()


def answers(folder: Path) -> Attempt:
    """What a device's agent answers, an operation at a time, through the link and everything that reads it."""
    sys.path.insert(0, str(ROOT / "tests" / "devices"))
    home = folder / "home"
    (home / "outgoing").mkdir(parents=True)
    os.environ["HOSTILE_HOME"], os.environ["HOSTILE"] = str(home), str(folder / "plan.json")
    import numpy as np
    from hostile import GOOD

    from edgeprune import files

    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "tests/devices/hostile.py"}"\n')
    python.chmod(0o755)
    graph = folder / "net.onnx"
    _tiny_onnx(graph)
    np.savez(home / "outgoing/result.npz", o0=np.zeros((2, 4), np.float32))
    given = {**GOOD["infer"], "path": str(home / "outgoing/result.npz")}
    given["sha256"] = files.sha256(home / "outgoing/result.npz")
    usual = json.dumps({"protocol": 1, "id": 0, "ok": True, "result": given}).replace('"id": 0', '"id": %d')

    def attempt(chance: random.Random) -> tuple[str, Work]:
        operation = chance.choice(("hello", "missing", "probe", "load", "measure", "profile", "infer"))
        good = {"protocol": 1, "id": 0, "ok": True, "result": given if operation == "infer" else GOOD[operation]}
        line = json.dumps(mutate.data_of(good, chance)).replace('"id": 0', '"id": %d')
        if chance.random() < 0.1:
            line = mutate.bytes_of(line.encode(), chance).decode("utf-8", "replace").replace("\n", " ")
        (folder / "plan.json").write_text(json.dumps({"infer": usual, operation: line}))
        return operation, lambda: asked_everything(python, graph)

    return attempt


def asked_everything(python: Path, graph: Path) -> str:
    """All that a device is asked for; raises the first error on purpose after all was asked."""
    import msgspec
    import numpy as np

    from edgeprune import devices, target
    from edgeprune.errors import EdgepruneError

    known = target.load("x86-onnxruntime")
    known = msgspec.structs.replace(known, connection=msgspec.structs.replace(known.connection, python=str(python)))
    errors: list[EdgepruneError] = []

    def attempt(work: Work) -> Any:
        try:
            return work()
        except EdgepruneError as error:
            errors.append(error)
            return None

    def session() -> None:
        artifact = devices.Artifact("tiny", "onnxruntime", "int8", {graph.name: graph}, {})
        with devices.connect(known) as device:
            attempt(device.probe)
            loaded = attempt(lambda: device.load(artifact))
            if loaded is not None:
                images = np.zeros((2, 3, 16, 16), np.float32)
                attempt(lambda: device.measure([loaded], known.protocol))
                attempt(lambda: device.profile(loaded))
                attempt(lambda: device.infer(loaded, images))

    attempt(session)
    if errors:
        raise errors[0]
    return "all answered"


def _tiny_onnx(path: Path) -> None:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in
            (("input", [1, 3, 16, 16]), ("output", [1, 4, 16, 16]))]  # fmt: skip
    node = helper.make_node("Conv", ["input", "w"], ["output"])
    graph = helper.make_graph([node], "tiny", [ends[0]], [ends[1]], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)


KINDS = {one.__name__: one for one in (recipes, profiles, safetensors, pt, images, sounds, tables, answers)}


def campaign(kind: str, tries: int, seed: int, minutes: float = 60.0) -> dict[str, Any]:
    """Damage and use; the facts of all tries."""
    book = trying.Book(kind, seed)
    folder = Path(tempfile.mkdtemp(prefix=f"campaign-{kind}-"))
    os.environ.setdefault("EDGEPRUNE_CACHE", str(folder / "cache"))
    try:
        trying.one_thread()
        attempt = KINDS[kind](folder)
        _, whole = attempt(mutate.Whole(seed))
        told = whole()  # raises where what all tries start from is refused; and imports for all of them what it needs
        clock = trying.Clock(minutes)
        for number in range(tries):
            if not clock:
                break
            what, work = attempt(random.Random(f"{kind} {seed} {number}"))
            book.note(f"try {number}, {what}", trying.isolated(work))
    finally:
        os.chdir(ROOT)
        shutil.rmtree(folder, ignore_errors=True)
    return book.facts(whole=str(told))


def main() -> None:
    """The command line."""
    parser = trying.arguments(__doc__, "fuzz", 1000)
    parser.add_argument("kinds", nargs="+", choices=sorted(KINDS))
    given = parser.parse_args()
    failures = 0
    for kind in given.kinds:
        facts = campaign(kind, given.tries, given.seed, given.minutes / len(given.kinds))
        trying.write(facts, given.out.with_name(f"fuzz-{kind}.json"))
        failures += facts["failures"]
    trying.ended({"failures": failures})


if __name__ == "__main__":
    main()
