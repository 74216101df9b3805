"""What run.py does with a file of the owner's: by the task, with numpy and Pillow alone, errors in one line."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import wave

import numpy as np
import pytest

from edgeprune.release.bundle import _program
from edgeprune.release.device import run as on_device
from edgeprune.workload import decoders
from edgeprune.workload.features import Features

SPEC = {"kind": "image", "scale": 1 / 255, "mean": [0.0], "std": [1.0], "resize": [8, 16], "color": "RGB"}


@pytest.fixture
def show(tmp_path, monkeypatch):
    """The bundle's own files, in a folder without edgeprune."""
    for name, content in _program().items():
        if "/" not in name:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("show", "features", "decoders", "boxes"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("show", tmp_path / "show.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    yield module
    for name in ("features", "decoders", "boxes"):
        sys.modules.pop(name, None)


def picture(tmp_path, name="street.png"):
    from PIL import Image

    Image.fromarray(np.full((40, 80, 3), 90, np.uint8)).save(tmp_path / name)
    return name


def test_an_artifact_that_takes_bytes_is_fed_the_pixels_as_they_are_resized(show, tmp_path):
    for layout, shape in (("NHWC", (8, 16, 3)), ("NCHW", (3, 8, 16))):
        fed = show.load_image(picture(tmp_path), {**SPEC, "dtype": "uint8", "layout": layout})
        assert fed.dtype == np.uint8 and fed.shape == shape and (fed == 90).all()


def test_class_numbers_agree_or_do_not():
    made = np.array([3, 3, 0, 250], np.uint8)
    assert on_device.compare(made, made) == (1.0, 0.0)
    assert on_device.compare(np.array([3, 3, 1, 250], np.uint8), made) == (0.75, 0.25)
    assert on_device.compare(made[None], made[None]) == (None, 0.0)  # a map


def test_a_detector_draws_its_boxes_on_the_picture(show, tmp_path, capsys):
    head = np.full((7, 4, 8), -9.0)
    head[0], head[5:] = 0.0, 0.0
    head[:, 2, 4] = [1.0, 0.0, 0.0, 0.0, 0.0, 0.1, 0.9]  # one object in the middle, of class 1
    known = decoders.FastestDet(score=0.2)
    manifest = {
        "task": {"kind": "detection", "settings": {"decode": {"name": "FastestDet", **dataclasses.asdict(known)}}},
        "inputs": [{"name": "input", "shape": [3, 8, 16], "dtype": "float32"}],
    }
    seen = []
    show.each([picture(tmp_path)], manifest, SPEC, ["car", "man"], lambda inputs: seen.append(inputs) or [head[None]])
    assert seen[0][0].shape == (1, 3, 8, 16)
    (box,), (score,), _ = known((head,))
    place = " ".join(f"{value:.0f}" for value in box * [80, 40, 80, 40])
    said = capsys.readouterr().out
    assert f"man {score:.2f} at {place}" in said
    from PIL import Image

    drawn = np.asarray(Image.open(tmp_path / "street-boxes.png"))
    assert drawn.shape == (40, 80, 3) and (drawn != 90).any()


def test_a_segmenter_lays_its_classes_over_the_picture(show, tmp_path, capsys):
    scores = np.zeros((1, 2, 8, 16))
    scores[:, 1, :, 8:] = 1.0
    show.each([picture(tmp_path)], {"task": {"kind": "segmentation"}}, SPEC, ["road", "sky"], lambda _: [scores])
    assert "sky (class 1) on 50.0 %" in capsys.readouterr().out
    from PIL import Image

    drawn = np.asarray(Image.open(tmp_path / "street-classes.png"))
    assert (drawn[:, :40] == 90).all() and (drawn[:, 40:] != 90).any(axis=2).all()


def test_a_sound_is_heard_as_the_host_hears_it(show, tmp_path, capsys):
    made, samples = Features(rate=8000, high=4000.0), 4000
    tone = (8000 * np.sin(np.arange(3000) / 5)).astype("<i2")
    with wave.open(str(tmp_path / "yes.wav"), "wb") as file:
        file.setnchannels(1), file.setsampwidth(2), file.setframerate(8000), file.writeframes(tone.tobytes())
    heard = []

    def run(inputs):
        heard.append(inputs[0])
        return [np.array([[0.1, 3.0, 2.0]])]

    spec = {"kind": "features", "samples": samples, **dataclasses.asdict(made)}
    show.each(["yes.wav"], {}, spec, ["no", "yes", "up"], run)
    expected = made(np.pad(tone.astype(np.float32) / 2**15, (0, samples - len(tone))))
    np.testing.assert_array_equal(heard[0][0], expected)
    assert "yes.wav: yes (class 1, score 3.000), up (class 2" in capsys.readouterr().out


def test_any_other_network_saves_what_it_gives(show, tmp_path, capsys):
    np.savez(tmp_path / "one.npz", ids=np.arange(4), mask=np.ones(4, bool))
    manifest = {
        "task": {"kind": "regression"},
        "inputs": [{"name": "ids", "shape": [4], "dtype": "int64"}, {"name": "mask", "shape": [4], "dtype": "bool"}],
    }
    show.each(["one.npz"], manifest, {"kind": "arrays"}, None, lambda inputs: [inputs[0] * 2.5, inputs[1]])
    assert "[0.0, 2.5, 5.0, 7.5]" in capsys.readouterr().out
    with np.load(tmp_path / "one-outputs.npz") as stored:
        np.testing.assert_array_equal(stored["output"], [0.0, 2.5, 5.0, 7.5])
        assert stored["output_1"].dtype == bool


@pytest.mark.parametrize(
    ("name", "content", "spec", "says"),
    [
        ("gone.png", None, SPEC, "gone.png: "),
        ("odd.png", b"no picture", SPEC, "odd.png: cannot identify"),
        ("odd.wav", b"no sound", {"kind": "features", "rate": 8000}, "odd.wav: "),
        ("odd.npz", b"PK", {"kind": "arrays"}, "odd.npz: "),
        ("odd.bin", b"", {"kind": "arrays"}, "odd.bin: this network takes arrays"),
    ],
)
def test_a_file_that_is_none_is_one_line(show, tmp_path, name, content, spec, says):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        show.each([name], {"inputs": [{"name": "x"}]}, spec, None, lambda _: [])
    assert str(ended.value).startswith(says) and "\n" not in str(ended.value)


def test_boxes_and_masks_of_arrays_are_said_and_not_drawn(show, tmp_path, capsys):
    np.save(tmp_path / "one.npy", np.zeros((3, 8, 16), np.float32))
    scores = np.zeros((2, 4, 8))
    scores[1, :2] = 1
    manifest = {"task": {"kind": "segmentation"}, "inputs": [{"name": "x", "shape": [3, 8, 16], "dtype": "float32"}]}
    show.each(["one.npy"], manifest, {"kind": "arrays"}, None, lambda _: [scores[None]])
    assert "(class 1) on 50.0 %" in capsys.readouterr().out
    assert np.array_equal(np.load("one-mask.npy"), scores.argmax(0))
    settings = {"decode": {"name": "FastestDet", **dataclasses.asdict(decoders.FastestDet(score=0.2))}}
    manifest = {"task": {"kind": "detection", "settings": settings}, "inputs": manifest["inputs"]}
    head = np.full((7, 4, 8), -9.0)
    head[0], head[5:] = 0.0, 0.0
    head[:, 2, 4] = [1.0, 0.0, 0.0, 0.0, 0.0, 0.1, 0.9]
    show.each(["one.npy"], manifest, {"kind": "arrays"}, None, lambda _: [head[None]])
    assert "at 0.2" in capsys.readouterr().out and not (tmp_path / "one-boxes.png").exists()


def test_boxes_and_masks_of_a_letterboxed_picture_are_where_they_are_in_the_picture(show, tmp_path, capsys):
    from PIL import Image

    spec = {**SPEC, "resize": [16, 16], "fit": "letterbox"}  # 40 x 80 lies in rows 4 to 12
    settings = {"decode": {"name": "FastestDet", **dataclasses.asdict(decoders.FastestDet(score=0.2))}}
    manifest = {"task": {"kind": "detection", "settings": settings}}
    known = decoders.FastestDet(score=0.2)
    head = np.full((7, 8, 8), -9.0)
    head[0], head[5:] = 0.0, 0.0
    head[:, 4, 4] = [1.0, 0.0, 0.0, 0.0, -1.0, 0.1, 0.9]
    (box,), _, _ = known((head,))
    show.each([picture(tmp_path)], manifest, spec, None, lambda _: [head[None]])
    x0, y0, x1, y1 = np.clip((box * 16 - [0, 4, 0, 4]) / [16, 8, 16, 8], 0, 1) * [80, 40, 80, 40]
    assert f"at {x0:.0f} {y0:.0f} {x1:.0f} {y1:.0f}" in capsys.readouterr().out
    scores = np.zeros((2, 16, 16))
    scores[1, 4:8] = 1  # the upper half of the picture
    show.each([picture(tmp_path)], {"task": {"kind": "segmentation"}}, spec, None, lambda _: [scores[None]])
    drawn = np.asarray(Image.open(tmp_path / "street-classes.png")).astype(int)
    assert (drawn[20:] == 90).all() and (drawn[:20] != 90).any(2).all()
