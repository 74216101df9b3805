"""Image files: the right pixels come out, and what cannot give them is refused before a run begins."""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeprune.errors import DataError
from edgeprune.model.images import Looked, look, read_image
from edgeprune.model.preprocess import Preprocess

RAMP = np.arange(0, 65536, 257, np.uint16).reshape(16, 16)  # 0, 257, ..., 65535
PICTURE = np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8)


def preprocess(channels: int = 3, height: int = 6, width: int = 8, **change: object) -> Preprocess:
    values = {"resize": 0, "crop": 0, "scale": 1.0, "mean": (0.0,), "std": (1.0,), **change}
    return Preprocess(**values, shape=(channels, height, width))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path, name: str, channels: int) -> None:
    Image.fromarray(RAMP).save(tmp_path / name)
    pixels = read_image(tmp_path / name, channels)
    assert pixels.shape == (16, 16, channels)
    np.testing.assert_array_equal(pixels[..., 0], np.arange(256).reshape(16, 16))


def test_sixteen_bit_colour_keeps_its_range(tmp_path: Path) -> None:
    import struct
    import zlib

    rows = b"".join(b"\0" + np.repeat(row[:, None], 3, 1).astype(">u2").tobytes() for row in RAMP)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    (tmp_path / "a.png").write_bytes(content)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[..., 2], np.arange(256).reshape(16, 16))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8), "has floating-point pixels"),
        (np.arange(48, dtype=np.int32).reshape(6, 8), "has 32-bit integer pixels"),
    ],
)
def test_values_of_no_known_range_are_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=message + r"[\s\S]*8 or 16 bits"):
        read_image(tmp_path / "a.tif")
    with pytest.raises(DataError, match=message):
        look([tmp_path / "a.tif"], preprocess(), decode_s=-1)


def test_palette_alpha_and_grey_become_what_the_network_wants(tmp_path: Path) -> None:
    picture = Image.fromarray(PICTURE)
    flat = Image.new("RGB", (8, 6), (200, 100, 50))
    for name, image, wanted in (
        ("rgba", Image.merge("RGBA", (*picture.split(), Image.new("L", (8, 6), 3))), PICTURE),
        ("palette", flat.quantize(4), np.asarray(flat)),
        ("grey", picture.convert("L"), np.repeat(np.asarray(picture.convert("L"))[..., None], 3, 2)),
        ("one-bit", Image.new("1", (8, 6), 1), np.full((6, 8, 3), 255)),
    ):
        image.save(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.png"), wanted)
        assert read_image(tmp_path / f"{name}.png", 1).shape == (6, 8, 1)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path: Path, name: str, turn: int) -> None:
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> Image.Transpose that a camera would have undone
    stored = Image.fromarray(PICTURE)
    if turn > 1:
        stored = stored.transpose(Image.Transpose(undo[turn]))
    exif = Image.Exif()
    exif[0x0112] = turn
    stored.save(tmp_path / name, exif=exif, **({"lossless": True} if name == "a.webp" else {}))
    np.testing.assert_array_equal(read_image(tmp_path / name), PICTURE)
    look([tmp_path / name], preprocess(), decode_s=-1)  # the header alone gives the size after turning


def jpeg() -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.repeat(np.repeat(PICTURE, 20, 0), 20, 1)).save(content, "JPEG")
    return content.getvalue()


@pytest.mark.parametrize("decode_s", [60.0, -1.0], ids=["decoded", "headers"])
def test_bad_files_are_found_before_a_run_and_named(tmp_path: Path, decode_s: float) -> None:
    good = tmp_path / "good.png"
    Image.fromarray(np.repeat(np.repeat(PICTURE, 20, 0), 20, 1)).save(good)
    size = preprocess(3, 120, 160)
    (tmp_path / "cut.jpg").write_bytes(jpeg()[:-200])
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    Image.open(good).save(tmp_path / "whole.bmp")
    (tmp_path / "cut.bmp").write_bytes((tmp_path / "whole.bmp").read_bytes()[:3000])
    Image.open(good).save(tmp_path / "whole.webp")
    (tmp_path / "cut.webp").write_bytes((tmp_path / "whole.webp").read_bytes()[:-60])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "whole.jpg").write_bytes(jpeg())
    whole = [good, tmp_path / "whole.bmp", tmp_path / "whole.webp", tmp_path / "whole.jpg"]
    assert look(whole, size, decode_s).files == 4
    bad = sorted(set(tmp_path.iterdir()) - set(whole))
    assert len(bad) == 8
    for path in bad:
        with pytest.raises(DataError, match=f"{path.name} cannot be read as an image"):
            look([good, path], size, decode_s)
    with pytest.raises(DataError, match=r"cut\.bmp cannot be read .*So it is with 8 of 12 images\.") as refused:
        look([*whole, *bad], size, decode_s)
    assert str(refused.value).count("\n") == 3, "names the first three, then the remedy"


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (400, 400)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match="exceeds limit"):
        look([tmp_path / "a.png"], preprocess())


