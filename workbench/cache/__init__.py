"""KV caches: objects given to a forward, never stored on a module."""

from __future__ import annotations

from workbench.cache.base import KVCache
from workbench.cache.dynamic import DynamicCache
from workbench.cache.files import load_cache
from workbench.cache.kinds import CACHES, cache_options, make_cache
from workbench.cache.offloaded import OffloadedCache
from workbench.cache.quantized import QuantizedCache
from workbench.cache.sink import SinkCache
from workbench.cache.sliding import SlidingCache
from workbench.cache.static import StaticCache

__all__ = [
    "CACHES",
    "DynamicCache",
    "KVCache",
    "OffloadedCache",
    "QuantizedCache",
    "SinkCache",
    "SlidingCache",
    "StaticCache",
    "cache_options",
    "load_cache",
    "make_cache",
]
