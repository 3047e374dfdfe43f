"""A cache that keeps old positions in few bits."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.cache.base import BaseCache, KVCache
from workbench.cache.checks import check_continues, check_no_gradient, check_rows, check_size, from_the_end
from workbench.cache.codes import BITS, Codes, quantize_keys, quantize_values, read_keys, read_values
from workbench.cache.dynamic import write

GROUP = 32


class Layer(NamedTuple):
    """One layer: codes of whole blocks, and behind them the last positions as they were computed.

    `counts` is how many tokens of each block are still wanted, from its first: all of them, unless the cache was
    cropped within it. `done` is their sum, and `end` the number of positions.
    """

    keys: Codes
    values: Codes
    last_keys: Float[Tensor, "batch kv_head room d_head"]
    last_values: Float[Tensor, "batch kv_head room d_head"]
    counts: tuple[int, ...] = ()
    done: int = 0
    end: int = 0


class QuantizedCache(BaseCache):
    """Keeps the last positions as they are and older ones in 8, 4 or 2 bits (KIVI, arXiv 2402.02750; see `codes`).

    Positions are quantized `group_size` at a time, once at least `residual_length` others have come after them, and
    never again: cropping, reordering, copying and saving leave codes as they are. The queries of a forward see its own
    positions as they were computed; so a text read in one forward has other numbers than the same text read in several.

    Args:
        bits: 8, 4 or 2.
        group_size: how many numbers share a scale and a zero of 16 bits each: tokens of a channel for keys, channels of
            a token for values. It divides d_head. Default 32, or the largest smaller one that divides it.
        residual_length: how many of the last positions at least are kept as they are.

    Raises:
        ValueError: for other numbers of bits, or sizes that are no whole numbers.
    """

    name = "quantized"
    exact = False
    crops_exactly = False

    def __init__(self, bits: int = 4, group_size: int | None = None, residual_length: int = 128) -> None:
        if not isinstance(bits, int) or bits not in BITS:
            raise ValueError(f"bits is {bits!r}; allowed are {', '.join(map(str, BITS))}.")
        self.bits = bits
        self.group_size = None if group_size is None else check_size("group_size", group_size)
        self.residual_length = check_size("residual_length", residual_length, least=0)
        self._group = 0  # the group size in use
        self._layers: list[Layer] = []
        self._before: list[tuple[Any, ...] | None] = []  # what a forward that made codes found behind those there were

    @property
    def batch_size(self) -> int:
        """Number of rows; 0 as long as nothing was stored."""
        return self._layers[0].last_keys.shape[0] if self.length else 0

    @property
    def layers(self) -> int:
        """Number of layers that hold something."""
        return sum(layer.end > 0 for layer in self._layers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of positions a layer holds."""
        return self._layers[layer_idx].end if layer_idx < len(self._layers) else 0

    def quantized_length(self, layer: int = 0) -> int:
        """How many of a layer's positions, from the first, are held as codes."""
        return self._layers[layer].done if layer < len(self._layers) else 0

    def options(self) -> dict[str, Any]:
        """The arguments that make another cache like this one."""
        return {"bits": self.bits, "group_size": self.group_size, "residual_length": self.residual_length}

    def update(
        self, layer: int, k: Float[Tensor, "batch kv_head new d_head"], v: Float[Tensor, "batch kv_head new d_head"]
    ) -> tuple[Float[Tensor, "batch kv_head slot d_head"], Float[Tensor, "batch kv_head slot d_head"]]:
        """Takes the new positions and returns all: those that are codes as numbers again, the others as they came.

        Raises:
            ValueError: if layers are not filled in order, the shape does not continue what is stored, the group size
                does not fit it, or gradients are recorded.
        """
        now = self._layer(layer, k, v)
        check_continues(now.last_keys, k)
        check_continues(now.last_values, v)
        if layer == 0:  # a forward begins: the last one is not taken back any more
            self._before = [None] * len(self._before)
        behind, end = now.end - now.done, now.end + k.shape[2]
        blocks = max(0, end - self.residual_length - now.done) // self._group
        if not blocks:
            room = self.residual_length + self._group
            last = [
                write(store, new, behind, behind + new.shape[2], room)
                for store, new in ((now.last_keys, k), (now.last_values, v))
            ]
            self._layers[layer] = now = now._replace(last_keys=last[0], last_values=last[1], end=end)
            return self._read(now, "keys"), self._read(now, "values")
        given = (k, v) if not now.end else (self._read(now, "keys", k), self._read(now, "values", v))
        self._before[layer] = now[2:]
        self._layers[layer] = self._quantized(now, given, blocks, end)
        return given

    def positions(self, layer: int, new: int = 0) -> Int[Tensor, " slot"]:
        """Slot → position of the token in it: here slot i holds position i."""
        return torch.arange(self.get_seq_length(layer) + new)

    def keys(self, layer: int) -> Float[Tensor, "batch kv_head slot d_head"]:
        """The keys of a layer, after RoPE, those that are codes as numbers again."""
        return self._read(self._layers[layer], "keys")

    def values(self, layer: int) -> Float[Tensor, "batch kv_head slot d_head"]:
        """The values of a layer, likewise."""
        return self._read(self._layers[layer], "values")

    def crop(self, length: int) -> None:
        """Forgets every position from `length` on; layers that are shorter stay as they are.

        The last forward is taken back as if it had not been. Before that, positions that are codes stay codes, so there
        may be fewer than `residual_length` as they were computed. A negative length counts from the end.

        Raises:
            ValueError: if it is no whole number, or there are not so many positions.
        """
        length = from_the_end(self, length)
        for layer, now in enumerate(self._layers):
            before = self._before[layer]
            if length >= now.end:
                continue
            if before is not None and length <= before[-1]:
                now, self._before[layer] = Layer(*now[:2], *before), None
            if length < now.done:
                ends = itertools.accumulate(now.counts, initial=0)
                counts = [min(n, length - start) for n, start in zip(now.counts, ends, strict=False) if start < length]
                now = now._replace(counts=tuple(counts), done=length)
            self._layers[layer] = now._replace(end=min(length, now.end))

    def reorder(self, rows: Int[Tensor, " batch"]) -> None:
        """Makes row i of the batch what row `rows[i]` was; there may be more or fewer rows than before.

        Raises:
            ValueError: for a row that is not there.
        """
        check_rows(rows, self.batch_size)
        if not self.length:
            return

        def picked(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.index_select(0, rows.to(value.device))
            return Codes(*map(picked, value)) if isinstance(value, Codes) else value

        self._layers = [Layer(*map(picked, layer)) for layer in self._layers]
        self._before = [None if before is None else tuple(map(picked, before)) for before in self._before]

    def reset(self) -> None:
        """Forgets everything and frees the storage."""
        self._layers, self._before, self._group = [], [], 0

    def copy_from(self, other: KVCache) -> None:
        """As `BaseCache.copy_from`; codes of a cache with the same bits, group and residual length are copied."""
        if isinstance(other, QuantizedCache) and other._layers:
            width = other._layers[0].last_keys.shape[3]
            mine = (self.bits, self.residual_length, group_for(self.group_size, self.bits, width))
            if mine == (other.bits, other.residual_length, other._group):
                twin = other.clone()
                self._layers, self._before, self._group = twin._layers, twin._before, twin._group
                return
        super().copy_from(other)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Numbers and tensors that, with the options, say all about it."""
        tensors = {}
        for i, layer in enumerate(self._layers):
            for kind, codes in (("keys", layer.keys), ("values", layer.values)):
                for name, tensor in codes._asdict().items():
                    tensors[f"{i}.{kind}.{name}"] = tensor[:, :, : len(layer.counts)]
            tensors[f"{i}.last_keys"] = layer.last_keys[:, :, : layer.end - layer.done]
            tensors[f"{i}.last_values"] = layer.last_values[:, :, : layer.end - layer.done]
        return {"group": self._group, "counts": [layer.counts for layer in self._layers]}, tensors

    def set_state(self, numbers: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Takes over, empty as it is, what `state` gave."""
        self._group = check_size("group", numbers["group"])
        for i, counts in enumerate(numbers["counts"]):
            keys, values = (
                Codes(*(tensors[f"{i}.{kind}.{name}"] for name in Codes._fields)) for kind in ("keys", "values")
            )
            last = tensors[f"{i}.last_keys"], tensors[f"{i}.last_values"]
            done = sum(counts)
            self._layers.append(Layer(keys, values, *last, tuple(counts), done, done + last[0].shape[2]))
            self._before.append(None)

    # ----------------------------------------------------------------------------------------------------------------

    def _read(self, layer: Layer, kind: str, new: Tensor | None = None) -> Tensor:
        """All keys or values of a layer, with new ones behind them: a fresh tensor, unless nothing is a code yet."""
        codes, last = (layer.keys, layer.last_keys) if kind == "keys" else (layer.values, layer.last_values)
        last = last.narrow(2, 0, layer.end - layer.done)
        if not layer.counts:
            return last if new is None else torch.cat((last, new), 2)
        end = layer.end + (0 if new is None else new.shape[2])
        out = last.new_empty((*last.shape[:2], end, last.shape[3]))
        self._numbers(layer, codes, kind, out.narrow(2, 0, layer.done))
        out.narrow(2, layer.done, layer.end - layer.done).copy_(last)
        if new is not None:
            out.narrow(2, layer.end, new.shape[2]).copy_(new)
        return out

    def _numbers(self, layer: Layer, codes: Codes, kind: str, out: Tensor) -> None:
        read = read_keys if kind == "keys" else read_values
        count = len(layer.counts)
        wanted = Codes(*(t.narrow(2, 0, count) for t in codes))
        if layer.done == count * self._group:
            read(wanted, self.bits, self._group, out)
            return
        whole = out.new_empty((*out.shape[:2], count * self._group, out.shape[3]))
        read(wanted, self.bits, self._group, whole)
        rows = [block * self._group + token for block, n in enumerate(layer.counts) for token in range(n)]
        out.copy_(whole.index_select(2, torch.tensor(rows, device=out.device)))

    def _quantized(self, now: Layer, given: tuple[Tensor, Tensor], blocks: int, end: int) -> Layer:
        """The layer with `blocks` more blocks of codes, made of the first positions in `given` that are none yet."""
        count, group, stop = len(now.counts), self._group, now.done + blocks * self._group
        k, v = (t[:, :, now.done : stop] for t in given)
        made = quantize_keys(k, self.bits, group), quantize_values(v, self.bits, group)
        codes, last = [], []
        for old, new, whole in zip((now.keys, now.values), made, given, strict=True):
            at = count, count + blocks, count + blocks + max(1, count // 32)
            codes.append(Codes(*(write(store, part, *at) for store, part in zip(old, new, strict=True))))
            rest = whole.new_empty((*whole.shape[:2], self.residual_length + group, whole.shape[3]))
            rest[:, :, : end - stop] = whole[:, :, stop:]
            last.append(rest)
        return Layer(codes[0], codes[1], last[0], last[1], (*now.counts, *[group] * blocks), stop, end)

    def _layer(self, layer: int, k: Tensor, v: Tensor) -> Layer:
        """A layer: new and empty if it is the next one, or holds nothing any more."""
        check_no_gradient(self, k, v)
        if layer > len(self._layers):
            raise ValueError(f"layer {layer} was given before layer {len(self._layers)}; layers are filled in order.")
        if not self.get_seq_length(layer):
            width = k.shape[3]
            self._group = group = group_for(self.group_size, self.bits, width)
            stores = []
            for new in (k, v):  # scales of a block: one a channel; one a token for each of width / group groups
                packed = new.new_empty((*new.shape[:2], 0, group * width * self.bits // 8), dtype=torch.uint8)
                scale = new.new_empty((*new.shape[:2], 0, width), dtype=torch.float16)
                stores.append(Codes(packed, scale, scale.clone()))
            last = [t.new_empty((*t.shape[:2], 0, width)) for t in (k, v)]
            empty = Layer(stores[0], stores[1], last[0], last[1])
            self._layers[layer:] = [empty, *self._layers[layer + 1 :]]
            self._before[layer:] = [None, *self._before[layer + 1 :]]
        return self._layers[layer]


def group_for(wanted: int | None, bits: int, width: int) -> int:
    """The group size for keys and values of a width: the one wanted, or the largest one up to 32.

    Raises:
        ValueError: if it does not divide the width into whole bytes.
    """
    allowed = [size for size in range(8 // bits, width + 1) if width % size == 0 and size * bits % 8 == 0]
    fitting = [size for size in allowed if size <= GROUP] if wanted is None else [s for s in allowed if s == wanted]
    if not fitting:
        raise ValueError(
            f"group_size is {wanted}, but groups of channels have to divide d_head={width} and fill whole bytes at "
            f"{bits} bits; allowed are {', '.join(map(str, allowed))}."
        )
    return fitting[-1]
