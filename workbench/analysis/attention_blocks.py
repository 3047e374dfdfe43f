"""Scores of chosen heads of one layer, a block of queries at a time: what every look at attention is made of.

Columns are positions of the text, also where the forward found its keys in the slots of a cache in another order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from workbench.analysis.attention_sources import Forward, Source, Stretch

# Cells of all heads of a block: 2 MB of scores and 2 MB of weights, which stay in a core's cache.
CELLS = 1 << 19
LEAST = 32  # rows: with fewer, products are slow
# Stands for −∞ inside: its product with 0 is 0, not NaN, and adding a score to it leaves it as it is. Lower than what
# an additive mask can add without forbidding, which is half of the lowest number there is, −1.7e38.
MASKED = -3e38


@dataclasses.dataclass
class Block:
    """Some queries of some heads. The tensors are scratch memory: valid until the next block.

    Attributes:
        start: position of the first query.
        scores: `MASKED` where the query may not attend; keys from position 0, those behind the last are masked. Where
            the mask lets queries see later positions, keys behind the map's `length` are among them.
        allowed: what the masks allow; `None` where a query sees every key up to itself.
        stretch: where its keys and values are.
    """

    start: int
    scores: Float[Tensor, "head q k"]
    allowed: Bool[Tensor, "heads q k"] | None
    stretch: Stretch
    _weights: Float[Tensor, " cells"]

    @property
    def stop(self) -> int:
        """The position behind the last query."""
        return self.start + self.scores.shape[1]

    def pattern(self) -> Float[Tensor, "head q k"]:
        """Softmax of the scores; zeros for a query that may attend to nothing, as in the model."""
        weights = self._weights[: self.scores.numel()].view(self.scores.shape)
        torch.softmax(self.scores, dim=-1, out=weights)
        if self.allowed is not None and not bool((some := self.allowed.any(-1)).all()):
            weights.mul_(some[..., None])
        return weights

    def may_attend(self) -> Bool[Tensor, "heads q k"]:
        """Which keys each query may attend to; the axis of heads is 1 where they agree."""
        if self.allowed is not None:
            return self.allowed
        device = self.scores.device
        queries = torch.arange(self.start, self.stop, device=device)
        return (torch.arange(self.scores.shape[2], device=device) <= queries[:, None])[None]


def score_blocks(source: Source, layer: int, heads: Sequence[int], start: int, stop: int) -> Iterator[Block]:
    """Scores of queries `start` to `stop` on all keys, in blocks. Memory is O(rows · T + T · d_head).

    Keys behind a block's last query are computed only where the mask lets queries see them.

    Args:
        source: where queries, keys and masks are.
        heads: query heads in ascending order, so that those of one key/value head are neighbours.

    Raises:
        KeyError: for a layer that was not captured.
        ValueError: for a head that does not exist, or a query or key that was not captured.
    """
    source.check_heads(layer, heads)
    if start >= stop:
        return
    queries = source.queries(layer, heads, start, stop)  # (q, head, d_head)
    groups, scale = source.groups(layer, heads), source.scale_of(layer, queries.shape[2])
    stretches = source.stretches(layer, start, stop)
    width = max(source.reach(stretch.forwards, stretch.start, stretch.stop) for stretch in stretches)
    # Short blocks skip more of what is above the diagonal, long ones cost fewer calls.
    most = max(1, LEAST // len(heads), min(CELLS // (len(heads) * width), max(64, width // 8)))
    size = len(heads) * min(most, stop - start) * width
    scores, weights = queries.new_empty(size), queries.new_empty(size)
    future = queries.new_full((min(most, stop - start),) * 2, MASKED).triu_(1)  # above the diagonal
    for stretch in stretches:
        keys = source.keys(layer, stretch, [kv for _, _, kv in groups])  # (k, kv_head, d_head)
        for first in range(stretch.start, stretch.stop, most):
            last = min(first + most, stretch.stop)
            allowed, bias, count, rows = None, None, last, last - first
            if stretch.forwards:
                allowed, bias, count = _rules(source, stretch.forwards, heads, first, last, len(keys))
            block = scores[: len(heads) * rows * count].view(len(heads), rows, count)
            for place, (low, high, _) in enumerate(groups):
                part = queries[first - start : last - start, low:high].transpose(0, 1).flatten(0, 1)
                block[low:high].view(-1, count).addmm_(part, keys[:count, place].T, beta=0, alpha=scale)
            if bias is not None:
                block.add_(bias)
            else:  # the last keys are the queries themselves
                block[:, :, first:].add_(future[:rows, :rows])
            yield Block(first, block, allowed, stretch, weights)


def _rules(
    source: Source, forwards: Sequence[Forward], heads: Sequence[int], first: int, last: int, most: int
) -> tuple[Bool[Tensor, "heads q k"], Float[Tensor, "heads q k"], int]:
    """What is allowed to queries `first` to `last`, what is added to their scores, and how many of `most` keys matter.

    The axis of heads is 1 where they agree.
    """
    forwards = [f for f in forwards if f.start < last and f.stop > first]
    count = min(most, source.reach(forwards, first, last))
    by_head = any(f.rules.extra is not None for f in forwards)
    shape = (len(heads) if by_head else 1, last - first, count)
    allowed, bias = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape) if by_head else None
    for forward in forwards:
        low, high = max(first, forward.start), min(last, forward.stop)
        rows, queries = slice(low - first, high - first), slice(low - forward.start, high - forward.start)
        slots, positions = forward.slots(count)
        allowed[:, rows, positions] = _row(forward.rules.allowed(queries, slots), source.row)
        if bias is not None and (extra := forward.rules.extra) is not None:
            of_heads = extra[:, list(heads) if extra.shape[1] > 1 else [0]]
            picked = _row(of_heads[:, :, queries][..., slots], source.row)
            bias[:, rows, positions] = picked.float()
    if bias is None:
        bias = torch.zeros(shape)
    else:
        allowed &= bias != -torch.inf
    bias.masked_fill_(~allowed, MASKED)
    return allowed.to(source.device), bias.to(source.device), count


def _row(x: Tensor, row: int) -> Tensor:
    """A row of the batch; one row speaks for all."""
    return x[min(row, len(x) - 1)]
