"""What is worth knowing of many predictions at once, in blocks of the vocabulary.

Logits of every layer at every position are gigabytes, and most of a lens' time beyond the matrix product goes into
reading them again and again. Here each block of logits is read while it is still in the processor's cache.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.model import LlamaForCausalLM
from workbench.model.linear import Linear, linear

BLOCK = 1 << 21  # logits in a block: 8 MB
GROUP = 64  # logits that share a maximum when the largest ones are looked for


@dataclasses.dataclass(frozen=True)
class Predictions:
    """One row a prediction, in the order of the rows of logits.

    Attributes:
        top_ids, top_logprobs: the most likely tokens, best first; equal ones in any order.
        entropy: in nats.
        kl: KL(final ‖ row), in nats, where final is the last row of the same position.
        logprob, rank: of the tokens asked about; ranks from 1, equal logits share one; 0 for a logit that is NaN.
        final_logits: the rows that are the last of their position.
    """

    top_ids: Int[Tensor, "row top"]
    top_logprobs: Float[Tensor, "row top"]
    entropy: Float[Tensor, " row"]
    kl: Float[Tensor, " row"]
    logprob: Float[Tensor, "row token"]
    rank: Int[Tensor, "row token"]
    final_logits: Float[Tensor, "pos vocab"]


def head_blocks(
    model: LlamaForCausalLM, states: Float[Tensor, "row d_model"], block: int = BLOCK
) -> Iterator[Float[Tensor, "row part"]]:
    """Final norm and head of residual states: their logits, some of the vocabulary at a time, about `block` numbers.

    Nobody's hooks on the norm or the head take this for a forward of the model.
    """
    head = model.lm_head
    hidden = model.model.norm.forward(states.to(model.device, model.dtype))
    width = max(GROUP, block // max(1, len(states)) // GROUP * GROUP)
    plain = type(head).forward in (Linear.forward, nn.Linear.forward) and "forward" not in vars(head)
    if not plain or width >= model.config.vocab_size:  # quantized, adapted, placed elsewhere: only it knows how
        yield from (part.contiguous() for part in torch.split(head.forward(hidden), width, dim=-1))
        return
    weight, bias = head.weight, head.bias
    for start in range(0, len(weight), width):
        part = slice(start, start + width)
        yield linear(hidden, weight[part], None if bias is None else bias[part])


def predictions(
    blocks: Iterable[Float[Tensor, "row part"]],
    states: int,
    tokens: Int[Tensor, "row token"],
    k: int,
    should_stop: Callable[[], bool] = lambda: False,
    scratch: Scratch | None = None,
) -> Predictions | None:
    """Reads blocks of logits that follow each other along the vocabulary; `None` if stopped between two of them.

    Computed in float32, or in float64 where the logits are. All logits are held until the end, for the ranks.

    Args:
        states: rows of each position, which lie together; the last of them is its final prediction.
        tokens: ids whose log-probability and rank are wanted, for each row.
        k: how many of the most likely tokens to keep.
        scratch: memory to work in, where many chunks are read one after another.
    """
    kept: list[Tensor] = []
    parts: list[_Part] = []
    scratch, offset = scratch or Scratch(), 0
    for logits in blocks:
        if kept and should_stop():
            return None
        kept.append(logits)
        parts.append(_read(logits, states, k, offset, scratch))
        offset += logits.shape[1]
    lses = torch.stack([part.lse for part in parts], 1)
    lse = lses.logsumexp(1)
    share = (lses - lse[:, None]).exp()  # of each block in the whole probability
    # Entropy is −Σ p log p = Σ p (lse − logit), and KL is Σ p_final (log p_final − log p) likewise.
    entropy = (share * (lse[:, None] - torch.stack([part.mean for part in parts], 1))).sum(1)
    final_share = share.view(-1, states, len(parts))[:, -1:]
    crossed = lse.view(-1, states, 1) - torch.stack([part.final_mean for part in parts], 2)
    kl = (final_share * crossed).sum(2) - entropy.view(-1, states)[:, -1:]
    kl[:, -1] = 0.0
    values, where = torch.cat([part.values for part in parts], 1).topk(min(k, offset))
    own, rank = _places(kept, tokens, scratch)
    return Predictions(
        top_ids=torch.cat([part.ids for part in parts], 1).gather(1, where),
        top_logprobs=values - lse[:, None],
        entropy=entropy,
        kl=kl.flatten().clamp(min=0.0),
        logprob=own - lse[:, None],
        rank=rank,
        final_logits=torch.cat([logits[states - 1 :: states] for logits in kept], 1),
    )


@dataclasses.dataclass(frozen=True)
class _Part:
    """Of a block: its largest logits, log of the sum of their exponentials, and mean logits under its own softmax."""

    values: Float[Tensor, "row top"]
    ids: Int[Tensor, "row top"]
    lse: Float[Tensor, " row"]
    mean: Float[Tensor, " row"]
    final_mean: Float[Tensor, "pos state"]  # under the softmax of the final row


def _read(logits: Float[Tensor, "row part"], states: int, k: int, offset: int, scratch: Scratch) -> _Part:
    weights, shifted, wide = scratch.like(logits)
    if wide.dtype != logits.dtype:
        logits = wide.copy_(logits)
    values, ids = largest(logits, k)
    torch.softmax(logits, -1, out=weights)  # this kernel passes over the numbers once; exp and sums would three times
    best = values[:, :1]
    lse = best[:, 0] - weights.gather(1, ids[:, :1])[:, 0].log()
    # Means of the distance from the largest logit, not of logits: weights sum to 1 only up to rounding.
    torch.sub(logits, best, out=shifted)
    by_position = (-1, states, logits.shape[1])
    final = weights.view(by_position)[:, -1:].clone()
    mean = best[:, 0] + weights.mul_(shifted).sum(1)
    final_mean = best.view(-1, states) + shifted.view(by_position).mul_(final).sum(2)
    return _Part(values, ids + offset, lse, mean, final_mean)


class Scratch:
    """Memory for a few blocks, used again and again: a new block costs a page fault every 4 kB."""

    def __init__(self) -> None:
        self.store: Tensor | None = None

    def like(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Three tensors of the shape of `logits`, float32 or wider, with any numbers in them."""
        wanted, dtype = 3 * logits.numel(), torch.promote_types(logits.dtype, torch.float32)
        if self.store is None or self.store.numel() < wanted or self.store.dtype != dtype:
            self.store = logits.new_empty(wanted, dtype=dtype)
        first, second, third = self.store[:wanted].view(3, *logits.shape)
        return first, second, third


