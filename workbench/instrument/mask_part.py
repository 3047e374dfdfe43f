"""The masks of forwards as captured points."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from workbench.model.mask import Mask


@dataclasses.dataclass(frozen=True)
class MaskPart:
    """The mask of a forward, or of some of its rows, as a captured point. Rules take next to no memory."""

    mask: Mask
    rows: tuple[int, ...] | None = None
    dtype: torch.dtype = torch.bool
    nbytes: int = 0

    @property
    def shape(self) -> torch.Size:
        """(batch or 1, q, k)."""
        batch = self.mask.allowed(slice(0, 1), slice(0, 1)).shape[0]
        return torch.Size((batch, len(self.mask.q_pos) if self.rows is None else len(self.rows), len(self.mask.k_pos)))

    def read(self, start: int, stop: int) -> Tensor:
        """Which cells may attend, of some queries."""
        return allowed_rows(self.mask, self.rows, start, stop)

    def cropped(self, length: int) -> MaskPart:
        """The same without positions from `length` on."""
        mask = mask_before(self.mask, length)
        return MaskPart(mask, None if self.rows is None else tuple(r for r in self.rows if r < len(mask.q_pos)))


def mask_before(mask: Mask, length: int) -> Mask:
    """A mask without its queries from position `length` on, nor keys from there on. Where a query that is left may see
    such a key all keys stay: without them the mask would be another one than was applied.
    """
    mask = mask.of_queries(slice(0, int((mask.q_pos < length).sum())))
    if bool(mask.allowed(k=(mask.k_pos >= length).nonzero()[:, 0]).any()):
        return mask
    kept = (mask.k_pos < length).nonzero()[:, 0]
    rules = []
    for rule in mask.rules:
        if rule.by_cell:
            table: Any = rule.parameters["allowed"]
            rule = dataclasses.replace(rule, parameters={"allowed": table[:, :, kept]})
        rules.append(rule)
    return Mask(rules, mask.q_pos, mask.k_pos[kept], None if mask.extra is None else mask.extra[..., kept])


def allowed_rows(mask: Mask, rows: tuple[int, ...] | None, start: int, stop: int) -> Tensor:
    """(batch or 1, q, k) of the kept rows `start` to `stop`, without making the others."""
    if rows is None:
        return mask.allowed(slice(start, stop))
    return torch.cat([mask.allowed(slice(first, last)) for first, last in runs(rows[start:stop])], 1)


def runs(numbers: tuple[int, ...]) -> list[tuple[int, int]]:
    """Ascending numbers as half-open ranges."""
    found: list[tuple[int, int]] = []
    for n in numbers:
        if found and found[-1][1] == n:
            found[-1] = (found[-1][0], n + 1)
        else:
            found.append((n, n + 1))
    return found
