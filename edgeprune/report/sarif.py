"""The linter's findings on the released Q/DQ graph as SARIF 2.1.0, which code hosts show beside a change.

Format: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html. A finding is at a node of the graph, its
logical location; GitHub wants a file too, which is the graph itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from edgeprune._version import __version__
from edgeprune.result import Facts

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
LEVELS = {"error": "error", "warning": "warning"}


def sarif(result: Mapping[str, object], graph: str) -> dict[str, object]:
    """The document.

    Args:
        result: what result.json holds.
        graph: the INT8 graph's path, as the code host should name it.
    """
    found = Facts(result).part("quantize").parts("lint")
    rules = sorted({one.text("rule") for one in found})
    results = [
        {
            "ruleId": one.text("rule"),
            "ruleIndex": rules.index(one.text("rule")),
            "level": LEVELS.get(one.text("severity"), "note"),
            "message": {"text": f"{one.text('node')}: {one.text('why')} {one.text('remedy')}".strip()},
            "locations": [
                {
                    "physicalLocation": {"artifactLocation": {"uri": graph}, "region": {"startLine": 1}},
                    "logicalLocations": [{"fullyQualifiedName": one.text("node"), "kind": "function"}],
                }
            ],
            "partialFingerprints": {"node/v1": f"{one.text('rule')}:{one.text('node')}"},
        }
        for one in found
    ]
    driver = {
        "name": "edgeprune",
        "version": __version__,
        "rules": [{"id": rule, "name": rule, "shortDescription": {"text": rule}} for rule in rules],
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}
