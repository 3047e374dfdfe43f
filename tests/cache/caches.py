"""What the tests of caches share: one cache of every kind, and keys and values to put into them."""

import torch

from tests.conftest import tiny_config
from workbench.cache import (
    DynamicCache,
    OffloadedCache,
    QuantizedCache,
    SinkCache,
    SlidingCache,
    StaticCache,
)
from workbench.model.mask import causal, sink, window

LENGTH = 40
IDS = torch.randint(1, 97, (2, LENGTH), generator=torch.Generator().manual_seed(3))
MAKE = {
    "dynamic": DynamicCache,
    "static": lambda: StaticCache(tiny_config(), 64),
    "sliding": lambda: SlidingCache(7),
    "sink": lambda: SinkCache(6, 3),
    "quantized": lambda: QuantizedCache(4, residual_length=8),
    "offloaded": OffloadedCache,
    "dynamic in bfloat16": lambda: DynamicCache(dtype=torch.bfloat16),
    "sink in float16": lambda: SinkCache(6, 3, dtype=torch.float16),
}


def piece(length, batch=2, heads=2, width=8, **options):
    return torch.randn(batch, heads, length, width, **options)


def rules_of(cache):
    """The rules under which a pass over the whole text has the numbers of this cache."""
    if cache.window is None:
        return [causal()]
    return [causal(), window(cache.window), *([sink(cache.sinks)] if cache.sinks else [])]


def contents(cache):
    """All that attention would be given, and where it stands."""
    layers = range(cache.layers)
    return [(cache.keys(i).clone(), cache.values(i).clone(), cache.positions(i)) for i in layers]


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        for x, y in zip(a, b, strict=True):
            assert torch.equal(x, y)
