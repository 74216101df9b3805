"""What a bundle's run.py does with one of your own files: it classifies, draws boxes or a mask, or saves arrays.

Pictures need Pillow (.npy does not), texts need tokenizers; everything else is numpy. Python 3.8 and up.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
GREY = 114  # around a letterboxed picture
SURE = 0.3  # score from which on a box is drawn
TOP = 3  # answers that are named
PALETTE = [(230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48), (145, 30, 180), (70, 240, 240)]


def each(paths: list[str], manifest: dict[str, Any], spec: dict[str, Any], labels: Any, run: Any) -> None:
    """Do the task on every file; `run`: list of inputs [1, ...] -> list of outputs [1, ...].

    What is wrong with a file ends the program in one line.
    """
    for path in paths:
        try:
            inputs = load(path, manifest.get("inputs") or [], spec)
            answer(path, [output[0] for output in run(inputs)], manifest.get("task") or {}, spec, labels)
        except (OSError, ValueError, ImportError, KeyError, EOFError, wave.Error) as cause:
            sys.exit(f"{path}: {str(cause).splitlines()[0] if str(cause) else type(cause).__name__}")


def together(paths: list[str], inputs: Any, spec: Any) -> Any:
    """Every file's inputs, [N, ...] by name; what is wrong with a file ends the program in one line."""
    rows = []
    for path in paths:
        try:
            rows.append(load(path, inputs, spec))
            shapes = [list(one.shape[1:]) for one in rows[-1]]
            wanted = [part.get("shape", shape) for part, shape in zip(inputs, shapes)]  # noqa: B905
            if shapes != wanted:
                raise ValueError(f"it has the shape {shapes}, the network takes {wanted}")
        except (OSError, ValueError, ImportError, KeyError, EOFError, wave.Error) as cause:
            sys.exit(f"{path}: {str(cause).splitlines()[0] if str(cause) else type(cause).__name__}")
    return {part["name"]: np.concatenate([row[n] for row in rows]) for n, part in enumerate(inputs)}


def load(path: str, inputs: list[dict[str, Any]], spec: dict[str, Any]) -> list[Any]:
    """The network's inputs, [1, ...] each, from a picture, a sound, a text, or arrays (.npy, .npz) that are inputs."""
    kind = spec.get("kind", "image")
    if path.endswith(".npz"):
        with np.load(path, allow_pickle=False) as stored:
            missing = [part["name"] for part in inputs if part["name"] not in stored]
            if missing:
                held = ", ".join(stored) or "nothing"
                raise ValueError(f"it must hold arrays named {', '.join(missing)}; it has {held}")
            return [stored[part["name"]][None] for part in inputs]
    if kind == "image":
        return [load_image(path, spec)[None]]
    if path.endswith(".npy"):
        return [np.load(path, allow_pickle=False)[None]]
    if kind == "features":
        return [sound(path, spec)[None]]
    if kind == "text":
        return text(path, inputs, spec)
    raise ValueError("this network takes arrays: give .npy, or .npz with " + ", ".join(p["name"] for p in inputs))


def load_image(path: str, spec: dict[str, Any]) -> Any:
    """Pixels to network input, as preprocessing.json says: [C, H, W] float32, or the bytes themselves."""
    pixels = picture(path, spec)
    if spec.get("resize") or spec.get("crop"):
        pixels = fit(pixels, spec)
    if spec.get("order") == "BGR":
        pixels = pixels[:, :, ::-1]
    if spec.get("dtype") == "uint8":
        return np.ascontiguousarray(pixels if spec["layout"] == "NHWC" else pixels.transpose(2, 0, 1), dtype=np.uint8)
    scaled = pixels.astype(np.float32) * np.float32(spec["scale"])
    normal = (scaled - np.asarray(spec["mean"], np.float32)) / np.asarray(spec["std"], np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1), dtype=np.float32)


