"""Where a network's kernels sit: each kernel of the dense artifact, the layer it follows, and its block.

A layer's own kernel takes its channels from the layer. A kernel without weights (addition, pooling, reorder) *follows*
a layer: its channels are those of the layer that made its tensor, or of the one that reads it. It follows a layer that
lives and dies with it: an addition in a removable block follows a layer of that block, a pooling behind the blocks
follows the classifier. So the time of a whole network is a constant plus one function of (c_in, c_out) for each layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from edgeprune.graph import Configuration, Layer, Structure, option_of, width
from edgeprune.latency.going import homes
from edgeprune.latency.kernels import Entry, cell_channels
from edgeprune.latency.network import FloatGraph
from edgeprune.latency.table import Site

Example = tuple[Mapping[str, int], FloatGraph]  # widths by group, and the network that has them


def find_sites(
    entries: Sequence[Entry], network: FloatGraph, structure: Structure, examples: Sequence[Example] = ()
) -> tuple[Site, ...]:
    """Sites of a dense network, in the order in which the kernels ran.

    Args:
        examples: narrowed networks with all blocks. A kernel without weights follows the layer that explains its
            channels in all of them; without any, the nearest layer.
    """
    layers = {layer.name: layer for layer in structure.layers}
    home = homes(network, structure.blocks)
    return tuple(_site(entry, network, home, layers, examples) for entry in entries)


def _site(
    entry: Entry,
    network: FloatGraph,
    home: Mapping[str, str],
    layers: Mapping[str, Layer],
    examples: Sequence[Example],
) -> Site:
    block = home.get(entry.node, "")
    own = own_layer(entry.node, network, layers)
    if own and not entry.family.kind.startswith("reformat"):
        return Site(entry.node, entry.family, entry.c_in, entry.c_out, own, "both", block, entry.time)
    candidates = _candidates(entry, network, home, layers)
    made = [Site(entry.node, entry.family, entry.c_in, entry.c_out, *one, block, entry.time) for one in candidates]
    fixed = Site(entry.node, entry.family, entry.c_in, entry.c_out, "", "", block, entry.time)
    if not examples or not entry.node:
        return made[0] if made else fixed
    return min((*made, fixed), key=lambda site: _misfit(site, layers, examples))


def _misfit(site: Site, layers: Mapping[str, Layer], examples: Sequence[Example]) -> float:
    """How far the site's channels in narrowed networks are from what the layer that it follows says."""
    total, reformat = 0.0, site.family.kind.startswith("reformat")
    for widths, network in examples:
        if site.node in network.nodes:
            seen = cell_channels(network.nodes[site.node], reformat)
            said = channels(site, layers, widths)
            total += sum(abs(math.log(max(a, 1) / max(b, 1))) for a, b in zip(said, seen, strict=True))
    return round(total, 6)


def option_sites(entries: Sequence[Entry], network: Configuration, sites: Sequence[Site]) -> list[Site]:
    """Kernels that stand in place of a layer's own where it became something else.

    Args:
        entries: of a network that has options; its modules in place of layer `x` are called `x.NAME`.
        sites: of the dense network.
    """
    blocks, found = {site.layer: site.block for site in sites if site.side == "both"}, []
    for layer, text in network.options.items():
        option, setting = option_of(text)
        names = {f"{layer}.{name}" for name in option.parts(1, 1, setting)}
        for entry in entries:
            if entry.node in names and not entry.family.kind.startswith("reformat"):
                own = (entry.node, entry.family, entry.c_in, entry.c_out, layer, "part", blocks.get(layer, ""))
                found.append(Site(*own, entry.time, option.name))
    return found


def own_layer(node: str, network: FloatGraph, layers: Mapping[str, Layer]) -> str:
    """The layer whose kernel a node is; "" for a node without weights."""
    if not node or not network.nodes[node].weighted:
        return ""
    names = (base_name(node), network.nodes[node].module)
    return next((name for name in names if name in layers), "")


def base_name(node: str) -> str:
    """A module that is called twice makes nodes `x` and `x#2`."""
    return node.partition("#")[0]


def _candidates(
    entry: Entry, network: FloatGraph, home: Mapping[str, str], layers: Mapping[str, Layer]
) -> list[tuple[str, str]]:
    """Layers and sides ("out" or "in") whose channels a kernel may follow, the likeliest first."""
    if not entry.node:
        return []
    order = {name: index for index, name in enumerate(network.nodes)}
    if network.nodes[entry.node].weighted:  # a reformat in front of a layer
        candidates = [(entry.node, "in")]
    else:
        above = sorted(_nearest(entry.node, network, up=True), key=lambda name: -order[name])
        below = sorted(_nearest(entry.node, network, up=False), key=lambda name: order[name])
        candidates = [(name, "out") for name in above] + [(name, "in") for name in below]
    found = []
    for name, side in candidates:
        own = own_layer(name, network, layers)
        if own and home.get(name, "") == home.get(entry.node, "") and _channels(layers[own], side, {}):
            found.append((own, side))
    return found


def _nearest(start: str, network: FloatGraph, up: bool) -> set[str]:
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
        c_out = round(width(layer.outputs, widths) * of_outputs(site, layer))
        return (width(layer.inputs, widths) if site.family.paired else c_out), c_out
    return followed_channels(site, _channels(layer, site.side, widths), _channels(layer, site.side, {}))


def of_outputs(site: Site, layer: Layer) -> float:
    """A kernel's output channels over the layer's: less than 1 for a recurrent cell, whose layer counts every gate."""
    return site.c_out / width(layer.outputs, {}) if site.family.cls == "recurrent" else 1.0


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
