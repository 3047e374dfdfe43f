"""Many cells of an attention pattern in few: the exact maximum or mean over squares of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.analysis.attention_blocks import Block

Reduce = Literal["max", "mean"]


@dataclasses.dataclass(frozen=True)
class Squares:
    """Queries `q0` to `q1` and keys `k0` to `k1` in squares of `factor × factor` cells, smaller ones at the edge."""

    q0: int
    q1: int
    k0: int
    k1: int
    factor: int

    @classmethod
    def of(cls, q: slice, k: slice, length: int, size: int) -> Squares:
        """The fewest cells a side of a square that bring both ranges into `size` squares.

        Raises:
            TypeError: for a range that is no slice.
            ValueError: for a range or size without a cell, or a step.
        """
        given: Any
        for name, given in (("q", q), ("k", k)):
            if not isinstance(given, slice):
                example = f"slice({given}, {given + 1})" if isinstance(given, int) else "slice(0, 9)"
                raise TypeError(f"{name} is {given!r}; a slice of positions is needed, such as {example}.")
        (q0, q1, *_), (k0, k1, *_) = q.indices(length), k.indices(length)
        if q.step not in (None, 1) or k.step not in (None, 1):
            raise ValueError(f"queries {q} and keys {k} leave cells out; give slices without a step.")
        if q0 >= q1 or k0 >= k1 or size < 1:
            raise ValueError(
                f"queries {q0} … {q1} and keys {k0} … {k1} in {size} cells hold nothing to show; this map has "
                f"{length} positions."
            )
        return cls(q0, q1, k0, k1, max(1, -(-max(q1 - q0, k1 - k0) // size)))

    @property
    def shape(self) -> tuple[int, int]:
        """Squares along queries and along keys."""
        return -(-(self.q1 - self.q0) // self.factor), -(-(self.k1 - self.k0) // self.factor)

    def bands(self, count: int) -> list[Squares]:
        """The same as at most `count` ranges of queries, cut between squares."""
        rows = self.shape[0]
        cuts = sorted({rows * i // count for i in range(count + 1)})
        edges = [min(self.q0 + cut * self.factor, self.q1) for cut in cuts]
        return [dataclasses.replace(self, q0=a, q1=b) for a, b in pairwise(edges)]

    def cells(self) -> Float[Tensor, "pooled_q pooled_k"]:
        """How many cells each square has."""
        rows, columns = (torch.full((n,), self.factor, dtype=torch.float32) for n in self.shape)
        rows[-1] -= self.shape[0] * self.factor - (self.q1 - self.q0)
        columns[-1] -= self.shape[1] * self.factor - (self.k1 - self.k0)
        return rows[:, None] * columns


class Pooling:
    """Takes blocks of a pattern one after the other, and keeps of each square the maximum or the sum."""

    def __init__(self, squares: Squares, heads: int, reduce: Reduce, device: torch.device) -> None:
        if reduce not in ("max", "mean"):
            raise ValueError(f"reduce is {reduce!r}; allowed are 'max' and 'mean'.")
        self.squares = squares
        self.reduce = reduce
        self._kept = torch.zeros((heads, *squares.shape), device=device)
        self._some = torch.zeros((heads, *squares.shape), dtype=torch.uint8, device=device)
        self._first = torch.arange(squares.shape[1], device=device) * squares.factor + squares.k0
        self._ends = (torch.arange(squares.shape[0], device=device)[:, None] + 1) * squares.factor + squares.q0

    def add(self, block: Block, pattern: Float[Tensor, "head q k"]) -> None:
        """Puts the weights of a block, or what was made of them, where they belong."""
        self._put(self._kept, pattern, block.start, "max" if self.reduce == "max" else "sum")
        if block.allowed is not None:
            self._put(self._some, block.allowed.view(torch.uint8), block.start, "max")
        else:  # a square has cells that may attend if its first key is not behind the block's last query
            rows = self._rows(block.start, block.stop - block.start)
            self._some[:, rows] |= self._first < self._ends[rows].clamp(max=block.stop)

    def weights(self) -> Float[Tensor, "head pooled_q pooled_k"]:
        """The maximum or mean of each square."""
        return self._kept if self.reduce == "max" else self._kept / self.squares.cells().to(self._kept.device)

    def masked(self) -> Bool[Tensor, "head pooled_q pooled_k"]:
        """Squares without a cell that may attend."""
        return self._some == 0

    def _rows(self, start: int, count: int) -> slice:
        """The rows of squares that queries from `start` on are in."""
        offset = start - self.squares.q0
        return slice(offset // self.squares.factor, (offset + count - 1) // self.squares.factor + 1)

    def _put(self, into: Tensor, cells: Tensor, start: int, how: Literal["max", "sum"]) -> None:
        """Reduces cells into their squares."""
        s = self.squares
        cells = cells[:, :, s.k0 : s.k1]
        if not cells.shape[2]:  # all of them are behind the block's queries
            return
        # Queries first: neighbouring keys lie side by side in memory, so that this is the quick direction.
        pooled = _along(cells, 1, s.factor, (start - s.q0) % s.factor, how)
        pooled = _along(pooled, 2, s.factor, 0, how)
        target = into[:, self._rows(start, cells.shape[1]), : pooled.shape[2]]
        if how == "max":
            torch.maximum(target, pooled, out=target)
        else:
            target.add_(pooled)


def _along(x: Tensor, axis: int, factor: int, offset: int, how: Literal["max", "sum"]) -> Tensor:
    """Reduces groups of `factor` along an axis; the first group lacks `offset` cells, the last some too."""
    if factor == 1:
        return x
    reduce: Callable[..., Tensor] = torch.amax if how == "max" else torch.sum
    size = x.shape[axis]
    head = min((factor - offset) % factor, size)
    whole = (size - head) // factor
    tail = size - head - whole * factor
    parts = []
    if head:
        parts.append(reduce(x.narrow(axis, 0, head), dim=axis, keepdim=True))
    if whole:
        shape = (*x.shape[:axis], whole, factor, *x.shape[axis + 1 :])
        parts.append(reduce(x.narrow(axis, head, whole * factor).view(shape), dim=axis + 1))
    if tail:
        parts.append(reduce(x.narrow(axis, size - tail, tail), dim=axis, keepdim=True))
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)
