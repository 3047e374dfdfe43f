"""Weights in 4 or 8 bits: how floats are rounded to codes, and torch's packed matrix products for the CPU.

4 bits: `weight = (code − 8) · scale + zero`, code in 0 … 15, with one scale and zero for each group of neighbouring
columns of a row (`aten::_weight_int4pack_mm_for_cpu`, in PyTorch's aten/src/ATen/native/cpu/int4mm_kernel.cpp). 8 bits:
`weight = code · scale`, code in −127 … 127, with one scale a row (`aten::_weight_int8pack_mm`, int8mm_kernel.cpp).
Scales and zeros are bfloat16, because only the kernels' bfloat16 forms are fast, and they are rounded *before* the
codes are chosen, so that their rounding costs little.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import BFloat16, Float, Int8, UInt8
from torch import Tensor

GROUP_SIZES = (32, 64, 128, 256)  # what the 4-bit kernel takes
INT4_ROWS = 16  # its rows (outputs) come in multiples of this
# The 8-bit kernel reads so many bytes at once, past the end of rows of another width and with instructions that stop
# the process where they do not begin at a multiple of it; of the input it reads up to ALIGNMENT bytes so.
INT8_COLUMNS = 16
ALIGNMENT = 64
BLOCK = (
    64  # rows that lie together in packed memory, whatever instructions the CPU has, if there are a multiple of them
)
# From so many rows of input on it is faster to make floats of the weights first.
INT4_ROWS_TO_UNPACK = 96
INT8_ROWS_TO_UNPACK = 32
CHUNK = 1 << 24  # weights made into floats at once: 32 MiB of bfloat16
ROUNDED = 1 << 16  # weights rounded at once: they and what is made of them stay in the CPU's cache
SHARES = (1.0, 0.9, 0.8, 0.7)  # of a group's range: where the search for its scale begins
FITS = 4  # how often codes and scale are fitted to each other


def round_to_int4(
    weight: Float[Tensor, "row col"], group_size: int
) -> tuple[UInt8[Tensor, "row col"], BFloat16[Tensor, "group row 2"]]:
    """Codes, and (scale, zero) of each group, of small squared error.

    From each of several ranges within min … max, codes are rounded to the scale and the scale fitted to the codes by
    least squares, in turn; the best end is taken.

    Args:
        weight: columns a multiple of `group_size`.
        group_size: neighbouring columns that share a scale and a zero.
    """
    parts = [_best_codes(part, group_size) for part in split_rows(weight.detach(), weight.shape[1], ROUNDED)]
    codes, scales = zip(*parts, strict=True)
    return torch.cat(codes), torch.cat(scales).transpose(0, 1).contiguous()


def _best_codes(weight: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Codes, and (scale, zero) as bfloat16 of shape (row, group, 2)."""
    groups = weight.float().reshape(len(weight), -1, group_size)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    mean = groups.mean(-1, keepdim=True)
    error, codes, scale, zero = torch.full_like(low, torch.inf), groups, low, low
    for share in SHARES:
        width = (high - low) * (share / 15)
        found = _fitted(groups, mean, width, (low + high + width) / 2)  # the middle lies between codes 7 and 8
        its_error = (found[0] * found[1] + found[2] - groups).square_().sum(-1, keepdim=True)
        better = its_error < error
        error = torch.where(better, its_error, error)
        codes, scale, zero = (torch.where(better, a, b) for a, b in zip(found, (codes, scale, zero), strict=True))
    return (codes + 8).to(torch.uint8).flatten(1), torch.cat((scale, zero), -1).bfloat16()


