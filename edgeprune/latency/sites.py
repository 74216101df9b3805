"""Where a network's kernels sit: each kernel of the dense artifact, the layer it follows, and its block.

A layer's own kernel takes its channels from the layer. A kernel without weights (addition, pooling, reorder) *follows*
a layer: its channels are those of the layer that made its tensor, or of the one that reads it. It follows a layer that
lives and dies with it: an addition in a removable block follows a layer of that block, a pooling behind the blocks
follows the classifier. So the time of a whole network is a constant plus one function of (c_in, c_out) for each layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from edgeprune.graph.structure import Layer, Structure, width
from edgeprune.latency.kernels import Entry, Network
from edgeprune.latency.table import Site


def find_sites(entries: Sequence[Entry], network: Network, structure: Structure) -> tuple[Site, ...]:
    """Sites of a dense network, in the order in which the kernels ran."""
    layers = {layer.name: layer for layer in structure.layers}
    return tuple(_site(entry, network, structure, layers) for entry in entries)


def _site(entry: Entry, network: Network, structure: Structure, layers: Mapping[str, Layer]) -> Site:
    block = block_of(entry.node, network, structure)
    own = base_name(entry.node)
    if entry.node and network.nodes[entry.node].weighted and not entry.family.kind.startswith("reformat"):
        layer, side = (own, "both") if own in layers else ("", "")
    else:
        layer, side = _followed(entry, network, structure, layers, block)
    return Site(entry.node, entry.family, entry.c_in, entry.c_out, layer, side, block, entry.time)


def base_name(node: str) -> str:
    """A module that is called twice makes nodes `x` and `x#2`."""
    return node.partition("#")[0]


def block_of(node: str, network: Network, structure: Structure) -> str:
    """The removable block that a node vanishes with, the outermost one; "" when it stays."""
    module = network.nodes[node].module if node in network.nodes else ""
    inside = [b.module for b in structure.blocks if module == b.module or module.startswith(f"{b.module}.")]
    return min(inside, key=len, default="")


def _followed(
    entry: Entry, network: Network, structure: Structure, layers: Mapping[str, Layer], block: str
) -> tuple[str, str]:
    """The layer and side ("out" or "in") whose channels a weightless kernel follows, or ("", "")."""
    if not entry.node:
        return "", ""
    order = {name: index for index, name in enumerate(network.nodes)}
    if network.nodes[entry.node].weighted:  # a reformat in front of a layer
        candidates = [(base_name(entry.node), "in")]
    else:
        above = sorted(_nearest(entry.node, network, up=True), key=lambda name: -order[name])
        below = sorted(_nearest(entry.node, network, up=False), key=lambda name: order[name])
        candidates = [(base_name(name), "out") for name in above] + [(base_name(name), "in") for name in below]
    for name, side in candidates:
        if name in layers and block_of(name, network, structure) == block and _channels(layers[name], side, {}):
            return name, side
    return "", ""


def _nearest(start: str, network: Network, up: bool) -> set[str]:
    """The nodes with weights that are reached first along every path from `start`."""
    found: set[str] = set()
    seen: set[str] = set()
    edge = [start]
    while edge:
        name = edge.pop()
        if name in seen:
            continue
        seen.add(name)
        node = network.nodes[name]
        if node.weighted and name != start:
            found.add(name)
            continue
        if up:
            edge += [network.producer[tensor] for tensor in node.inputs if tensor in network.producer]
        else:
            edge += network.consumers.get(node.output, ())
    return found


def channels(site: Site, layers: Mapping[str, Layer], widths: Mapping[str, int]) -> tuple[int, int]:
    """(c_in, c_out) of a site when group g keeps `widths[g]` units."""
    layer = layers.get(site.layer)
    if layer is None:
        return site.c_in, site.c_out
    if site.side == "both":
        c_out = width(layer.outputs, widths)
        return (width(layer.inputs, widths) if site.family.paired else c_out), c_out
    return followed_channels(site, _channels(layer, site.side, widths), _channels(layer, site.side, {}))


def followed_channels(site: Site, now: int, dense: int) -> tuple[int, int]:
    """Channels of a site that follows an axis; in proportion where it is wider than the axis (a flattened map)."""
    share = now / dense
    return max(1, round(site.c_in * share)), max(1, round(site.c_out * share))


def _channels(layer: Layer, side: str, widths: Mapping[str, int]) -> int:
    return width(layer.outputs if side == "out" else layer.inputs, widths)


def alive(sites: Iterable[Site], removed: Sequence[str]) -> list[Site]:
    """The sites that are left when these blocks go."""
    gone = tuple(f"{name}." for name in removed)
    return [site for site in sites if not (site.block in removed or f"{site.block}.".startswith(gone or ("\0",)))]
