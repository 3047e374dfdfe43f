"""The vocabulary of a tokenizer: tokens, their ids and their bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import AddedToken

from workbench.tokenizer.errors import TokenizerError, flag
from workbench.tokenizer.special_tokens import SpecialTokens, id_list
from workbench.tokenizer.token_bytes import SHOW_BYTES


class Vocabulary(SpecialTokens):
    """The part of a tokenizer that looks tokens up."""

    def __len__(self) -> int:
        """Number of tokens, the added ones included."""
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the model, without those added to it."""
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=False))

    def get_vocab(self) -> dict[str, int]:
        """Token → id, the added ones included."""
        return dict(self.backend_tokenizer.get_vocab(with_added_tokens=True))

    @property
    def vocab(self) -> dict[str, int]:
        """Token → id, the added ones included."""
        return self.get_vocab()

    def get_added_vocab(self) -> dict[str, int]:
        """Token → id of those that are matched whole in a text, special or not."""
        return {entry.content: index for index, entry in self.added_tokens_decoder.items()}

    @property
    def added_tokens_encoder(self) -> dict[str, int]:
        """Token → id of those that are matched whole in a text, special or not."""
        return self.get_added_vocab()

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Id → `AddedToken` of those that are matched whole in a text, special or not."""
        return dict(sorted(self.backend_tokenizer.get_added_tokens_decoder().items()))

    def convert_ids_to_tokens(self, ids: int | Iterable[int] | torch.Tensor, skip_special_tokens: bool = False) -> Any:
        """The vocabulary's own spelling (`"Ġthe"`) of one id or of a list; `None` for an id it does not have.

        Args:
            skip_special_tokens: leave special tokens out of a list.
        """
        flag("skip_special_tokens", skip_special_tokens)
        if isinstance(ids, int):
            return self.backend_tokenizer.id_to_token(id_list(ids)[0])
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.backend_tokenizer.id_to_token(index) for index in id_list(ids) if index not in skipped]

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """The id of a token's spelling, or of each in a list; the unknown token's id (or `None`) for other texts."""
        if isinstance(tokens, str):
            found = self.backend_tokenizer.token_to_id(tokens)
            return self.unk_token_id if found is None else found
        if not isinstance(tokens, Iterable):
            raise TokenizerError(f"tokens is {tokens!r:.80}; a token's text or a list of them is needed.")
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def token_bytes(self, token_id: int) -> bytes:
        """The exact UTF-8 bytes that one token stands for, which may be a part of a character.

        A SentencePiece vocabulary's `▁` is a space. (The space such a tokenizer puts before a text is a byte here,
        while `decode` takes it away again.)

        Raises:
            TokenizerError: for an id that is not in the vocabulary.
        """
        (index,) = id_list(token_id)
        value = self._bytes.of(index)
        if value is None:
            raise TokenizerError(f"There is no token with the id {index}; the vocabulary has {len(self)} tokens.")
        return value

    def pieces(self, ids: Iterable[int] | torch.Tensor) -> list[str]:
        """A text to show for each token: bytes that are only a part of a character as `<0xE2>`, so a character that is
        split over several tokens is shown whole on none of them. An id past the vocabulary is `<id 49200>`.
        """
        values = ((index, self._bytes.of(index)) for index in id_list(ids))
        return [f"<id {index}>" if value is None else value.decode("utf-8", SHOW_BYTES) for index, value in values]
