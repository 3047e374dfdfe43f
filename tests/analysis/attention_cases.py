"""Texts read in every way that changes who may attend to whom, with the patterns that eager attention made of them."""

import dataclasses
import functools
from itertools import pairwise

import numpy as np
import torch

from tests.conftest import tiny_model
from workbench.cache import DynamicCache, StaticCache
from workbench.instrument import Activations, capture
from workbench.model.mask import causal, document, sink, window

LENGTH = 17
POINTS = ("q_rot", "k_rot", "v")
LAYERS, HEADS = 3, 4


@dataclasses.dataclass
class Case:
    """`patterns[layer, row, head, q, k]` by position; `real[row, position]` is False at padding."""

    acts: Activations
    ids: torch.Tensor
    patterns: np.ndarray
    real: np.ndarray


class RingCache:
    """Keeps the last `size` positions, each in slot `position % size`; read one token at a time beyond that."""

    def __init__(self, size):
        self.size, self.layers = size, {}

    @property
    def length(self):
        return min((seen for _, _, seen in self.layers.values()), default=0)

    def positions(self, layer, new=0):
        slots = torch.full((self.size,), -1)
        for position in range((self.layers[layer][2] if layer in self.layers else 0) + new):
            slots[position % self.size] = position
        return slots

    def update(self, layer, k, v):
        # What an empty slot holds must not matter.
        empty = torch.full((len(k), k.shape[1], self.size, k.shape[3]), 7.0)
        keys, values, start = self.layers.get(layer, (empty, empty.clone(), 0))
        for i in range(k.shape[2]):
            keys[:, :, (start + i) % self.size] = k[:, :, i]
            values[:, :, (start + i) % self.size] = v[:, :, i]
        self.layers[layer] = (keys, values, start + k.shape[2])
        return keys, values

    def crop(self, length):
        raise NotImplementedError


class RoundingCache(DynamicCache):
    """Gives back keys and values rounded to halves: earlier ones too, as a quantized cache does."""

    def update(self, layer, k, v):
        k, v = super().update(layer, k, v)
        return (k * 2).round() / 2, (v * 2).round() / 2


@torch.no_grad()
def read(model, ids, cuts=(), cache=None, masks=None, points=POINTS, real=None, **options):
    """Reads `ids` cut before the given positions; `masks(start, stop)` is each forward's attention_mask."""
    rows, length = ids.shape
    patterns = np.zeros((LAYERS, rows, HEADS, length, length), np.float32)
    edges = [0, *cuts, length]
    with capture(model, *points) as acts:
        for start, stop in pairwise(edges):
            held = torch.arange(stop) if cache is None else cache.positions(0, stop - start)
            given = None if masks is None else masks(start, stop)
            out = model(
                ids[:, start:stop], attention_mask=given, past_key_values=cache, output_attentions=True, **options
            )
            for layer, pattern in enumerate(out.attentions):
                for slot, position in enumerate(held.tolist()):
                    if position >= 0:
                        patterns[layer, :, :, start:stop, position] = pattern[..., slot].numpy()
    return Case(acts, ids, patterns, np.ones((rows, length), bool) if real is None else real.bool().numpy())


