"""A Structure in words and as JSON."""

from __future__ import annotations

from typing import Any

from edgeprune.graph.structure import Segment, Structure


def describe(structure: Structure) -> str:
    """See Structure.describe."""
    total = max(1, structure.parameters)
    lines = [
        f"{len(structure.groups)} prunable groups, {len(structure.layers)} layers, {len(structure.blocks)} removable "
        f"blocks, {structure.parameters:,} parameters",
        "",
    ]
    for g in structure.groups:
        share = 100 * g.parameters / total
        lines.append(f"{g.name}: {g.size} x {g.unit}, touches {g.parameters:,} parameters ({share:.1f} %)")
        lines.append(f"    made by {_names(g.producers)}; read by {_names(g.consumers)}")
        for m in g.members:
            each = f", {m.indices.shape[1]} a unit" if m.indices.shape[1] > 1 else ""
            lines.append(f"    {m.role:<6} {m.parameter} axis {m.axis}{each}")
    if structure.blocks:
        lines += ["", "Removable blocks:"]
        lines += [f"    {b.module} (on {', '.join(b.groups) or 'a frozen stream'})" for b in structure.blocks]
    if structure.frozen:
        lines += ["", "Frozen:"]
        for f in structure.frozen:
            where = f" [{f.operator} at {f.source}]" if f.source else (f" [{f.operator}]" if f.operator else "")
            lines.append(f"    {f.what}: {f.why}{where}")
    return "\n".join(lines)


def _names(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:4]) or "nothing"
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _segments(segments: tuple[Segment, ...]) -> list[dict[str, Any]]:
    return [{"group": s.group, "size": s.size, "per_unit": s.per_unit} for s in segments]


def to_dict(structure: Structure) -> dict[str, Any]:
    """See Structure.to_dict."""
    return {
        "version": 1,
        "fingerprint": structure.fingerprint,
        "parameters": structure.parameters,
        "macs": sum(la.macs for la in structure.layers),
        "groups": [
            {
                "name": g.name,
                "size": g.size,
                "unit": g.unit,
                "divisor": g.divisor,
                "parameters": g.parameters,
                "macs": g.macs,
                "producers": list(g.producers),
                "consumers": list(g.consumers),
                "members": [
                    {"parameter": m.parameter, "axis": m.axis, "per_unit": int(m.indices.shape[1]), "role": m.role}
                    for m in g.members
                ],
            }
            for g in structure.groups
        ],
        "frozen": [
            {"what": f.what, "why": f.why, "operator": f.operator, "source": f.source, "layers": list(f.layers)}
            for f in structure.frozen
        ],
        "layers": [
            {
                "name": la.name,
                "kind": la.kind,
                "weight": la.weight,
                "weight_shape": list(la.weight_shape),
                "stride": list(la.stride),
                "padding": la.padding if isinstance(la.padding, str) else list(la.padding),
                "dilation": list(la.dilation),
                "groups": la.groups,
                "input_size": list(la.input_size),
                "output_size": list(la.output_size),
                "macs": la.macs,
                "inputs": _segments(la.inputs),
                "outputs": _segments(la.outputs),
            }
            for la in structure.layers
        ],
        "blocks": [
            {"module": b.module, "groups": list(b.groups), "inner": list(b.inner), "layers": list(b.layers)}
            for b in structure.blocks
        ],
    }
