"""When a row ends: each criterion takes the texts and returns one boolean a row, True where the row has ended.

Names are those of `transformers`; any callable `(input_ids, scores) → booleans` serves as well.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.generation.options import check

Ids = Int[Tensor, "batch pos"]
Ended = Bool[Tensor, " batch"]
SPARE = 4  # tokens: the bytes of a character that the first one may have been cut out of


class StoppingCriteria(Protocol):
    """What `generate` takes in `stopping_criteria`; to be subclassed or not."""

    def __call__(self, input_ids: Ids, scores: tuple[Tensor, ...] | None, **options: Any) -> Ended | bool:
        """The texts with their newest token, and the scores of all steps if they are kept → which have ended."""
        ...


class StoppingCriteriaList(list[Any]):
    """Criteria: a row ends when one of them says so."""

    def __call__(self, input_ids: Ids, scores: tuple[Tensor, ...] | None = None, **options: Any) -> Ended:
        """One boolean a row.

        Raises:
            ValueError: if a criterion returns something else than a boolean, or one a row.
        """
        ended = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for criterion in self:
            out = criterion(input_ids, scores, **options)
            if isinstance(out, bool):
                out = torch.tensor(out)
            if not isinstance(out, Tensor) or out.dtype != torch.bool or out.numel() not in (1, len(input_ids)):
                found = f"{tuple(out.shape)} of {out.dtype}" if isinstance(out, Tensor) else repr(out)
                raise ValueError(
                    f"the stopping criterion {type(criterion).__name__} returned {found}; expected a boolean, or a "
                    f"tensor of {len(input_ids)} booleans, one a row."
                )
            ended = ended | out.reshape(-1).to(ended.device)
        return ended

    @property
    def max_length(self) -> int | None:
        """The length at which texts end, if one of the criteria is about it."""
        return next((one.max_length for one in self if isinstance(one, MaxLengthCriteria)), None)


class MaxLengthCriteria:
    """Ends all rows at `max_length` tokens, prompt included."""

    def __init__(self, max_length: int, max_position_embeddings: int | None = None) -> None:
        check("max_length", max_length)
        self.max_length = max_length
        self.max_position_embeddings = max_position_embeddings

    def __call__(self, input_ids: Ids, scores: Any = None, **options: Any) -> Ended:
        """One boolean a row."""
        done = input_ids.shape[1] >= self.max_length
        return torch.full((len(input_ids),), done, dtype=torch.bool, device=input_ids.device)


class MaxTimeCriteria:
    """Ends all rows `max_time` seconds after it was made, or after `initial_timestamp` (`time.time()`)."""

    def __init__(self, max_time: float, initial_timestamp: float | None = None) -> None:
        check("max_time", max_time)
        self.end = (time.time() if initial_timestamp is None else initial_timestamp) + max_time

    def __call__(self, input_ids: Ids, scores: Any = None, **options: Any) -> Ended:
        """One boolean a row."""
        return torch.full((len(input_ids),), time.time() > self.end, dtype=torch.bool, device=input_ids.device)


class EosTokenCriteria:
    """Ends a row after an end token."""

    def __init__(self, eos_token_id: int | Sequence[int]) -> None:
        check("eos_token_id", eos_token_id)
        self.eos_token_id = (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id)
        self._ids = torch.tensor(self.eos_token_id)

    def __call__(self, input_ids: Ids, scores: Any = None, **options: Any) -> Ended:
        """One boolean a row."""
        if self._ids.device != input_ids.device:
            self._ids = self._ids.to(input_ids.device)
        return torch.isin(input_ids[:, -1], self._ids)


class StopStringCriteria:
    """Ends a row whose newest token completes one of the texts, wherever in the token they end.

    The decoded text decides, prompt and special tokens included, so a text may begin in one token and end in another.
    One that lies wholly before the newest token ends nothing.

    Args:
        tokenizer: has `decode(ids, skip_special_tokens=False) → text`.
        stop_strings: one text, or several.

    Raises:
        TypeError: if the tokenizer has no `decode`.
        ValueError: if a stop string is no text, or empty.
    """

    def __init__(self, tokenizer: Any, stop_strings: str | Iterable[str]) -> None:
        several = stop_strings if isinstance(stop_strings, str) else list(stop_strings)
        check("stop_strings", several)
        if not callable(getattr(tokenizer, "decode", None)):
            raise TypeError(
                f"tokenizer is a {type(tokenizer).__name__} without decode(); stop_strings needs the model's tokenizer."
            )
        self.tokenizer = tokenizer
        self.stop_strings = (several,) if isinstance(several, str) else tuple(several)
        # Each token is a byte of text at least, so as many hold the longest string.
        self._tokens = max(len(text.encode()) for text in self.stop_strings) + SPARE

    def __call__(self, input_ids: Ids, scores: Any = None, **options: Any) -> Ended:
        """One boolean a row."""
        rows = input_ids[:, -self._tokens :].tolist()
        return torch.tensor([self._completed(row) for row in rows], dtype=torch.bool, device=input_ids.device)

    def _completed(self, ids: list[int]) -> bool:
        text = self.tokenizer.decode(ids, skip_special_tokens=False)
        if not any(stop in text for stop in self.stop_strings):
            return False
        before = self.tokenizer.decode(ids[:-1], skip_special_tokens=False) if len(ids) > 1 else ""
        # What the newest token did not change; a character it completed was a replacement character before.
        same = [a == b for a, b in zip(before, text, strict=False)]
        old = len(same) if all(same) else same.index(False)
        return any(text.find(stop, max(0, old + 1 - len(stop))) >= 0 for stop in self.stop_strings)
