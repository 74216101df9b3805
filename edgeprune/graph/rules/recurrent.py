"""Recurrent layers: the gates of one hidden unit go together."""

from __future__ import annotations

from typing import Any

from edgeprune.graph.walk import Rule, RuleError, Walk


def recurrent(walk: Walk, a: dict[str, Any]) -> Any:
    """Not yet narrowed."""
    raise RuleError("recurrent layers")


RULES: dict[str, Rule] = {"lstm": recurrent, "gru": recurrent}
