"""Captured tensors, joined over successive forwards."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.instrument.points import execution_order, layer_of, point_of
from workbench.instrument.series import Part, Series
from workbench.model.mask import Mask

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
    """

    start: int
    count: int
    masked: bool
    mask: Mask | None = None
    tokens: Int[Tensor, "batch pos"] | None = None


class Activations:
    """What was captured, by full point name: `acts["layers.3.q_rot"]`, or `acts["q_rot", 3]`.

    Tensors are detached, always batched, and never share memory with the model or with a later capture. Chunks of a
    prompt and decode steps are joined along the position axis; `step` gives one forward alone, `grid` addresses single
    positions. Of `k_cached` and `v_cached`, whose axis is slots, the last forward counts. Safe to read while another
    thread appends.

    Attributes:
        spans: one entry a forward, in order.
        heads, kv_heads: which query and key/value heads were kept; `None` for all.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.heads: tuple[int, ...] | None = None
        self.kv_heads: tuple[int, ...] | None = None
        self.model: Any = None  # a weak reference, for the manifest
        self.manifest: dict[str, Any] | None = None  # of a capture that was loaded
        self._series: dict[str, Series] = {}
        self._hidden: set[str] = set()  # kept because something that was asked for is computed from them
        self._lock = threading.RLock()

    # --- a mapping ---------------------------------------------------------------------------------------------------

    def __getitem__(self, key: str | tuple[str, int]) -> Tensor:
        with self._lock:
            return self.series(key).whole()

    def __contains__(self, key: object) -> bool:
        name = f"layers.{key[1]}.{key[0]}" if isinstance(key, tuple) else key
        return name in self._series and name not in self._hidden

    def __iter__(self) -> Iterator[str]:
        with self._lock:
            return iter(sorted((name for name in self._series if name not in self._hidden), key=execution_order))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return f"Activations({len(self)} tensors of {self.length} positions, {self.nbytes / 1e6:.1f} MB)"

    @property
    def length(self) -> int:
        """Number of positions captured (the most of any point)."""
        with self._lock:
            return max((s.total for s in self._series.values() if "slot" not in s.point.axes), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes held in memory or on disk, of what is stored. What is computed when it is looked at takes none."""
        with self._lock:
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

    def step(self, key: str | tuple[str, int], index: int) -> Tensor:
        """What forward `index` (from 0, negative from the end) computed of a point, not joined with the others.

        Raises:
            KeyError: for a point that was not captured.
            IndexError: for a forward that was not, or of which no position was kept.
        """
        with self._lock:
            series = self.series(key)
            count = len(self.spans) or len(series.steps)
            if not -count <= index < count:
                raise IndexError(f"there is no forward {index}; captured are 0 … {count - 1}.")
            if index % count not in series.steps:
                raise IndexError(f"forward {index} computed none of the positions that were to be kept of {key!r}.")
            return series.of(series.steps.index(index % count))

    def window(self, key: str | tuple[str, int], start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of a point's position axis, touching only the parts they lie in."""
        with self._lock:
            try:
                return self.series(key).window(start, stop)
            except IndexError as error:
                raise IndexError(str(error).replace(f"{point_of(_name(key)).name!r}", f"{_name(key)!r}", 1)) from None

    def positions(self, key: str | tuple[str, int]) -> Int[Tensor, " pos"]:
        """The position in the text of each row of a point's position axis; of a slot, −1 where it is empty."""
        with self._lock:
            series = self.series(key)
            return series.positions[-1] if "slot" in series.point.axes else torch.cat(series.positions)

    def axes(self, key: str | tuple[str, int]) -> tuple[str, ...]:
        """What each axis of a point counts."""
        return self.series(key).point.axes

    def mask(self, layer: int | None = None, step: int = -1) -> Mask:
        """The mask that a forward applied; in a given layer, if the point `mask` was captured there.

        Raises:
            KeyError: if the layer's was not captured, or no forward's.
        """
        if layer is not None:
            with self._lock:
                part: Any = self.series(("mask", layer)).parts[step]
            found: Mask = part.mask
            return found
        if not self.spans or (mask := self.spans[step].mask) is None:
            raise KeyError("no mask is known: nothing was captured of a forward.")
        return mask

    def grid(self, short: str) -> Grid:
        """One point addressed as `[step, layer, position]`: see `Grid`."""
        from workbench.instrument.grid import Grid

        return Grid(self, short)

    def grad(self, key: str | tuple[str, int]) -> Tensor:
        """The gradient of a point that was captured with `gradients=True`, after `backward()`.

        Raises:
            ValueError: if there is none.
        """
        series = self.series(key)
        found = [part.grad if isinstance(part, Tensor) else None for part in series.parts]
        if not found or any(gradient is None for gradient in found):
            raise ValueError(
                f"{_name(key)!r} has no gradient. Capture it with gradients=True, compute something from the forward's "
                "result, call .backward() on that, then ask."
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

    def to_pandas(self, key: str | tuple[str, int] | None = None) -> pd.DataFrame:
        """Without a name, one row a tensor: its shape, size and magnitudes. With one, its numbers, the last axis as
        columns and the others as index, positions by their number in the text.
        """
        from workbench.instrument.compare import summary, table

        return summary(self) if key is None else table(self, _name(key))

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
        with self._lock:
            if hidden and name not in self._series:
                self._hidden.add(name)
            series = self.or_empty(name)
            series.append(part, len(series.sizes) if step is None else step, positions)

    def extend(self, other: Activations) -> None:
        """Adds all positions of another capture of the same points; it stays as it is, and shares what it holds."""
        with self._lock, other._lock:
            offset = len(self.spans)
            for name, series in other._series.items():
                for i, step in enumerate(series.steps):
                    part = series.parts[i] if len(series.parts) == len(series.sizes) else series.of(i)
                    self.append(name, part, offset + step, series.positions[i], name in other._hidden)
            self.spans.extend(other.spans)
            self.heads, self.kv_heads = other.heads, other.kv_heads

    def crop(self, length: int) -> None:
        """Forgets every position from `length` on."""
        with self._lock:
            # What is computed from others goes first, while they are whole.
            for name in sorted(self._series, key=execution_order, reverse=True):
                self._series[name].crop(length, not self._in_order)
            self.spans = [
                dataclasses.replace(
                    span,
                    count=min(span.count, length - span.start),
                    tokens=None if span.tokens is None else span.tokens[:, : length - span.start],
                )
                for span in self.spans
                if span.start < length
            ]

    def series(self, key: str | tuple[str, int]) -> Series:
        """The parts of one point.

        Raises:
            KeyError: if it was not captured.
        """
        name = _name(key)
        if name not in self._series:
            raise KeyError(f"{name!r} was not captured; captured are {', '.join(self) or 'no points'}.")
        return self._series[name]


def _name(key: str | tuple[str, int]) -> str:
    return key if isinstance(key, str) else f"layers.{key[1]}.{key[0]}"
