"""Block types against the `gguf` package, bit by bit."""

import gguf
import numpy as np
import pytest
import torch

from workbench.checkpoints.dequantize import BLOCK_TYPES, CHUNK_VALUES, dequantize
from workbench.checkpoints.gguf import SUPPORTED_TYPES

HALVES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q4_K": [0, 2], "Q6_K": [208]}  # where the float16 scales lie


def random_blocks(kind, count, rng):
    """Random bits everywhere, except that the scales are finite."""
    _, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = rng.integers(0, 256, (count, nbytes), dtype=np.uint8)
    for at in HALVES[kind]:
        blocks[:, at : at + 2] = rng.normal(0, 100, (count, 1)).astype(np.float16).view(np.uint8)
    return blocks


@pytest.mark.parametrize("kind", sorted(BLOCK_TYPES))
def test_bit_equal(kind, random_bytes):
    block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    count = CHUNK_VALUES // block + 37  # one whole chunk and a rest
    blocks = random_blocks(kind, count, random_bytes)
    expected = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    actual = dequantize(blocks.reshape(-1), kind, (count, block))
    assert actual.dtype == torch.float32
    assert np.array_equal(actual.numpy().view(np.uint32), expected.view(np.uint32))


def test_plain_types_are_used_in_place():
    raw = np.arange(16, dtype=np.uint8)
    for kind, dtype in (("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)):
        value = dequantize(raw, kind, (2, 8 // dtype.itemsize))
        assert value.dtype == dtype
        assert value.data_ptr() == raw.ctypes.data
        assert torch.equal(value, torch.from_numpy(raw).view(dtype).view(2, -1))


def test_every_supported_type_is_tested():
    assert {*BLOCK_TYPES, "F32", "F16", "BF16"} == set(SUPPORTED_TYPES)
    assert HALVES.keys() == BLOCK_TYPES.keys()
