"""BatchEncoding: what encoding returns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Encoding

from workbench.tokenizer.errors import TokenizerError, choice

TENSORS = ("pt", "np")


class CharSpan(NamedTuple):
    """Characters `start` … `end - 1` of a text."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens `start` … `end - 1` of a row."""

    start: int
    end: int


class BatchEncoding(dict[Any, Any]):
    """What a tokenizer call returns: a dictionary whose entries are attributes too, as in `transformers`.

    A number as key gives that row's `tokenizers.Encoding`. The methods below that take a row may leave it out: of two
    numbers the first is the row, a single one is the token, character or word of row 0. Offsets are in characters.

    Args:
        data: name → one value a row.
        encoding: where the rows come from, `None` if that is not known: then the methods below are errors.
        tensor_type: `"pt"` or `"np"` to make tensors of the values.
        prepend_batch_axis: with `tensor_type`, `data` holds one row without the axis.
    """

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        encoding: Encoding | Sequence[Encoding] | None = None,
        tensor_type: str | None = None,
        prepend_batch_axis: bool = False,
    ) -> None:
        super().__init__(data or {})
        self._encodings = [encoding] if isinstance(encoding, Encoding) else None if encoding is None else list(encoding)
        self.convert_to_tensors(tensor_type, prepend_batch_axis)

    def __getattr__(self, name: str) -> Any:
        try:
            return dict.__getitem__(self, name)
        except KeyError:
            raise AttributeError(f"there is no {name!r} here, only {', '.join(map(str, self))}") from None

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            return super().__getitem__(key)
        if isinstance(key, slice) and self._encodings is None:
            return {name: value[key] for name, value in self.items()}
        return self._rows("a row's encoding")[key]

    @property
    def encodings(self) -> list[Encoding] | None:
        """The rows' `tokenizers.Encoding`s, `None` if they are not known."""
        return self._encodings

    @property
    def is_fast(self) -> bool:
        """Whether the rows' encodings are known."""
        return self._encodings is not None

    @property
    def n_sequences(self) -> int | None:
        """How many texts each row was made of: 1, or 2 for pairs; `None` if that is not known."""
        return self._encodings[0].n_sequences if self._encodings else None

    def to(self, device: str | int | torch.device, *, non_blocking: bool = False) -> BatchEncoding:
        """Moves every tensor to `device`; gives this object itself."""
        for key, value in self.items():
            if isinstance(value, torch.Tensor):
                self[key] = value.to(device=device, non_blocking=non_blocking)
        return self

    def convert_to_tensors(self, tensor_type: str | None = None, prepend_batch_axis: bool = False) -> BatchEncoding:
        """Makes int64 tensors (`"pt"`) or arrays (`"np"`) of shape (rows, positions) of the values, in place.

        Raises:
            TokenizerError: if the rows differ in length.
        """
        if tensor_type is None:
            return self
        choice("return_tensors", tensor_type, TENSORS)
        made = {key: _tensor(key, [value] if prepend_batch_axis else value, tensor_type) for key, value in self.items()}
        self.update(made)
        return self

    def tokens(self, batch_index: int = 0) -> list[str]:
        """The tokens of a row, as the vocabulary spells them."""
        return list(self._row(batch_index).tokens)

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row which text it is from, 0 or 1; `None` for special tokens and padding."""
        return list(self._row(batch_index).sequence_ids)

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """For each token of a row the number of its word; `None` for special tokens and padding."""
        return list(self._row(batch_index).word_ids)

    def token_to_sequence(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """Which text a token is from, 0 or 1; `None` for special tokens and padding."""
        row, token = self._place(batch_or_token_index, token_index)
        found: int | None = row.token_to_sequence(_from_end(token, len(row)))
        return found

    def token_to_word(self, batch_or_token_index: int, token_index: int | None = None) -> int | None:
        """The number of a token's word; `None` for special tokens and padding."""
        row, token = self._place(batch_or_token_index, token_index)
        found: int | None = row.token_to_word(_from_end(token, len(row)))
        return found

    def token_to_chars(self, batch_or_token_index: int, token_index: int | None = None) -> CharSpan | None:
        """The characters of its text that a token covers; `None` for special tokens and padding."""
        row, token = self._place(batch_or_token_index, token_index)
        span = row.token_to_chars(_from_end(token, len(row)))
        return None if span is None else CharSpan(*span)

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The token that covers a character of text `sequence_index`; `None` if none does."""
        row, character = self._place(batch_or_char_index, char_index)
        found: int | None = row.char_to_token(character, sequence_index)
        return found

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The number of the word that a character of text `sequence_index` is in; `None` if it is in none."""
        row, character = self._place(batch_or_char_index, char_index)
        found: int | None = row.char_to_word(character, sequence_index)
        return found

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens of a word of text `sequence_index`; `None` if it has none."""
        row, word = self._place(batch_or_word_index, word_index)
        span = row.word_to_tokens(word, sequence_index)
        return None if span is None else TokenSpan(*span)

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        """The characters of a word of text `sequence_index`; `None` if there is no such word."""
        row, word = self._place(batch_or_word_index, word_index)
        span = row.word_to_chars(word, sequence_index)
        return None if span is None else CharSpan(*span)

    def _rows(self, what: str) -> list[Encoding]:
        if self._encodings is None:
            raise TokenizerError(f"This BatchEncoding does not know {what}: only a tokenizer call's result does.")
        return self._encodings

    def _row(self, index: int) -> Encoding:
        rows = self._rows("its tokens")
        if isinstance(index, bool) or not isinstance(index, int) or not -len(rows) <= index < len(rows):
            raise TokenizerError(f"batch_index is {index!r:.80}; there are {len(rows)} rows, from 0 on.")
        return rows[index]

    def _place(self, first: int, second: int | None) -> tuple[Encoding, int]:
        row, index = (0, first) if second is None else (first, second)
        found = self._row(row)
        if isinstance(index, bool) or not isinstance(index, int) or not -(1 << 31) <= index < 1 << 31:
            raise TokenizerError(f"The index is {index!r:.80}; a whole number is needed.")
        if index < 0 and -index > len(found):
            raise TokenizerError(f"The index is {index}, but the row has {len(found)} tokens.")
        return found, index


def _from_end(index: int, length: int) -> int:
    return index + length if index < 0 else index


def _tensor(key: str, value: Any, kind: str) -> Any:
    if isinstance(value, torch.Tensor | np.ndarray):
        array = value
    else:
        lengths = {len(row) for row in value if isinstance(row, Sequence)}
        if len(lengths) > 1:
            raise TokenizerError(
                f"The texts have {min(lengths)} to {max(lengths)} tokens, but a tensor needs rows of one length. "
                "Add padding=True, and truncation=True with max_length to cut the longer ones."
            )
        try:
            array = np.asarray(value, dtype=np.int64)
        except (TypeError, ValueError, OverflowError) as error:
            raise TokenizerError(f"{key} holds values that make no int64 tensor ({error}).") from error
    if kind == "pt":
        return array if isinstance(array, torch.Tensor) else torch.from_numpy(array)
    return array.numpy() if isinstance(array, torch.Tensor) else array
