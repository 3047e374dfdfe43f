"""From logits to a token."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How the next token is chosen.

    Args:
        temperature: divides the logits; 0 always takes the most likely token (greedy).
        top_k: keep only this many of the most likely tokens; 0 keeps all.
        top_p: keep the fewest tokens whose probabilities add up to at least this (nucleus sampling,
            arXiv 1904.09751); 1 keeps all.
        seed: of the random numbers; the same seed gives the same text.

    Raises:
        ValueError: for values outside these ranges.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature!r}; it must be 0 (greedy) or a positive number.")
        if not isinstance(self.top_k, int) or self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k!r}; it must be 0 (all tokens) or a positive whole number.")
        if not isinstance(self.seed, int):
            raise ValueError(f"seed is {self.seed!r}; it must be a whole number.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p!r}; it must lie in (0, 1], where 1 keeps all tokens.")

    @property
    def greedy(self) -> bool:
        """Whether no random number is drawn."""
        return self.temperature == 0

    def generator(self, device: torch.device) -> torch.Generator:
        """A fresh random generator with this seed."""
        return torch.Generator(device).manual_seed(self.seed)

    def pick(
        self, logits: Float[Tensor, "batch vocab"], generator: torch.Generator | None = None
    ) -> Int[Tensor, " batch"]:
        """One token a row. Without a generator PyTorch's global one is drawn from."""
        if self.greedy:
            return logits.argmax(-1)
        kept = self.filter(logits.float())
        return torch.multinomial(kept.softmax(-1), 1, generator=generator)[:, 0]

    def filter(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
        """Logits after temperature, top-k and top-p, in this order; −inf at tokens that cannot be chosen."""
        logits = logits / self.temperature if self.temperature else logits
        if self.top_k:
            logits = keep_top_k(logits, self.top_k)
        return keep_top_p(logits, self.top_p) if self.top_p < 1 else logits


def keep_top_k(logits: Float[Tensor, "batch vocab"], k: int, at_least: int = 1) -> Float[Tensor, "batch vocab"]:
    """−inf at all but the `k` (and not fewer than `at_least`) most likely tokens; ties with the last of them stay."""
    lowest = logits.topk(min(max(k, at_least), logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < lowest, -torch.inf)


def keep_top_p(logits: Float[Tensor, "batch vocab"], p: float, at_least: int = 1) -> Float[Tensor, "batch vocab"]:
    """−inf at all but the fewest tokens (and not fewer than `at_least`) whose probabilities add up to `p` or more."""
    ascending, order = logits.sort(dim=-1)
    dropped = ascending.softmax(-1).cumsum(-1) <= 1 - p
    dropped[:, -at_least:] = False
    return logits.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)
