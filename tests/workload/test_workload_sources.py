"""Sources of examples: right values, what is left out, and one clear error for each thing that is wrong."""

from __future__ import annotations

import json
import wave

import numpy as np
import pytest
from PIL import Image

from edgeprune.errors import DataError
from edgeprune.workload import Data
from edgeprune.workload.features import Features
from edgeprune.workload.sources import coco_boxes, function, mask_folder, text_table, voc_boxes, wav_folders, yolo_boxes


def prepare(pixels):
    return pixels.transpose(2, 0, 1)


def picture(path, width=40, height=20, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (width, height)).save(path)


def yolo(folder, lines="1 0.5 0.5 0.2 0.4\n"):
    picture(folder / "images" / "a.png")
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "labels" / "a.txt").write_text(lines)
    return yolo_boxes(folder, ["cat", "dog"], prepare)


def coco(folder, box=(10, 5, 20, 10), category=7, **change):
    picture(folder / "images" / "a.png")
    table = {
        "images": [{"id": 3, "file_name": "a.png", "width": 40, "height": 20}],
        "categories": [{"id": 9, "name": "dog"}, {"id": 7, "name": "cat"}],
        "annotations": [
            {"image_id": 3, "category_id": category, "bbox": list(box)},
            {"image_id": 3, "category_id": 9, "bbox": [0, 0, 4, 4], "iscrowd": 1},
        ],
    } | change
    (folder / "boxes.json").write_text(json.dumps(table))
    return coco_boxes(folder / "boxes.json", folder / "images", prepare)


def voc(folder, box=(11, 6, 30, 15), name="cat", width=40):
    picture(folder / "JPEGImages" / "a.png")
    (folder / "Annotations").mkdir(exist_ok=True)
    side = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    corners = "<xmin>1</xmin><ymin>1</ymin><xmax>4</xmax><ymax>4</ymax>"
    hard = f"<object><name>dog</name><difficult>1</difficult><bndbox>{corners}</bndbox></object>"
    (folder / "Annotations" / "a.xml").write_text(
        f"<annotation><filename>a.png</filename><size><width>{width}</width><height>20</height></size>"
        f"<object><name>{name}</name><bndbox>{side}</bndbox></object>{hard}</annotation>"
    )
    return voc_boxes(folder, ["cat", "dog"], prepare)


def test_boxes_of_three_forms_are_parts_of_the_picture(tmp_path):
    inputs, target = yolo(tmp_path / "yolo")[0]
    assert inputs.shape == (3, 20, 40) and target["labels"].tolist() == [1]
    assert target["boxes"][0] == pytest.approx([0.4, 0.3, 0.6, 0.7])
    made = coco(tmp_path / "coco")
    assert made.classes == ("cat", "dog")  # by id: 7, 9
    assert made[0][1]["boxes"] == pytest.approx(np.array([[0.25, 0.25, 0.75, 0.75], [0, 0, 0.1, 0.2]]))
    assert made[0][1]["labels"].tolist() == [0, 1] and made[0][1]["crowd"].tolist() == [False, True]
    made = voc(tmp_path / "voc")
    assert made[0][1]["boxes"][0] == pytest.approx([0.25, 0.25, 0.75, 0.75])
    assert made.left_out == {"difficult objects": 1} and "1 difficult objects" in made.said()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda f: yolo(f, "1 0.9 0.5 0.4 0.4\n"), "reaches outside"),
        (lambda f: yolo(f, "1 20 10 8 8\n"), "reaches outside"),
        (lambda f: yolo(f, "2 0.5 0.5 0.2 0.4\n"), "class 2 is out of range"),
        (lambda f: yolo(f, "1 0.5 0.5 0.2\n"), "is not 'class cx cy w h'"),
        (lambda f: yolo(f, "1 nan 0.5 0.2 0.2\n"), "no size"),
        (lambda f: yolo(f, "nan 0.5 0.5 0.2 0.2\n"), "is not 'class cx cy w h'"),
        (lambda f: yolo(f, "inf 0.5 0.5 0.2 0.2\n"), "is not 'class cx cy w h'"),
        (lambda f: voc(f, width="inf"), "not an annotation of VOC"),
        (lambda f: coco(f, images=[{"id": 3, "file_name": "a.png", "width": 0, "height": 20}]), "is 0 x 20 pixels"),
        (lambda f: coco(f, images=[{"id": 1e400, "file_name": "a.png"}]), "not an annotation file"),
        (lambda f: coco(f, box=(30, 5, 20, 10)), "reaches outside"),
        (lambda f: coco(f, box=(30, 5, -2, 10)), "no size"),
        (lambda f: coco(f, category=8), "category 8"),
        (lambda f: coco(f, images=[]), "picture 3"),
        (lambda f: coco(f, annotations=3), "not an annotation file"),
        (lambda f: coco(f, images=[{"id": 3, "file_name": "b.png", "width": 40, "height": 20}]), "no such file"),
        (lambda f: voc(f, box=(11, 6, 60, 15)), "reaches outside"),
        (lambda f: voc(f, name="cow"), "class 'cow' is not known"),
        (lambda f: voc(f, width=41), r"says \(41, 20\)"),
    ],
)
def test_boxes_that_are_wrong_are_named(tmp_path, make, text):
    with pytest.raises(DataError, match=text):
        make(tmp_path)


