"""`set_seed`: repeatable draws."""

from __future__ import annotations

import random

import numpy as np
import torch


def set_seed(seed: int) -> None:
    """Seeds the random generators of Python, numpy and PyTorch, on every device.

    Raises:
        ValueError: if it is no whole number of at least 0 that fits in 32 bits.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 1 << 32:
        raise ValueError(f"seed is {seed!r}; it must be a whole number from 0 to {(1 << 32) - 1}.")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
