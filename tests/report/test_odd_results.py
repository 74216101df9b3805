"""A result.json of any shape: a page that is well formed, or one sentence where a part cannot be read; no traceback."""

from __future__ import annotations

import copy
import json
import math
import random

import pytest
from test_page import EXAMPLE, read_text

from edgeprune import report

ODD = (
    None, True, False, 0, -1, 1.5, 10**400, 1e308, math.nan, math.inf, -math.inf, "", "x", "<script>alert(1)</script>",
    "\x1b[2J\u202egood", "\ud800", [], [None], [[]], ["x"], [1, 2], [math.nan] * 3, {}, {"": None}, {"a": {"b": []}},
    {"name": "\0", "passed": "no"}, "y" * 100_000, [{}], [{"name": []}], {"median": "fast"},
)  # fmt: skip


def places(value, path=()):
    """The path of every value in a result; of a long list its first two and its last."""
    yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key))
    elif isinstance(value, list):
        for index in sorted({0, 1, len(value) - 1} & set(range(len(value)))):
            yield from places(value[index], (*path, index))


def put(result, path, value):
    for key in path[:-1]:
        result = result[key]
    result[path[-1]] = value


PLACES = [path for path in places(EXAMPLE) if path]


def sound(result):
    page = report.page(result)
    read_text(page)
    assert "<script" not in page and "\x1b" not in page and "\u202e" not in page and "\0" not in page
    return page


@pytest.mark.parametrize("value", ODD, ids=lambda value: ascii(value)[:20])
def test_an_odd_value_at_some_places(value):
    for path in random.Random(ascii(value)[:50]).sample(PLACES, 1):
        result = copy.deepcopy(EXAMPLE)
        put(result, path, value)
        sound(result)


@pytest.mark.long
def test_odd_values_anywhere_several_at_once():
    chosen = random.Random(0)
    for _ in range(8):
        result = copy.deepcopy(EXAMPLE)
        for path in chosen.sample(PLACES, chosen.randint(1, 4)):
            try:
                put(result, path, chosen.choice(ODD))
            except (KeyError, IndexError, TypeError):
                continue  # what was there is gone
        sound(result)


@pytest.mark.parametrize("gates", [None, "x", [1], [None], {"a": 1}, 5, [{"passed": "yes"}] * 2, [[]]])
def test_odd_gates_are_never_a_release(gates):
    result = {**EXAMPLE, "gates": gates}
    page = sound(result)
    assert "<strong>Release</strong>" not in page


def test_written_as_a_file_and_by_the_command(tmp_path):
    result = {**EXAMPLE, "name": "\ud800\x1b[2J", "search": [1], "layers": "x"}
    path = report.write(result, tmp_path / "report.html")
    text = path.read_text("utf-8")
    assert "\\ud800\\x1b[2J on intel-cpu" in text
    assert "This part of the result is not as a run writes it" in text
    assert json.loads(json.dumps(EXAMPLE))["verdict"] == "release" and "<strong>Release</strong>" in report.page(
        EXAMPLE
    )
