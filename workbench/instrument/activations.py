"""Captured tensors, joined over successive forwards."""

from __future__ import annotations

import copy
import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.instrument.mask_part import MaskPart, mask_before
from workbench.instrument.names import read_name
from workbench.instrument.points import execution_order, layer_of, point_of
from workbench.instrument.series import Part, Series
from workbench.instrument.storage import own
from workbench.model.mask import Mask

Key = str | tuple[str, int]  # "layers.3.q", or ("q", 3)

if TYPE_CHECKING:
    import pandas as pd

    from workbench.instrument.compare import Difference
    from workbench.instrument.grid import Grid


@dataclasses.dataclass(frozen=True)
class Span:
    """One captured forward.

    Attributes:
        start: the position it began at.
        count: how many positions it read.
        masked: whether more than causality forbade cells.
        mask: the mask it applied; its `q_pos` are the forward's positions, its `k_pos` those of the cache's slots.
        tokens: (batch, count) ids; `None` for a forward of embeddings.
        lossy: whether its cache gave back earlier keys and values only nearly as they were computed.
        other_keys: layers whose attention did not use the keys of `k_rot`, as far as that is known: `k_cached` was
            edited, rows were reordered, or the text was read on in another cache.
    """

    start: int
    count: int
    masked: bool
    mask: Mask | None = None
    tokens: Int[Tensor, "batch pos"] | None = None
    lossy: bool = False
    other_keys: tuple[int, ...] = ()


