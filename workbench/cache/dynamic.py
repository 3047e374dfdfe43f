"""The default cache: exact, and grows as needed."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


class DynamicCache:
    """Keeps every position's keys and values, exactly.

    Storage has spare room of a quarter (at least 64 positions), so a decode step writes one position in place
    instead of copying all of them as concatenation would.
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

    def update(
        self, layer: int, k: Float[Tensor, "batch kv_head new d_head"], v: Float[Tensor, "batch kv_head new d_head"]
    ) -> tuple[Float[Tensor, "batch kv_head slot d_head"], Float[Tensor, "batch kv_head slot d_head"]]:
        """Appends the new positions to `layer` and returns all of its keys and values, as views.

        Raises:
            ValueError: if layers are not filled in order, or the shape does not continue what is stored.
        """
        if layer == len(self._keys):
            self._keys.append(k.new_empty((*k.shape[:2], 0, k.shape[3])))
            self._values.append(v.new_empty((*v.shape[:2], 0, v.shape[3])))
            self._lengths.append(0)
        elif layer > len(self._keys):
            raise ValueError(f"layer {layer} was given before layer {len(self._keys)}; layers are filled in order.")
        start, end = self._lengths[layer], self._lengths[layer] + k.shape[2]
        self._keys[layer] = _write(self._keys[layer], k, start)
        self._values[layer] = _write(self._values[layer], v, start)
        self._lengths[layer] = end
        return self._keys[layer][:, :, :end], self._values[layer][:, :, :end]

    def positions(self, layer: int, new: int = 0) -> Int[Tensor, " slot"]:
        """Slot → position of the token in it: here slot i holds position i."""
        length = self._lengths[layer] if layer < len(self._lengths) else 0
        return torch.arange(length + new)

    def keys(self, layer: int) -> Float[Tensor, "batch kv_head slot d_head"]:
        """The stored keys of a layer, after RoPE. A view: the next `update` may write behind it, never into it."""
        return self._keys[layer][:, :, : self._lengths[layer]]

    def values(self, layer: int) -> Float[Tensor, "batch kv_head slot d_head"]:
        """The stored values of a layer, as a view."""
        return self._values[layer][:, :, : self._lengths[layer]]

    def crop(self, length: int) -> None:
        """Forgets every position from `length` on; layers that are shorter stay as they are.

        Raises:
            ValueError: if `length` is negative.
        """
        if length < 0:
            raise ValueError(f"crop({length}): the length to keep must be 0 or more.")
        self._lengths = [min(length, kept) for kept in self._lengths]

    def reorder(self, rows: Int[Tensor, " batch"]) -> None:
        """Makes row i of the batch what row `rows[i]` was."""
        self._keys = [t.index_select(0, rows.to(t.device)) for t in self._keys]
        self._values = [t.index_select(0, rows.to(t.device)) for t in self._values]

    def reset(self) -> None:
        """Forgets everything and frees the storage."""
        self._keys, self._values, self._lengths = [], [], []


def _write(store: Tensor, new: Tensor, start: int) -> Tensor:
    """Writes `new` behind the first `start` positions of `store`, growing it where it is too small."""
    expected = (*store.shape[:2], store.shape[3])
    if (*new.shape[:2], new.shape[3]) != expected or new.dtype != store.dtype:
        raise ValueError(
            f"keys or values of shape {tuple(new.shape)} ({new.dtype}) do not continue a cache of "
            f"(batch, kv_head, ·, d_head) = {expected} ({store.dtype}). Use a new cache for another batch or model."
        )
    end = start + new.shape[2]
    if new.requires_grad or store.requires_grad:  # writing in place would break the graph of an earlier step
        return torch.cat([store[:, :, :start], new], dim=2)
    if store.is_inference() and not torch.is_inference_mode_enabled():  # PyTorch lets nobody write into it out here
        store = store.clone()
    if end > store.shape[2]:
        grown = new.new_empty((*store.shape[:2], end + max(64, end // 4), store.shape[3]))
        grown[:, :, :start] = store[:, :, :start]
        store = grown
    store[:, :, start:end] = new
    return store