def largest(x: Float[Tensor, "row col"], k: int) -> tuple[Float[Tensor, "row top"], Int[Tensor, "row top"]]:
    """The `k` largest of each row and their columns, largest first; equal ones in any order.

    They all lie in the `k` groups of columns with the largest maxima, so only those are sorted: exact, and several
    times as fast as `topk` where there are many columns.
    """
    columns = x.shape[1]
    groups = columns // GROUP
    if groups <= 2 * k:
        found = x.topk(min(k, columns))
        return found.values, found.indices
    best = x[:, : groups * GROUP].view(len(x), groups, GROUP).amax(2).topk(k).indices
    places = (best[:, :, None] * GROUP + torch.arange(GROUP, device=x.device)).flatten(1)
    rest = torch.arange(groups * GROUP, columns, device=x.device).expand(len(x), -1)
    places = torch.cat((places, rest), 1)
    found = x.gather(1, places).topk(k)
    return found.values, places.gather(1, found.indices)


def _places(
    kept: list[Tensor], tokens: Int[Tensor, "row token"], scratch: Scratch
) -> tuple[Tensor, Int[Tensor, "row token"]]:
    """The logit of each token, and one more than the number of larger ones in its row; 0 for NaN."""
    own = torch.zeros(tokens.shape, dtype=kept[0].dtype, device=kept[0].device)
    offset = 0
    for logits in kept:
        local = tokens - offset
        inside = (local >= 0) & (local < logits.shape[1])
        own = torch.where(inside, logits.gather(1, local.clamp(0, logits.shape[1] - 1)), own)
        offset += logits.shape[1]
    rank = torch.ones_like(tokens)
    for logits in kept:
        larger = scratch.like(logits)[0]
        for column in range(tokens.shape[1]):
            # Summed as floats, in which whole numbers up to 2^24 are exact: sums of booleans take three times as long.
            rank[:, column] += torch.gt(logits, own[:, column, None], out=larger).sum(1).long()
    return own, rank.masked_fill(own.isnan(), 0)
