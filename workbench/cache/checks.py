"""Checks and small helpers that the caches share."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in nested lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(item)


def copied(value: Any) -> Any:
    """Nested lists, tuples and dicts with all tensors copied."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copied(item) for item in value]
    if isinstance(value, tuple):
        items = [copied(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def from_the_end(cache: Any, length: int) -> int:
    """The length to crop to, where a negative one counts from the end.

    Raises:
        ValueError: if it is no whole number, or there are not so many positions.
    """
    length = whole_length(length)
    if length < -cache.length:
        raise ValueError(f"crop({length}): the cache holds {cache.length} positions only.")
    return length + cache.length if length < 0 else length


def whole_length(length: Any) -> int:
    """A length to crop to, as it is given.

    Raises:
        ValueError: if it is no whole number.
    """
    try:
        if not isinstance(length, bool):
            return operator.index(length)
    except TypeError:  # said below
        pass
    raise ValueError(
        f"crop({length!r}): length must be a whole number: how many positions to keep, or, if negative, to forget."
    )


def check_rows(rows: Any, count: int) -> None:
    """Raises `TypeError` or `ValueError` unless `rows` are numbers of rows of a cache that has `count`, if any."""
    if not isinstance(rows, Tensor):
        raise TypeError(
            f"rows is a {type(rows).__name__}; a tensor of row numbers is needed, for example torch.tensor([1, 0])."
        )
    if not count:
        return
    if rows.ndim != 1 or not len(rows) or rows.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"rows has shape {tuple(rows.shape)} and {rows.dtype}; expected one or more whole numbers of shape "
            "(batch,), torch.int64."
        )
    if rows.device.type != "cpu":
        return  # looking at them would make the host wait at every step; PyTorch's own check remains
    strange = rows[(rows < 0) | (rows >= count)]
    if len(strange):
        raise ValueError(
            f"rows holds {int(strange[0])}; this cache has the rows 0 … {count - 1}. Give numbers of these only."
        )


def in_order(held: Int[Tensor, " slot"], needed: Int[Tensor, " pos"], source: Any, target: Any) -> Int[Tensor, " pos"]:
    """The slot of each needed position.

    Raises:
        ValueError: if one of them is in no slot.
    """
    where = torch.full((source.length,), -1)
    where[held[held >= 0]] = torch.nonzero(held >= 0)[:, 0]
    slots = where[needed]
    if len(needed) and bool((slots < 0).any()):
        missing = needed[slots < 0]
        raise ValueError(
            f"a {target.name} cache of {source.length} positions needs {len(missing)} positions that the {source.name} "
            f"cache no longer holds, from {int(missing[0])} to {int(missing[-1])}. Read the text again into it."
        )
    return slots


STORAGE = (torch.float32, torch.bfloat16, torch.float16)


def check_dtype(dtype: Any) -> torch.dtype | None:
    """A data type of storage, also by its name.

    Raises:
        ValueError: if it is none that keys and values can be stored in.
    """
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, dtype)
    if dtype is not None and dtype not in STORAGE:
        raise ValueError(
            f"dtype is {dtype!r}; keys and values are stored in {', '.join(map(str, STORAGE))}, or None for the data "
            "type that they come in. For fewer bits use a quantized cache."
        )
    checked: torch.dtype | None = dtype
    return checked


def check_device(device: Any) -> None:
    """Raises `ValueError` for a device that is not there."""
    try:
        torch.empty(0, device=torch.device(device))  # known to torch, and yet perhaps not on this machine
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"device is {device!r}, which torch cannot use here ({reason}). Use 'cpu'.") from error


def dtype_name(dtype: torch.dtype | None) -> str | None:
    """A data type as `check_dtype` takes it from a file."""
    return None if dtype is None else str(dtype).removeprefix("torch.")


def holds_exactly(stored: torch.dtype | None, computed: torch.dtype | None) -> bool:
    """Whether a data type of storage has room for every number of the one that is computed in."""
    if stored is None or computed is None:
        return stored in (None, torch.float32)
    return torch.promote_types(stored, computed) == stored


def check_computed(before: torch.dtype | None, new: Tensor) -> torch.dtype:
    """The data type that keys and values come in.

    Raises:
        ValueError: if it is another one than before.
    """
    if before not in (None, new.dtype):
        raise ValueError(
            f"keys or values of shape {tuple(new.shape)} ({new.dtype}, {new.device}) do not continue a cache of "
            f"{before}. Use a new cache for another batch or model."
        )
    return new.dtype


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


def check_no_gradient(cache: Any, *new: Tensor) -> None:
    """Raises `ValueError` where a gradient would be lost."""
    if any(t.requires_grad for t in new):
        raise ValueError(
            f"a {type(cache).__name__} writes in place, so no gradient can be recorded through it. Use "
            "torch.no_grad(), or a DynamicCache."
        )


def check_size(name: str, value: Any, least: int = 1) -> int:
    """A size that is a whole number.

    Raises:
        ValueError: naming it, if it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}.")
    return value
