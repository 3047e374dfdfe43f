"""A mask as numbers to look at: which cells may attend, and which rules forbid the others."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import torch

from workbench.analysis.arguments import whole
from workbench.model.mask import Mask
from workbench.model.mask_rules import MOST_RULES

OWN = ("custom", "X")  # name and letter of the caller's own mask


@dataclasses.dataclass(frozen=True)
class AppliedMask:
    """The first queries and keys of a mask.

    Attributes:
        reasons: (batch or 1, q, k); bit i is set where `rules[i]` forbids the cell, 0 may attend. One row where all
            texts of a batch have the same mask.
        rules: name and letter of each rule. The bit of `sink` is never set: it lifts what `window` forbids.
        q_pos, k_pos: position of each query and key shown; −1 for a cache slot without a token.
        queries, keys: how many the mask has in all.
        differs_by_head: some heads are forbidden cells that others are not; `reasons` forbids what all of them are
            forbidden, unless a head was chosen.
        biased: the mask also adds finite numbers other than 0 to the scores.
        bias: these numbers, (batch or 1, head or 1, q, k), −∞ where the mask forbids; of the chosen head, or of all.
            `None` if it adds none.
        described: each rule with its parameters, such as `window(n=64)`; of tensors the shape.
    """

    reasons: npt.NDArray[np.uint8]
    rules: tuple[tuple[str, str], ...]
    q_pos: npt.NDArray[np.int64]
    k_pos: npt.NDArray[np.int64]
    queries: int
    keys: int
    differs_by_head: bool = False
    biased: bool = False
    described: tuple[str, ...] = ()
    bias: npt.NDArray[np.float32] | None = None

    @property
    def cut(self) -> bool:
        """Whether there are queries or keys that are not shown."""
        return len(self.q_pos) < self.queries or len(self.k_pos) < self.keys


def applied_mask(mask: Mask, most: int, head: int | None = None) -> AppliedMask:
    """Reads a mask, no more than its first `most` queries and keys.

    Args:
        head: what this query head may attend to, where an additive mask has one for each head.

    Raises:
        TypeError: for a head that is no whole number.
        ValueError: for a head that does not exist, and for a mask of 8 rules whose heads differ, if a head is asked
            for: there is no bit left.
    """
    part = slice(0, most)
    reasons = mask.reasons(part, part)
    rules = [(rule.name, rule.letter) for rule in mask.rules]
    differs, bias, own = False, None, _axis(mask, head)
    if mask.extra is not None:
        extra = mask.extra[:, :, part, part]
        differs = bool(((extra == -torch.inf) != (extra[:, :1] == -torch.inf)).any())
        extra = extra[:, own]
        forbidden = extra == -torch.inf
        if bool((extra[~forbidden] != 0).any()):
            bias = extra.detach().float().cpu().numpy()
        if head is not None:
            if OWN not in rules:  # some heads had cells forbidden besides the rules
                rules.append(OWN)
            if len(rules) > MOST_RULES:
                raise ValueError(
                    f"this mask has {MOST_RULES} rules, and what it forbids to head {head} needs one more."
                )
            reasons = reasons | (forbidden[:, 0].to(torch.uint8) << rules.index(OWN))
    return AppliedMask(
        reasons=reasons.numpy(),
        rules=tuple(rules),
        q_pos=mask.q_pos[part].numpy(),
        k_pos=mask.k_pos[part].numpy(),
        queries=len(mask.q_pos),
        keys=len(mask.k_pos),
        differs_by_head=differs and head is None,
        biased=bias is not None,
        described=tuple(map(repr, mask.rules)),
        bias=bias,
    )


def _axis(mask: Mask, head: int | None) -> slice:
    """Where a head is on the additive mask's axis of heads; all of it for none."""
    if head is None:
        return slice(None)
    number, heads = whole(head, "head"), 1 if mask.extra is None else mask.extra.shape[1]
    if number < 0 or (heads > 1 and number >= heads):
        known = f"this mask has heads 0 … {heads - 1}" if heads > 1 else "heads count from 0"
        raise ValueError(f"head {number} does not exist; {known}.")
    return slice(number, number + 1) if heads > 1 else slice(None)