def test_boxes_that_stand_twice_and_strange_files_are_counted(tmp_path):
    line = "1 0.5 0.5 0.2 0.4\n"
    (tmp_path / "images" / "deep").mkdir(parents=True)
    (tmp_path / "images" / ".hidden.png").write_bytes(b"")
    (tmp_path / "images" / "notes.txt").write_text("")
    picture(tmp_path / "images" / "b.png")
    made = yolo(tmp_path, line + line + "0 0.5 0.5 0 0.4\n")
    assert len(made) == 2 and made[0][1]["labels"].tolist() == [1] and made[1][1]["boxes"].shape == (0, 4)
    assert made.left_out == {
        "boxes that stand twice": 1,
        "boxes without area": 1,
        "hidden files": 1,
        "nested folders": 1,
        ".txt files": 1,
        "pictures without a label file, which count as empty": 1,
    }
    (tmp_path / "labels" / "c.txt").write_text(line)
    with pytest.raises(DataError, match="has no picture"):
        yolo_boxes(tmp_path, ["cat", "dog"], prepare)


def masks(folder, mask, ignore=255, numbers=None):
    picture(folder / "images" / "a.png", 4, 3)
    picture(folder / "images" / "lone.png", 4, 3)
    (folder / "masks").mkdir(exist_ok=True)
    Image.fromarray(mask).save(folder / "masks" / "a.png")
    return mask_folder(
        folder / "images", folder / "masks", ["no", "yes"], lambda p, m: (prepare(p), m), ignore, numbers
    )


def test_masks_keep_their_numbers(tmp_path):
    mask = np.array([[0, 1, 255, 0], [1, 1, 0, 0], [0, 0, 0, 0]], np.uint8)
    made = masks(tmp_path, mask)
    assert np.array_equal(made[0][1], mask) and made[0][1].dtype == np.int64
    assert made.left_out == {"pictures without a mask": 1}
    assert masks(tmp_path, mask, numbers={1: 1, 0: 0})[0][1][0].tolist() == [0, 1, 255, 0]
    for wrong, text in (
        (np.zeros((4, 3), np.uint8), r"is \(3, 4\); its picture is \(4, 3\)"),
        (np.full((3, 4), 2, np.uint8), "holds class 2"),
        (np.zeros((3, 4, 3), np.uint8), "mode RGB"),
    ):
        with pytest.raises(DataError, match=text):
            masks(tmp_path, wrong)[0]


def sound(path, rate=16000, width=2, channels=1, samples=8000):
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = np.sin(2 * np.pi * 1000 * np.arange(samples) / rate) * 0.5
    with wave.open(str(path), "wb") as file:
        file.setframerate(rate), file.setsampwidth(width), file.setnchannels(channels)
        file.writeframes(np.repeat((tone * 32767).astype("<i2"), channels).tobytes())


def test_sounds_have_one_rate_and_length(tmp_path):
    sound(tmp_path / "yes" / "a.wav")
    sound(tmp_path / "no" / "b.wav", channels=2, samples=20000)
    (tmp_path / "_noise_").mkdir()
    made = wav_folders(tmp_path, 16000, 16000, lambda clip: clip)
    assert made.classes == ("no", "yes") and made.names == ("no/b.wav", "yes/a.wav")
    assert made.left_out == {"other folders": 1}
    long, short = made[0][0], made[1][0]
    assert long.shape == short.shape == (16000,) and np.abs(long[8000:]).max() == pytest.approx(0.5, abs=1e-3)
    assert not short[8000:].any() and made[1][1] == 1
    sound(tmp_path / "yes" / "c.wav", rate=8000)
    with pytest.raises(DataError, match="8000 Hz; the network's features are of 16000 Hz"):
        wav_folders(tmp_path, 16000, 16000, lambda clip: clip)
    (tmp_path / "yes" / "c.wav").write_bytes(b"no wav at all")
    with pytest.raises(DataError, match=r"c\.wav cannot be read as wav"):
        wav_folders(tmp_path, 16000, 16000, lambda clip: clip)


