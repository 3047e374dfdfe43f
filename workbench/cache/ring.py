"""What the caches that forget old positions share: the first `sinks` positions, and a ring of the last `window`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.cache.base import BaseCache, KVCache
from workbench.cache.checks import (
    check_computed,
    check_continues,
    check_dtype,
    check_no_gradient,
    check_rows,
    check_size,
    dtype_name,
    from_the_end,
    holds_exactly,
    in_order,
    whole_length,
)
from workbench.cache.dynamic import with_spare, write


class Held(NamedTuple):
    """One layer: storage by slot, and which positions are in it: the sinks, and `first` … `end` − 1 in the ring."""

    keys: Float[Tensor, "batch kv_head room d_head"]
    values: Float[Tensor, "batch kv_head room d_head"]
    first: int
    end: int


class RingCache(BaseCache):
    """Keys and values of the first `sinks` positions and of the last `window`; all others are overwritten.

    A query sees itself, the `window` − 1 positions before it, and the sinks, however a text is cut into forwards: the
    same as a pass over the whole text with `attention_mask=[causal(), window(n), sink(s)]`. Positions are those of the
    text: keys are stored after RoPE and not rotated again when others are forgotten.

    One new position is written into its slot, and attention is given the storage itself. Several that do not fit are
    put behind what is held, and the last of them go into new storage; the old one is kept until the next forward
    begins, so that this one can be taken back. Storage grows up to `sinks + window` positions. Position p is in slot p
    if it is a sink, otherwise in slot `sinks + (p - sinks) % window`.
    """

    window: int
    crops_exactly = False

    def __init__(self, window: int, sinks: int, dtype: torch.dtype | None) -> None:
        self.window = check_size("window", window)
        self.sinks = sinks
        self.dtype = check_dtype(dtype)
        self._computed: torch.dtype | None = None  # data type that keys and values come in, if that is another
        self._held: list[Held] = []
        self._before: list[Held | None] = []  # what a forward that replaced the storage found

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """Whether storage holds every number that is computed: false for a smaller `dtype`."""
        return holds_exactly(self.dtype, self._computed)

    @property
    def batch_size(self) -> int:
        """Number of rows; 0 as long as nothing was stored."""
        return self._held[0].keys.shape[0] if self.length else 0

    @property
    def layers(self) -> int:
        """Number of layers that hold something."""
        return sum(held.end > 0 for held in self._held)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of positions a layer has seen."""
        return self._held[layer_idx].end if layer_idx < len(self._held) else 0

    def update(
        self, layer: int, k: Float[Tensor, "batch kv_head new d_head"], v: Float[Tensor, "batch kv_head new d_head"]
    ) -> tuple[Float[Tensor, "batch kv_head slot d_head"], Float[Tensor, "batch kv_head slot d_head"]]:
        """Takes the new positions and returns those held before, as far as one new one leaves them, and the new ones.

        Raises:
            ValueError: if layers are not filled in order, the shape does not continue what is stored, or gradients are
                recorded.
        """
        held, new = self._layer(layer, k, v), k.shape[2]
        k, v = self._stored(k), self._stored(v)
        check_continues(held.keys, k)
        check_continues(held.values, v)
        if layer == 0:  # a forward begins: the last one is not taken back any more
            self._before = [None] * len(self._before)
        if new > 1 and held.end + new > self._slots:
            return self._replace(layer, held, k, v)
        at, end = self._slot(held.end), held.end + new
        room = min(with_spare(at + new), self._slots)
        keys = write(held.keys, k, at, at + new, room)
        values = write(held.values, v, at, at + new, room)
        held = self._held[layer] = Held(keys, values, max(held.first, end - self.window), end)
        used = self._used(held.first, end)
        return self._given(keys.narrow(2, 0, used)), self._given(values.narrow(2, 0, used))

    def positions(self, layer: int, new: int = 0) -> Int[Tensor, " slot"]:
        """Slot → position of the token in it, −1 for an empty slot."""
        first, end = self._held[layer][2:] if layer < len(self._held) else (self.sinks, 0)
        if new > 1 and end + new > self._slots:
            return torch.cat((self._in_slots(first, end), torch.arange(end, end + new)))
        return self._in_slots(max(first, end + new - self.window), end + new)

    def keys(self, layer: int) -> Float[Tensor, "batch kv_head slot d_head"]:
        """The held keys of a layer, after RoPE, by slot. A view, which `update` writes into."""
        held = self._held[layer]
        return self._given(held.keys.narrow(2, 0, self._used(held.first, held.end)))

    def values(self, layer: int) -> Float[Tensor, "batch kv_head slot d_head"]:
        """The held values of a layer, as a view."""
        held = self._held[layer]
        return self._given(held.values.narrow(2, 0, self._used(held.first, held.end)))

    def can_crop(self, length: int) -> bool:
        """Whether the positions that position `length` would see are still held: the window before it is, for as many
        steps back as it has not been overwritten, and always back to where the last forward began.
        """
        if whole_length(length) < -self.length:
            return False
        length = from_the_end(self, length)
        return all(self._cropped(layer, length) is not None for layer in range(len(self._held)))

    def crop(self, length: int) -> None:
        """Forgets every position from `length` on; layers that are shorter stay as they are.

        A negative length counts from the end.

        Raises:
            ValueError: if it is no whole number, or positions that position `length` would see are overwritten
                (`can_crop`); nothing is changed.
        """
        length = from_the_end(self, length)
        cropped = [self._cropped(layer, length) for layer in range(len(self._held))]
        kept = [held for held in cropped if held is not None]
        if len(kept) < len(cropped):
            least = max(held.first for held in self._held) + self.window - 1
            raise ValueError(
                f"crop({length}): cropping past the window. This {self.name} cache of window={self.window} has "
                f"overwritten positions that position {length} would see; it can be cropped to {least} or more. "
                "Reset it and read the text again."
            )
        self._before = [
            old if one.keys is now.keys else None for old, one, now in zip(self._before, kept, self._held, strict=True)
        ]
        # A forward that failed half way has overwritten a slot in some layers only: now it is empty in all.
        first = max((held.first for held in kept if held.end == length), default=0)
        self._held = [held._replace(first=first) if held.end == length else held for held in kept]
        if not self.length:
            self._computed = None

    def reorder(self, rows: Int[Tensor, " batch"]) -> None:
        """Makes row i of the batch what row `rows[i]` was; there may be more or fewer rows than before.

        Raises:
            ValueError: for a row that is not there.
        """
        check_rows(rows, self.batch_size)
        if not self.length:
            return

        def picked(held: Held) -> Held:
            keys, values = (t.index_select(0, rows.to(t.device)) for t in held[:2])
            return held._replace(keys=keys, values=values)

        self._held = [picked(held) for held in self._held]
        self._before = [None if held is None else picked(held) for held in self._before]

    def reset(self) -> None:
        """Forgets everything and frees the storage."""
        self._held, self._before, self._computed = [], [], None

    def take(self, layer: int, k: Tensor, v: Tensor, positions: Tensor, source: KVCache) -> None:
        """Fills a layer of this empty cache with what `source` holds of it."""
        end = source.length
        first = max(self.sinks, end - self.window)
        if end > first and not bool((positions == first).any()):
            first = max(self.sinks, end - self.window + 1)  # all that the next position needs
        needed = torch.cat((torch.arange(min(self.sinks, end)), torch.arange(min(first, end), end)))
        order = in_order(positions, needed, source, self)
        slots = torch.where(needed < self.sinks, needed, self._slot(needed))
        self._layer(layer, k, v)
        stores = []
        for part in (k.detach(), v.detach()):
            stored = self._stored(part)
            store = stored.new_zeros((*stored.shape[:2], min(end, self._slots), stored.shape[3]))
            stores.append(store.index_copy(2, slots.to(store.device), stored.index_select(2, order.to(store.device))))
        self._held[layer] = Held(stores[0], stores[1], first, end)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Numbers and tensors that, with the options, say all about it."""
        tensors = {}
        for layer, held in enumerate(self._held):
            used = self._used(held.first, held.end)
            tensors[f"{layer}.keys"], tensors[f"{layer}.values"] = (t.narrow(2, 0, used) for t in held[:2])
        seen = [[held.first, held.end] for held in self._held]
        return {"computed": dtype_name(self._computed), "seen": seen}, tensors

    def set_state(self, numbers: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Takes over, empty as it is, what `state` gave."""
        self._computed = check_dtype(numbers["computed"])
        for layer, (first, end) in enumerate(numbers["seen"]):
            self._held.append(Held(tensors[f"{layer}.keys"], tensors[f"{layer}.values"], first, end))
            self._before.append(None)

    # ----------------------------------------------------------------------------------------------------------------

    @property
    def _slots(self) -> int:
        return self.sinks + self.window

    def _slot(self, position: Any) -> Any:
        """The slot of a position that is no sink, or where storage has not gone round, of any."""
        if isinstance(position, int) and position < self._slots:
            return position
        return self.sinks + (position - self.sinks) % self.window

    def _used(self, first: int, end: int) -> int:
        """How many slots have ever been written."""
        return self._slots if first > self.sinks else min(end, self._slots)

    def _in_slots(self, first: int, end: int) -> Int[Tensor, " slot"]:
        """The position in each used slot, −1 for none."""
        slots = torch.arange(self._used(first, end))
        in_ring = first + (slots - first) % self.window
        in_ring = in_ring.masked_fill(in_ring >= end, -1)
        return torch.where(slots < self.sinks, slots, in_ring) if self.sinks else in_ring

    def _replace(self, layer: int, held: Held, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Gives what is held with the new positions behind it, and keeps the last of them in new storage."""
        used, end = self._used(held.first, held.end), held.end + k.shape[2]
        first = max(held.first, end - self.window)
        wanted = self._in_slots(first, end)
        old = torch.where(wanted < self.sinks, wanted, self._slot(wanted))
        index = torch.where(wanted >= held.end, used + wanted - held.end, old)
        given, kept = [], []
        for store, new in ((held.keys, k), (held.values, v)):
            whole = torch.cat((store.narrow(2, 0, used), new), 2) if used else new
            given.append(self._given(whole))
            kept.append(whole.index_select(2, index.to(whole.device)))
        self._before[layer] = held
        self._held[layer] = Held(kept[0], kept[1], first, end)
        return given[0], given[1]

    def _cropped(self, layer: int, length: int) -> Held | None:
        """A layer with no position from `length` on, from what is held now or before the last forward."""
        now = self._held[layer]
        if now.end <= length:
            return now
        for held in (now, self._before[layer]):
            if held is None or held.end < length:
                continue
            if length <= self.sinks:
                return held._replace(first=self.sinks, end=length)
            if held.first <= max(self.sinks, length - self.window + 1):
                return held._replace(end=length)
        return None

    def _layer(self, layer: int, k: Tensor, v: Tensor) -> Held:
        """What a layer holds: new and empty if it is the next one, or holds nothing any more."""
        check_no_gradient(self, k, v)
        if layer > len(self._held):
            raise ValueError(f"layer {layer} was given before layer {len(self._held)}; layers are filled in order.")
        if not self.get_seq_length(layer):
            nothing = [self._stored(t).new_empty((*t.shape[:2], 0, t.shape[3])) for t in (k, v)]
            self._held[layer:] = [Held(nothing[0], nothing[1], self.sinks, 0), *self._held[layer + 1 :]]
            self._before[layer:] = [None, *self._before[layer + 1 :]]
        return self._held[layer]

    def _stored(self, new: Tensor) -> Tensor:
        """New keys or values in the data type of storage."""
        if self.dtype is None:
            return new
        self._computed = check_computed(self._computed, new)
        return new.to(self.dtype)

    def _given(self, stored: Tensor) -> Tensor:
        """Stored keys or values in the data type that the model computes in."""
        return stored if self.dtype is None or self._computed is None else stored.to(self._computed)
