"""nn.MultiheadAttention with heads that need not fill the width of its input.

torch's class takes the heads' width from the width of its input, so that neither can be narrowed without the other.
Every plain one is traced as the subclass below, which takes it from `head_dim`; a pruned one becomes that subclass
where its heads no longer fill its width. Parameters, arguments and results are those of torch's class.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from edgeprune.graph.capture import shadow


class HeadAttention(nn.MultiheadAttention):
    """Attention of `num_heads` heads of `head_dim` each on an input of any width."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """See nn.MultiheadAttention.forward.

        Raises:
            RuntimeError: `is_causal`, which is only a hint on `attn_mask`, without it.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        q, k, v = self._project(query, key, value)
        bias = self._bias(key_padding_mask, attn_mask, q.dtype)
        weights = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            weights = (scores if bias is None else scores + bias).softmax(-1)
            weights = F.dropout(weights, self.dropout, self.training)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, bias, self.dropout if self.training else 0.0)
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        if query.dim() == 2:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return (y if self.batch_first else y.transpose(0, 1)), weights

    def _project(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Query, key and value as (batch, heads, length, head_dim)."""
        sizes = (self.num_heads, self.head_dim)
        if query is key and key is value and self.in_proj_weight is not None:
            both = F.linear(self._batch_first(query), self.in_proj_weight, self.in_proj_bias)
            return tuple(torch.unflatten(both, -1, (3, *sizes)).permute(2, 0, 3, 1, 4))
        separate = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = separate if self.in_proj_weight is None else self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return tuple(
            torch.unflatten(F.linear(self._batch_first(x), w, b), -1, sizes).transpose(1, 2)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )

    def _batch_first(self, x: torch.Tensor) -> torch.Tensor:
        if x.dim() == 2:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _bias(self, padding: torch.Tensor | None, mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
        """Both masks as one term to add to the scores: padding (batch, keys), mask ([batch x heads,] queries, keys)."""
        if mask is not None:
            mask = _additive(mask, dtype)
            mask = torch.unflatten(mask, 0, (-1, self.num_heads)) if mask.dim() == 3 else mask
        if padding is not None:
            padding = _additive(padding, dtype)[..., None, None, :]
        if mask is None or padding is None:
            return padding if mask is None else mask
        return mask + padding


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A boolean mask (true: not looked at) as zeros and minus infinity."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, float("-inf"))


def with_free_heads(model: nn.Module) -> nn.Module:
    """The model itself, or, where it has torch's attention, a shadow in which each is HeadAttention: with the operators
    of a pruned one, whichever heads are left."""
    if not any(type(module) is nn.MultiheadAttention for module in model.modules()):
        return model
    view = shadow(model)
    free_heads(view, every=True)
    return view


def free_heads(model: nn.Module, *, every: bool = False) -> bool:
    """Make HeadAttention, in place, of plain attention layers: where heads do not fill their width, or of `every` one.
    Tells whether there was one.

    Layers with additional keys (`add_bias_kv`, `add_zero_attn`) stay torch's: their heads cannot be narrowed.
    """
    found = False
    for module in model.modules():
        if type(module) is not nn.MultiheadAttention or module.bias_k is not None or module.add_zero_attn:
            continue
        if every or module.num_heads * module.head_dim != module.embed_dim:
            module.__class__ = HeadAttention
            found = True
            module._qkv_same_embed_dim = False  # torch's fused kernels for encoders pass by such layers
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(isinstance(m, HeadAttention) for m in module.modules()):
            module.use_nested_tensor = False
    return found
