"""One pruned network in a few words: the key by which search, latency and tables know it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Configuration:
    """One narrowed network.

    Attributes:
        widths: group -> units kept; groups not named stay whole.
        removed: blocks replaced by identity.
        options: layer -> what it became beside narrower, such as "low-rank:16" (see `graph.options`); layers not named
            stay what they are.
    """

    widths: Mapping[str, int]
    removed: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Equal for equal networks."""
        parts: list[object] = [dict(sorted(self.widths.items())), sorted(self.removed)]
        return json.dumps([*parts, dict(sorted(self.options.items()))] if self.options else parts)


DENSE = Configuration({})
