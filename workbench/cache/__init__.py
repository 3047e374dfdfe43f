"""KV caches: objects given to a forward, never stored on a module."""

from workbench.cache.base import KVCache
from workbench.cache.dynamic import DynamicCache

__all__ = ["DynamicCache", "KVCache"]
