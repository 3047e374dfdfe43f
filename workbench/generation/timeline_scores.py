"""How likely tokens were, and what else might have been taken."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.generation.sampling import Sampler

TOP = 20
BLOCK = 64  # predictions scored at once: each takes several copies of its logits


@dataclasses.dataclass(frozen=True)
class TokenScores:
    """How likely given tokens were: one row a prediction, log-probabilities and entropies in nats, ranks from 1."""

    logprob: Float[Tensor, " row"]
    entropy: Float[Tensor, " row"]
    rank: Int[Tensor, " row"]
    top_ids: Int[Tensor, "row top"]
    top_logprobs: Float[Tensor, "row top"]
    top_logits: Float[Tensor, "row top"]

    @classmethod
    def join(cls, parts: Sequence[TokenScores]) -> TokenScores:
        """The rows of all parts, in order."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def rows(self) -> list[dict[str, Any]]:
        """Each row as the fields of a `Node`, in plain Python, so that a tree is kept and written without tensors."""
        names = [field.name for field in dataclasses.fields(self)]
        columns = [getattr(self, name).tolist() for name in names]
        plain = (tuple(tuple(v) if isinstance(v, list) else v for v in row) for row in zip(*columns, strict=True))
        return [dict(zip(names, row, strict=True)) for row in plain]


def score_tokens(logits: Float[Tensor, "row vocab"], tokens: Int[Tensor, " row"], top: int = TOP) -> TokenScores:
    """Scores `tokens` under the plain softmax of `logits`, in float32. Rank 1 is the most likely; ties share a rank."""
    blocks = [
        _score_block(logits[start : start + BLOCK], tokens[start : start + BLOCK], top)
        for start in range(0, len(logits), BLOCK)
    ]
    return TokenScores.join(blocks) if len(blocks) > 1 else blocks[0]


def _score_block(logits: Float[Tensor, "row vocab"], tokens: Int[Tensor, " row"], top: int) -> TokenScores:
    logits = logits.float()
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(1, tokens[:, None].to(logits.device))
    best = logits.topk(min(top, logits.shape[-1]))
    return TokenScores(
        logprob=own[:, 0].cpu(),
        entropy=torch.special.entr(logprobs.exp()).sum(-1).cpu(),
        rank=((logprobs > own).sum(-1) + 1).cpu(),
        top_ids=best.indices.cpu(),
        top_logprobs=logprobs.gather(1, best.indices).cpu(),
        top_logits=best.values.cpu(),
    )


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A token that may come next.

    Attributes:
        token: its id.
        logit, logprob: of the plain prediction; the latter in nats.
        probability: with which the sampler takes it; 0 where it cuts it off.
    """

    token: int
    logit: float
    logprob: float
    probability: float


def rank_candidates(logits: Float[Tensor, " vocab"], sampler: Sampler, top: int = TOP) -> list[Candidate]:
    """The `top` most likely tokens, most likely first, and how likely a sampler is to take each."""
    logits = logits.float()
    best = logits.topk(min(top, len(logits)))
    if sampler.greedy:
        shares = torch.zeros_like(logits)
        shares[logits.argmax()] = 1.0
    else:
        shares = sampler.filter(logits[None])[0].softmax(-1)
    columns = (best.indices, best.values, logits.log_softmax(-1)[best.indices], shares[best.indices])
    return [Candidate(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def entropy_of(logits: Float[Tensor, " vocab"]) -> float:
    """Entropy of the plain softmax, in nats."""
    return float(torch.special.entr(logits.float().softmax(-1)).sum())


def draw(logits: Float[Tensor, " vocab"], sampler: Sampler, position: int) -> int:
    """The token a sampler takes for a position: its random numbers depend on its seed and on the position only.

    So a path that is gone twice gives the same tokens, and two runs that differ in something else are comparable.
    """
    generator = None
    if not sampler.greedy:
        generator = torch.Generator(logits.device).manual_seed(_mixed(sampler.seed, position))
    return int(sampler.pick(logits[None], generator)[0])


def _mixed(seed: int, position: int) -> int:
    """A seed of 32 bits (PyTorch's CPU generator uses no more), by the finalizer of SplitMix64 (Steele et al., 2014,
    doi 10.1145/2660193.2660195), so that neighbouring positions and seeds have nothing to do with each other.
    """
    mask = (1 << 64) - 1
    x = (seed * 0xD1342543DE82EF95 + (position + 1) * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return (x ^ (x >> 31)) >> 32