def test_the_look_ends_in_time_and_says_what_it_left(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    begin = time.monotonic()
    seen = look([tmp_path / "a.png"] * 1_000_000, preprocess(), 0.1, 0.1)
    assert time.monotonic() - begin < 5
    assert seen.decoded
    assert 0 < seen.headers < 1_000_000
    assert "of 1,000,000 images were looked at" in seen.notes()[0]
    assert Looked(5, 5, 0, 0).notes() == []


def test_sizes_are_said_before_a_run(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png is \[3, 6, 8\] after preprocessing; \[model\] input is \[3, 6, 6\]"):
        look([tmp_path / "a.png"], preprocess(3, 6, 6))
    seen = look([tmp_path / "a.png"], preprocess(3, 10, 4, crop=(10, 4)))
    assert seen.notes() == ["[data] 1 images are smaller than crop and get black borders"]


def test_resize_and_crop_to_a_height_and_a_width() -> None:
    prepare = preprocess(3, 4, 10, resize=(6, 12), crop=(4, 10))
    out = prepare(np.repeat(np.arange(0, 240, 20, dtype=np.uint8)[:, None, None], 24, 1).repeat(3, 2))
    assert out.shape == (3, 4, 10)
    assert prepare.size(12, 24) == (4, 10)
    np.testing.assert_allclose(np.diff(out[0, :, 0]), 40, atol=2)  # 12 rows, 20 apart, became 6 rows; the middle four
    for channels in (2, 4, 5):  # as many as an .npz may have: each is resized by itself
        pixels = np.random.default_rng(0).integers(0, 256, (9, 7, channels), np.uint8)
        whole = preprocess(channels, 5, 5, resize=(5, 5))(pixels)
        one = preprocess(1, 5, 5, resize=(5, 5))
        np.testing.assert_array_equal(whole, np.concatenate([one(pixels[:, :, n]) for n in range(channels)]))


def test_a_letterboxed_image_stands_in_grey_and_its_boxes_move_along() -> None:
    made = preprocess(3, 8, 8, resize=(8, 8), fit="letterbox")
    assert made.place(10, 20) == (2, 0, 4, 8) and made.size(10, 20) == (8, 8)
    out = made(np.full((10, 20, 3), 200, np.uint8))
    assert (out[:, 2:6] == 200).all() and (out[:, :2] == 114).all() and (out[:, 6:] == 114).all()
    boxes = np.array([[0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 0.75, 1.0]])
    np.testing.assert_allclose(made.moved(boxes, 10, 20), [[0, 0.25, 1, 0.75], [0.5, 0.5, 0.75, 0.75]])
    squashed = preprocess(3, 8, 8, resize=(8, 8))
    np.testing.assert_array_equal(squashed.moved(boxes, 10, 20), boxes)


def test_blue_first_is_another_order_of_channels_with_means_of_its_own() -> None:
    made = preprocess(order="BGR", mean=(1.0, 2.0, 3.0))(PICTURE)
    np.testing.assert_array_equal(made[0], PICTURE[:, :, 2] - 1.0)
    np.testing.assert_array_equal(made[2], PICTURE[:, :, 0] - 3.0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"resize": 20},
        {"resize": (9, 13), "crop": (8, 10)},
        {"resize": 14, "crop": 10},
        {"resize": (24, 18), "fit": "letterbox"},
        {"order": "BGR"},
    ],
)
def test_the_device_prepares_an_image_as_the_host_does(
    tmp_path: Path, channels: int, change: dict[str, object]
) -> None:
    import importlib.util
    import json

    import edgeprune

    file = Path(edgeprune.__file__).parent / "release" / "device" / "show.py"
    spec = importlib.util.spec_from_file_location("device_run", file)
    run = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(run)
    prepare = preprocess(channels, **{"scale": 1 / 255, "mean": (0.4,), "std": (0.2,), **change})
    shipped = json.loads(json.dumps(prepare.to_dict()))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RAMP[:12]).save(tmp_path / "deep.png")
    Image.fromarray(PICTURE).resize((30, 20)).save(tmp_path / "turned.png", exif=exif)
    for name in ("deep.png", "turned.png"):
        there = run.load_image(str(tmp_path / name), shipped)
        np.testing.assert_array_equal(there, prepare(read_image(tmp_path / name, channels)))
