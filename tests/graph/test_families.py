"""Each family of operators: something is pruned, the proof holds, the pruned module trains and saves."""

from __future__ import annotations

from collections.abc import Callable

import graph_nets as nets
import pytest
import torch
from torch.utils._pytree import tree_leaves

import edgeprune
from edgeprune.errors import PlanError

# groups (name, units, channels a unit takes in its producers) of each case; what is not here is frozen
EXPECTED = {
    "grouped_convolution": {"a": 6},
    "depthwise_and_multiplier": {"a": 8},
    "transposed_convolution": {"a": 8, "u": 12},
    "one_and_three_dimensions": {"a": 8, "v": 6},
    "squeeze_excite": {"a": 16, "r": 4},
    "concat_and_shared": {"a": 6, "b": 10},
    "chunk_and_shuffle": {"a": 6},
    "split_by_sizes": {"a": 8, "a#2": 12},
    "pixel_shuffles": {"a": 4, "b": 6},
    "norms": {"a": 4, "b": 8},
    "flatten_to_linear": {"a": 7, "f": 20},
    "attention_fused": {"embed": 12, "attn.qkv": 4, "fc1": 24},
    "attention_separate": {"embed": 12, "attn.q": 4, "fc1": 24},
    "width_from_the_input": {"embed": 3},
    "einsum_heads": {"q": 3},
    "grouped_query": {"q": 3},
    "window_partition": {"a": 8, "b": 10},
    "im2col_mixer": {"a": 8},
    "lstm": {"e": 6, "r": 10},
    "gru_both_ways": {"r": 8},
    "weight_norm": {"a": 8, "b": 6},
    "no_grad_part": {"a": 8},
    "tied_weights": {},
    "hidden_branch": {"a": 8, "b": 8},
    "queries_share_keys": {"q": 3},
    "torch_attention": {"e": 12, "t.self_attn": 3, "t.linear1": 16, "w": 4},
    "torch_cross_attention": {"e": 12, "k": 8, "c": 3, "c.out_proj": 12},
    "torch_shuffle": {"a": 4},
    "mixed_over_tokens": {"e": 12},
    "size_held_by_another_module": {"q": 2},
    "values_that_agree_by_accident": {"embed": 3},
    "numbers_that_agree_by_accident": {"a": 9},
    "widths_that_are_checked": {"a": 8, "p.1": 10},
    "whole_transformer": {
        "e": 12, "t.encoder.layers.0.self_attn": 4, "t.encoder.layers.0.linear1": 16,
        "t.decoder.layers.0.self_attn": 4, "t.decoder.layers.0.multihead_attn": 4, "t.decoder.layers.0.linear1": 16,
    },
    "one_attribute_for_two_axes": {"a": 6, "a#2": 14, "b.0.mix": 4},
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("make", nets.ALL, ids=lambda f: f.__name__)
def test_family(make: Callable[[], nets.Case]) -> None:
    torch.manual_seed(0)
    model, x = make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    structure = edgeprune.trace(model, x)
    assert {g.name: g.size for g in structure.groups} == EXPECTED[make.__name__], structure.describe()
    if not structure.groups:
        with pytest.raises(PlanError, match="Nothing of this network"):
            structure.uniform(0.3)
    for plan in (
        structure.uniform(0.3 if structure.groups else 0.0),
        structure.plan({g.name: range(1, g.size, 2) for g in structure.groups}),
    ):
        proof = structure.prove(model, plan)
        assert proof.passed, proof.detail
        pruned = plan.apply(model).train()
        out = [t for t in tree_leaves(pruned(*x) if isinstance(x, tuple) else pruned(x)) if isinstance(t, torch.Tensor)]
        sum(t.float().square().mean() for t in out).backward()
        assert any(p.grad is not None for p in pruned.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    if structure.groups:
        assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())


def test_units_and_members_have_the_promised_shape() -> None:
    model, x = nets.attention_fused()
    structure = edgeprune.trace(model, x)
    heads = structure.group("attn.qkv")
    widths = {(m.parameter, m.axis): m.indices.shape for m in heads.members}
    assert widths[("attn.qkv.weight", 0)] == (4, 15)
    assert widths[("attn.out.weight", 1)] == (4, 5)
    assert heads.producers == ("attn.qkv",)
    assert heads.consumers == ("attn.out",)
    qkv = next(la for la in structure.layers if la.name == "attn.qkv")
    assert qkv.macs == 7 * 12 * 60
    assert heads.unit == "head" and structure.group("embed").unit == "channel"
    assert [(s.group, s.size, s.per_unit) for s in qkv.outputs] == [("attn.qkv", 60, 15)]
    assert qkv.macs_at({"attn.qkv": 2, "embed": 6}) == 7 * 6 * 30


class Between(torch.nn.Module):
    """Something between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = torch.nn.Conv2d(3, 8, 1), torch.nn.Conv2d(8, 2, 1)


def test_an_unknown_operator_freezes_with_its_name_and_line() -> None:
    class Fourier(Between):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.o(torch.fft.fft(self.a(x), dim=1).real)

    structure = edgeprune.trace(Fourier(), torch.randn(1, 3, 4, 4))
    assert structure.groups == ()
    frozen = next(f for f in structure.frozen if "a" in f.layers)
    assert frozen.operator == "fft_fft"
    assert "test_families.py" in frozen.source


def test_a_count_in_the_code_freezes_with_its_line() -> None:
    class Counted(Between):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.o(self.a(x).view(2, 8, 2, 8))

    structure = edgeprune.trace(Counted(), torch.randn(2, 3, 4, 4))
    assert structure.groups == ()
    assert any("a" in f.layers and "test_families.py" in f.source for f in structure.frozen)


@pytest.mark.long
def test_opaque_goes_round_what_depends_on_data() -> None:
    class Picky(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.mean() > 1000 else x

    layers = {"a": torch.nn.Conv2d(3, 8, 1), "b": torch.nn.Conv2d(8, 4, 1), "picky": Picky()}
    layers["o"] = torch.nn.Conv2d(4, 2, 1)
    model = nets.Call(lambda m, x: m.o(m.picky(m.b(m.a(x)))), **layers)
    x = torch.randn(1, 3, 4, 4)
    with pytest.raises(edgeprune.EdgepruneError, match=r"depends on data at .*test_families.py") as caught:
        edgeprune.trace(model, x)
    assert "opaque=['picky']" in str(caught.value)
    structure = edgeprune.trace(model, x, opaque=["picky"])
    assert [g.name for g in structure.groups] == ["a"]
    assert structure.prove(model, structure.uniform(0.5)).passed
