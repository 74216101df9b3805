"""What the search is told before it starts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_run import run_of

from edgeprune.errors import BudgetError, RecipeError
from edgeprune.pipeline.choose import check_options, weights_limit
from edgeprune.pipeline.facts import StageKeys
from edgeprune.recipe import SearchSection


def _asked(max_bytes: int | None) -> float:
    """Two layers of 100 and 50 weights in an artifact of 1,000 bytes."""
    layers: Any = [
        SimpleNamespace(weight="a", weight_shape=(10, 10)),
        SimpleNamespace(weight="b", weight_shape=(50,)),
        SimpleNamespace(weight="a", weight_shape=(10, 10)),  # shares its weight
    ]
    built = SimpleNamespace(artifact=SimpleNamespace(bytes=1000))
    maker: Any = SimpleNamespace(build=lambda variant, name: built)
    return weights_limit(max_bytes, layers, maker)


def test_the_limit_on_the_artifact_less_what_is_no_weight() -> None:
    assert _asked(None) == float("inf")
    assert _asked(900) == 900 - (1000 - 150)


def test_a_limit_that_leaves_nothing_for_weights_is_refused() -> None:
    with pytest.raises(BudgetError, match="graph and scales alone take 850 bytes"):
        _asked(850)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (SearchSection(options=("lowrank",)), r"\[search\] options: there is no 'lowrank'"),
        (SearchSection(options=("low-rank",), method="uniform"), 'is for method = "joint"'),
        (SearchSection(repeats=True, method="uniform"), 'repeats is for method = "joint" and blocks'),
        (SearchSection(options=("low-rank",), method="learned"), 'is for method = "joint"'),
        (SearchSection(repeats=True, method="learned"), 'repeats is for method = "joint" and blocks'),
        (SearchSection(repeats=True, blocks=False), 'repeats is for method = "joint" and blocks'),
    ],
)
def test_options_that_the_search_cannot_take_are_refused(section: SearchSection, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        check_options(section)


def test_what_layers_may_become_is_part_of_the_tables_key(tmp_path: Path) -> None:
    found = []
    for names in ([], ["low-rank"]):
        with run_of(tmp_path / str(len(names)), search={"options": names}) as context:
            keys = StageKeys(context)
            found.append((keys["graph"], keys.without("latency", "device")))
    assert found[0][0] == found[1][0] and found[0][1] != found[1][1]
