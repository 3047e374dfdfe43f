"""What the model needs from a KV cache, whatever it does inside."""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor


class KVCache(Protocol):
    """Keys and values of the positions seen so far, one store a layer.

    Keys are stored after RoPE, with the model's key/value heads (never expanded to its query heads).
    """

    @property
    def length(self) -> int:
        """Number of positions seen: the position the next token gets."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held, spare room included."""
        ...

    def update(
        self, layer: int, k: Float[Tensor, "batch kv_head new d_head"], v: Float[Tensor, "batch kv_head new d_head"]
    ) -> tuple[Float[Tensor, "batch kv_head slot d_head"], Float[Tensor, "batch kv_head slot d_head"]]:
        """Takes the new positions' keys and values and returns everything this forward's queries may look at."""
        ...

    def positions(self, layer: int, new: int = 0) -> Int[Tensor, " slot"]:
        """Slot → position of the token in it, −1 for an empty slot, after `new` more positions."""
        ...

    def crop(self, length: int) -> None:
        """Forgets every position from `length` on."""
        ...

    def reorder(self, rows: Int[Tensor, " batch"]) -> None:
        """Makes row i of the batch what row `rows[i]` was; there may be more or fewer rows than before."""
        ...

    def reset(self) -> None:
        """Forgets everything."""
        ...


class CacheStore:
    """What the caches that keep every position in order share: one store of keys and one of values a layer.

    Slot i holds position i; what is returned are views of the first `length` slots. The names behind the last rule are
    those of `transformers` for the same things.
    """

    def __init__(self) -> None:
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._lengths: list[int] = []

    @property
    def length(self) -> int:
        """Number of positions seen: the position the next token gets."""
        return self._lengths[0] if self._lengths else 0

    @property
    def nbytes(self) -> int:
        """Bytes held, spare room included."""
        return sum(t.nbytes for t in (*self._keys, *self._values))

    @property
    def batch_size(self) -> int:
        """Number of rows; 0 as long as nothing was stored."""
        return self._keys[0].shape[0] if self._keys else 0

    def positions(self, layer: int, new: int = 0) -> Int[Tensor, " slot"]:
        """Slot → position of the token in it: here slot i holds position i."""
        length = self._lengths[layer] if layer < len(self._lengths) else 0
        return torch.arange(length + new)

    def keys(self, layer: int) -> Float[Tensor, "batch kv_head slot d_head"]:
        """The stored keys of a layer, after RoPE. A view: `update` writes behind it, and into it
        only after `crop` or `reset`.
        """
        return self._keys[layer][:, :, : self._lengths[layer]]

    def values(self, layer: int) -> Float[Tensor, "batch kv_head slot d_head"]:
        """The stored values of a layer, as a view."""
        return self._values[layer][:, :, : self._lengths[layer]]

    def crop(self, length: int) -> None:
        """Forgets every position from `length` on; layers that are shorter stay as they are.

        A negative length counts from the end: `crop(-2)` forgets the last two positions.

        Raises:
            ValueError: if there are not so many positions.
        """
        if length < -self.length:
            raise ValueError(f"crop({length}): the cache holds {self.length} positions only.")
        length = length + self.length if length < 0 else length
        self._lengths = [min(length, kept) for kept in self._lengths]

    def reorder(self, rows: Int[Tensor, " batch"]) -> None:
        """Makes row i of the batch what row `rows[i]` was; there may be more or fewer rows than before."""
        self._keys = [t.index_select(0, rows.to(t.device)) for t in self._keys]
        self._values = [t.index_select(0, rows.to(t.device)) for t in self._values]

    # ----------------------------------------------------------------------------------------------------------------

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of positions a layer holds."""
        return self._lengths[layer_idx] if layer_idx < len(self._lengths) else 0

    def reorder_cache(self, beam_idx: Int[Tensor, " batch"]) -> None:
        """As `reorder`."""
        self.reorder(beam_idx)

    def batch_select_indices(self, indices: Int[Tensor, " batch"]) -> None:
        """As `reorder`."""
        self.reorder(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Makes `repeats` rows of each row, side by side."""
        self.reorder(torch.arange(self.batch_size).repeat_interleave(repeats))


def check_continues(store: Tensor, new: Tensor) -> None:
    """Raises `ValueError` unless `new` has the rows, heads, width, dtype and device of what is stored."""
    rows, heads, _, width = store.shape
    if new.shape != (rows, heads, new.shape[2], width) or new.dtype != store.dtype or new.device != store.device:
        expected = (rows, heads, width)
        raise ValueError(
            f"keys or values of shape {tuple(new.shape)} ({new.dtype}, {new.device}) do not continue a cache of "
            f"(batch, kv_head, ·, d_head) = {expected} ({store.dtype}, {store.device}). Use a new cache for another "
            "batch or model."
        )
