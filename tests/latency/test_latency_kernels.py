from __future__ import annotations

import pytest
from latency_net import Prepared

from edgeprune import quantize, runtimes
from edgeprune.devices.types import KernelTime
from edgeprune.graph import width
from edgeprune.latency.kernels import Entry, Names, entries, precisions, read_network
from edgeprune.latency.sites import alive, channels, find_sites


def kernel(name: str, kind: str, ms: float = 1.0, layers: tuple[str, ...] = ()) -> KernelTime:
    return KernelTime(name, kind, layers, ms, 0.01, 10)


def joined(prepared: Prepared, kernels: list[KernelTime]) -> dict[str, Entry]:
    graph = quantize.apply(prepared.dense, quantize.dummy_ranges(prepared.dense), runtimes.DIALECTS["ort-x86"])
    found = entries(kernels, read_network(prepared.dense), precisions(graph), "onnxruntime 1", 1)
    return {entry.kernel: entry for entry in found}


@pytest.mark.parametrize(
    ("reported", "node"),
    [
        ("first.conv1", "first.conv1"),
        ("first.conv1_token_4", "first.conv1"),
        ("first.conv1/WithoutBiases", "first.conv1"),
        ("first.conv1_nhwc", "first.conv1"),
        ("first/add_kernel_time", "first/add"),
        ("nothing of the kind", ""),
    ],
)
def test_a_runtimes_names_lead_back_to_nodes(prepared: Prepared, reported: str, node: str) -> None:
    assert Names(read_network(prepared.dense)).node(reported) == node


def test_keys_hold_shapes_precision_and_what_is_fused_and_name_no_layer(prepared: Prepared) -> None:
    found = joined(prepared, [kernel("first.conv1", "QLinearConv"), kernel("first.conv2", "QLinearConv")])
    family = found["first.conv1"].family
    assert (found["first.conv1"].c_in, found["first.conv1"].c_out) == (32, 48)
    assert (family.kind, family.size, family.kernel, family.stride) == ("conv", (16, 16), (3, 3), (1, 1))
    assert (family.precision, family.activation, family.residual) == ("u8.s8.u8", "Relu", False)
    assert found["first.conv2"].family.residual and found["first.conv2"].family.activation == "Relu"
    assert "first" not in repr(family)


def test_a_sum_with_a_kernel_of_its_own_is_not_called_fused(prepared: Prepared) -> None:
    found = joined(prepared, [kernel("first.conv2", "QLinearConv"), kernel("first/add", "QLinearAdd")])
    assert not found["first.conv2"].family.residual
    assert found["first/add"].family.kind == "add" and found["first/add"].c_out == 32


def test_depthwise_linear_and_reformats_are_kinds_of_their_own(prepared: Prepared) -> None:
    found = joined(
        prepared,
        [
            kernel("depthwise", "QLinearConv"),
            kernel("point", "QLinearConv"),
            kernel("head", "QGemm"),
            kernel("input_QuantizeLinear_abcd_acdb_stem", "Reorder"),
            kernel("mystery", "Blob"),
        ],
    )
    kinds = {name: (entry.family.kind, entry.family.cls) for name, entry in found.items()}
    assert kinds["depthwise"] == ("depthwise", "depthwise")
    assert kinds["point"] == ("conv", "pointwise")
    assert kinds["head"] == ("linear", "linear")
    assert kinds["mystery"] == ("unplaced blob", "other")
    assert found["input_QuantizeLinear_abcd_acdb_stem"].family.kind.startswith("reformat")


def test_two_kernels_of_one_layer_are_one_entry(prepared: Prepared) -> None:
    found = joined(prepared, [kernel("head_a", "X", 1.0, ("head",)), kernel("head_b", "X", 2.0, ("head",))])
    assert [entry.time for entry in found.values()] == [3.0]


def test_float_nodes_are_f32(prepared: Prepared) -> None:
    assert set(precisions(prepared.dense).values()) == {"f32"}


def test_every_kernel_follows_a_layer_that_lives_as_long_as_it_does(prepared: Prepared) -> None:
    network = read_network(prepared.dense)
    found = entries([kernel(name, node.op) for name, node in network.nodes.items()], network, {}, "r 1", 1)
    sites = {site.node: site for site in find_sites(found, network, prepared.structure)}
    assert (sites["first/add"].layer, sites["first/add"].side, sites["first/add"].block) == (
        "first.conv2",
        "out",
        "first",
    )
    pool = next(site for name, site in sites.items() if site.family.kind == "globalaveragepool")
    assert (pool.layer, pool.side, pool.block) == ("point", "out", "")
    left = {site.node for site in alive(sites.values(), ("first",))}
    assert not any(name.startswith(("first.", "first/")) for name in left) and "second.conv1" in left
    layers = {layer.name: layer for layer in prepared.structure.layers}
    widths = {group.name: group.size // 2 for group in prepared.structure.groups}
    for site in sites.values():
        assert channels(site, layers, {}) == (site.c_in, site.c_out)
        if site.side == "both" and site.family.paired:
            layer = layers[site.layer]
            assert channels(site, layers, widths) == (width(layer.inputs, widths), width(layer.outputs, widths))
