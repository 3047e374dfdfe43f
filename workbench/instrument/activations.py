"""Captured tensors, joined over successive forwards."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from workbench.instrument.points import POINTS, Point


@dataclasses.dataclass(frozen=True)
class Span:
    """One captured forward: the position it began at, how many it read, and whether a caller's mask was applied."""

    start: int
    count: int
    masked: bool


class Activations:
    """What was captured, by full point name: `acts["layers.3.q_rot"]`, or `acts["q_rot", 3]`.

    Tensors are detached, always batched, and never share memory with the model or with a later capture. Chunks of a
    prompt and decode steps are joined along the position axis. Safe to read while another thread appends.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._chunks: dict[str, list[Tensor]] = {}
        self._lock = threading.Lock()

    def __getitem__(self, key: str | tuple[str, int]) -> Tensor:
        name = key if isinstance(key, str) else f"layers.{key[1]}.{key[0]}"
        self._check(name)
        with self._lock:
            chunks = self._chunks[name]
            if len(chunks) > 1:
                chunks[:] = [_join(chunks, _point(name))]
            return chunks[0]

    def __contains__(self, key: object) -> bool:
        name = f"layers.{key[1]}.{key[0]}" if isinstance(key, tuple) else key
        return name in self._chunks

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._chunks))

    def __len__(self) -> int:
        return len(self._chunks)

    def __repr__(self) -> str:
        return f"Activations({len(self)} tensors of {self.length} positions, {self.nbytes / 1e6:.1f} MB)"

    @property
    def length(self) -> int:
        """Number of positions captured (the most of any point)."""
        with self._lock:
            return max((self._positions(name) for name in self._chunks), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        with self._lock:
            return sum(chunk.nbytes for chunks in self._chunks.values() for chunk in chunks)

    def window(self, name: str, start: int, stop: int) -> Tensor:
        """Positions `start` to `stop` of a point, touching only the chunks they lie in."""
        self._check(name)
        axis = _point(name).position_axis
        with self._lock:
            parts, offset = [], 0
            for chunk in self._chunks[name]:
                low, high = max(start - offset, 0), min(stop - offset, chunk.shape[axis])
                if low < high:
                    parts.append(chunk.narrow(axis, low, high - low))
                offset += chunk.shape[axis]
        if not parts:
            raise IndexError(f"{name!r} has {offset} positions; {start} … {stop} was asked for.")
        return _join(parts, _point(name))

    def append(self, name: str, tensor: Tensor) -> None:
        """Adds the positions of one more forward; `tensor` becomes this object's own."""
        with self._lock:
            self._chunks.setdefault(name, []).append(tensor)

    def extend(self, other: Activations) -> None:
        """Adds all positions of another capture of the same points."""
        for name in other:
            self.append(name, other[name])
        self.spans.extend(other.spans)

    def crop(self, length: int) -> None:
        """Forgets every position from `length` on."""
        for name in self:
            point = _point(name)
            with self._lock:
                kept = _join(self._chunks[name], point)
                for axis, label in enumerate(point.axes):
                    if label in ("pos", "q_pos", "k_pos"):
                        kept = kept.narrow(axis, 0, min(length, kept.shape[axis]))
                self._chunks[name] = [kept.clone()]  # a view would keep what was cut off alive
        self.spans = [
            dataclasses.replace(span, count=min(span.count, length - span.start))
            for span in self.spans
            if span.start < length
        ]

    @property
    def is_one_text(self) -> bool:
        """Whether the forwards read one text from position 0 on, without padding or a mask of the caller's."""
        ends = [span.start + span.count for span in self.spans]
        return not any(span.masked for span in self.spans) and [span.start for span in self.spans] == [0, *ends][:-1]

    def _check(self, name: str) -> None:
        if name not in self._chunks:
            raise KeyError(f"{name!r} was not captured; captured are {', '.join(self) or 'no points'}.")

    def _positions(self, name: str) -> int:
        axis = _point(name).position_axis
        return sum(chunk.shape[axis] for chunk in self._chunks[name])


def _point(name: str) -> Point:
    return POINTS[name.rpartition(".")[2]]


def _join(chunks: list[Tensor], point: Point) -> Tensor:
    if len(chunks) == 1:
        return chunks[0]
    if "k_pos" in point.axes:  # an earlier forward saw fewer keys: the missing ones are in its future, masked
        keys = max(chunk.shape[-1] for chunk in chunks)
        fill = -torch.inf if point.name == "scores" else 0.0
        chunks = [F.pad(chunk, (0, keys - chunk.shape[-1]), value=fill) for chunk in chunks]
    return torch.cat(chunks, dim=point.position_axis)
