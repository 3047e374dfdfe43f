"""A cache of the last positions only."""

from __future__ import annotations

from typing import Any

import torch

from workbench.cache.ring import RingCache


class SlidingCache(RingCache):
    """Keeps the last `window` positions in a ring; a query sees itself and the `window` − 1 positions before it.

    The same numbers as a whole pass with `attention_mask=[causal(), window(n)]` (Mistral 7B, arXiv 2310.06825).

    Args:
        window: how many positions.
        dtype: of storage; default what the model computes in.

    Raises:
        ValueError: for a window that is no whole number of at least 1, or another dtype than can be stored in.
    """

    name = "sliding"

    def __init__(self, window: int = 512, dtype: torch.dtype | None = None) -> None:
        super().__init__(window, 0, dtype)

    def options(self) -> dict[str, Any]:
        """The arguments that make another cache like this one."""
        return {"window": self.window, "dtype": self.dtype}
