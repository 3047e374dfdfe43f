"""Decoding: token ids to text."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from tokenizers import models

from workbench.tokenizer.errors import TokenizerError, flag, guarded
from workbench.tokenizer.special_tokens import id_list
from workbench.tokenizer.vocabulary import Vocabulary

# Spaces that English word pieces leave before punctuation: what `clean_up_tokenization` removes.
_CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")
_FORCE = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"


class Decoder(Vocabulary):
    """The part of a tokenizer that decodes."""

    clean_up_tokenization_spaces: bool
    clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output: bool

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:
        """The text of some ids; bytes that are no UTF-8 become U+FFFD. Ids past the vocabulary are left out, as in
        `transformers`: a model's output layer may be wider than its vocabulary.

        Args:
            token_ids: an id, a list or a 1-D tensor of ids, or a batch: a list of lists or a 2-D tensor.
            skip_special_tokens: leave them out of the text.
            clean_up_tokenization_spaces: has no effect on a BPE vocabulary, as in `transformers` 5, because removing
                spaces would not give the text back; `True` warns. (The attribute with the long name forces it.)

        Returns:
            The text; for a batch a list of texts.

        Raises:
            TokenizerError: for ids that are not whole numbers of at least 0.
        """
        flag("skip_special_tokens", skip_special_tokens)
        if clean_up_tokenization_spaces is not None:
            flag("clean_up_tokenization_spaces", clean_up_tokenization_spaces)
        if isinstance(token_ids, Mapping) and "input_ids" in token_ids:
            token_ids = token_ids["input_ids"]
        values = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        if isinstance(values, list | tuple) and values and _is_row(values[0]):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces) for row in values]
        ids = id_list(values)
        with self._lock:
            found = guarded("The ids cannot be decoded", self.backend_tokenizer.decode, ids, skip_special_tokens)
        return self._cleaned(str(found), clean_up_tokenization_spaces)

    def batch_decode(
        self,
        sequences: Iterable[Any] | torch.Tensor,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """The text of each sequence of ids. (A list of ids is one sequence: a list of one text.)"""
        if not isinstance(sequences, Iterable):
            raise TokenizerError(f"sequences is {sequences!r:.80}; a list of lists of ids is needed.")
        rows: Any = sequences if isinstance(sequences, Mapping) or hasattr(sequences, "tolist") else list(sequences)
        found = self.decode(rows, skip_special_tokens, clean_up_tokenization_spaces)
        return [found] if isinstance(found, str) and len(rows) else list(found)

    def convert_tokens_to_string(self, tokens: Iterable[str]) -> str:
        """The text of tokens in the vocabulary's own spelling."""
        if isinstance(tokens, str) or not isinstance(tokens, Iterable):
            raise TokenizerError(f"tokens is {tokens!r:.80}; a list of tokens is needed.")
        values = list(tokens)
        if not all(isinstance(value, str) for value in values):
            raise TokenizerError("tokens holds something that is no text; use convert_ids_to_tokens(ids) to get them.")
        decoder = self.backend_tokenizer.decoder
        if decoder is None:
            return " ".join(values)
        return str(guarded("The tokens cannot be decoded", decoder.decode, values))

    def clean_up_tokenization(self, text: str) -> str:
        """`text` without the spaces that English word pieces leave before punctuation and in contractions."""
        for spaced in _CLEANED:
            text = text.replace(spaced, spaced.strip())
        return text

    def _cleaned(self, text: str, asked: bool | None) -> str:
        if not (self.clean_up_tokenization_spaces if asked is None else asked):
            return text
        if not isinstance(self.backend_tokenizer.model, models.BPE) or getattr(self, _FORCE):
            return self.clean_up_tokenization(text)
        if asked:
            warnings.warn(
                "clean_up_tokenization_spaces=True has no effect on a BPE vocabulary: removing spaces would not give "
                "the text back.",
                stacklevel=3,
            )
        return text


def _is_row(value: Any) -> bool:
    return isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0
