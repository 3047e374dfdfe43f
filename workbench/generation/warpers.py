"""How a draw is narrowed: each takes the texts and the scores of their next tokens, and returns scores.

Scores are logits, or log-probabilities in a beam search; −inf is a token that cannot be drawn. `min_tokens_to_keep` is
how many tokens always stay. Names and numbers are those of `transformers`.
"""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.generation.options import check
from workbench.generation.sampling import keep_top_k, keep_top_p

Ids = Int[Tensor, "batch pos"]
Scores = Float[Tensor, "batch vocab"]


@dataclasses.dataclass(frozen=True)
class TemperatureLogitsWarper:
    """Divides by the temperature: below 1 likely tokens become likelier."""

    temperature: float

    def __post_init__(self) -> None:
        check("temperature", self.temperature)
        if self.temperature == 0:
            raise ValueError("temperature is 0, which divides by nothing; use do_sample=False for the likeliest token.")

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """Same shape."""
        return scores / self.temperature


@dataclasses.dataclass(frozen=True)
class TopKLogitsWarper:
    """Keeps the `top_k` most likely tokens."""

    top_k: int
    min_tokens_to_keep: int = 1

    def __post_init__(self) -> None:
        check("top_k", self.top_k)

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """Same shape."""
        return keep_top_k(scores, self.top_k, self.min_tokens_to_keep) if self.top_k else scores


@dataclasses.dataclass(frozen=True)
class TopPLogitsWarper:
    """Nucleus sampling (arXiv 1904.09751): keeps the fewest tokens whose probabilities add up to `top_p`."""

    top_p: float
    min_tokens_to_keep: int = 1

    def __post_init__(self) -> None:
        check("top_p", self.top_p)

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """Same shape."""
        return keep_top_p(scores, self.top_p, self.min_tokens_to_keep)


@dataclasses.dataclass(frozen=True)
class MinPLogitsWarper:
    """Keeps tokens at least `min_p` times as likely as the most likely one (arXiv 2407.01082)."""

    min_p: float
    min_tokens_to_keep: int = 1

    def __post_init__(self) -> None:
        check("min_p", self.min_p)

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """Same shape."""
        probabilities = scores.softmax(-1)
        dropped = probabilities < self.min_p * probabilities.amax(-1, keepdim=True)
        kept = probabilities.topk(min(self.min_tokens_to_keep, scores.shape[-1])).indices
        return scores.masked_fill(dropped.scatter(-1, kept, False), -torch.inf)


@dataclasses.dataclass(frozen=True)
class TopHLogitsWarper:
    """Keeps the most likely tokens up to a share `top_h` of the entropy of the likeliest hundred (arXiv 2509.02510)."""

    top_h: float

    def __post_init__(self) -> None:
        check("top_h", self.top_h)

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """Same shape."""
        best, order = scores.topk(min(100, scores.shape[-1]))
        terms = torch.special.entr(best.softmax(-1))
        kept = terms.cumsum(-1) <= self.top_h * terms.sum(-1, keepdim=True)
        kept[:, 0] = True
        return scores.masked_fill(~torch.zeros_like(scores, dtype=torch.bool).scatter(1, order, kept), -torch.inf)


@dataclasses.dataclass(frozen=True)
class TypicalLogitsWarper:
    """Locally typical sampling (arXiv 2202.00666): keeps the tokens whose surprisal is nearest to the entropy, until
    their probabilities add up to `mass`.
    """

    mass: float
    min_tokens_to_keep: int = 1

    def __post_init__(self) -> None:
        check("typical_p", self.mass)

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """Same shape."""
        logprobs = scores.log_softmax(-1)
        entropy = -(logprobs * logprobs.exp()).nansum(-1, keepdim=True)
        distance, order = (-logprobs - entropy).abs().sort(dim=-1)
        reached = scores.gather(-1, order).softmax(-1).cumsum(-1)
        last = (reached < self.mass).sum(1, keepdim=True).clamp(max=scores.shape[-1] - 1)
        dropped = distance > distance.gather(1, last)
        dropped[:, : self.min_tokens_to_keep] = False
        return scores.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)


@dataclasses.dataclass(frozen=True)
class EpsilonLogitsWarper:
    """Drops tokens less likely than `epsilon` (arXiv 2210.15191)."""

    epsilon: float
    min_tokens_to_keep: int = 1

    def __post_init__(self) -> None:
        check("epsilon_cutoff", self.epsilon)

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """Same shape."""
        return _drop_below(scores, scores.softmax(-1), self.epsilon, self.min_tokens_to_keep)


@dataclasses.dataclass(frozen=True)
class EtaLogitsWarper:
    """Drops tokens less likely than min(ε, √ε · exp(−entropy)) (arXiv 2210.15191)."""

    epsilon: float
    min_tokens_to_keep: int = 1

    def __post_init__(self) -> None:
        check("eta_cutoff", self.epsilon)

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """Same shape."""
        probabilities = scores.softmax(-1)
        entropy = torch.special.entr(probabilities).sum(-1, keepdim=True)
        eta = (self.epsilon**0.5 * torch.exp(-entropy)).clamp(max=self.epsilon)
        return _drop_below(scores, probabilities, eta, self.min_tokens_to_keep)


def _drop_below(scores: Scores, probabilities: Scores, limit: float | Tensor, keep: int) -> Scores:
    kept_anyway = scores >= scores.topk(min(keep, scores.shape[-1])).values[:, -1:]
    return scores.masked_fill((probabilities < limit) & ~kept_anyway, -torch.inf)
