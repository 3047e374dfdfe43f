"""The default cache: exact, and grows as needed."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.cache.base import CacheStore
from workbench.cache.checks import check_continues
from workbench.config import LlamaConfig


class DynamicCache(CacheStore):
    """Keeps every position's keys and values, exactly unless `dtype` is smaller than what the model computes in.

    Storage has spare room of a quarter (at least 64 positions), so a decode step writes one position in place
    instead of copying all of them as concatenation would.

    Args:
        config: not needed; taken because code written for `transformers` gives it.
        dtype: of storage: `torch.bfloat16` halves the bytes of a float32 model. Default: what the model computes in.
    """

    name = "dynamic"

    def __init__(self, config: LlamaConfig | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(dtype)

    def update(
        self, layer: int, k: Float[Tensor, "batch kv_head new d_head"], v: Float[Tensor, "batch kv_head new d_head"]
    ) -> tuple[Float[Tensor, "batch kv_head slot d_head"], Float[Tensor, "batch kv_head slot d_head"]]:
        """Appends the new positions to `layer` and returns all of its keys and values, as views.

        Raises:
            ValueError: if layers are not filled in order, or the shape does not continue what is stored.
        """
        k, v = self._stored(k), self._stored(v)
        self._open(layer, k, v)
        start, end = self._lengths[layer], self._lengths[layer] + k.shape[2]
        keys = self._keys[layer] = write(self._keys[layer], k, start, end)
        values = self._values[layer] = write(self._values[layer], v, start, end)
        self._lengths[layer] = end
        return self._given(keys.narrow(2, 0, end)), self._given(values.narrow(2, 0, end))

    def reset(self) -> None:
        """Forgets everything and frees the storage."""
        self._keys, self._values, self._lengths, self._computed = [], [], [], None

    def _open(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Makes empty storage of a layer, if it is the next one or holds nothing any more."""
        if layer > len(self._keys):
            raise ValueError(f"layer {layer} was given before layer {len(self._keys)}; layers are filled in order.")
        if self.get_seq_length(layer):
            return
        for stores, new in ((self._keys, k), (self._values, v)):
            stores[layer:] = [new.new_empty((*new.shape[:2], 0, new.shape[3])), *stores[layer + 1 :]]
        self._lengths[layer:] = [0, *self._lengths[layer + 1 :]]


def write(store: Tensor, new: Tensor, start: int, end: int, room: int | None = None) -> Tensor:
    """Writes `new` as the positions `start` to `end` of `store`; where that is too small, it grows to `room`, by
    default to a quarter more than is needed.
    """
    check_continues(store, new)
    if new.requires_grad or store.requires_grad:  # writing in place would break the graph of an earlier step
        return torch.cat([store[:, :, :start], new], dim=2)
    if store.is_inference() and not torch.is_inference_mode_enabled():  # PyTorch lets nobody write into it out here
        store = store.clone()
    if end > store.shape[2]:
        grown = new.new_empty((*store.shape[:2], room or with_spare(end), store.shape[3]))
        grown[:, :, :start] = store[:, :, :start]
        store = grown
    store.narrow(2, start, end - start).copy_(new)
    return store


def with_spare(length: int) -> int:
    """Room for as many positions and a quarter more, at least 64."""
    return length + max(64, length // 4)
