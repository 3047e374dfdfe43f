"""Attention rollout (Abnar & Zuidema 2020, arXiv 2005.00928): attention multiplied up the layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.analysis.arguments import ranges
from workbench.analysis.attention_blocks import Block, score_blocks
from workbench.analysis.attention_sources import Source

Array = npt.NDArray[np.float32]


def rollout(source: Source, layers: Sequence[int] | None, should_stop: Callable[[], bool]) -> Array | None:
    """The rollout of every position, (q, k); `None` if stopped. Row q of a layer's matrix is the mean pattern of all
    heads plus 1 at q, divided by its sum; the matrices are multiplied, the lowest layer's on the right.
    """
    chosen, shown = _checked(source, layers), slice(0, source.length)
    mixed = torch.eye(_extent(source, chosen), device=source.device)
    for layer in chosen:
        below, mixed = mixed, torch.empty_like(mixed)
        for block in score_blocks(source, layer, source.heads(layer), 0, len(mixed)):
            if should_stop():
                return None
            mean = block.pattern().mean(0)  # (q, k)
            rows = slice(block.start, block.stop)
            torch.addmm(below[rows], mean, below[: mean.shape[1]], out=mixed[rows])
            mixed[rows] /= 1 + _attended(block)[:, None]
    return np.asarray(mixed[shown, shown].cpu().numpy())


def rollout_row(source: Source, q: int, layers: Sequence[int] | None, should_stop: Callable[[], bool]) -> Array | None:
    """Row q of the same: that unit vector times the highest layer's matrix, times the next one's, and so on."""
    chosen = _checked(source, layers)
    row = torch.zeros(_extent(source, chosen), device=source.device)
    row[q] = 1
    for layer in reversed(chosen):
        below = torch.zeros_like(row)
        reached = row.nonzero()
        heads = source.heads(layer)
        for block in score_blocks(source, layer, heads, int(reached[0]), int(reached[-1]) + 1):
            if should_stop():
                return None
            share = row[block.start : block.stop] / (1 + _attended(block))
            below[block.start : block.stop] += share
            pattern = block.pattern().flatten(0, 1)  # (head * q, k)
            below[: pattern.shape[1]] += (share / len(heads)).repeat(len(heads)) @ pattern
        row = below
    return np.asarray(row[: source.length].cpu().numpy())


def _extent(source: Source, layers: Sequence[int]) -> int:
    """How many positions are mixed: what the first ones see, they saw in the layers below in turn."""
    return source.length if all(source.is_causal(layer) for layer in layers) else source.end


def _attended(block: Block) -> Float[Tensor, " q"]:
    """What the weights of a query sum to, over the heads on average: 1, but 0 where it may attend to nothing."""
    if block.allowed is None:
        return torch.ones(block.scores.shape[1], device=block.scores.device)
    return block.allowed.any(-1).float().mean(0)


def _checked(source: Source, layers: Sequence[int] | None) -> list[int]:
    if source.acts.heads is not None and not source.has_all_heads:
        raise ValueError(
            f"rollout averages all heads of a layer; only query heads {ranges(source.acts.heads)} were captured. "
            "Capture without heads=."
        )
    if layers is not None:
        return list(layers)
    known = source.layers
    if known != list(range(len(known))):
        raise ValueError(
            f"rollout multiplies the layers from 0 on; captured are {ranges(known)}. Capture the others too, or say "
            "which ones are meant: layers=[…]."
        )
    return known