def picture(path: str, spec: dict[str, Any]) -> Any:
    """[H, W, C] uint8."""
    if path.endswith(".npy"):
        pixels = np.load(path, allow_pickle=False)
    else:
        image = importlib.import_module("PIL.Image").open(path)
        image = importlib.import_module("PIL.ImageOps").exif_transpose(image)
        if image.mode.startswith("I"):  # 16-bit grey
            image = importlib.import_module("PIL.Image").fromarray(
                np.rint(np.asarray(image).astype(np.float32) / 257).astype(np.uint8)
            )
        pixels = np.asarray(image.convert(spec.get("color", "RGB")))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def fit(pixels: Any, spec: dict[str, Any]) -> Any:
    """Resize to the shorter side or to [height, width] (squashed, or amid grey), then crop the centre."""
    if pixels.shape[2] not in (1, 3):
        return np.concatenate([fit(pixels[:, :, n : n + 1], spec) for n in range(pixels.shape[2])], axis=2)
    image = importlib.import_module("PIL.Image").fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    resize, crop = spec.get("resize"), spec.get("crop")
    if isinstance(resize, list):
        top, left, height, width = placed(image.height, image.width, spec)
        image = image.resize((width, height), 2)
        if [height, width] != resize:
            grey = GREY if image.mode == "L" else (GREY,) * 3
            canvas = importlib.import_module("PIL.Image").new(image.mode, (resize[1], resize[0]), grey)
            canvas.paste(image, (left, top))
            image = canvas
    elif resize:
        ratio = resize / min(image.size)
        image = image.resize((max(resize, round(image.width * ratio)), max(resize, round(image.height * ratio))), 2)
    if crop:
        height, width = crop if isinstance(crop, list) else (crop, crop)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    fitted = np.asarray(image)
    return fitted[:, :, None] if fitted.ndim == 2 else fitted


