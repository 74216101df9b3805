"""The page of what people ship says what its JSON says."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def report() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("zoo_report", BENCHMARKS / "zoo_report.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCHMARKS))


def test_the_page_of_shipped_networks_is_that_of_its_json(report: ModuleType) -> None:
    results = json.loads(report.SHIPPED.read_text())
    assert report.PAGE.read_text() == report.page(results)
    assert len(results) >= 50


def test_no_network_of_the_page_was_given_a_wrong_plan(report: ModuleType) -> None:
    for name, row in json.loads(report.SHIPPED.read_text()).items():
        mine = row.get("ours", {})
        assert mine.get("proved") or mine.get("vacuous") or "max_error" not in mine, name


def test_the_page_counts_what_the_rows_say(report: ModuleType) -> None:
    def row(**ours: object) -> dict[str, object]:
        return {"entry": {"suite": "shipped"}, "ours": {"parameters": 9, "trace_seconds": 1.0, **ours}}

    rows = {
        "shipped/text/a": row(proved=True, removed=0.4, max_error=0.0),
        "shipped/text/b": row(proved=True, removed=0.1, max_error=0.0, obstacle="x stays"),
        "shipped/text/c": row(proved=False, removed=0.3, max_error=0.2, detail="output 0 is off"),
    }
    page = report.page(rows)
    assert (
        "**3 networks, of " in page
        and " listed: 1 proven with at least 15 %" in page
        and "(2 proven in all; 1 with a plan" in page
    )
    assert "| text/b | 10.0 % | x stays |" in page and "| text/c | 30.0 % | output 0 is off |" in page