def test_features_are_what_they_say():
    tone = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000).astype(np.float32)
    mel = Features()(tone)
    assert mel.shape == (1, 40, 98) and mel.dtype == np.float32
    edges = 700 * (10 ** (np.linspace(2595 * np.log10(1 + 20 / 700), 2595 * np.log10(1 + 8000 / 700), 42) / 2595) - 1)
    assert abs(edges[mel[0, :, 50].argmax() + 1] - 1000) < 100  # the triangle whose top is nearest to 1 kHz
    assert Features(coefficients=10, layout="TF")(tone).shape == (98, 10)
    energy = np.exp(Features()(tone))[0] - 1e-6
    assert np.exp(Features()(2 * tone))[0] - 1e-6 == pytest.approx(4 * energy, rel=1e-3, abs=1e-9)
    from scipy.fft import dct

    wanted = dct(Features(layout="TF")(tone), type=2, norm="ortho", axis=1)[:, :10]
    assert Features(coefficients=10, layout="TF")(tone) == pytest.approx(wanted, abs=1e-4)
    with pytest.raises(DataError, match="shorter"):
        Features()(tone[:100])
    with pytest.raises(DataError, match="half the rate"):
        Features(high=9000)


def tokenizer(path):
    tokenizers = pytest.importorskip("tokenizers", reason="the extra edgeprune[text] is not installed")
    words = {"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3, "film": 4}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.save(str(path))
    return path


def test_tables_of_text(tmp_path):
    file = tokenizer(tmp_path / "tokenizer.json")
    table = tmp_path / "reviews.csv"
    table.write_text('text,label,source\n"good film",pos,a\nbad film,neg,a\nbad film,neg,a\n,neg,a\nfilm,pos,b\n')
    made = text_table(table, file, 4, where={"source": "a"})
    assert made.classes == ("neg", "pos") and len(made) == 2
    inputs, label = made[0]
    assert inputs["input_ids"].tolist() == [2, 4, 0, 0] and inputs["attention_mask"].tolist() == [1, 1, 0, 0]
    assert label == 1 and inputs["input_ids"].dtype == np.int64
    assert made.left_out == {"rows of another kind": 1, "rows without text": 1, "rows that stand twice": 1}
    assert Data(made, made).inputs(below={"input_ids": 5}).names == ("input_ids", "attention_mask")
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra edgeprune[text] is not installed")
    import pyarrow

    parquet.write_table(pyarrow.table({"text": ["good", "bad"], "label": [1, 0]}), tmp_path / "t.parquet")
    assert [made[1] for made in text_table(tmp_path / "t.parquet", file, 4)] == [1, 0]
    for call, text in (
        (lambda: text_table(table, file, 4, text="txt"), "Did you mean 'text'"),
        (lambda: text_table(table, file, 4, classes=["pos", "negative"]), "label 'neg' is no class"),
        (lambda: text_table(table, table, 4), "tokenizer"),
        (lambda: text_table(tmp_path / "none.csv", file, 4), "cannot be read"),
    ):
        with pytest.raises(DataError, match=text):
            call()
    table.write_text("text,label\na,b,c\n")
    with pytest.raises(DataError, match="as many cells"):
        text_table(table, file, 4)


def test_a_function_gives_a_dataset():
    assert function(lambda: [(np.zeros(3), 1)], "mine:data")[0][1] == 1
    with pytest.raises(DataError, match="mine:data failed: ZeroDivisionError"):
        function(lambda: 1 / 0, "mine:data")
    with pytest.raises(DataError, match="mine:data failed: TypeError"):
        function(lambda: 3, "mine:data")


@pytest.mark.parametrize(("place", "size"), [(4, 0x20), (16, 0x7FFFFFFF), (16, 0x1000)])
def test_a_wav_whose_chunks_lie_about_their_size_is_named(tmp_path, place, size):
    """Python's reader raises RuntimeError and EOFError for these, often without a word."""
    sound(tmp_path / "yes" / "a.wav")
    data = bytearray((tmp_path / "yes" / "a.wav").read_bytes())
    data[place : place + 4] = size.to_bytes(4, "little")
    (tmp_path / "yes" / "a.wav").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.wav cannot be read as wav: \w+"):
        wav_folders(tmp_path, 16000, 100, lambda wave: wave)[0]
