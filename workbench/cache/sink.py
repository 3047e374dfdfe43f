"""A cache of the first and the last positions."""

from __future__ import annotations

from typing import Any

import torch

from workbench.cache.checks import check_size
from workbench.cache.ring import RingCache


class SinkCache(RingCache):
    """Keeps the first `sinks` positions and the last `window` others; a query sees the sinks, itself and the
    `window` − 1 positions before it.

    Attention sinks are from StreamingLLM (arXiv 2309.17453). That paper moves keys to their positions within the cache;
    here they keep those in the text, so that the numbers are those of a whole pass with
    `attention_mask=[causal(), window(n), sink(s)]`. With padding on the left, the first positions of a row are padding:
    the row has fewer sinks, or none.

    Args:
        window: how many positions besides the sinks.
        sinks: how many of the first positions.
        dtype: of storage; default what the model computes in.

    Raises:
        ValueError: for sizes that are no whole numbers of at least 1, or another dtype than can be stored in.
    """

    name = "sink"

    def __init__(self, window: int = 508, sinks: int = 4, dtype: torch.dtype | None = None) -> None:
        super().__init__(window, check_size("sinks", sinks), dtype)

    def options(self) -> dict[str, Any]:
        """The arguments that make another cache like this one."""
        return {"window": self.window, "sinks": self.sinks, "dtype": self.dtype}
