"""KV caches: objects given to a forward, never stored on a module."""

from __future__ import annotations

from workbench.cache.base import KVCache
from workbench.cache.dynamic import DynamicCache
from workbench.cache.static import StaticCache
from workbench.config import LlamaConfig

__all__ = ["CACHES", "DynamicCache", "KVCache", "StaticCache", "make_cache"]

CACHES = ("dynamic", "static")


def make_cache(name: str | None, config: LlamaConfig, max_cache_len: int | None = None) -> KVCache:
    """A new cache by the name that `cache_implementation` gives it.

    Args:
        name: `"dynamic"` (also `None`) or `"static"`.
        config: of the model.
        max_cache_len: how many positions a static cache is for.

    Raises:
        ValueError: for another name, and for a static cache without `max_cache_len`.
    """
    if name is None or name == "dynamic":
        return DynamicCache()
    if name == "static":
        if max_cache_len is None:
            raise ValueError("a static cache needs max_cache_len, the number of positions it is for.")
        return StaticCache(config, max_cache_len)
    raise ValueError(f"cache_implementation is {name!r}; allowed are {', '.join(CACHES)}, or None for dynamic.")
