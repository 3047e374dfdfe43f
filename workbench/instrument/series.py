"""One point's tensors over successive forwards: kept in memory, on disk, or as what they are computed from."""

from __future__ import annotations

import bisect
import dataclasses
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from workbench.instrument.mask_part import MaskPart
from workbench.instrument.points import Point


class Stored(Protocol):
    """A captured tensor that is not in memory as such."""

    @property
    def shape(self) -> torch.Size:
        """Of the whole tensor."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Of the whole tensor."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held for it, in memory or on disk."""
        ...

    def read(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the position axis."""
        ...


Part = Tensor | Stored


def read_part(part: Part, axis: int, start: int, stop: int) -> Tensor:
    """Rows of one part; of a tensor in memory as a view."""
    if isinstance(part, Tensor):
        return part if stop - start == part.shape[axis] else part.narrow(axis, start, stop - start)
    return part.read(start, stop)


@dataclasses.dataclass
class Series:
    """The tensors of one point: `sizes[i]` rows of the position axis were captured in forward `steps[i]`, at
    `positions[i]`. `parts` hold the rows in order; reading all of them joins those that lie in memory, but for those
    that gradients flow through and those whose other axis differs.
    """

    point: Point
    parts: list[Part] = dataclasses.field(default_factory=list)
    sizes: list[int] = dataclasses.field(default_factory=list)
    steps: list[int] = dataclasses.field(default_factory=list)
    positions: list[Int[Tensor, " pos"]] = dataclasses.field(default_factory=list)
    ends: list[int] = dataclasses.field(default_factory=list)  # of the parts: how many rows there are up to there
    nbytes: int = 0  # held

    @property
    def axis(self) -> int:
        """The axis of positions."""
        return self.point.position_axis

    @property
    def total(self) -> int:
        """Rows of the position axis, of all forwards."""
        return self.ends[-1] if self.ends else 0

    def append(self, part: Part, step: int, positions: Int[Tensor, " pos"] | None = None) -> None:
        """Adds what one more forward computed."""
        size = part.shape[self.axis]
        self.parts.append(part)
        self.nbytes += part.nbytes
        self.ends.append((self.ends[-1] if self.ends else 0) + size)
        self.sizes.append(size)
        self.steps.append(step)
        self.positions.append(torch.arange(self.total - size, self.total) if positions is None else positions)

    def whole(self) -> Tensor:
        """All forwards, one behind the other along positions; of slots, what the last forward had.

        Raises:
            ValueError: if their batches differ.
        """
        if "slot" in self.point.axes:
            return self.of(len(self.sizes) - 1)
        joined = self.join([read_part(part, self.axis, 0, part.shape[self.axis]) for part in self.parts])
        if joined.requires_grad:
            return joined
        joined = joined.contiguous()
        if all(isinstance(part, Tensor) for part in self.parts) and "k_pos" not in self.point.axes:
            self.parts, self.ends, self.nbytes = [joined], [joined.shape[self.axis]], joined.nbytes
        return joined

    def of(self, index: int) -> Tensor:
        """What the `index`-th of the forwards gave."""
        if "slot" in self.point.axes:
            part = self.parts[index]
            found = read_part(part, self.axis, 0, part.shape[self.axis])
            return found if found.requires_grad else found.contiguous()
        start = sum(self.sizes[:index])
        return self.window(start, start + self.sizes[index])

    def window(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop`, as far as there are any, touching only the parts they lie in.

        Raises:
            IndexError: if there are none.
        """
        found, total = [], self.ends[-1] if self.ends else 0
        first = bisect.bisect_right(self.ends, max(start, 0))  # the part that row `start` is in
        for i in range(first, len(self.parts)):
            offset = self.ends[i - 1] if i else 0
            low, high = max(start - offset, 0), min(stop, self.ends[i]) - offset
            if low < high:
                found.append(read_part(self.parts[i], self.axis, low, high))
            if self.ends[i] >= stop:
                break
        if not found:
            raise IndexError(f"{self.point.name!r} has {total} positions; {start} … {stop} was asked for.")
        return self.join(found)

    def crop(self, length: int, steps: dict[int, int] | None = None, copy: bool = False) -> None:
        """Forgets the rows of positions from `length` on.

        Args:
            length: how many positions are left.
            steps: the forwards that are left, with their new numbers; `None` for all, with their own.
            copy: whether computed parts that stay whole become tensors too.
        """
        kept = Series(self.point)
        for i, positions in enumerate(self.positions):
            rows = int((positions < length).sum())
            step = self.steps[i] if steps is None else steps.get(self.steps[i])
            if rows and step is not None:
                kept.append(self._cropped(i, rows, length, copy), step, positions[:rows])
        if self.parts and not kept.parts and steps is None:
            kept.append(self.window(0, 1).narrow(self.axis, 0, 0).clone(), self.steps[0], self.positions[0][:0])
        self.parts, self.sizes, self.steps, self.positions = kept.parts, kept.sizes, kept.steps, kept.positions
        self.ends, self.nbytes = kept.ends, kept.nbytes

    def _cropped(self, index: int, rows: int, length: int, copy: bool) -> Part:
        """The first `rows` rows of the `index`-th forward, and no key from position `length` on."""
        part = self.parts[index] if len(self.parts) == len(self.sizes) else None
        if isinstance(part, MaskPart):
            return part.cropped(length)
        if rows < self.sizes[index] or part is None or (copy and not isinstance(part, Tensor)):
            part = self.of(index).narrow(self.axis, 0, rows).clone()  # a view would keep what was cut off alive
        if isinstance(part, Tensor) and "k_pos" in self.point.axes and part.shape[-1] > length:
            part = part[..., :length].clone()
        return part

    def join(self, tensors: list[Tensor]) -> Tensor:
        """Tensors of successive forwards, one behind the other along positions.

        Raises:
            ValueError: if their batches differ.
        """
        if len(tensors) == 1:
            return tensors[0]
        batches = sorted({t.shape[0] for t in tensors})
        if len(batches) > 1:
            if batches[0] != 1 or len(batches) > 2 or self.point.name != "mask":
                raise ValueError(
                    f"the forwards of this capture had batches of {', '.join(map(str, batches))} rows, so "
                    f"{self.point.name!r} cannot be joined along positions. Look at one of them: "
                    "acts.step(name, index)."
                )
            tensors = [t.expand(batches[1], *t.shape[1:]) for t in tensors]
        if "k_pos" in self.point.axes:  # an earlier forward saw fewer keys: the missing ones are in its future, masked
            keys = max(tensor.shape[-1] for tensor in tensors)
            fill = -torch.inf if self.point.name == "scores" else 0
            tensors = [F.pad(tensor, (0, keys - tensor.shape[-1]), value=fill) for tensor in tensors]
        return torch.cat(tensors, dim=self.axis)