class Activations:
    """What was captured, by full point name: `acts["layers.3.q_rot"]`, or `acts["q_rot", 3]`.

    Layers may be counted from the end, and points have the other names that `capture` knows. Tensors are detached,
    always batched, and share memory with nothing: an edit of one in place changes neither the model nor this capture.
    Chunks of a prompt and decode steps are joined along the position axis; `step` gives one forward alone, `grid`
    addresses single positions. Of `k_cached` and `v_cached`, whose axis is slots, the last forward counts. Safe to read
    while another thread appends. `pickle` and `copy.deepcopy` make copies of it.

    With `gradients=True` they are the forward's own tensors instead, to differentiate by. Of several forwards ask for
    each one's with `step`: the joined tensor is made of them, and no loss depends on it.

    Attributes:
        spans: one entry a forward that has ended, in order. Those that were refused or failed leave nothing.
        heads, kv_heads: which query and key/value heads were kept; `None` for all.
        layer_count: how many layers the model has; `None` if that is not known.
        scaling: what a layer's scores were multiplied by, where that is not 1/√d_head.
        lock: held while something is added or read.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.heads: tuple[int, ...] | None = None
        self.kv_heads: tuple[int, ...] | None = None
        self.layer_count: int | None = None
        self.scaling: dict[int, float] = {}
        self.lock = threading.RLock()
        self.model: Any = None  # a weak reference, for the manifest
        self.manifest: dict[str, Any] | None = None  # of a capture that was loaded
        self._series: dict[str, Series] = {}
        self._hidden: set[str] = set()  # kept because something that was asked for is computed from them

    # --- a mapping ---------------------------------------------------------------------------------------------------

    def __getitem__(self, key: Key) -> Tensor:
        with self.lock:
            return _own(self.series(key).whole())

    def __contains__(self, key: object) -> bool:
        name = self._name(key) if isinstance(key, str | tuple) else None
        return name in self._series and name not in self._hidden

    def __iter__(self) -> Iterator[str]:
        with self.lock:
            return iter(sorted((name for name in self._series if name not in self._hidden), key=execution_order))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return f"Activations({len(self)} tensors of {self.length} positions, {self.nbytes / 1e6:.1f} MB)"

    @property
    def length(self) -> int:
        """Number of positions captured (the most of any point)."""
        with self.lock:
            return max((s.total for s in self._series.values() if "slot" not in s.point.axes), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes held in memory or on disk, of what is stored. What is computed when it is looked at takes none."""
        with self.lock:
            return sum(series.nbytes for series in self._series.values())

    @property
    def hidden(self) -> frozenset[str]:
        """What is held only because something that was asked for is computed from it."""
        return frozenset(self._hidden)

    @property
    def layers(self) -> list[int]:
        """The layers that something was captured of."""
        return sorted({layer for name in self if (layer := layer_of(name)) is not None})

    # --- looking -----------------------------------------------------------------------------------------------------

    def step(self, key: Key, index: int) -> Tensor:
        """What forward `index` (from 0, negative from the end) computed of a point, not joined with the others.

        Raises:
            KeyError: for a point that was not captured.
            IndexError: for a forward that was not, or of which no position was kept.
        """
        with self.lock:
            series = self.series(key)
            return _own(series.of(self._index(key, series, index)))

    def window(self, key: Key, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a point's position axis, touching only the parts they lie in."""
        with self.lock:
            series = self.series(key)
            try:
                return _own(series.window(start, stop))
            except IndexError as error:
                name = self._name(key)
                raise IndexError(str(error).replace(f"{point_of(name).name!r}", f"{name!r}", 1)) from None

    def positions(self, key: Key) -> Int[Tensor, " pos"]:
        """The position in the text of each row of a point's position axis; of a slot, −1 where it is empty."""
        with self.lock:
            series = self.series(key)
            return series.positions[-1] if "slot" in series.point.axes else torch.cat(series.positions)

    def axes(self, key: Key) -> tuple[str, ...]:
        """What each axis of a point counts."""
        return self.series(key).point.axes

    def mask(self, layer: int | None = None, step: int = -1) -> Mask:
        """The mask that forward `step` applied; in a given layer, if the point `mask` was captured there.

        Raises:
            KeyError: if the layer's was not captured, or no forward's.
            IndexError: for a forward that was not captured, or of which no position was kept in the layer.
        """
        if layer is not None:
            with self.lock:
                series = self.series(("mask", layer))
                part = series.parts[self._index(("mask", layer), series, step)]
            assert isinstance(part, MaskPart)
            return part.mask
        if not self.spans:
            raise KeyError("no mask is known: nothing was captured of a forward.")
        if not -len(self.spans) <= step < len(self.spans):
            raise IndexError(f"there is no forward {step}; captured are 0 … {len(self.spans) - 1}.")
        if (mask := self.spans[step].mask) is None:
            raise KeyError(f"the mask of forward {step} is not known.")
        return mask

    def grid(self, short: str) -> Grid:
        """One point addressed as `[step, layer, position]`: see `Grid`."""
        from workbench.instrument.grid import Grid

        return Grid(self, short)

    def grad(self, key: Key) -> Tensor:
        """The gradient of a point that was captured with `gradients=True`, after `backward()`.

        Raises:
            ValueError: if there is none.
        """
        series = self.series(key)
        found = [part.grad if isinstance(part, Tensor) else None for part in series.parts]
        if not found or any(gradient is None for gradient in found):
            raise ValueError(
                f"{self._name(key)!r} has no gradient. Capture it with gradients=True, compute something from the "
                "forward's result, call .backward() on that, then ask."
            )
        return series.join([gradient for gradient in found if gradient is not None])

    @property
    def is_one_text(self) -> bool:
        """Whether the forwards read one text from position 0 on, without padding or a mask of the caller's."""
        from_start = not self.spans or self.spans[0].start == 0
        return from_start and self._in_order and not any(span.masked for span in self.spans)

    @property
    def _in_order(self) -> bool:
        """Whether each forward went on where the one before it had ended."""
        ends = [span.start + span.count for span in self.spans]
        return [span.start for span in self.spans[1:]] == ends[:-1]

    # --- comparing and keeping ---------------------------------------------------------------------------------------

    def to_pandas(self, key: Key | None = None) -> pd.DataFrame:
        """Without a name, one row a tensor: its shape, size and magnitudes. With one, its numbers, the last axis as
        columns and the others as index, positions by their number in the text.
        """
        from workbench.instrument.compare import summary, table

        return summary(self) if key is None else table(self, self._name(key))

    def diff(self, other: Activations, tolerance: float = 1e-5) -> Difference:
        """Compares the points that both have, in the order of execution: see `Difference`."""
        from workbench.instrument.compare import difference

        return difference(self, other, tolerance)

    def save(self, path: str | Path) -> None:
        """Writes tensors, masks, positions and tokens into one safetensors file, with a manifest: see `files`."""
        from workbench.instrument.files import save

        save(self, Path(path))

    @staticmethod
    def load(path: str | Path) -> Activations:
        """Opens what `save` wrote. Tensors are read when they are looked at, and of a window only its part."""
        from workbench.instrument.files import load

        return load(Path(path))

    def name_of(self, series: Series) -> str | None:
        """The name of a point by its parts; `None` if they are another capture's."""
        return next((name for name, own in self._series.items() if own is series), None)

    def or_empty(self, name: str) -> Series:
        """The parts of a point; none yet if nothing was captured of it."""
        return self._series.setdefault(name, Series(point_of(name)))

    # --- filling -----------------------------------------------------------------------------------------------------

    def append(
        self,
        name: str,
        part: Part,
        step: int | None = None,
        positions: Int[Tensor, " pos"] | None = None,
        hidden: bool = False,
    ) -> None:
        """Adds what one more forward computed of a point; `part` becomes this object's own."""
        with self.lock:
            if hidden and name not in self._series:
                self._hidden.add(name)
            series = self.or_empty(name)
            series.append(part, len(series.sizes) if step is None else step, positions)

    def extend(self, other: Activations) -> None:
        """Adds all positions of another capture of the same points; it stays as it is, and shares what it holds: crop
        only this one afterwards, because what is computed from other points reads the other one's.

        Raises:
            ValueError: if other heads were kept of it.
        """
        with self.lock, other.lock:
            if (self._series or self.spans) and self.heads != other.heads:
                raise ValueError(
                    f"this capture has the heads {_of(self.heads)}, the other one {_of(other.heads)}: their tensors "
                    "cannot be joined. Capture both with the same heads=."
                )
            if not self._series and not self.spans:
                self.heads, self.kv_heads, self.layer_count = other.heads, other.kv_heads, other.layer_count
                self.scaling = other.scaling
                self.model, self.manifest = other.model, other.manifest
            offset = len(self.spans)
            for name, series in other._series.items():
                for i, step in enumerate(series.steps):
                    part = series.parts[i] if len(series.parts) == len(series.sizes) else series.of(i)
                    self.append(name, part, offset + step, series.positions[i], name in other._hidden)
            self.spans.extend(other.spans)

    def crop(self, length: int) -> None:
        """Forgets every position from `length` on, and the forwards that read no other."""
        with self.lock:
            left = [i for i, span in enumerate(self.spans) if span.start < length]
            steps = {old: new for new, old in enumerate(left)} if self.spans else None
            # What is computed from others goes first, while they are whole.
            for name in sorted(self._series, key=execution_order, reverse=True):
                self._series[name].crop(length, steps, copy=not self._in_order)
            self._series = {name: series for name, series in self._series.items() if series.parts}
            self.spans = [_cropped(self.spans[i], length) for i in left]

    def series(self, key: Key) -> Series:
        """The parts of one point.

        Raises:
            KeyError: if it was not captured.
        """
        name = self._name(key)
        if name not in self._series:
            raise KeyError(f"{name!r} was not captured; captured are {', '.join(self) or 'no points'}.")
        return self._series[name]

    def _name(self, key: Key) -> str:
        """The full name of a point, however it is written."""
        name = key if isinstance(key, str) else f"layers.{key[1]}.{key[0]}"
        if name in self._series:
            return name
        count = self.layer_count or max(self.layers, default=-1) + 1
        try:
            found = [
                (point, layers) for point, layers in read_name(name, count) if point.per_layer == (layers is not None)
            ]
        except ValueError:
            return name
        names = [
            point.name if layers is None else f"layers.{i}.{point.name}"
            for point, layers in found
            for i in layers or [0]
        ]
        return names[0] if len(names) == 1 else name

    def _index(self, key: Key, series: Series, step: int) -> int:
        """Which of a point's parts a forward gave.

        Raises:
            IndexError: if there is no such forward, or nothing was kept of it.
        """
        count = len(self.spans) or len(series.steps)
        if not -count <= step < count:
            raise IndexError(f"there is no forward {step}; captured are 0 … {count - 1}.")
        if step % count not in series.steps:
            raise IndexError(f"forward {step} computed none of the positions that were to be kept of {key!r}.")
        return series.steps.index(step % count)

    # --- copies ------------------------------------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> Activations:
        twin = memo[id(self)] = Activations()
        with self.lock:
            vars(twin).update({k: copy.deepcopy(value, memo) for k, value in vars(self).items() if k != "lock"})
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        from workbench.instrument.files import from_bytes, to_bytes

        return (from_bytes, (to_bytes(self),)) if len(self) else (Activations, ())


def _own(tensor: Tensor) -> Tensor:
    """A tensor to give away; one that gradients flow through as it is."""
    return tensor if tensor.requires_grad else own(tensor)


def _of(heads: tuple[int, ...] | None) -> str:
    return "all" if heads is None else ", ".join(map(str, heads))


def _cropped(span: Span, length: int) -> Span:
    """A forward without positions from `length` on."""
    count = min(span.count, length - span.start)
    if count == span.count:
        return span
    mask = None if span.mask is None else mask_before(span.mask, length)
    return dataclasses.replace(
        span, count=count, mask=mask, tokens=None if span.tokens is None else span.tokens[:, :count]
    )
