"""The attention mask as a list of named rules.

A rule says which (query, key) pairs it allows. Everything that is given to an attention kernel, and every explanation
of why a cell is masked, comes from the same list. True means "may attend".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

# (query positions as (q, 1), key positions as (1, k)) → what is allowed, broadcastable to (batch, q, k)
Predicate = Callable[[Tensor, Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One named reason to forbid a cell. `letter` marks it on the page."""

    name: str
    letter: str
    allows: Predicate


def causal() -> Rule:
    """A query sees no later position."""
    return Rule("causal", "C", lambda q, k: k <= q)


def empty_slot() -> Rule:
    """A query sees no cache slot without a token (position −1)."""
    return Rule("empty_slot", "E", lambda q, k: k >= 0)


def padding(keep: Bool[Tensor, "batch pos"]) -> Rule:
    """A query sees no padding; `keep` is True at real tokens, over all positions up to the last query's. A slot without
    a token is none: `empty_slot` forbids it.
    """
    return Rule("padding", "P", lambda q, k: keep[:, k[0].clamp(min=0)][:, None, :] | (k < 0))


def custom(allowed: Bool[Tensor, "batch q k"]) -> Rule:
    """The caller's own mask, over the cells as they are."""
    return Rule("custom", "X", lambda q, k: allowed)


class Mask:
    """The rules of one forward and the positions they are applied to.

    Args:
        rules: all of them must allow a cell.
        q_pos: position of each query.
        k_pos: position of the token in each cache slot, −1 for an empty one.
        bias: what a caller's 4-D additive mask adds to the scores besides forbidding cells.
    """

    def __init__(
        self,
        rules: list[Rule],
        q_pos: Int[Tensor, " q"],
        k_pos: Int[Tensor, " k"],
        bias: Float[Tensor, "batch head q k"] | None = None,
    ) -> None:
        self.rules = rules
        self.q_pos = q_pos
        self.k_pos = k_pos
        self.extra = bias
        only_causal = [rule.name for rule in rules] == ["causal"] and bias is None
        start = len(k_pos) - len(q_pos)
        # The queries are the last positions of an unbroken run: what a kernel's own causal flag means.
        run = torch.arange(len(k_pos))
        in_order = only_causal and start >= 0 and torch.equal(k_pos, run) and torch.equal(q_pos, run[start:])
        self.is_causal = in_order and start == 0 and len(q_pos) > 1
        self.allows_all = in_order and len(q_pos) == 1
        self._dense: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def allowed(
        self, q: slice = slice(None), k: slice = slice(None), device: torch.device | None = None
    ) -> Bool[Tensor, "batch q k"]:
        """Which cells may attend, for any tile; the batch axis is 1 where all rows agree."""
        q_pos, k_pos = self.q_pos[q, None], self.k_pos[None, k]
        result = torch.ones((1, q_pos.shape[0], k_pos.shape[1]), dtype=torch.bool)
        for rule in self.rules:
            result = result & _tile(rule, q_pos, k_pos, q, k)
        return result.to(device) if device is not None else result

    def reasons(self, q: slice = slice(None), k: slice = slice(None)) -> UInt8[Tensor, "batch q k"]:
        """Bit i is set where rule i forbids the cell; 0 means that the cell may attend."""
        q_pos, k_pos = self.q_pos[q, None], self.k_pos[None, k]
        result = torch.zeros((1, q_pos.shape[0], k_pos.shape[1]), dtype=torch.uint8)
        for bit, rule in enumerate(self.rules):
            result = result | ((~_tile(rule, q_pos, k_pos, q, k)).to(torch.uint8) << bit)
        return result

    def dense(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """What is given to a kernel: (batch, 1, q, k) booleans, or the additive bias where there is one."""
        if (dtype, device) not in self._dense:
            allowed = self.allowed(device=device)[:, None]
            bias = None if self.extra is None else self.extra.to(device, dtype)
            self._dense[dtype, device] = allowed if bias is None else bias.masked_fill(~allowed, -torch.inf)
        return self._dense[dtype, device]

    def mask_mod(self, device: torch.device) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """The same for FlexAttention: (row, head, query, key) indices → whether that cell may attend.

        Where only causality forbids, it is an expression that a compiled kernel can skip blocks by.
        """
        if self.is_causal or self.allows_all:
            offset = len(self.k_pos) - len(self.q_pos)
            return lambda row, head, query, key: key <= query + offset
        allowed = self.allowed(device=device)
        rows = len(allowed)
        return lambda row, head, query, key: allowed[row.clamp(max=rows - 1), query, key]


def _tile(rule: Rule, q_pos: Tensor, k_pos: Tensor, q: slice, k: slice) -> Tensor:
    allowed = rule.allows(q_pos, k_pos)
    if allowed.dim() == 2:
        allowed = allowed[None]
    # A custom rule answers for all cells at once, whichever positions are asked for.
    return allowed[:, q, k] if rule.name == "custom" else allowed


def document(numbers: Int[Tensor, "batch pos"]) -> Rule:
    """A query sees its own document only; `numbers` says which document each position is in."""
    return Rule("document", "D", lambda q, k: numbers[:, q[:, 0]][:, :, None] == numbers[:, k[0]][:, None, :])


def documents(position_ids: Int[Tensor, "batch pos"] | None) -> Int[Tensor, "batch pos"] | None:
    """Number of the document that each position is in, where positions that do not count on begin another one.

    `None` if there is one document only.
    """
    if position_ids is None or not isinstance(position_ids, Tensor) or position_ids.dim() != 2:
        return None
    numbers = (position_ids.diff(dim=1) != 1).cumsum(1).cpu()
    return F.pad(numbers, (1, 0)) if bool((numbers > 0).any()) else None


def build_mask(
    attention_mask: Tensor | None,
    q_pos: Int[Tensor, " q"],
    k_pos: Int[Tensor, " k"],
    batch: int,
    heads: int,
    in_documents: Int[Tensor, "batch pos"] | None = None,
) -> Mask:
    """The mask of one forward.

    Args:
        attention_mask: `None`; or (batch, pos) with 0 at padding, over the cached positions and the new ones; or a 4-D
            (batch or 1, 1, q, k) mask, boolean (True = may attend) or additive, used as it is. An additive one may
            have all heads instead of the 1.
        q_pos, k_pos: as in `Mask`.
        batch: number of rows.
        heads: number of query heads.
        in_documents: the document each position is in, if there are several.

    Raises:
        TypeError: if it is no tensor.
        ValueError: for another rank, size, number of heads or dtype.
    """
    rules = [causal()] if bool((k_pos >= 0).all()) else [causal(), empty_slot()]
    if in_documents is not None:
        rules.append(document(in_documents))
    if attention_mask is None:
        return Mask(rules, q_pos, k_pos)
    if not isinstance(attention_mask, Tensor):
        raise TypeError(f"attention_mask is a {type(attention_mask).__name__}; a tensor or None is needed.")
    attention_mask = attention_mask.detach().cpu()
    if attention_mask.dim() == 4:
        return _custom_mask(attention_mask, q_pos, k_pos, batch, heads)
    total = int(q_pos[-1]) + 1
    if tuple(attention_mask.shape) != (batch, total):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; expected (batch, positions) ({batch}, {total}), "
            "counting cached positions, or a 4-D mask (batch, 1, new positions, all positions)."
        )
    if ((attention_mask != 0) & (attention_mask != 1)).any():
        raise ValueError("attention_mask of 2 dimensions holds other values than 0 (padding) and 1 (token).")
    keep = attention_mask.bool()
    return Mask(rules if bool(keep.all()) else [*rules, padding(keep)], q_pos, k_pos)


