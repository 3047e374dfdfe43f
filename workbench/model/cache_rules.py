"""The mask rules that a cache adds: what it no longer holds, no query of any forward may see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from workbench.model.mask_rules import Rule, sink, window


def cache_rules(cache: Any) -> list[Rule]:
    """The rules of a cache that forgets positions: what it no longer holds, no query of any forward may see."""
    if getattr(cache, "window", None) is None:
        return []
    return [window(cache.window), *([sink(cache.sinks)] if cache.sinks else [])]


def with_cache_rules(given: Sequence[Rule], of_cache: Sequence[Rule]) -> list[Rule]:
    """The caller's rules and the cache's, without those that say the same.

    Raises:
        ValueError: if sinks of one of them would make exceptions from the window of the other.
    """
    own = [rule for rule in given if "window" in (rule.name, rule.excepts)]
    sinks = any(rule.excepts == "window" for rule in (*own, *of_cache))
    if own and sinks and sorted(map(repr, own)) != sorted(map(repr, of_cache)):
        raise ValueError(
            f"attention_mask has the rules {list(given)}, and the cache needs {list(of_cache)}: the sinks of one would "
            "be exceptions from the window of the other. Leave window and sink out of the mask, make the cache with "
            "the same, or use a DynamicCache."
        )
    said = set(map(repr, own))
    return [*given, *(rule for rule in of_cache if repr(rule) not in said)]
