"""Scaled dot-product attention with grouped key/value heads, as free functions.

Shapes: queries (batch, q_head, q, d_head); keys and values (batch, kv_head, k, d_head). Query head h reads key/value
head `h // n_rep`; keys and values are never expanded to the number of query heads.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from workbench.model.mask import Mask

IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention")


def check_implementation(name: str) -> None:
    """Raises `ValueError` for an attention implementation that does not exist here."""
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"attn_implementation is {name!r}; allowed are {', '.join(IMPLEMENTATIONS)}.")


def attention_scores(
    q: Float[Tensor, "batch q_head q d_head"], k: Float[Tensor, "batch kv_head k d_head"], mask: Mask, scale: float
) -> Float[Tensor, "batch q_head q k"]:
    """`q·k * scale`, −inf where the mask forbids: what goes into the softmax."""
    scores = dot_products(q, k, scale)
    if mask.allows_all:
        return scores
    dense = mask.dense(q.dtype, q.device)
    return scores.masked_fill(~dense, -torch.inf) if dense.dtype == torch.bool else scores + dense


def dot_products(
    q: Float[Tensor, "batch q_head q d_head"], k: Float[Tensor, "batch kv_head k d_head"], scale: float
) -> Float[Tensor, "batch q_head q k"]:
    """`q·k * scale` of every pair."""
    batch, heads, length, width = q.shape
    grouped = q.reshape(batch, k.shape[1], -1, width)  # (batch, kv_head, n_rep * q, d_head)
    return (grouped @ k.transpose(2, 3)).view(batch, heads, length, -1) * scale


def attention_pattern(scores: Float[Tensor, "batch q_head q k"]) -> Float[Tensor, "batch q_head q k"]:
    """Softmax over keys, in float32 at least; a query that may attend to nothing gets zeros, not NaN."""
    dtype = torch.promote_types(scores.dtype, torch.float32)
    nothing = (scores == -torch.inf).all(-1, keepdim=True)
    if nothing.any():  # filled before the softmax too: the gradient of its NaN would be NaN
        pattern = F.softmax(scores.masked_fill(nothing, 0.0), dim=-1, dtype=dtype).masked_fill(nothing, 0.0)
    else:
        pattern = F.softmax(scores, dim=-1, dtype=dtype)
    return pattern.to(scores.dtype)


def mix_values(
    pattern: Float[Tensor, "batch q_head q k"], v: Float[Tensor, "batch kv_head k d_head"]
) -> Float[Tensor, "batch q_head q d_head"]:
    """`pattern @ v`, each query head with its own key/value head."""
    batch, heads, length, keys = pattern.shape
    grouped = pattern.reshape(batch, v.shape[1], -1, keys)
    return (grouped @ v).view(batch, heads, length, v.shape[3])


def sdpa_attention(
    q: Float[Tensor, "batch q_head q d_head"],
    k: Float[Tensor, "batch kv_head k d_head"],
    v: Float[Tensor, "batch kv_head k d_head"],
    mask: Mask,
    scale: float,
    dropout: float = 0.0,
) -> Float[Tensor, "batch q_head q d_head"]:
    """PyTorch's fused kernel: the same numbers without the pattern; zeros where a query may attend to nothing."""
    if mask.is_causal:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=True)
    dense = None if mask.allows_all else mask.dense(q.dtype, q.device)
    if q.shape[2] == 1 and (dense is None or dense.shape[1] == 1):
        # One query: the heads of a group become rows of one attention over the shared keys.
        batch, heads, _, width = q.shape
        rows = q.reshape(batch, k.shape[1], -1, width)
        out = F.scaled_dot_product_attention(rows, k, v, attn_mask=dense, dropout_p=dropout, scale=scale)
        return out.reshape(batch, heads, 1, width)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=dense, dropout_p=dropout, scale=scale, enable_gqa=True)


def flex_attention(
    q: Float[Tensor, "batch q_head q d_head"],
    k: Float[Tensor, "batch kv_head k d_head"],
    v: Float[Tensor, "batch kv_head k d_head"],
    mask: Mask,
    scale: float,
) -> Float[Tensor, "batch q_head q d_head"]:
    """PyTorch's FlexAttention (https://pytorch.org/blog/flexattention): compiled on CUDA, which skips masked blocks; on
    the CPU its uncompiled reference, which is exact and slow.
    """
    from torch.nn.attention import flex_attention as flex  # importing it takes a while and is needed here only

    batch, _, length, _ = q.shape
    blocks = flex.create_block_mask(mask.mask_mod(q.device), batch, None, length, k.shape[2], device=q.device)
    bias = None if mask.extra is None else mask.extra.to(q.device, q.dtype)

    def add_bias(score: Tensor, row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert bias is not None
        return score + bias[row.clamp(max=bias.shape[0] - 1), head.clamp(max=bias.shape[1] - 1), query, key]

    kernel: Any = _compiled_flex() if q.is_cuda else flex.flex_attention
    score_mod = None if bias is None else add_bias
    out: Tensor = kernel(q, k, v, score_mod=score_mod, block_mask=blocks, scale=scale, enable_gqa=True)
    return out


@functools.cache
def _compiled_flex() -> Any:
    from torch.nn.attention import flex_attention as flex

    return torch.compile(flex.flex_attention, dynamic=False)


def fused_attention(
    implementation: str,
    q: Float[Tensor, "batch q_head q d_head"],
    k: Float[Tensor, "batch kv_head k d_head"],
    v: Float[Tensor, "batch kv_head k d_head"],
    mask: Mask,
    scale: float,
    dropout: float = 0.0,
) -> Float[Tensor, "batch q_head q d_head"]:
    """Attention by a kernel that makes no pattern.

    FlexAttention has no dropout, no gradients on the CPU, and one query needs no blocks: these go to SDPA, which gives
    the same numbers.
    """
    if implementation == "flex_attention" and not dropout and q.shape[2] > 1:
        differentiated = q.requires_grad or k.requires_grad or v.requires_grad
        if q.is_cuda or not differentiated:
            return flex_attention(q, k, v, mask, scale)
    return sdpa_attention(q, k, v, mask, scale, dropout)