def texts(rows=1, seed=3, most=97):
    return torch.randint(1, most, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def eager(kind="gqa"):
    torch.manual_seed(0)
    return tiny_model(kind, attn_implementation="eager")


def padding(kind, cuts=(), cached=False):
    keep = torch.ones(3, LENGTH, dtype=torch.long)
    keep[0, :5] = 0
    keep[1, -4:] = 0
    cache = DynamicCache() if cached else None
    return read(eager(kind), texts(3), cuts, cache, lambda start, stop: keep[:, :stop], real=keep)


def additive(start, stop):
    g = torch.Generator().manual_seed(5)
    bias = torch.randn(2, HEADS, LENGTH, LENGTH, generator=g)
    bias = bias.masked_fill(torch.rand(bias.shape, generator=g) < 0.3, -torch.inf)  # each head its own cells
    bias[:, :, 6] = -torch.inf  # a query that may attend to nothing
    bias[0, 2, 9] = -torch.inf  # in one head only
    lower = torch.ones(LENGTH, LENGTH).tril().bool()
    return bias.masked_fill(~lower, -torch.inf)[:, :, start:stop, :stop]


def boolean(start, stop):
    g = torch.Generator().manual_seed(6)
    allowed = (torch.rand(2, 1, LENGTH, LENGTH, generator=g) < 0.5).tril() | torch.eye(LENGTH, dtype=torch.bool)
    return allowed[:, :, start:stop, :stop]


def both_ways(start, stop):
    g = torch.Generator().manual_seed(7)
    return torch.rand(1, 1, LENGTH, LENGTH, generator=g) < 0.6


def one_layer_narrow():
    """A model whose layer 1 gets another mask than the others."""
    model = eager()
    model.model.layers[1].self_attn.hook_mask.register_forward_hook(lambda _, args, mask: mask.with_rules(window(3)))
    return model


DOCUMENTS = torch.tensor([[0] * 5 + [1] * 8 + [2] * 4])
STARTS = torch.cat([torch.arange(5), torch.arange(8), torch.arange(4)])[None]
ONE_BY_ONE = tuple(range(6, LENGTH))

CASES = {
    "mha": lambda: read(eager("mha"), texts()),
    "gqa": lambda: read(eager("gqa"), texts()),
    "mqa": lambda: read(eager("mqa"), texts()),
    "batch": lambda: read(eager(), texts(2)),
    "chunks": lambda: read(eager(), texts(), (4, 9), DynamicCache()),
    "decode": lambda: read(eager(), texts(), ONE_BY_ONE, DynamicCache()),
    "static cache": lambda: read(eager(), texts(), (7, *range(12, LENGTH)), StaticCache(eager().config, 64)),
    "padding": lambda: padding("gqa"),
    "padding mqa": lambda: padding("mqa"),
    "padding, chunks and decode": lambda: padding("gqa", (4, 9, 10, 11, 12), cached=True),
    "window": lambda: read(eager(), texts(), masks=lambda a, b: [causal(), window(5)]),
    "window, decode": lambda: read(eager(), texts(), ONE_BY_ONE, DynamicCache(), lambda a, b: [causal(), window(5)]),
    "window and sink": lambda: read(eager(), texts(), masks=lambda a, b: [causal(), window(4), sink(2)]),
    "documents": lambda: read(eager(), texts(), position_ids=STARTS, use_cache=False),
    "documents by rule": lambda: read(eager(), texts(2), masks=lambda a, b: [causal(), document(DOCUMENTS)]),
    "boolean 4-D": lambda: read(eager(), texts(2), masks=boolean),
    "boolean 4-D, decode": lambda: read(eager(), texts(2), ONE_BY_ONE, DynamicCache(), boolean),
    "additive 4-D": lambda: read(eager("mha"), texts(2), masks=additive),
    "additive 4-D, decode": lambda: read(eager(), texts(2), ONE_BY_ONE, DynamicCache(), additive),
    "both ways": lambda: read(eager(), texts(), masks=both_ways),
    "ring cache": lambda: read(eager(), texts(2), ONE_BY_ONE, RingCache(7)),
    "ring cache, keys as used": lambda: read(
        eager(), texts(2), ONE_BY_ONE, RingCache(7), points=(*POINTS, "k_cached", "v_cached")
    ),
    "rounding cache": lambda: read(
        eager(), texts(2), ONE_BY_ONE, RoundingCache(), points=(*POINTS, "k_cached", "v_cached")
    ),
    "only cached keys": lambda: read(
        eager("mqa"), texts(), ONE_BY_ONE, DynamicCache(), points=("q_rot", "k_cached", "v_cached")
    ),
    "masks of each layer": lambda: read(
        one_layer_narrow(), texts(2), ONE_BY_ONE, DynamicCache(), lambda a, b: [causal(), window(9)], (*POINTS, "mask")
    ),
}


@functools.cache
def case(name) -> Case:
    return CASES[name]()


def pooled(x, factor, reduce):
    """Each square of `factor × factor` cells by itself, those at the edge as small as they are."""
    rows, columns = (range(0, n, factor) for n in x.shape)
    return np.array([[reduce(x[i : i + factor, j : j + factor]) for j in columns] for i in rows])


def constructed(patterns):
    """Activations of one layer whose heads have these patterns (head, q, k), each with keys of its own: keys are unit
    vectors, so that a query's coordinates are its scores.
    """
    heads, length, _ = patterns.shape
    scores = torch.as_tensor(patterns, dtype=torch.float32).clamp(min=1e-30).log() * length**0.5
    acts = Activations()
    acts.append("layers.0.q_rot", scores.permute(1, 0, 2)[None].contiguous())
    acts.append("layers.0.k_rot", torch.eye(length)[None, :, None].expand(1, length, heads, length).contiguous())
    return acts