def _custom_mask(mask: Tensor, q_pos: Tensor, k_pos: Tensor, batch: int, heads: int) -> Mask:
    size = (len(q_pos), len(k_pos))
    if tuple(mask.shape[2:]) != size or mask.shape[0] not in (1, batch):
        raise ValueError(
            f"a 4-D attention_mask has shape {tuple(mask.shape)}; expected ({batch} or 1, 1 or {heads}, "
            f"{size[0]}, {size[1]})."
        )
    if mask.dtype == torch.bool:
        if mask.shape[1] != 1:
            raise ValueError(
                f"a boolean 4-D attention_mask has {mask.shape[1]} heads; give one for all heads, or an additive mask."
            )
        return Mask([custom(mask[:, 0])], q_pos, k_pos)
    if not mask.is_floating_point():
        raise ValueError(f"a 4-D attention_mask of {mask.dtype} is ambiguous: give booleans or an additive float mask.")
    if mask.shape[1] not in (1, heads):
        raise ValueError(
            f"an additive 4-D attention_mask has {mask.shape[1]} heads; give one for all heads, or one for each of the "
            f"model's {heads}."
        )
    # "minus infinity" is written as the dtype's lowest number by transformers.
    forbidden = mask <= torch.finfo(mask.dtype).min / 2
    return Mask([custom(~forbidden.all(1))], q_pos, k_pos, bias=mask.masked_fill(forbidden, -torch.inf))
