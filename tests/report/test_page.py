"""The report: verdict first, whole HTML, no network, nothing that a name could break, no section that crashes."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from edgeprune import report
from edgeprune import result as results
from edgeprune.report import plot, words
from edgeprune.report.markup import VOID

EXAMPLE = json.loads((Path(__file__).parent / "example.json").read_text())
HEADINGS = {
    "gates": "Gates",
    "networks": "Accuracy and latency",
    "layers": "Latency by layer",
    "widths": "Widths before and after",
    "frozen": "Frozen, and why",
    "search": "Search",
    "recovery": "Recovery",
    "calibration": "Calibration",
    "evidence": "Evidence",
    "environment": "Environment",
    "recipe": "Recipe",
}


class Reader(HTMLParser):
    """Checks that elements close in order; collects attributes and text."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.labels, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self._collect(dict(attrs))

    def handle_startendtag(self, tag, attrs):
        self._collect(dict(attrs))

    def _collect(self, attrs):
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [attrs[key] for key in ("href", "src", "xlink:href", "action") if key in attrs]
        self.labels += [attrs["aria-label"]] if attrs.get("role") == "img" else []

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.text.append(data)


def read(result):
    return read_text(report.page(result))


def read_text(page):
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open
    return reader


def changed(**changes):
    result = copy.deepcopy(EXAMPLE)
    result.update(changes)
    return result


def test_every_section_is_there_in_order_and_the_verdict_is_first():
    reader = read(EXAMPLE)
    text = " ".join(reader.text)
    places = [text.index(heading, text.index("Contents") if "Contents" in text else 0) for heading in HEADINGS.values()]
    assert reader.ids == list(HEADINGS)
    assert text.index("Release") < text.index("2.03× the speed") < min(places)


def test_the_figures_of_the_issue_are_on_the_page():
    text = " ".join(read(EXAMPLE).text)
    for wanted in (
        "94.00 %",
        "0.454 ms",
        "0.460 ms",
        "512 kB",
        "2.03×",
        "dense FP32",
        "stage1 residual width",
        "2026.4.1",
    ):
        assert wanted in text, wanted
    assert "layer3.8.conv2" in text
    assert "64 → 32" in text or "32 → 16" in text  # widths before and after
    assert "35" in text


def test_needs_no_network_and_every_link_leads_somewhere_on_the_page():
    html = report.page(EXAMPLE)
    assert not re.search(r"(https?:)?//[a-z]", html)
    assert "<script" not in html
    assert "@import" not in html and "url(" not in html
    reader = read(EXAMPLE)
    assert reader.links
    assert {link.removeprefix("#") for link in reader.links} <= set(reader.ids)


def test_light_and_dark_wide_and_narrow():
    html = report.page(EXAMPLE)
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html
    assert html.count('class="plot wide"') == html.count('class="plot narrow"') >= 5


def test_every_plot_says_what_it_shows():
    labels = read(EXAMPLE).labels
    assert len(labels) >= 10
    assert all(len(label) > 15 for label in labels)


HOSTILE = "</td></table><script>alert('1')</script>&\"<b>"


def hostile(value):
    if isinstance(value, dict):
        return {(HOSTILE + key if "." in key or key == "fc" else key): hostile(item) for key, item in value.items()}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return HOSTILE if isinstance(value, str) and value not in ("ms", "release", "float") else value


def test_no_text_can_break_the_page():
    result = hostile(EXAMPLE)
    html = report.page(result)
    assert "<script" not in html
    assert "<b>" not in html
    reader = read(result)
    assert reader.ids == list(HEADINGS)
    assert "alert('1')" in " ".join(reader.text)  # it is shown, as text


