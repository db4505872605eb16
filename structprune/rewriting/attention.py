"""Attention with inner widths of its own: an exact stand-in for torch.nn.MultiheadAttention.

Torch's module asserts that heads times head width is the embedding width, and divides by the square root of the head
width it finds. Here the number of heads, the width of a head in queries and keys, and its width in values are three
numbers that nothing ties to the embedding; the scale is a fourth, which keeps the value it was made with.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MultiheadAttention", "replace_attention"]


class MultiheadAttention(nn.Module):
    """Computes what ``attention`` computes, with the same parameters under the same names.

    ``num_heads``, ``head_dim`` (queries and keys) and ``value_dim`` may be cut apart from the embedding width, and
    ``scale`` stays. The parameters are those of ``attention``, not copies. It is called as torch's module is.

    >>> attention = nn.MultiheadAttention(8, 2, batch_first=True)
    >>> x = torch.randn(1, 3, 8)
    >>> torch.allclose(MultiheadAttention(attention)(x, x, x)[0], attention(x, x, x)[0], atol=1e-6)
    True
    """

    _qkv_same_embed_dim = False  # torch's encoder layer asks before it takes a kernel of its own

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads = attention.num_heads
        self.head_dim = attention.head_dim
        self.value_dim = attention.head_dim
        self.scale = 1 / math.sqrt(attention.head_dim)
        self.dropout = attention.dropout
        self.batch_first = attention.batch_first
        self.add_zero_attn = attention.add_zero_attn
        for name, parameter in attention._parameters.items():
            self.register_parameter(name, parameter)
        for name in ("bias_k", "bias_v"):
            if name not in self._parameters:
                self.register_parameter(name, None)
        self.out_proj = attention.out_proj
        self.train(attention.training)

    in_proj_weight: Tensor | None
    in_proj_bias: Tensor | None
    q_proj_weight: Tensor
    k_proj_weight: Tensor
    v_proj_weight: Tensor
    bias_k: Tensor | None
    bias_v: Tensor

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the attended values and, where asked for, the weights, in the shapes of torch's module."""
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is only a hint: pass the causal mask as attn_mask too")
        batched = query.dim() == 3
        if not batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = self._projected(query, key, value)
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = self._mask(None if causal else attn_mask, key_padding_mask, q, k)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            attended, weights = self._weighted(q, k, v, mask, dropout)
            weights = weights.mean(dim=1) if average_attn_weights else weights
        else:
            attended = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, scale=self.scale)
        out = self.out_proj(attended.transpose(1, 2).flatten(2))
        if not batched:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values as [batch, heads, length, width], with the added positions of keys."""
        inner, outer = self.num_heads * self.head_dim, self.num_heads * self.value_dim
        parts = [inner, inner, outer]
        weights: tuple[Tensor, ...] = self.q_proj_weight, self.k_proj_weight, self.v_proj_weight
        if self.in_proj_weight is not None:
            weights = torch.split(self.in_proj_weight, parts)
        biases: tuple[Tensor | None, ...] = (None, None, None)
        if self.in_proj_bias is not None:
            biases = torch.split(self.in_proj_bias, parts)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        if self.bias_k is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], -1, -1)], 1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], -1, -1)], 1)
        q, k = (x.view(x.shape[0], x.shape[1], self.num_heads, self.head_dim) for x in (q, k))
        v = v.view(v.shape[0], v.shape[1], self.num_heads, self.value_dim)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        return q, k, v

    def _mask(self, attn: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
        """Return the sum of both masks as numbers to add, [batch or 1, heads or 1, queries, keys]."""
        added = k.shape[2]
        if attn is not None:
            attn = _as_numbers(attn, q)
            attn = F.pad(attn, (0, added - attn.shape[-1]))
            if attn.dim() == 3:  # [batch x heads, queries, keys]
                attn = attn.view(-1, 1 if attn.shape[0] == 1 else self.num_heads, *attn.shape[1:])
        if padding is not None:
            padding = _as_numbers(padding, q)
            padding = F.pad(padding, (0, added - padding.shape[-1]))[:, None, None]
        if attn is None or padding is None:
            return padding if attn is None else attn
        return attn + padding

    def _weighted(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float
    ) -> tuple[Tensor, Tensor]:
        scores = (q * self.scale) @ k.transpose(-2, -1)
        weights = torch.softmax(scores if mask is None else scores + mask, -1)
        weights = F.dropout(weights, dropout, self.training)
        return weights @ v, weights

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, head_dim={self.head_dim}, value_dim={self.value_dim}"


def _as_numbers(mask: Tensor, like: Tensor) -> Tensor:
    """Return a mask of truth values as minus infinity where it hides and zero elsewhere."""
    if mask.is_floating_point():
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, -math.inf)


def replace_attention(model: nn.Module) -> nn.Module:
    """Return ``model`` with every torch.nn.MultiheadAttention in it, in place, replaced by its stand-in.

    Encoder and decoder layers of torch.nn work with it as they are. Subclasses, which may compute something else, are
    left alone.
    """
    made: dict[nn.Module, nn.Module] = {}
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if type(child) is nn.MultiheadAttention:
                module._modules[name] = made.setdefault(child, MultiheadAttention(child))
    return MultiheadAttention(model) if type(model) is nn.MultiheadAttention else model
