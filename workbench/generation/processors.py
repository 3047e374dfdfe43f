"""How scores are changed before a token is chosen: each takes the texts and their scores, and returns scores.

Scores (batch, vocab) are logits, or log-probabilities in a beam search. Names and numbers are those of `transformers`;
any callable `(input_ids, scores) → scores` serves as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.generation.options import check

Ids = Int[Tensor, "batch pos"]
Scores = Float[Tensor, "batch vocab"]


class LogitsProcessor(Protocol):
    """What `generate` takes in `logits_processor`; to be subclassed or not."""

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """The texts so far and the scores of their next tokens → new scores of the same shape."""
        ...


class LogitsProcessorList(list[Any]):
    """Processors, applied in order."""

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """The scores after all of them.

        Raises:
            ValueError: if one returns something else than scores of the same shape.
        """
        for processor in self:
            out = processor(input_ids, scores)
            if not isinstance(out, Tensor) or out.shape != scores.shape:
                found = f"shape {tuple(out.shape)}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
                raise ValueError(
                    f"the logits processor {type(processor).__name__} returned {found}; expected scores of shape "
                    f"{tuple(scores.shape)} (batch, vocab), as it was given."
                )
            scores = out
        return scores


class RepetitionPenaltyLogitsProcessor:
    """Makes tokens of the text less likely: a positive score is divided by the penalty, a negative one multiplied
    (arXiv 1909.05858). `prompt_ignore_length`: how many first positions (of each row) do not count, as padding.
    """

    def __init__(self, penalty: float, prompt_ignore_length: int | Int[Tensor, " batch"] | None = None) -> None:
        check("repetition_penalty", penalty)
        self.penalty = penalty
        self.prompt_ignore_length = prompt_ignore_length

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """Same shape."""
        ids = input_ids
        if self.prompt_ignore_length is not None:  # what does not count is gathered from a column behind the last token
            first = torch.as_tensor(self.prompt_ignore_length, device=ids.device).reshape(-1, 1)
            ids = ids.masked_fill(torch.arange(ids.shape[1], device=ids.device) < first, scores.shape[1])
            scores = torch.nn.functional.pad(scores, (0, 1))
        seen = scores.gather(1, ids)
        changed = scores.scatter(1, ids, torch.where(seen < 0, seen * self.penalty, seen / self.penalty))
        return changed if self.prompt_ignore_length is None else changed[:, :-1]


@dataclasses.dataclass(frozen=True)
class NoRepeatNGramLogitsProcessor:
    """No sequence of `ngram_size` tokens occurs twice."""

    ngram_size: int

    def __post_init__(self) -> None:
        check("no_repeat_ngram_size", self.ngram_size)

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """Same shape."""
        if not 0 < self.ngram_size <= input_ids.shape[1]:
            return scores
        grams = input_ids.unfold(1, self.ngram_size, 1)  # (batch, window, n)
        begun = input_ids[:, input_ids.shape[1] + 1 - self.ngram_size :]
        again = (grams[..., :-1] == begun[:, None]).all(-1)
        vocab = scores.shape[1]
        banned = torch.zeros(len(scores), vocab + 1, dtype=torch.bool, device=scores.device)
        banned.scatter_(1, grams[..., -1].masked_fill(~again, vocab), True)
        return scores.masked_fill(banned[:, :vocab], -torch.inf)


class SequenceBiasLogitsProcessor:
    """Adds a bias to the last token of a sequence where the text ends in the rest of it.

    Args:
        sequence_bias: `{(token ids, …): bias}`, or `[[token ids, bias], …]`.
    """

    name = "sequence_bias"

    def __init__(self, sequence_bias: dict[tuple[int, ...], float] | Sequence[Any]) -> None:
        check("sequence_bias", sequence_bias)
        pairs: Iterable[Any] = sequence_bias.items() if isinstance(sequence_bias, dict) else sequence_bias
        self.sequence_bias = {tuple(ids): float(bias) for ids, bias in pairs}

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """Same shape.

        Raises:
            ValueError: for a token outside the vocabulary.
        """
        bias = torch.zeros_like(scores)
        for ids, value in self.sequence_bias.items():
            if max(ids) >= scores.shape[1]:
                raise ValueError(f"{self.name} names token {max(ids)}; the last one is {scores.shape[1] - 1}.")
            start = input_ids.shape[1] + 1 - len(ids)
            if start < 0:
                continue
            begun = torch.tensor(ids[:-1], dtype=input_ids.dtype, device=scores.device)
            bias[:, ids[-1]] += torch.where((input_ids[:, start:] == begun).all(1), value, 0.0)
        return scores + bias


class NoBadWordsLogitsProcessor(SequenceBiasLogitsProcessor):
    """No listed sequence of tokens occurs; an end token alone is not forbidden."""

    name = "bad_words_ids"

    def __init__(self, bad_words_ids: list[list[int]], eos_token_id: Sequence[int] = ()) -> None:
        check("bad_words_ids", bad_words_ids)
        ends = {(one,) for one in eos_token_id}
        self.sequence_bias = {tuple(word): -torch.inf for word in bad_words_ids if tuple(word) not in ends}


class MinLengthLogitsProcessor:
    """No end token before the text has `min_length` tokens."""

    def __init__(self, min_length: int, eos_token_id: int | Sequence[int]) -> None:
        check("min_length", min_length)
        self.min_length = min_length
        self.eos_token_id = _several(eos_token_id)

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """Same shape."""
        return _without(scores, self.eos_token_id) if input_ids.shape[1] < self.min_length else scores


class PrefixConstrainedLogitsProcessor:
    """Only the tokens that a function allows: (number of the prompt, its text so far) → token ids."""

    def __init__(self, prefix_allowed_tokens_fn: Callable[[int, Tensor], Sequence[int]], num_beams: int = 1) -> None:
        if not callable(prefix_allowed_tokens_fn):
            raise TypeError(f"prefix_allowed_tokens_fn is {prefix_allowed_tokens_fn!r}; it must be callable.")
        self.allowed, self.num_beams = prefix_allowed_tokens_fn, num_beams

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """Same shape.

        Raises:
            ValueError: if no token is allowed.
        """
        mask = torch.full_like(scores, -torch.inf)
        for row, text in enumerate(input_ids):
            tokens = self.allowed(row // self.num_beams, text)
            if len(tokens) == 0:
                raise ValueError(
                    f"prefix_allowed_tokens_fn allowed no token after prompt {row // self.num_beams}; let it allow the "
                    "end token where a text may end."
                )
            mask[row, tokens] = 0
        limited = scores + mask
        # Where another processor forbade all of them, the function goes first.
        stuck = limited.amax(-1).isneginf().view(-1, self.num_beams).all(-1).repeat_interleave(self.num_beams)
        return torch.where(stuck[:, None], mask, limited)


@dataclasses.dataclass(frozen=True)
class ForcedBOSTokenLogitsProcessor:
    """The second token of a text is this one."""

    bos_token_id: int

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """Same shape."""
        return _only(scores, (self.bos_token_id,)) if input_ids.shape[1] == 1 else scores


class ForcedEOSTokenLogitsProcessor:
    """The last token of a text of `max_length` is one of these."""

    def __init__(self, max_length: int, eos_token_id: int | Sequence[int]) -> None:
        self.max_length, self.eos_token_id = max_length, _several(eos_token_id)

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """Same shape."""
        return _only(scores, self.eos_token_id) if input_ids.shape[1] == self.max_length - 1 else scores


class InfNanRemoveLogitsProcessor:
    """NaN becomes 0 and the infinities the largest finite numbers."""

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """Same shape."""
        return scores.nan_to_num(0.0)


class ExponentialDecayLengthPenalty:
    """From (first of the pair) new tokens on, end tokens gain |score| · (factor^tokens − 1)."""

    def __init__(
        self, exponential_decay_length_penalty: tuple[int, float], eos_token_id: int | Sequence[int], prompt_length: int
    ) -> None:
        check("exponential_decay_length_penalty", exponential_decay_length_penalty)
        self.start = exponential_decay_length_penalty[0] + prompt_length
        self.factor = exponential_decay_length_penalty[1]
        self.eos_token_id = _several(eos_token_id)

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """Same shape."""
        late = input_ids.shape[1] - self.start
        if late <= 0:
            return scores
        ends = [one for one in self.eos_token_id if one < scores.shape[1]]
        gain = torch.zeros_like(scores)
        gain[:, ends] = (scores[:, ends].abs() * (self.factor**late - 1)).masked_fill(~scores[:, ends].isfinite(), 0.0)
        return scores + gain


class SuppressTokensLogitsProcessor:
    """These tokens never occur."""

    def __init__(self, suppress_tokens: Sequence[int]) -> None:
        check("suppress_tokens", suppress_tokens)
        self.suppress_tokens = tuple(suppress_tokens)

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """Same shape."""
        return _without(scores, self.suppress_tokens)


class SuppressTokensAtBeginLogitsProcessor:
    """These tokens do not occur as the first new one."""

    def __init__(self, begin_suppress_tokens: Sequence[int], begin_index: int) -> None:
        check("begin_suppress_tokens", begin_suppress_tokens)
        self.begin_suppress_tokens, self.begin_index = tuple(begin_suppress_tokens), begin_index

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """Same shape."""
        return _without(scores, self.begin_suppress_tokens) if input_ids.shape[1] == self.begin_index else scores


class LogitNormalization:
    """Scores become log-probabilities again, in nats."""

    def __call__(self, input_ids: Ids, scores: Scores) -> Scores:
        """Same shape."""
        return scores.log_softmax(-1)


def _several(token: int | Sequence[int]) -> tuple[int, ...]:
    return (token,) if isinstance(token, int) else tuple(token)


def _at(scores: Scores, tokens: Sequence[int]) -> Tensor:
    """Indices of tokens, those outside the vocabulary left out."""
    return torch.tensor([one for one in tokens if 0 <= one < scores.shape[1]], dtype=torch.long, device=scores.device)


def _without(scores: Scores, tokens: Sequence[int]) -> Scores:
    return scores.index_fill(1, _at(scores, tokens), -torch.inf)


def _only(scores: Scores, tokens: Sequence[int]) -> Scores:
    return torch.full_like(scores, -torch.inf).index_fill(1, _at(scores, tokens), 0.0)
