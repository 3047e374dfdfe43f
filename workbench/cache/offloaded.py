"""A cache that lives in the host's memory while the model computes on a GPU."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.cache.checks import check_continues, check_no_gradient
from workbench.cache.dynamic import DynamicCache, with_spare
from workbench.config import LlamaConfig

NOTHING_TO_OFFLOAD = (
    "an offloaded cache keeps keys and values in the host's memory instead of the GPU's, but this machine has no CUDA "
    "device: they are there already, so it works as a dynamic cache and frees nothing."
)


class OffloadedCache(DynamicCache):
    """Keeps every position, exactly, in the host's memory, in pinned pages; the GPU has two layers of it at a time.

    While a layer computes, the next one's keys and values are copied on a stream of their own. On a machine without a
    CUDA device it is a `DynamicCache`, and says so once.
    """

    name = "offloaded"
    _said = False

    def __init__(self, config: LlamaConfig | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(config, dtype)
        self._ahead: tuple[int, Tensor, Tensor] | None = None  # the layer that was fetched before it was asked for
        self._device: torch.device | None = None  # where the model computes, if that is not the host
        self._stream: Any = None
        if not torch.cuda.is_available() and not OffloadedCache._said:
            OffloadedCache._said = True
            warnings.warn(NOTHING_TO_OFFLOAD, stacklevel=2)

    def update(
        self, layer: int, k: Float[Tensor, "batch kv_head new d_head"], v: Float[Tensor, "batch kv_head new d_head"]
    ) -> tuple[Float[Tensor, "batch kv_head slot d_head"], Float[Tensor, "batch kv_head slot d_head"]]:
        """As of `DynamicCache`; on a GPU what is returned is a copy there, and gradients are refused."""
        if not self._is_elsewhere(k):
            return super().update(layer, k, v)
        check_no_gradient(self, k, v)
        self._device = k.device
        stored = self._stored(k), self._stored(v)
        self._open(layer, *(new.cpu() for new in (stored[0][:, :, :0], stored[1][:, :, :0])))
        for store, new in zip((self._keys[layer], self._values[layer]), stored, strict=True):
            check_continues(store[:, :, :0], new[:, :, :0].cpu())
        start = self._lengths[layer]
        given = stored
        if start:
            old = self._fetched(layer)
            given = torch.cat((old[0], stored[0]), 2), torch.cat((old[1], stored[1]), 2)
        self._keys[layer] = self._put(self._keys[layer], stored[0], start)
        self._values[layer] = self._put(self._values[layer], stored[1], start)
        self._lengths[layer] = start + k.shape[2]
        if start:
            self._fetch((layer + 1) % len(self._keys))
        return self._given(given[0]), self._given(given[1])

    def keys(self, layer: int) -> Float[Tensor, "batch kv_head slot d_head"]:
        """The keys of a layer, where the model computes."""
        self._wait()
        keys = super().keys(layer)
        return keys if self._device is None else keys.to(self._device)

    def values(self, layer: int) -> Float[Tensor, "batch kv_head slot d_head"]:
        """The values of a layer, where the model computes."""
        self._wait()
        values = super().values(layer)
        return values if self._device is None else values.to(self._device)

    def crop(self, length: int) -> None:
        """As of `DynamicCache`."""
        self._ahead = None
        super().crop(length)

    def reorder(self, rows: Int[Tensor, " batch"]) -> None:
        """As of `DynamicCache`."""
        self._wait()
        self._ahead = None
        super().reorder(rows)
        if self._device is not None:
            self._keys = [self._host(keys, keys.shape[2]) for keys in self._keys]
            self._values = [self._host(values, values.shape[2]) for values in self._values]

    def reset(self) -> None:
        """Forgets everything and frees the storage."""
        self._wait()
        self._ahead, self._device = None, None
        super().reset()

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """As of `DynamicCache`."""
        self._wait()
        return super().state()

    def clone(self) -> OffloadedCache:
        """An independent copy."""
        self._wait()
        self._ahead = None
        return super().clone()

    # ----------------------------------------------------------------------------------------------------------------

    @staticmethod
    def _is_elsewhere(new: Tensor) -> bool:
        return new.is_cuda

    def _fetched(self, layer: int) -> tuple[Tensor, Tensor]:
        """A layer's keys and values on the device, ready for the stream that computes."""
        if self._ahead is None or self._ahead[0] != layer:
            self._fetch(layer)
        assert self._ahead is not None
        _, keys, values = self._ahead
        self._ahead = None
        if self._stream is not None:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_stream(self._stream)
            for fetched in (keys, values):  # not to be given to anybody else before they are read
                fetched.record_stream(computing)
        return keys, values

    def _fetch(self, layer: int) -> None:
        """Begins to copy a layer to the device."""
        length = self._lengths[layer]
        with torch.cuda.stream(self._side()):
            parts = [
                t[:, :, :length].to(self._device, non_blocking=True) for t in (self._keys[layer], self._values[layer])
            ]
        self._ahead = layer, parts[0], parts[1]

    def _put(self, store: Tensor, new: Tensor, start: int) -> Tensor:
        """Begins to copy new positions to the host, whose storage grows where it is too small."""
        end = start + new.shape[2]
        if end > store.shape[2]:
            self._wait()
            store = self._host(store[:, :, :start], with_spare(end))
        by_slot = new.permute(2, 0, 1, 3).contiguous()
        side = self._side()
        if side is not None:
            side.wait_stream(torch.cuda.current_stream(self._device))
            by_slot.record_stream(side)
        with torch.cuda.stream(side):
            store.permute(2, 0, 1, 3)[start:end].copy_(by_slot, non_blocking=True)
        return store

    def _host(self, old: Tensor, room: int) -> Tensor:
        """Pinned storage that begins with `old`. Slots lie one behind the other, so that the first ones are one piece
        of memory, which the device can copy by itself.
        """
        batch, heads, length, width = old.shape
        pinned = torch.cuda.is_available()
        store = torch.empty((room, batch, heads, width), dtype=old.dtype, pin_memory=pinned).permute(1, 2, 0, 3)
        store[:, :, :length] = old
        return store

    def _side(self) -> Any:
        if self._stream is None and self._device is not None and self._device.type == "cuda":
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        return self._stream

    def _wait(self) -> None:
        """Until the host's memory holds what was copied to it."""
        if self._stream is not None:
            self._stream.synchronize()