def _fitted(groups: Tensor, mean: Tensor, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes −8 … 7, scale and zero, after `FITS` least-squares fits of the last two to the first."""
    scale, zero = scale.bfloat16().float(), zero.bfloat16().float()
    codes = _nearest(groups, scale, zero)
    for _ in range(FITS):
        middle = codes.mean(-1, keepdim=True)
        centred = codes - middle
        spread = centred.square().sum(-1, keepdim=True)
        scale = torch.where(spread > 0, (centred * groups).sum(-1, keepdim=True) / spread, scale).bfloat16().float()
        zero = (mean - scale * middle).bfloat16().float()
        codes = _nearest(groups, scale, zero)
    return codes, scale, zero


def _nearest(groups: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return torch.where(scale > 0, (groups - zero) / scale, 0.0).round_().clamp_(-8, 7)


def round_to_int8(
    weight: Float[Tensor, "row col"],
) -> tuple[Int8[Tensor, "row col"], BFloat16[Tensor, " row"]]:
    """Codes and the scale of each row: its largest magnitude is code ±127."""
    weight = weight.detach()
    # The nearest bfloat16 is at most 1/512 too small: the largest magnitude becomes 127.25 steps, never 128.
    scales = (weight.abs().amax(1).float() / 127).bfloat16()
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for part, out, scale in zip(*(split_rows(t, weight.shape[1]) for t in (weight, codes, scales)), strict=True):
        divisor = torch.where(scale > 0, scale.float(), 1.0)[:, None]
        out.copy_((part.float() / divisor).round_())
    return codes, scales


def pack_int4(codes: UInt8[Tensor, "row col"]) -> UInt8[Tensor, "row half"]:
    """Codes in the order in memory that this CPU's kernel reads: two a byte, another order on another CPU.

    Rows have to be a multiple of `INT4_ROWS`, and columns one of the smallest group.
    """
    if codes.is_meta:
        return codes.new_empty((codes.shape[0], codes.shape[1] // 2))
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    return packed


def unpack_int4(packed: UInt8[Tensor, "row half"]) -> UInt8[Tensor, "row col"]:
    """The codes again, whatever the order in memory is."""
    rows, columns = packed.shape[0], packed.shape[1] * 2
    if packed.is_meta:
        return packed.new_empty((rows, columns))
    as_codes = packed.new_tensor([1.0, 8.0], dtype=torch.bfloat16).expand(columns // 32, rows, 2).contiguous()
    return int4_weight(packed, as_codes).t().to(torch.uint8)


def two_a_byte(codes: UInt8[Tensor, "row col"]) -> UInt8[Tensor, "row half"]:
    """Codes as they are stored in files: the even column in a byte's low half, the odd one in its high half."""
    return codes[:, ::2] | codes[:, 1::2] << 4


def one_a_byte(halves: UInt8[Tensor, "row half"]) -> UInt8[Tensor, "row col"]:
    """The inverse of `two_a_byte`."""
    return torch.stack((halves & 15, halves >> 4), -1).flatten(1)


def int4_linear(
    x: Float[Tensor, "row d_in"], packed: UInt8[Tensor, "d_out half"], scales: BFloat16[Tensor, "group d_out 2"]
) -> Float[Tensor, "row d_out"]:
    """`x @ weight.T` in the dtype of `x`, computed from bfloat16 inputs."""
    inputs = x.bfloat16()
    if x.shape[0] >= INT4_ROWS_TO_UNPACK:
        return (inputs @ int4_weight(packed, scales)).to(x.dtype)
    return _int4_kernel(inputs.contiguous(), packed, scales).to(x.dtype)


def int8_linear(
    x: Float[Tensor, "row d_in"], codes: Int8[Tensor, "d_out d_in"], scales: BFloat16[Tensor, " d_out"]
) -> Float[Tensor, "row d_out"]:
    """`x @ weight.T` in the dtype of `x`, computed from bfloat16 inputs."""
    inputs = x.bfloat16()
    usable = codes.shape[1] % INT8_COLUMNS == 0 and codes.data_ptr() % INT8_COLUMNS == 0
    if usable and x.shape[0] < INT8_ROWS_TO_UNPACK:
        out: Tensor = torch.ops.aten._weight_int8pack_mm(aligned(inputs.contiguous()), codes, scales)
        return out.to(x.dtype)
    # Every code is a bfloat16 too. Scaling in the dtype of the result saves float32 a second rounding.
    parts = [F.linear(inputs, part.bfloat16()).to(x.dtype) for part in split_rows(codes, codes.shape[1])]
    return (torch.cat(parts, 1) if len(parts) > 1 else parts[0]).mul_(scales)


def int4_weight(
    packed: UInt8[Tensor, "d_out half"], scales: BFloat16[Tensor, "group d_out 2"]
) -> BFloat16[Tensor, "d_in d_out"]:
    """The transposed weight in floats: the kernel's product with the unit matrix.

    Memory holds block after block of rows, in a block column after column. So each group of columns of a block is
    itself packed like a matrix of that many columns, and one product with a *small* unit matrix unpacks all of them.
    """
    rows, columns, groups = packed.shape[0], packed.shape[1] * 2, scales.shape[0]
    block = rows_together()
    if rows % block:
        return _int4_kernel(_unit(columns), packed, scales)
    size, blocks = columns // groups, rows // block
    apart = scales.view(groups, blocks, block, 2).transpose(0, 1).reshape(1, -1, 2)
    unpacked = _int4_kernel(_unit(size), packed.view(-1, size // 2), apart)  # (size, blocks · groups · block)
    return unpacked.view(size, blocks, groups, block).permute(2, 0, 1, 3).reshape(columns, rows)


def int8_weight(
    codes: Int8[Tensor, "row col"], scales: BFloat16[Tensor, " row"], dtype: torch.dtype
) -> Float[Tensor, "row col"]:
    """The weight in floats."""
    return codes.to(dtype) * scales[:, None].to(dtype)


def aligned(value: Tensor) -> Tensor:
    """The tensor, or a copy of it that begins where the 8-bit kernel can read it."""
    return value if value.data_ptr() % ALIGNMENT == 0 else value.clone()


def split_rows(value: Tensor, width: int, size: int = CHUNK) -> Iterator[Tensor]:
    """A matrix, or what belongs to its rows, in parts of at most `size` of its weights."""
    return iter(torch.split(value, max(1, size // width)))


def _int4_kernel(x: Tensor, packed: Tensor, scales: Tensor) -> Tensor:
    columns, groups = packed.shape[1] * 2, scales.shape[0]
    out: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, columns // groups, scales)
    return out


@functools.cache
def rows_together() -> int:
    """Rows in a block of packed memory; it depends on the CPU's instructions: 64 with AVX-512, otherwise 32."""
    codes = torch.zeros(64, 32, dtype=torch.uint8)
    codes[:, 1] = 15  # the second column of the first block begins where the first one ends
    return 2 * int(pack_int4(codes).flatten().nonzero()[0])


@functools.lru_cache(maxsize=8)
def _unit(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.bfloat16)