def paths(value, at=()):
    """Every key of the result, however deep; of lists the first entry."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    items = items[:1] if isinstance(value, list) else items
    for key, item in items:
        yield (*at, key)
        yield from paths(item, (*at, key))


def shortened():
    """The example with few layers and tensors: every kind of entry once is enough here."""
    result = copy.deepcopy(EXAMPLE)
    result["layers"] = result["layers"][:2] + result["layers"][-1:]
    ranges = result["quantize"]["ranges"]
    for key in ("layers", "tensors"):
        ranges[key] = dict(list(ranges[key].items())[:2])
    curves = result["search"]["curves"]
    for key in ("widths", "losses", "blocks"):
        curves[key] = dict(list(curves[key].items())[:1])
    return result


SHORT = shortened()
ALL = [path for path in paths(SHORT) if path[0] != "version"]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["missing", "none", "nan"])
def test_whatever_is_missing_the_page_is_whole(kind):
    for path in ALL:
        result = copy.deepcopy(SHORT)
        place = result
        for key in path[:-1]:
            place = place[key]
        last = path[-1]
        if kind == "missing":
            del place[last]
        elif kind == "none" and isinstance(place, dict):
            place[last] = None
        elif isinstance(place[last], float):
            place[last] = math.nan
        else:
            continue
        try:
            html = report.page(result)
        except Exception as error:
            raise AssertionError(f"without {path}: {error!r}") from error
        assert html.rstrip().endswith("</html>"), path
        assert "NaN" not in html and ">nan" not in html, path


def test_an_early_run_has_a_page_too():
    reader = read({"version": 1, "name": "x", "target": "intel-cpu"})
    assert "No verdict yet" in " ".join(reader.text)
    assert reader.ids == []


def test_refused_says_which_gate_by_how_much_and_what_helps():
    result = copy.deepcopy(EXAMPLE)
    result["verdict"] = "refused"
    result["gates"][3].update(passed=False, message="0.5 ms: 9 % too slow.", remedy="Ask for less.")
    text = " ".join(read(result).text)
    head = text[: text.index("Gates")]
    assert "Refused: 1 of 8 gates failed" in head
    assert "9 % too slow" in head
    assert "Ask for less." in head


def test_a_page_never_says_release_when_a_gate_failed():
    result = copy.deepcopy(EXAMPLE)
    result["gates"][0]["passed"] = False
    assert 'class="verdict release"' not in report.page(result)


def test_instructions_are_never_called_milliseconds():
    result = changed(unit="instructions", search={}, layers=[])
    result["budget_instructions"] = result.pop("budget_ms") * 22e6
    for name in words.NETWORKS:
        latency = result[name].pop("latency_ms")
        result[name]["latency_instructions"] = {key: value * 22e6 for key, value in latency.items()}
    for gate in result["gates"]:
        gate["message"] = "gate"
    html = report.page(result)
    text = " ".join(read(result).text)
    assert "M instructions" in text
    assert not re.search(r"\d ms\b", text)
    assert "million instructions" in html


def test_the_same_result_gives_the_same_page():
    assert report.page(EXAMPLE) == report.page(copy.deepcopy(EXAMPLE))


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = report.write(EXAMPLE, tmp_path / "run" / "report.html")
    before = path.read_text()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        report.write(changed(name="other"), path)
    assert path.read_text() == before
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.92), (93.8, 94.4), (1e-7, 3e-7), (0, 22e6), (-3, 40), (5, 5)])
def test_ticks_are_round_few_and_inside(low, high):
    found = plot.ticks(low, high)
    assert 1 <= len(found) <= 8
    assert all(low - 1e-9 <= value <= high + 1e-9 for value in found)
    assert len({text for _, text in plot.spelled(found)}) == len(found)  # no two look the same


def test_labels_do_not_lie_on_each_other():
    frame = plot.Frame(720, 320, (0, 1), (0, 1))
    points = [plot.Mark(0.5, 0.5 + shift, "dense", "the same place") for shift in (0, 0.001, 0.002, 0.003)]
    ys = sorted(y for _, y, _ in plot._labels(frame, points))
    assert all(b - a >= 14 for a, b in itertools.pairwise(ys))


def test_a_label_does_not_lie_on_another_point():
    """The chosen network stands on the front, near the next point of it."""
    frame = plot.Frame(720, 260, (0, 1), (0, 1))
    points = [plot.Mark(0.5, 0.5, "ours", "chosen"), plot.Mark(0.54, 0.5, "before"), plot.Mark(0.7, 0.5, "before")]
    _, y, _ = plot._labels(frame, points)[0]
    assert abs(y - (frame.py(0.5) + 4)) >= 14
    alone = plot._labels(frame, [points[0], points[2]])[0]
    assert alone[1] == frame.py(0.5) + 4


def test_the_page_of_a_latency_table_shows_what_was_predicted_and_measured():
    """Every unseen network twice: by the table and by MACs; the same figures in the table below."""
    found = {"measured": [0.5, 0.25], "predicted": [0.52, 0.26], "predicted_by_macs": [0.4, 0.3], "cells": 12}
    text = report.profile_page(found, "net on board")
    read_text(text)
    assert text.count("measured 0.500, the table said 0.520") == 2  # wide and narrow
    assert text.count("measured 0.250, a model that knows only MACs said 0.300") == 2
    assert "0.520" in text and "net on board" in text
    read_text(report.profile_page({}, "nothing measured"))


def test_the_report_shows_the_table_s_predictions_and_those_of_closure():
    result = copy.deepcopy(EXAMPLE)
    unseen = {"measured": [0.5], "predicted": [0.52], "predicted_by_macs": [0.4]}
    result["search"]["table"]["unseen"] = unseen
    result["search"]["closure"] = {"steps": [{"measured": 0.33, "predicted": 0.34}]}
    assert "closure: measured 0.330, predicted 0.340" in report.page(result)


def test_a_dense_int8_network_that_computes_nothing_is_no_baseline():
    broken = copy.deepcopy(EXAMPLE["dense_int8"])
    broken["accuracy"] = 0.0867
    if "score" in broken:
        broken["score"]["value"] = 8.67
    assert "Compare with dense FP32." in " ".join(read(changed(dense_int8=broken)).text)
    assert "Compare with dense FP32." not in " ".join(read(EXAMPLE).text)


def test_the_curves_of_training_are_drawn_whatever_the_metric_and_the_trainer():
    history = [{"epoch": n, "loss": 1 / n, "score": 30.0 + n / 100} for n in range(1, 501)]
    int8 = {"before": 31.5, "after": 31.25, "kept": False, "history": history[:3]}
    result = changed(
        recover={"training": {"trainer": "fit", "history": history}},
        quantize={**EXAMPLE["quantize"], "training": int8},
    )
    page = read(result)
    labels = [label for label in page.labels if "oss" in label or "while training" in label]
    drawn = [f"Training loss, {167} figures.", "Loss while training in INT8, 3 figures."]
    assert all(labels.count(label) == 2 for label in drawn), labels  # wide and narrow
    assert any(label.endswith("while training, 167 evaluations.") for label in labels)
    assert "31.25 % after; it is not kept" in " ".join(page.text).replace("\xa0", " ")


def test_small_latencies_keep_three_digits_that_count():
    assert [words.latency(value) for value in (0.04761, 0.0483, 0.123, 12.345, 0)] == [
        "0.0476 ms", "0.0483 ms", "0.123 ms", "12.35 ms", "0.000 ms",
    ]  # fmt: skip


def test_layers_in_float_are_named_whoever_asked_for_them():
    """The recipe's in the ranges; those that speed or accuracy keeps, in the choice."""
    quantize = copy.deepcopy(EXAMPLE["quantize"])
    quantize["ranges"]["precision"] = {"head": "float"}
    quantize["precision"] = {"method": "auto", "float": ["stem", "head"]}
    assert "head, stem" in read(changed(quantize=quantize)).text


@pytest.mark.parametrize(("pruned", "pays"), [(2.0, True), (0.5, False)])
def test_float_rows_say_what_the_runtimes_own_choice_of_a_type_gives(pruned: float, pays: bool) -> None:
    profile = {"execution": {"options": {"INFERENCE_PRECISION_HINT": "f32"}}}
    base = EXAMPLE["pruned_int8"]["latency_ms"]["median"]
    own = {
        "option": "INFERENCE_PRECISION_HINT = f32",
        "type": "bf16",
        "dense_fp32": 3 * base,
        "pruned_fp32": pruned * base,
    }
    told = words.forced(profile, results.read({**EXAMPLE, "float_default": own}))
    assert f"bf16, dense FP32 takes {words.latency(3 * base)} (3.00 times pruned INT8's)" in told
    assert ("INT8 buys nothing over that" in told) != pays
    assert "may take a shorter type" in words.forced(profile, results.read(EXAMPLE))
    assert words.forced({}, results.read({**EXAMPLE, "float_default": own})) == ""
