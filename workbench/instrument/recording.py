"""What a recorder knows of a forward that runs, and of the text that the captured forwards read."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from workbench.cache import DynamicCache, SinkCache, SlidingCache, StaticCache
from workbench.cache.base import tensors_in
from workbench.instrument.activations import Span
from workbench.instrument.recipes import FROM_ATTENTION
from workbench.instrument.series import Part
from workbench.instrument.storage import OnDisk
from workbench.model.mask import Mask, causal, empty_slot
from workbench.model.rope import Rope

PLAIN = (causal().allows, empty_slot().allows)  # what a mask consists of if nobody asked for more
IN_ORDER = (DynamicCache, StaticCache)  # slot i holds position i
KNOWN = (*IN_ORDER, SlidingCache, SinkCache)  # give the first forward of a text its own keys, in order


def gives_what_it_takes(cache: Any, dtype: torch.dtype) -> bool:
    """Whether the keys and values that the first forward of a text is given by a cache are the very ones that it
    computes, in `dtype`. Of a class or a method that is not known here nobody can say.
    """
    if cache is None:
        return True
    if type(cache) not in KNOWN or "update" in vars(cache):
        return False
    return cache.dtype is None or torch.promote_types(cache.dtype, dtype) == cache.dtype


@dataclasses.dataclass
class Text:
    """A text all of whose keys and values are known to be in a cache as they were captured.

    Attributes:
        cache: a weak reference.
        batch: rows of all of its forwards.
        marks: of what the cache holds; others once somebody has written into it or put other tensors in their place.
    """

    cache: weakref.ref[Any]
    batch: int
    marks: list[tuple[int, int]]

    @classmethod
    def behind(cls, forward: Forward, output: Any) -> Text | None:
        """The text that ends with a forward; `None` if later ones cannot be sure of its keys."""
        cache = _cache_of(output) if forward.cache is None else forward.cache
        marks = _marks(cache) if forward.whole and type(cache) in IN_ORDER else None
        return None if marks is None else cls(weakref.ref(cache), forward.batch, marks)

    def goes_on_in(self, cache: Any, batch: int) -> bool:
        """Whether a forward that begins reads on in it."""
        return cache is not None and self.cache() is cache and self.batch == batch and _marks(cache) == self.marks


def _cache_of(output: Any) -> Any:
    """The cache that a forward made."""
    found = output if isinstance(output, tuple) else (getattr(output, "past_key_values", None),)
    return next((part for part in found if isinstance(part, IN_ORDER)), None)


def _marks(cache: Any) -> list[tuple[int, int]] | None:
    """Which tensors a cache holds, and how often each was written into; `None` if PyTorch does not count that."""
    tensors = list(tensors_in(vars(cache)))
    if any(map(Tensor.is_inference, tensors)):
        return None
    return [(id(tensor), tensor._version) for tensor in tensors]


@dataclasses.dataclass
class Forward:
    """What is known of a forward that runs, and what was kept of it so far: a capture gets all of it when it has ended,
    so that forwards that fail leave nothing, and one inside another does not come between its parts.

    Attributes:
        step: its number among the captured ones, once it has ended.
        rows: those that are kept, `None` for all.
        begins: the forward that began its text; `None` if it is itself.
        before: how many forwards were captured when it began.
        whole: whether all keys of its text up to here are those captured.
        parts: what was kept: name, tensor, its rows if not all or those of `rows`.
        lossy, other_keys: see `Span`.
    """

    step: int = 0
    start: int = 0
    count: int = 0
    batch: int = 0
    cache: Any = None
    tokens: Tensor | None = None
    every: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))  # all of its positions
    rows: tuple[int, ...] | None = None
    logits: Tensor | None = None
    begins: int | None = None
    before: int = 0
    whole: bool = False
    derived: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    after: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    mask: Mask | None = None
    rope: Rope = (torch.empty(0), torch.empty(0))
    parts: list[tuple[str, Part, tuple[int, ...] | None]] = dataclasses.field(default_factory=list)
    lossy: bool = False
    other_keys: tuple[int, ...] = ()

    def span(self) -> Span:
        """As an entry of a capture."""
        mask = self.mask
        masked = mask is None or mask.extra is not None or any(rule.allows not in PLAIN for rule in mask.rules)
        return Span(self.start, self.count, masked, mask, self.tokens, self.lossy, self.other_keys)

    def drop(self) -> None:
        """Frees what was kept."""
        for _, part, _ in self.parts:
            if isinstance(part, OnDisk):
                part.path.unlink(missing_ok=True)
        self.parts = []

    def kept(self, short: str, filtered: bool) -> tuple[int, ...] | None:
        """Rows of a point's tensor that are kept; `None` for all."""
        if not filtered or self.rows is None:
            return None
        if short == "logits" and self.logits is not None:
            return tuple(i for i, row in enumerate(self.logits.tolist()) if row in self.rows)
        return self.rows

    def positions_of(self, name: str, rows: tuple[int, ...] | None = None) -> Tensor:
        """The position of each row of a kept tensor of a point."""
        if name in ("k_cached", "v_cached"):
            assert self.mask is not None
            return self.mask.k_pos
        if name == "logits" and self.logits is not None:
            return self.start + (self.logits if rows is None else self.logits[list(rows)])
        if name in FROM_ATTENTION or name == "mask":
            rows = self.rows
        return self.every if rows is None else self.every[list(rows)]

    def rows_since(self, series: Any) -> tuple[int, int]:
        """The rows of a series that this text's forwards gave."""
        begins = self.step if self.begins is None else self.begins
        first = next(i for i, step in enumerate(series.steps) if step >= begins)
        return sum(series.sizes[:first]), series.total

    def can_derive(self, short: str) -> bool:
        """Whether a point that is computed from others is so for this forward: no rows need no pattern, and of keys
        between which another forward's have come it cannot be.
        """
        if short in FROM_ATTENTION and self.rows == ():
            return False
        apart = self.begins is not None and self.before < self.step
        return not (apart and short in (*FROM_ATTENTION, "k_cached", "v_cached"))


class Switched:
    """A registered hook that can be taken out and put back, in its place among the others."""

    def __init__(self, module: nn.Module, number: int) -> None:
        self.hooks: Any = module._forward_hooks
        self.number = number
        self.hook = self.hooks[number]

    def switch(self, on: bool) -> None:
        """Puts it back or takes it out."""
        if on and self.number not in self.hooks:
            self.hooks[self.number] = self.hook
            for later in sorted(number for number in self.hooks if number > self.number):
                self.hooks.move_to_end(later)
        elif not on:
            self.hooks.pop(self.number, None)
