"""The record of a generation: one node a token, with what the model thought before taking it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

Source = Literal["prompt", "sampled", "forced"]
TOP = 20
BLOCK = 64  # predictions scored at once: each takes several copies of its logits


@dataclasses.dataclass(frozen=True)
class Node:
    """One token on the timeline.

    `logprob` and `entropy` are in nats, `rank` counts from 1, and all three are of the prediction this token came from,
    the plain softmax before temperature and cuts; they are `None` for a first token, which nothing predicts.
    `top_ids` / `top_logprobs` are the most likely tokens of that same prediction. `ms` and `positions_computed` are the
    cost of the forward that read this token, `cache_bytes` what the cache held after it; 0 positions: not read yet.
    """

    index: int
    parent: int | None
    token: int
    source: Source
    logprob: float | None = None
    entropy: float | None = None
    rank: int | None = None
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()
    ms: float = 0.0
    positions_computed: int = 0
    cache_bytes: int = 0


class Timeline:
    """A tree of nodes; a path from the root is one text."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def add(
        self, token: int, source: Source, parent: int | None, scores: TokenScores | None = None, row: int = 0
    ) -> Node:
        """Appends a token under `parent`, with row `row` of `scores` as the prediction it came from."""
        node = Node(len(self.nodes), parent, token, source)
        if scores is not None:
            node = dataclasses.replace(
                node,
                logprob=float(scores.logprob[row]),
                entropy=float(scores.entropy[row]),
                rank=int(scores.rank[row]),
                top_ids=tuple(scores.top_ids[row].tolist()),
                top_logprobs=tuple(scores.top_logprobs[row].tolist()),
            )
        self.nodes.append(node)
        return node

    def record_cost(self, index: int, ms: float, positions: int, cache_bytes: int) -> None:
        """Notes what reading a token cost."""
        self.nodes[index] = dataclasses.replace(
            self.nodes[index], ms=ms, positions_computed=positions, cache_bytes=cache_bytes
        )

    def truncate(self, count: int) -> None:
        """Takes back the nodes that were added after the first `count`."""
        del self.nodes[count:]

    def path(self, index: int) -> list[Node]:
        """The nodes from the root to `index`."""
        found = []
        at: int | None = index
        while at is not None:
            found.append(self.nodes[at])
            at = self.nodes[at].parent
        return found[::-1]

    def children(self, index: int) -> list[Node]:
        """The tokens that were taken after `index`."""
        return [node for node in self.nodes if node.parent == index]


@dataclasses.dataclass(frozen=True)
class TokenScores:
    """How likely given tokens were: one row a prediction, log-probabilities and entropies in nats, ranks from 1."""

    logprob: Float[Tensor, " row"]
    entropy: Float[Tensor, " row"]
    rank: Int[Tensor, " row"]
    top_ids: Int[Tensor, "row top"]
    top_logprobs: Float[Tensor, "row top"]

    @classmethod
    def join(cls, parts: Sequence[TokenScores]) -> TokenScores:
        """The rows of all parts, in order."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def score_tokens(logits: Float[Tensor, "row vocab"], tokens: Int[Tensor, " row"], top: int = TOP) -> TokenScores:
    """Scores `tokens` under the plain softmax of `logits`, in float32. Rank 1 is the most likely; ties share a rank."""
    blocks = [
        _score_block(logits[start : start + BLOCK], tokens[start : start + BLOCK], top)
        for start in range(0, len(logits), BLOCK)
    ]
    return TokenScores.join(blocks)


def _score_block(logits: Float[Tensor, "row vocab"], tokens: Int[Tensor, " row"], top: int) -> TokenScores:
    logprobs = logits.float().log_softmax(-1)
    own = logprobs.gather(1, tokens[:, None].to(logits.device))
    best = logprobs.topk(min(top, logprobs.shape[-1]))
    return TokenScores(
        logprob=own[:, 0].cpu(),
        entropy=torch.special.entr(logprobs.exp()).sum(-1).cpu(),
        rank=((logprobs > own).sum(-1) + 1).cpu(),
        top_ids=best.indices.cpu(),
        top_logprobs=best.values.cpu(),
    )
