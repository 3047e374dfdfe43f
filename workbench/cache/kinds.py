"""Caches by name: what `cache_implementation` and `cache_config` may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from workbench.cache.base import KVCache
from workbench.cache.dynamic import DynamicCache
from workbench.cache.offloaded import OffloadedCache
from workbench.cache.quantized import QuantizedCache, group_for
from workbench.cache.sink import SinkCache
from workbench.cache.sliding import SlidingCache
from workbench.cache.static import StaticCache
from workbench.config import LlamaConfig

KINDS: dict[str, type[Any]] = {
    kind.name: kind for kind in (DynamicCache, StaticCache, SlidingCache, SinkCache, QuantizedCache, OffloadedCache)
}
OPTIONS: dict[str, tuple[str, ...]] = {
    "dynamic": ("dtype",),
    "static": ("max_batch_size", "device", "dtype"),
    "sliding": ("window", "dtype"),
    "sink": ("window", "sinks", "dtype"),
    "quantized": ("bits", "group_size", "residual_length"),
    "offloaded": ("dtype",),
}
# What `transformers` calls them.
ALIASES = {"sliding_window": "sliding", "offloaded_static": "offloaded"}
RENAMED: dict[str, dict[str, str]] = {
    "sliding": {"sliding_window": "window"},
    "quantized": {"nbits": "bits", "q_group_size": "group_size"},
}
# Options of its quantized cache that change nothing here: there is one way to quantize, with its own axes.
IGNORED: dict[str, tuple[str, ...]] = {"quantized": ("backend", "axis_key", "axis_value", "compute_dtype", "device")}
CACHES = (*KINDS, *ALIASES, "none")


def cache_options(name: str | None, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The kind of cache that a name means, and its options by the names that they have here.

    Raises:
        ValueError: for another name, and for an option that this kind does not have.
    """
    kind = ALIASES.get(name, name) if name is not None else "dynamic"
    if name is not None and name not in CACHES:
        raise ValueError(f"cache_implementation is {name!r}; allowed are {', '.join(CACHES)}, or None for dynamic.")
    if kind == "none":
        if options:
            raise ValueError(f"cache_implementation 'none' keeps nothing and has no options; got {', '.join(options)}.")
        return kind, {}
    renamed, known = RENAMED.get(kind, {}), OPTIONS[kind]
    found = {renamed.get(name, name): v for name, v in options.items() if name not in IGNORED.get(kind, ())}
    strange = [name for name in found if name not in known]
    if strange:
        raise ValueError(f"a {kind} cache has no option {strange[0]!r}; it has {', '.join(known)}.")
    return kind, {name: value for name, value in found.items() if value is not None}


def make_cache(
    name: str | None, config: LlamaConfig, max_cache_len: int | None = None, **options: Any
) -> KVCache | None:
    """A new cache by the name that `cache_implementation` gives it.

    Args:
        name: one of `CACHES`; `None` is `"dynamic"`. `"none"` keeps nothing: the caller reads the whole text at every
            step.
        config: of the model.
        max_cache_len: how many positions a static cache is for.
        options: of the kind (`OPTIONS`), also as `transformers` calls them.

    Raises:
        ValueError: for another name, an option or value that the kind does not have, and for a static cache without
            `max_cache_len`.
    """
    kind, known = cache_options(name, options)
    if kind == "none":
        return None
    if kind == "static":
        if max_cache_len is None:
            raise ValueError("a static cache needs max_cache_len, the number of positions it is for.")
        return StaticCache(config, max_cache_len, **known)
    if kind == "quantized":  # said now, not when the first keys come
        group_for(known.get("group_size"), QuantizedCache(**known).bits, config.d_head)
    cache: KVCache = KINDS[kind](**known)
    return cache
