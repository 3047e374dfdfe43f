"""Turns the blocks of a GGUF tensor into float32.

The block layouts are those of ggml's `ggml-quants.h`; the results are bit-equal to `gguf.quants.dequantize`, the
reference in Python, and about twenty times faster: whole chunks of blocks at a time, written straight into the result.
NumPy and one thread, on purpose: torch would meet its other threads after every small step, which costs ten times as
much as soon as another process keeps a core busy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float32]]

CHUNK_VALUES = 1 << 17  # 512 kB of float32: a chunk and its temporaries stay in the cache

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def dequantize(raw: Bytes, kind: str, shape: tuple[int, ...]) -> Tensor:
    """The values of one stored tensor.

    Args:
        raw: shape `(nbytes,)`: the tensor's bytes as they lie in the file.
        kind: the ggml type, one of `gguf.SUPPORTED_TYPES`.
        shape: shape of the result, in torch's order.

    Returns:
        Float32 of `shape` for block types. `F32`, `F16` and `BF16` keep their own type and share `raw`'s memory.
    """
    if kind in PLAIN:
        return torch.from_numpy(raw).view(PLAIN[kind]).reshape(shape)
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = raw.reshape(-1, block_bytes)
    out = np.empty((blocks.shape[0], block), dtype=np.float32)
    step = CHUNK_VALUES // block
    for start in range(0, blocks.shape[0], step):
        BLOCK_TYPES[kind](blocks[start : start + step], out[start : start + step])
    return torch.from_numpy(out).view(shape)


def four_bit_codes(raw: Bytes, kind: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
    """The codes and scales of a tensor that is stored in 4 bits, as `workbench.model.packing` has them: nothing is
    rounded again but the scales, to bfloat16.

    Args:
        raw, kind, shape: as of `dequantize`; two dimensions.

    Returns:
        Codes uint8 (row, col), and bfloat16 (group of 32 columns, row, 2) of scales and of the values of code 8; or
        `None` if the type is not `(code, scale, minimum)` of 4 bits.
    """
    if kind not in ("Q4_0", "Q4_1", "Q4_K"):
        return None
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    blocks = raw.reshape(-1, block_bytes)
    codes = np.empty((blocks.shape[0], block), dtype=np.uint8)
    if kind == "Q4_K":
        _nibbles(blocks[:, 16:].reshape(-1, 4, 32), codes.reshape(-1, 4, 64))
        scales, minima = _q4_k_scales(blocks)
        zeros = 8 * scales - minima
    else:
        _nibbles(blocks[:, -16:], codes)
        scales = _half(blocks, 0)
        zeros = 8 * scales + _half(blocks, 2) if kind == "Q4_1" else np.zeros_like(scales)
    groups = torch.from_numpy(np.stack((scales.ravel(), zeros.ravel()), -1)).view(shape[0], -1, 2)
    return torch.from_numpy(codes).view(shape), groups.bfloat16().transpose(0, 1).contiguous()


def _half(blocks: Bytes, at: int) -> Floats:
    """The float16 at byte `at` of each block, as float32 of shape (blocks, 1)."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes, out: Floats | Bytes) -> None:
    """Low halves of the bytes into the first half of `out`'s last axis, high halves into the second."""
    half = packed.shape[-1]
    out[..., :half] = packed & 15
    out[..., half:] = packed >> 4


def _q8_0(blocks: Bytes, out: Floats) -> None:
    out[:] = blocks[:, 2:].view(np.int8)
    out *= _half(blocks, 0)


def _q4_0(blocks: Bytes, out: Floats) -> None:
    _nibbles(blocks[:, 2:], out)
    out -= 8
    out *= _half(blocks, 0)


def _q4_1(blocks: Bytes, out: Floats) -> None:
    _nibbles(blocks[:, 4:], out)
    out *= _half(blocks, 0)
    out += _half(blocks, 2)


def _q4_k(blocks: Bytes, out: Floats) -> None:
    """256 values: 8 groups of 32, each with a 6-bit scale and a 6-bit minimum, packed into 12 bytes."""
    scales, minima = _q4_k_scales(blocks)
    groups = out.reshape(-1, 8, 32)
    _nibbles(blocks[:, 16:].reshape(-1, 4, 32), out.reshape(-1, 4, 64))
    groups *= scales[..., None]
    groups -= minima[..., None]


def _q4_k_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    """The scale and what is subtracted, of each group: two of shape (blocks, 8)."""
    low, high, mixed = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low & 0x3F, (mixed & 0x0F) | ((low >> 2) & 0x30)], axis=-1)
    minima = np.concatenate([high & 0x3F, (mixed >> 4) | ((high >> 2) & 0x30)], axis=-1)
    return _half(blocks, 0) * scales, _half(blocks, 2) * minima


def _q6_k(blocks: Bytes, out: Floats) -> None:
    """256 values: 4 low bits in 128 bytes, 2 high bits in 64, one int8 scale for each 16 values."""
    halves = out.reshape(-1, 2, 4, 32)
    _nibbles(blocks[:, :128].reshape(-1, 2, 64), out.reshape(-1, 2, 128))
    top = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 1, 4, 1)
    halves += ((top >> shifts) & 3) << 4
    halves -= 32
    groups = out.reshape(-1, 16, 16)
    groups *= (_half(blocks, 208) * blocks[:, 192:208].view(np.int8))[..., None]


BLOCK_TYPES: dict[str, Callable[[Bytes, Floats], None]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q4_K": _q4_k,
    "Q6_K": _q6_k,
}
