"""What the search is told before it starts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgeprune.errors import BudgetError
from edgeprune.pipeline.choose import weights_limit


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
