"""How long a forward will take, without running it."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable

import torch

from workbench.instrument.points import base_of
from workbench.model import LlamaForCausalLM, LlamaModel


def forward_seconds(model: LlamaForCausalLM | LlamaModel, rows: int, keys: int) -> float:
    """From the number of multiplications and the speed of one product, or of reading the weights once."""
    config = model.config
    weights = sum(p.numel() for p in base_of(model).layers.parameters())
    attention = 2 * rows * keys * config.num_attention_heads * config.d_head * config.num_hidden_layers
    flops_a_second, bytes_a_second = _speed(base_of(model).dtype, str(base_of(model).device))
    compute = (2 * rows * weights + 2 * attention) / flops_a_second
    return max(compute, weights * base_of(model).dtype.itemsize / bytes_a_second)


@functools.cache
def _speed(dtype: torch.dtype, device: str) -> tuple[float, float]:
    """Operations and bytes a second, of one small product and one sum."""
    if device == "meta":
        return math.nan, math.nan
    a, big = torch.ones(512, 512, dtype=dtype, device=device), torch.ones(1 << 22, device=device)
    return 2 * 512**3 / _seconds(lambda: a @ a), big.nbytes / _seconds(big.sum)


def _seconds(work: Callable[[], torch.Tensor]) -> float:
    work()
    began = time.perf_counter()
    for _ in range(3):
        work().view(-1)[0].item()  # waits for a GPU
    return (time.perf_counter() - began) / 3
