"""A Structure in words and as JSON."""

from __future__ import annotations

from edgeprune.graph.analysis import Findings
from edgeprune.graph.parts import Frozen, Group, Layer, Segment


def describe(structure: Findings) -> str:
    """See Structure.describe."""
    total = max(1, structure.parameters)
    lines = [
        f"{len(structure.groups)} prunable groups, {len(structure.layers)} layers, {len(structure.blocks)} removable "
        f"blocks, {structure.parameters:,} parameters",
        "",
    ]
    if not structure.groups:
        lines += [f"Nothing can be narrowed. {structure.obstacle()}".strip(), ""]
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
            where = f" [{f.place}]" if f.place else ""
            lines.append(f"    {f.what}: {f.why}{where}")
    return "\n".join(lines)


def _names(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:4]) or "nothing"
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _segments(segments: tuple[Segment, ...]) -> list[dict[str, object]]:
    return [{"group": s.group, "size": s.size, "per_unit": s.per_unit} for s in segments]


def to_dict(structure: Findings) -> dict[str, object]:
    """See Structure.to_dict."""
    return {
        "version": 1,
        "fingerprint": structure.fingerprint,
        "parameters": structure.parameters,
        "macs": sum(la.macs for la in structure.layers),
        "groups": [_group(g) for g in structure.groups],
        "frozen": [_frozen(f) for f in structure.frozen],
        "layers": [_layer(la) for la in structure.layers],
        "postprocessing": [
            {"operator": o.operator, "module": o.module, "source": o.source} for o in structure.postprocessing
        ],
        "blocks": [
            {"module": b.module, "groups": list(b.groups), "inner": list(b.inner), "layers": list(b.layers)}
            for b in structure.blocks
        ],
    }


def _group(g: Group) -> dict[str, object]:
    return {
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


def _frozen(f: Frozen) -> dict[str, object]:
    return {
        "what": f.what,
        "why": f.why,
        "operator": f.operator,
        "source": f.source,
        "layers": list(f.layers),
        "parameters": f.parameters,
        "macs": f.macs,
    }


def _layer(la: Layer) -> dict[str, object]:
    return {
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
