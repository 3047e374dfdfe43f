"""Where an edit is: what its function is told, and which rows it means."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.instrument.edit_data import Positions
from workbench.model.mask import Mask, Rule


class EditError(ValueError):
    """An edit that could not be made, or did not take effect."""


@dataclasses.dataclass(frozen=True)
class Site:
    """One point in one forward.

    Attributes:
        name: the full name, as in a capture: `layers.3.z`.
        layer: its layer; `None` for `embed`, `final_norm` and `logits`.
        positions: absolute position of each row along the position axis; of `k_cached` and `v_cached`, of the token in
            each slot, −1 where there is none.
        tokens: which of these rows are tokens; False in empty slots and at padding, as the caller's mask declares it:
            in the form (batch, pos), by a rule, or as a key that no query of a 4-D mask sees.
        mask: the mask that the layer applies; `None` at `embed`, before there is one. `q_pos` and `k_pos` are the
            absolute positions of queries and key slots.
        step: number of the forward in the block, from 0.
    """

    name: str
    layer: int | None
    positions: Int[Tensor, " pos"]
    tokens: Bool[Tensor, "batch pos"]
    mask: Mask | None
    step: int


def rows_at(wanted: Positions | None, positions: Int[Tensor, " pos"]) -> Int[Tensor, " row"]:
    """Which rows are at the wanted positions; `None` means every row that has one."""
    if wanted is None:
        found = positions >= 0
    elif isinstance(wanted, slice):
        found = positions >= wanted.start
    else:
        found = torch.isin(positions, torch.tensor(wanted))
    return found.nonzero()[:, 0]


def is_token(mask: Mask | None, positions: Int[Tensor, " pos"]) -> Bool[Tensor, "batch pos"]:
    """Which positions are tokens to a mask: neither empty slots nor padding. Of the caller's own cells, padding is what
    no query sees. The batch axis is 1 where all rows agree.
    """
    found = positions[None] >= 0
    for rule in mask.rules if mask is not None else ():
        if rule.name == "padding":
            found = found & rule(positions, positions, torch.arange(rule.rows)[:, None])
        elif rule.name == "custom" and mask is not None:
            found = found & _is_seen(rule, mask.k_pos, positions)
    return found


def _is_seen(rule: Rule, k_pos: Tensor, positions: Tensor) -> Bool[Tensor, "batch pos"]:
    """Which positions some query may see by a rule of cells; True where no key slot has the position."""
    cells: Any = rule.parameters["allowed"]
    at = k_pos == positions[:, None]  # (pos, key)
    seen: Tensor = cells.any(1)[:, at.int().argmax(1)]
    return seen | ~at.any(1)