def placed(height: int, width: int, spec: Any) -> list[int]:
    """Top, left, height and width of a picture within [height, width] of `resize`."""
    outer = spec.get("resize")
    if not isinstance(outer, list):
        return [0, 0, height, width]
    if spec.get("fit") != "letterbox":
        return [0, 0, outer[0], outer[1]]
    ratio = min(outer[0] / height, outer[1] / width)
    inner = [max(1, min(whole, round(side * ratio))) for side, whole in zip((height, width), outer)]  # noqa: B905
    return [(outer[0] - inner[0]) // 2, (outer[1] - inner[1]) // 2, inner[0], inner[1]]


def sound(path: str, spec: dict[str, Any]) -> Any:
    """A PCM wav of the rate that the features are of, as the network hears it."""
    settings = {key: value for key, value in spec.items() if key not in ("kind", "samples")}
    with wave.open(path, "rb") as file:
        rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
        data = file.readframes(file.getnframes())
    if rate != settings["rate"] or width not in (1, 2, 4):
        wanted = settings["rate"]
        raise ValueError(f"{rate} Hz, {8 * width} bits; PCM of {wanted} Hz and 8, 16 or 32 bits is read")
    values = np.frombuffer(data, {1: "u1", 2: "<i2", 4: "<i4"}[width]).astype(np.float32)
    scaled = (values - 128) / 128 if width == 1 else values / np.float32(2 ** (8 * width - 1))
    clip = scaled[: len(scaled) // channels * channels].reshape(-1, channels).mean(1)
    samples = spec.get("samples") or len(clip)
    clip = np.pad(clip[:samples], (0, max(0, samples - len(clip))))
    return importlib.import_module("features").Features(**settings)(clip.astype(np.float32))


def text(path: str, inputs: list[dict[str, Any]], spec: dict[str, Any]) -> list[Any]:
    """A text file, or the text itself, as token ids and a mask."""
    words = Path(path).read_text(encoding="utf-8") if Path(path).is_file() else path
    made = importlib.import_module("tokenizers").Tokenizer.from_file(str(HERE / spec["tokenizer"]))
    length, padding = inputs[0]["shape"][-1], made.padding or {}
    made.enable_truncation(length)
    made.enable_padding(length=length, pad_id=padding.get("pad_id", 0), pad_token=padding.get("pad_token", "[PAD]"))
    found = made.encode(words)
    return [np.asarray(one, np.int64)[None] for one in (found.ids, found.attention_mask)][: len(inputs)]


def answer(path: str, outputs: list[Any], task: dict[str, Any], spec: dict[str, Any], labels: Any) -> None:
    """Say, draw or save what the network gave."""
    kind, settings = task.get("kind", "classification"), task.get("settings") or {}
    first = outputs[settings["output"]] if isinstance(settings.get("output"), int) else outputs[0]
    if kind == "classification":
        classify(path, first, labels, 1 if spec.get("kind", "image") == "image" else TOP)
    elif kind == "detection" and "decode" in settings:
        detect(path, outputs, settings["decode"], spec, labels)
    elif kind == "segmentation":
        segment(path, first, spec, labels)
    else:
        name = Path(path).stem if Path(path).suffix else "text"
        np.savez(name + "-outputs.npz", **{f"output_{n}" if n else "output": o for n, o in enumerate(outputs)})
        shown = ", ".join(json.dumps(np.round(o.astype(float).reshape(-1)[:6], 4).tolist()) for o in outputs)
        print(f"{path}: {shown} of shape {[list(o.shape) for o in outputs]}, in {name}-outputs.npz")
        if kind == "detection":
            print(
                "A decode of your own made the boxes of the evidence; it is not in the bundle: run it on these outputs."
            )


def named(number: int, labels: Any) -> str:
    """A class by its name, or by its number."""
    return str(labels[number]) if labels and number < len(labels) else "?"


def classify(path: str, scores: Any, labels: Any, top: int) -> None:
    """The best classes."""
    if scores.ndim == 0:
        print(f"{path}: {named(int(scores), labels)} (class {int(scores)})")
        return
    best = [int(n) for n in np.argsort(-scores, kind="stable")[:top]]
    told = [f"{named(n, labels)} (class {n}, score {float(scores[n]):.3f})" for n in best]
    print(f"{path}: " + ", ".join(told))


def detect(path: str, outputs: list[Any], decode: dict[str, Any], spec: dict[str, Any], labels: Any) -> None:
    """Boxes by the head's own decoder, on the picture."""
    decoders = importlib.import_module("decoders")
    settings = {key: value for key, value in decode.items() if key != "name"}
    if isinstance(settings.get("priors"), list):
        settings["priors"] = np.asarray(settings["priors"])
    boxes, scores, kinds = getattr(decoders, decode["name"])(**settings)(tuple(outputs))
    drawn = spec.get("kind", "image") == "image" and not path.endswith(".npz")
    pixels = picture(path, spec) if drawn else np.zeros((1, 1, 3), np.uint8)
    size = np.array([pixels.shape[1], pixels.shape[0]] * 2)  # boxes are in 0..1 of the picture
    if spec.get("fit") == "letterbox" and drawn:  # or of the grey that it lies in
        top, left, height, width = placed(pixels.shape[0], pixels.shape[1], spec)
        outer = np.array([spec["resize"][1], spec["resize"][0]] * 2)
        boxes = np.clip((boxes * outer - [left, top] * 2) / np.array([width, height] * 2), 0, 1)
    sure = [n for n in range(len(scores)) if scores[n] >= SURE]
    for n in sure:
        place = " ".join(f"{value:.0f}" if drawn else f"{value:.3f}" for value in boxes[n] * size)
        print(f"{path}: {named(int(kinds[n]), labels)} {float(scores[n]):.2f} at {place}")
    if not sure:
        print(f"{path}: nothing found")
    if not drawn:
        return
    try:
        image = importlib.import_module("PIL.Image").fromarray(
            np.repeat(pixels, 3, 2)[:, :, :3] if pixels.shape[2] == 1 else pixels
        )
    except ImportError:
        return
    draw = importlib.import_module("PIL.ImageDraw").Draw(image)
    for n in sure:
        colour = PALETTE[int(kinds[n]) % len(PALETTE)]
        draw.rectangle([float(v) for v in boxes[n] * size], outline=colour, width=2)
        draw.text(
            (float(boxes[n][0] * size[0]) + 2, float(boxes[n][1] * size[1]) + 2),
            named(int(kinds[n]), labels),
            fill=colour,
        )
    save(image, path, "boxes")


def segment(path: str, scores: Any, spec: dict[str, Any], labels: Any) -> None:
    """The class of each pixel, over the picture."""
    if scores.ndim == 3:
        scores = (
            scores.argmax(0)
            if scores.shape[0] > 1
            else (scores[0] > (0.5 if 0 <= scores.min() <= scores.max() <= 1 else 0))
        )
    mask = scores.astype(np.uint8)
    for number, count in zip(*np.unique(mask, return_counts=True)):  # noqa: B905
        print(f"{path}: {named(int(number), labels)} (class {number}) on {100 * count / mask.size:.1f} %")
    images: Any = None
    with contextlib.suppress(ImportError):
        images = importlib.import_module("PIL.Image")
    if images is None or spec.get("kind", "image") != "image" or path.endswith(".npz"):
        np.save(Path(path).stem + "-mask.npy", mask)
        return
    pixels = picture(path, spec)
    if spec.get("fit") == "letterbox":
        top, left, height, width = placed(pixels.shape[0], pixels.shape[1], spec)
        rows, columns = (np.array(mask.shape) / spec["resize"]).tolist()
        mask = mask[
            round(top * rows) : round((top + height) * rows), round(left * columns) : round((left + width) * columns)
        ]
    whole = np.asarray(images.fromarray(mask).resize((pixels.shape[1], pixels.shape[0]), 0))
    colours = np.array([(0, 0, 0)] + PALETTE * 37, np.float32)[whole]
    under = np.repeat(pixels, 3, 2)[:, :, :3] if pixels.shape[2] == 1 else pixels
    mixed = np.where(whole[:, :, None] > 0, 0.5 * under + 0.5 * colours, under)
    save(images.fromarray(mixed.astype(np.uint8)), path, "classes")


def save(image: Any, path: str, what: str) -> None:
    """Beside where the program runs; never over the picture itself."""
    target = f"{Path(path).stem}-{what}.png"
    image.save(target)
    print(f"{path}: drawn in {target}")
