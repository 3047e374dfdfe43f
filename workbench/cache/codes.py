"""Blocks of keys and values in 8, 4 or 2 bits: how numbers become codes, and codes numbers.

A block is `group` tokens. As in KIVI (arXiv 2402.02750), every channel of the keys has a scale and a zero in each
block, because a few channels are far larger than the others at all tokens; every token of the values has one for each
`group` channels. A number is `code * scale + zero`, with scale and zero from the least and the largest number of the
group, in float16: as good as float32, at fewer bytes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

BITS = (8, 4, 2)
LARGEST = torch.finfo(torch.float16).max


class Codes(NamedTuple):
    """Blocks of keys or of values; the last axis holds what belongs to a block, flat.

    Several codes share a byte: with 4 bits, token i of a block is in the low half and token i + group / 2 in the high
    half of one, so that what is unpacked together lies together.
    """

    packed: UInt8[Tensor, "batch kv_head block byte"]
    scale: Float[Tensor, "batch kv_head block number"]
    zero: Float[Tensor, "batch kv_head block number"]


def quantize_keys(k: Float[Tensor, "batch kv_head pos d_head"], bits: int, group: int) -> Codes:
    """Codes of keys, with a scale a channel; `pos` is a multiple of `group`."""
    return _quantize(split(k.float(), 2, -1, group), 3, bits)


def quantize_values(v: Float[Tensor, "batch kv_head pos d_head"], bits: int, group: int) -> Codes:
    """Codes of values, with a scale a token for each `group` channels; `pos` is a multiple of `group`."""
    return _quantize(split(split(v.float(), 2, -1, group), 4, -1, group), 5, bits)


def read_keys(codes: Codes, bits: int, group: int, out: Float[Tensor, "batch kv_head pos d_head"]) -> None:
    """Writes the keys that codes stand for into `out`."""
    x = _unpacked(codes, bits, group, out)
    scale, zero = (t.unsqueeze(3).float() for t in codes[1:])  # the same for all tokens of a block
    torch.addcmul(zero, x, scale, out=x)
    _deliver(x, out)


def read_values(codes: Codes, bits: int, group: int, out: Float[Tensor, "batch kv_head pos d_head"]) -> None:
    """Writes the values that codes stand for into `out`."""
    x = _unpacked(codes, bits, group, out)
    groups = split(x, 4, -1, group)
    scale, zero = (t.view(groups.shape[:5]).unsqueeze(5).float() for t in codes[1:])
    groups.mul_(scale).add_(zero)  # broadcast along the last axis, twice as fast as one addcmul
    _deliver(x, out)


def split(x: Tensor, axis: int, *sizes: int) -> Tensor:
    """A view in which an axis is several, of these sizes."""
    return x.view(*x.shape[:axis], *sizes, *x.shape[axis + 1 :])


def _quantize(x: Tensor, axis: int, bits: int) -> Codes:
    """Codes of groups that lie along `axis` of (batch, kv_head, block, token, …)."""
    low, high = torch.aminmax(x, dim=axis, keepdim=True)
    most = 2**bits - 1
    # Rounded first, so that codes make up for the rounding.
    scale = ((high - low) / most).clamp_(max=LARGEST).half()
    zero = low.clamp(-LARGEST, LARGEST).half()
    step = scale.float().masked_fill_(scale == 0, 1.0)
    codes = ((x - zero.float()) / step).round_().clamp_(0, most).to(torch.uint8)
    packed = _packed(codes.flatten(4), bits)
    return Codes(packed.flatten(3), scale.flatten(3), zero.flatten(3))


def _packed(codes: UInt8[Tensor, "batch kv_head block token d_head"], bits: int) -> Tensor:
    parts = split(codes, 3, 8 // bits, -1).unbind(3)
    packed = parts[0].clone()
    for i, part in enumerate(parts[1:], 1):
        packed |= part << (i * bits)
    return packed


def _unpacked(codes: Codes, bits: int, group: int, out: Tensor) -> Float[Tensor, "batch kv_head block token d_head"]:
    """Codes as float32 numbers: in `out` itself if it holds such, otherwise in a tensor to be delivered there."""
    share, width = 8 // bits, out.shape[3]
    packed = split(codes.packed, 3, group // share, width)
    x = out if out.dtype == torch.float32 else torch.empty_like(out, dtype=torch.float32)
    parts = split(split(x, 2, -1, group), 3, share, -1)
    for i in range(share):
        part = packed >> (i * bits) if i else packed
        parts[:, :, :, i] = part & (2**bits - 1) if i < share - 1 else part  # shifting leaves nothing above the last
    return split(x, 2, -1, group)


def _deliver(x: Tensor, out: Tensor) -> None:
    if out.dtype != torch.float32:
        out.copy_(x.flatten(2, 3))
