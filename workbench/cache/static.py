"""A cache whose storage is allocated once and never moves."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.cache.base import CacheStore
from workbench.cache.checks import check_continues, check_device, check_dtype, check_no_gradient, check_rows, check_size
from workbench.config import LlamaConfig


class StaticCache(CacheStore):
    """Keeps up to `max_cache_len` positions, exactly, in storage of that size.

    What a forward gets are views of the positions that are filled, not the padded storage: no mask hides empty slots,
    and attention costs what the text's length costs.

    Args:
        config: of the model: its number of layers, its key/value heads and their width.
        max_cache_len: how many positions there is room for.
        max_batch_size: how many rows there is room for. If given, storage is allocated at once; otherwise with the
            first rows that come, for as many.
        device: of storage that is allocated at once. Default that of the first keys, the CPU until they come.
        dtype: of storage, whatever the keys come in. Default that of the first keys; until they come, storage that is
            allocated at once has the config's data type (float32 if it has none).

    Raises:
        TypeError: if `config` is no LlamaConfig.
        ValueError: for sizes that are not whole numbers of at least 1, a dtype that is none to store in, a device
            that is not there, and for one without `max_batch_size`.
    """

    name = "static"

    def __init__(
        self,
        config: LlamaConfig,
        max_cache_len: int,
        max_batch_size: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(dtype)
        if not isinstance(config, LlamaConfig):
            raise TypeError(f"config is a {type(config).__name__}; a LlamaConfig is needed (model.config).")
        check_size("max_cache_len", max_cache_len)
        self.max_cache_len = max_cache_len
        self.max_batch_size = max_batch_size
        self._made_of = {"config": config, "device": device}
        self._shape = (config.kv_heads, max_cache_len, config.d_head)
        self._rows = 0
        self._lengths = [0] * config.num_hidden_layers
        if max_batch_size is not None:
            check_size("max_batch_size", max_batch_size)
        elif device is not None:
            raise ValueError(
                "device is given without max_batch_size; without it storage is allocated for the first keys that come, "
                "where they are. Give max_batch_size too, or neither."
            )
        if device is not None:
            check_device(device)
        shape, kind = (max_batch_size or 0, *self._shape), self.dtype or getattr(torch, config.dtype or "float32")
        self._keys = [torch.zeros(shape, device=device, dtype=kind) for _ in self._lengths]
        self._values = [torch.zeros(shape, device=device, dtype=kind) for _ in self._lengths]

    @property
    def batch_size(self) -> int:
        """Number of rows in use; 0 as long as nothing was stored."""
        return self._rows if self.length else 0

    def options(self) -> dict[str, Any]:
        """The arguments that make another cache like this one."""
        sizes = {"max_cache_len": self.max_cache_len, "max_batch_size": self.max_batch_size}
        return {**self._made_of, **sizes, "dtype": self.dtype}

    def update(
        self, layer: int, k: Float[Tensor, "batch kv_head new d_head"], v: Float[Tensor, "batch kv_head new d_head"]
    ) -> tuple[Float[Tensor, "batch kv_head slot d_head"], Float[Tensor, "batch kv_head slot d_head"]]:
        """Writes the new positions of `layer` and returns its keys and values up to here, as views.

        Raises:
            ValueError: if there is no room for them, for a layer the model does not have, for keys or values of
                another shape or dtype, and where gradients are recorded.
        """
        self._check(layer, k, v)
        k, v = self._stored(k), self._stored(v)
        start, end = self._lengths[layer], self._lengths[layer] + k.shape[2]
        found = []
        for stores, new in ((self._keys, k), (self._values, v)):
            stores[layer] = self._store(stores[layer], new, start)
            check_continues(stores[layer][: self._rows if start else len(new)], new)
            found.append(stores[layer][: len(new)])
        for store, new in zip(found, (k, v), strict=True):
            store[:, :, start:end] = new
        self._rows, self._lengths[layer] = len(k), end
        return self._given(found[0][:, :, :end]), self._given(found[1][:, :, :end])

    def keys(self, layer: int) -> Float[Tensor, "batch kv_head slot d_head"]:
        """The stored keys of a layer, after RoPE, as a view."""
        return self._given(self._keys[layer][: self._rows, :, : self._lengths[layer]])

    def values(self, layer: int) -> Float[Tensor, "batch kv_head slot d_head"]:
        """The stored values of a layer, as a view."""
        return self._given(self._values[layer][: self._rows, :, : self._lengths[layer]])

    def reorder(self, rows: Int[Tensor, " batch"]) -> None:
        """Makes row i of the batch what row `rows[i]` was, in place where the storage has as many rows.

        Raises:
            ValueError: for a row that is not there, and for more rows than `max_batch_size`.
        """
        check_rows(rows, self.batch_size)
        if not self.length:
            return
        count = len(rows)
        self._check_rows(count)
        for stores in (self._keys, self._values):
            for layer, (store, length) in enumerate(zip(stores, self._lengths, strict=True)):
                picked = store[:, :, :length].index_select(0, rows.to(store.device))
                if count > len(store) or (store.is_inference() and not torch.is_inference_mode_enabled()):
                    stores[layer] = store = store.new_zeros((max(count, len(store)), *self._shape))
                store[:count, :, :length] = picked
        self._rows = count

    def set_state(self, numbers: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Takes over, empty as it is, what `state` gave."""
        self._computed = check_dtype(numbers["computed"])
        for name, stores in (("keys", self._keys), ("values", self._values)):
            for layer in range(len(stores)):
                part = tensors[f"{layer}.{name}"]
                stores[layer] = self._store(stores[layer], part, 0)
                stores[layer][: len(part), :, : part.shape[2]] = part
                self._rows, self._lengths[layer] = len(part), part.shape[2]

    def reset(self) -> None:
        """Forgets everything; the storage stays."""
        self._lengths = [0] * len(self._lengths)
        self._rows, self._computed = 0, None

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """How many positions there is room for."""
        return self.max_cache_len

    def _store(self, store: Tensor, new: Tensor, start: int) -> Tensor:
        """The storage of a layer, made anew if this begins a text that it has too few rows for, or another dtype or
        device.
        """
        fits = len(new) <= len(store) and (new.dtype, new.device) == (store.dtype, store.device)
        if start == 0 and not fits:
            if self._made_of["device"] is not None and new.device != store.device:
                raise ValueError(
                    f"keys or values on {new.device} do not fit this StaticCache: it was allocated as {store.dtype} on "
                    f"{store.device}. Give device={str(new.device)!r}, or leave device out."
                )
            return new.new_zeros((self.max_batch_size or len(new), *self._shape))
        if store.is_inference() and not torch.is_inference_mode_enabled():  # nobody may write into it out here
            return store.clone()
        return store

    def _check(self, layer: int, k: Tensor, v: Tensor) -> None:
        if not 0 <= layer < len(self._lengths):
            raise ValueError(f"layer is {layer}; this cache was made for a model of {len(self._lengths)} layers.")
        if (k.shape[1], k.shape[3]) != (self._shape[0], self._shape[2]):
            raise ValueError(
                f"keys of shape {tuple(k.shape)} (batch, kv_head, new, d_head) do not fit a StaticCache of "
                f"{self._shape[0]} key/value heads of width {self._shape[2]}. Make it with this model's config."
            )
        check_no_gradient(self, k, v)
        self._check_rows(len(k))
        start = self._lengths[layer]
        if start + k.shape[2] > self.max_cache_len:
            raise ValueError(
                f"the StaticCache is full: it has room for max_cache_len={self.max_cache_len} positions, {start} are "
                f"taken and {k.shape[2]} more came. Make it with max_cache_len={start + k.shape[2]} at least, shorten "
                "the text, or use a DynamicCache, which grows."
            )

    def _check_rows(self, count: int) -> None:
        if self.max_batch_size is not None and count > self.max_batch_size:
            raise ValueError(
                f"{count} rows do not fit a StaticCache of max_batch_size={self.max_batch_size}. Beams and "
                "num_return_sequences multiply the rows of a batch; make it larger, or leave max_batch_size out."
            )
