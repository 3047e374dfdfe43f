"""What the model needs from a KV cache, whatever it does inside, and what all caches of this package share."""

from __future__ import annotations

import copy
import os
from typing import Any, Protocol, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.cache.checks import (
    check_computed,
    check_dtype,
    check_rows,
    copied,
    dtype_name,
    from_the_end,
    holds_exactly,
    in_order,
    tensors_in,
    whole_length,
)

__all__ = ["BaseCache", "CacheStore", "KVCache", "holds_exactly", "tensors_in"]


class KVCache(Protocol):
    """Keys and values of the positions seen so far, one store a layer.

    Keys are stored after RoPE, with the model's key/value heads (never expanded to its query heads).
    """

    @property
    def name(self) -> str:
        """What `make_cache` and `cache_implementation` call this kind."""
        ...

    @property
    def exact(self) -> bool:
        """Whether attention uses the keys and values as they were computed, of all positions that it may see."""
        ...

    @property
    def window(self) -> int | None:
        """How many positions back a query sees, itself included; `None` for all.

        The model adds the mask rule `window(n)` for it, and `sink(n)` for `sinks`.
        """
        ...

    @property
    def sinks(self) -> int:
        """How many of the first positions every query sees in spite of the window."""
        ...

    @property
    def crops_exactly(self) -> bool:
        """Whether a cache that was cropped is as it was at that length, however far that is back."""
        ...

    @property
    def length(self) -> int:
        """Number of positions seen: the position the next token gets."""
        ...

    @property
    def layers(self) -> int:
        """Number of layers that have been given something."""
        ...

    @property
    def batch_size(self) -> int:
        """Number of rows; 0 as long as nothing was stored."""
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
        """Slot → position of the token in it, −1 for an empty slot; with `new`, of the slots that an `update` of as
        many positions will return.
        """
        ...

    def keys(self, layer: int) -> Float[Tensor, "batch kv_head slot d_head"]:
        """The keys of a layer, as attention would be given them now, in the order of `positions(layer)`."""
        ...

    def values(self, layer: int) -> Float[Tensor, "batch kv_head slot d_head"]:
        """The values of a layer, likewise."""
        ...

    def can_crop(self, length: int) -> bool:
        """Whether `crop(length)` is possible: whether what the next position needs is still held."""
        ...

    def crop(self, length: int) -> None:
        """Forgets every position from `length` on. Taking the last forward back is always possible."""
        ...

    def reorder(self, rows: Int[Tensor, " batch"]) -> None:
        """Makes row i of the batch what row `rows[i]` was; there may be more or fewer rows than before."""
        ...

    def reset(self) -> None:
        """Forgets everything."""
        ...

    def clone(self) -> Self:
        """An independent copy."""
        ...

    def copy_from(self, other: KVCache) -> None:
        """Forgets everything and takes over what another cache holds, of whatever kind."""
        ...

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it to a safetensors file, which `load_cache` reads."""
        ...


class BaseCache:
    """What all caches here share. The names behind the last rule are those of `transformers` for the same things.

    A subclass keeps its tensors in attributes, in lists of one entry a layer; `options()` are the arguments that make
    another one like it.
    """

    name = ""
    exact = True
    window: int | None = None
    sinks = 0
    crops_exactly = True

    def __repr__(self) -> str:
        shown = [f"{name}={value}" for name, value in self.options().items() if value is not None and name != "config"]
        return f"{type(self).__name__}({', '.join(shown)}): {self.length} positions, {self.nbytes:,} bytes"

    @property
    def length(self) -> int:
        """Number of positions seen: the position the next token gets."""
        return self.get_seq_length()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors held, spare room and what is kept to take a forward back included."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors_in(vars(self))}
        return sum(storages.values())

    def options(self) -> dict[str, Any]:
        """The arguments that make another cache like this one."""
        return {}

    def can_crop(self, length: int) -> bool:
        """Whether `crop(length)` is possible."""
        return whole_length(length) >= -self.length

    def clone(self) -> Self:
        """An independent copy, with what is kept to take the last forward back."""
        twin = copy.copy(self)
        vars(twin).update(copied(vars(self)))
        return twin

    def copy_from(self, other: KVCache) -> None:
        """Forgets everything and takes over what another cache holds: its keys and values as it gives them.

        From a cache of the same kind and options everything is taken as it is stored.

        Raises:
            ValueError: if `other` no longer holds positions that are needed here, or more than there is room for; both
                caches are as they were.
        """
        if isinstance(other, type(self)) and isinstance(self, type(other)) and other.options() == self.options():
            vars(self).update(vars(other.clone()))
            return
        twin = type(self)(**self.options())
        for layer in range(other.layers):
            twin.take(layer, other.keys(layer), other.values(layer), other.positions(layer), other)
        vars(self).update(vars(twin))

    def take(
        self,
        layer: int,
        k: Float[Tensor, "batch kv_head slot d_head"],
        v: Float[Tensor, "batch kv_head slot d_head"],
        positions: Int[Tensor, " slot"],
        source: KVCache,
    ) -> None:
        """Fills a layer of this empty cache with what `source` holds of it."""
        order = in_order(positions, torch.arange(source.length), source, self)
        self.update(layer, k.index_select(2, order.to(k.device)), v.index_select(2, order.to(v.device)))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes it to one safetensors file with a manifest; `load_cache` gives it back as it is.

        Raises:
            ValueError: if it is empty.
            FileNotFoundError: if there is no such folder.
        """
        from workbench.cache.files import save_cache  # files knows all kinds

        save_cache(self, path)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Numbers and tensors that, with the options, say all about it: what a file holds."""
        raise NotImplementedError

    def set_state(self, numbers: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Takes over, empty as it is, what `state` gave."""
        raise NotImplementedError

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See `KVCache`."""
        raise NotImplementedError

    def positions(self, layer: int, new: int = 0) -> Int[Tensor, " slot"]:
        """See `KVCache`."""
        raise NotImplementedError

    def keys(self, layer: int) -> Float[Tensor, "batch kv_head slot d_head"]:
        """See `KVCache`."""
        raise NotImplementedError

    def reorder(self, rows: Int[Tensor, " batch"]) -> None:
        """See `KVCache`."""
        raise NotImplementedError

    @property
    def batch_size(self) -> int:
        """See `KVCache`."""
        raise NotImplementedError

    @property
    def layers(self) -> int:
        """See `KVCache`."""
        raise NotImplementedError

    # ----------------------------------------------------------------------------------------------------------------

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of positions a layer has seen."""
        raise NotImplementedError

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """How many positions there is room for; −1: it grows as needed."""
        return -1

    def reorder_cache(self, beam_idx: Int[Tensor, " batch"]) -> None:
        """As `reorder`."""
        self.reorder(beam_idx)

    def batch_select_indices(self, indices: Int[Tensor, " batch"]) -> None:
        """As `reorder`."""
        self.reorder(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Makes `repeats` rows of each row, side by side."""
        self.reorder(torch.arange(self.batch_size).repeat_interleave(repeats))


class CacheStore(BaseCache):
    """What the caches that keep every position in order share: one store of keys and one of values a layer.

    Slot i holds position i; what is returned are views of the first `length` slots, or copies where the data type of
    storage is another than the model computes in.

    Args:
        dtype: of storage; `None` for the one that the keys and values come in.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.dtype = check_dtype(dtype)
        self._computed: torch.dtype | None = None  # data type that keys and values come in, if that is another
        self._lengths: list[int] = []
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    @property
    def exact(self) -> bool:  # type: ignore[override]
        """Whether storage holds every number that is computed: false for a smaller `dtype`."""
        return holds_exactly(self.dtype, self._computed)

    @property
    def batch_size(self) -> int:
        """Number of rows; 0 as long as nothing was stored."""
        return self._keys[0].shape[0] if self.length else 0

    @property
    def layers(self) -> int:
        """Number of layers that hold something."""
        return sum(length > 0 for length in self._lengths)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of positions a layer holds."""
        return self._lengths[layer_idx] if layer_idx < len(self._lengths) else 0

    def options(self) -> dict[str, Any]:
        """The arguments that make another cache like this one."""
        return {"dtype": self.dtype}

    def positions(self, layer: int, new: int = 0) -> Int[Tensor, " slot"]:
        """Slot → position of the token in it: here slot i holds position i."""
        return torch.arange(self.get_seq_length(layer) + new)

    def keys(self, layer: int) -> Float[Tensor, "batch kv_head slot d_head"]:
        """The stored keys of a layer, after RoPE. A view: `update` writes behind it, and into it
        only after `crop` or `reset`.
        """
        return self._given(self._keys[layer][:, :, : self._lengths[layer]])

    def values(self, layer: int) -> Float[Tensor, "batch kv_head slot d_head"]:
        """The stored values of a layer, as a view."""
        return self._given(self._values[layer][:, :, : self._lengths[layer]])

    def crop(self, length: int) -> None:
        """Forgets every position from `length` on; layers that are shorter stay as they are.

        A negative length counts from the end: `crop(-2)` forgets the last two positions.

        Raises:
            ValueError: if it is no whole number, or there are not so many positions.
        """
        length = from_the_end(self, length)
        self._lengths = [min(length, kept) for kept in self._lengths]
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
        self._keys = [t.index_select(0, rows.to(t.device)) for t in self._keys]
        self._values = [t.index_select(0, rows.to(t.device)) for t in self._values]

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Numbers and tensors that, with the options, say all about it."""
        tensors = {}
        for layer, length in enumerate(self._lengths):
            for name, store in (("keys", self._keys[layer]), ("values", self._values[layer])):
                tensors[f"{layer}.{name}"] = store[: self.batch_size, :, :length]
        return {"computed": dtype_name(self._computed)}, tensors

    def set_state(self, numbers: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Takes over, empty as it is, what `state` gave."""
        self._computed = check_dtype(numbers["computed"])
        count = len(tensors) // 2
        self._keys = [tensors[f"{layer}.keys"] for layer in range(count)]
        self._values = [tensors[f"{layer}.values"] for layer in range(count)]
        self._lengths = [keys.shape[2] for keys in self._keys]

    def _stored(self, new: Tensor) -> Tensor:
        """New keys or values in the data type of storage."""
        if self.dtype is None:
            return new
        self._computed = check_computed(self._computed, new)
        return new.to(self.dtype)

    def _given(self, stored: Tensor) -> Tensor:
        """Stored keys or values in the data type that the model computes in."""
        return stored if self.dtype is None or self._computed is None else stored.to(self._computed)
