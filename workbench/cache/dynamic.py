"""The default cache: exact, and grows as needed."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.cache.base import CacheStore, check_continues
from workbench.config import LlamaConfig


class DynamicCache(CacheStore):
    """Keeps every position's keys and values, exactly.

    Storage has spare room of a quarter (at least 64 positions), so a decode step writes one position in place
    instead of copying all of them as concatenation would.

    Args:
        config: not needed; taken because code written for `transformers` gives it.
    """

    def __init__(self, config: LlamaConfig | None = None) -> None:
        super().__init__()

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
        keys = self._keys[layer] = _write(self._keys[layer], k, start, end)
        values = self._values[layer] = _write(self._values[layer], v, start, end)
        self._lengths[layer] = end
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    def reset(self) -> None:
        """Forgets everything and frees the storage."""
        self._keys, self._values, self._lengths = [], [], []

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """−1: it grows as needed."""
        return -1


def _write(store: Tensor, new: Tensor, start: int, end: int) -> Tensor:
    """Writes `new` as the positions `start` to `end` of `store`, growing it where it is too small."""
    check_continues(store, new)
    if new.requires_grad or store.requires_grad:  # writing in place would break the graph of an earlier step
        return torch.cat([store[:, :, :start], new], dim=2)
    if store.is_inference() and not torch.is_inference_mode_enabled():  # PyTorch lets nobody write into it out here
        store = store.clone()
    if end > store.shape[2]:
        grown = new.new_empty((*store.shape[:2], end + max(64, end // 4), store.shape[3]))
        grown[:, :, :start] = store[:, :, :start]
        store = grown
    store.narrow(2, start, end - start).copy_(new)
    return store
