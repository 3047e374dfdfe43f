"""LlamaTokenizer: text to token ids and back, with the exact bytes and the place of every token.

Names and results are those of `transformers`; the work is done by the `tokenizers` package. Added here, because a
workbench shows single tokens: `token_bytes` and `pieces`. Formats read: a folder with `tokenizer.json` (below) and the
vocabulary inside a GGUF file (`workbench.checkpoints.gguf_vocab`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Encoding, Tokenizer, processors

from workbench.tokenizer.chat_template import ChatTemplateError, render_chat
from workbench.tokenizer.files import NAMED_TOKENS, TokenizerError, read_folder
from workbench.tokenizer.token_bytes import SHOW_BYTES, ByteTable

PADDING_SIDES = ("left", "right")


class BatchEncoding(dict[str, Any]):
    """What a tokenizer call returns: a dictionary whose entries are attributes too, as in `transformers`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"there is no {name!r} here, only {', '.join(self)}") from None

    def to(self, device: str | torch.device) -> BatchEncoding:
        """The same, with every tensor on `device`."""
        moved = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in self.items()}
        return BatchEncoding(moved)


class LlamaTokenizer:
    """A tokenizer of a Llama-family model.

    Args:
        backend: the `tokenizers.Tokenizer` that does the work; it is changed (special tokens are registered).
        bos_token, eos_token, unk_token, pad_token: texts of the named special tokens, `None` if there is none.
        add_bos_token, add_eos_token: whether `encode` puts them around a text; `None` keeps the backend's own rule.
        chat_template: Jinja text for `apply_chat_template`.
        padding_side: where padding goes; left, so that the last position is always a real token.
        clean_up_tokenization_spaces: kept for the record; like `transformers` 5, a BPE tokenizer never applies it,
            because removing spaces would not give the text back.
    """

    def __init__(
        self,
        backend: Tokenizer,
        *,
        bos_token: str | None = None,
        eos_token: str | None = None,
        unk_token: str | None = None,
        pad_token: str | None = None,
        add_bos_token: bool | None = None,
        add_eos_token: bool | None = None,
        chat_template: str | None = None,
        padding_side: str = "left",
        clean_up_tokenization_spaces: bool = False,
    ) -> None:
        if padding_side not in PADDING_SIDES:
            raise TokenizerError(f"padding_side is {padding_side!r}; allowed are {', '.join(PADDING_SIDES)}.")
        self.backend_tokenizer = backend
        self.bos_token, self.eos_token = bos_token, eos_token
        self.unk_token, self.pad_token = unk_token, pad_token
        self.chat_template = chat_template
        self.padding_side = padding_side
        self.clean_up_tokenization_spaces = clean_up_tokenization_spaces
        # Padding and truncation are done here: the backend's are settings that would outlast the call.
        backend.no_padding()
        backend.no_truncation()
        self._register_named_tokens()
        self._set_post_processor(add_bos_token, add_eos_token)
        self._bytes = ByteTable(backend)

    @classmethod
    def from_folder(cls, path: str | Path) -> LlamaTokenizer:
        """Reads `tokenizer.json` and, where there, `tokenizer_config.json`, `special_tokens_map.json` and
        `chat_template.jinja` of a folder in Hugging Face format.

        Raises:
            TokenizerError: if a file is missing or malformed.
        """
        backend, options = read_folder(path)
        return cls(backend, **options)

    # Encoding -------------------------------------------------------------------------------------------------------

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        add_special_tokens: bool = True,
        padding: bool = False,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        return_offsets_mapping: bool = False,
    ) -> BatchEncoding:
        """Token ids of a text, or of each in a list.

        Args:
            add_special_tokens: add the beginning and end tokens the model was trained with.
            padding: fill the shorter texts with the padding token, on `padding_side`, up to the longest.
            truncation, max_length: cut each text to so many tokens, special tokens included.
            return_tensors: `"pt"` for int64 tensors of shape (texts, positions), or `None` for lists.
            return_offsets_mapping: also give `offset_mapping`, each token's (start, end) in characters of the text;
                tokens that share a character have overlapping spans, added tokens (0, 0).

        Returns:
            `input_ids`, and `attention_mask` with 0 for padding.

        Raises:
            TokenizerError: for lone surrogates in the text and for options that cannot be met.
        """
        single = isinstance(text, str)
        texts = [text] if isinstance(text, str) else list(text)
        rows = self._encode_rows(texts, add_special_tokens, _limit(truncation, max_length))
        columns: dict[str, list[Any]] = {"input_ids": [row.ids for row in rows]}
        columns["attention_mask"] = [[1] * len(row) for row in rows]
        if return_offsets_mapping:
            columns["offset_mapping"] = [row.offsets for row in rows]
        if padding:
            self._pad(columns)
        if return_tensors is None:
            return BatchEncoding({key: value[0] if single else value for key, value in columns.items()})
        return _to_tensors(columns, return_tensors)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of one text. Raises `TokenizerError` if it holds lone surrogates."""
        return list(self._encode_rows([text], add_special_tokens, None)[0].ids)

    def _encode_rows(self, texts: list[str], add_special_tokens: bool, limit: int | None) -> list[Encoding]:
        for text in texts:
            _check_text(text)
        backend = self.backend_tokenizer
        if limit is None:
            return backend.encode_batch(texts, add_special_tokens=add_special_tokens)
        rows = backend.encode_batch(texts, add_special_tokens=False)
        room = limit - (backend.num_special_tokens_to_add(is_pair=False) if add_special_tokens else 0)
        if room < 0:
            raise TokenizerError(f"max_length is {limit}, but the special tokens alone take {limit - room}.")
        for row in rows:
            row.truncate(room)
        return [backend.post_process(row, None, add_special_tokens) for row in rows]

    def _pad(self, columns: dict[str, list[Any]]) -> None:
        if self.pad_token_id is None:
            raise TokenizerError(
                "This tokenizer has no padding token. Set one, for example tokenizer.pad_token = tokenizer.eos_token."
            )
        width = max((len(row) for row in columns["input_ids"]), default=0)
        fillings = {"input_ids": self.pad_token_id, "attention_mask": 0, "offset_mapping": (0, 0)}
        for key, rows in columns.items():
            for index, row in enumerate(rows):
                filling = [fillings[key]] * (width - len(row))
                rows[index] = filling + row if self.padding_side == "left" else row + filling

    # Decoding -------------------------------------------------------------------------------------------------------

    def decode(self, token_ids: int | Iterable[int] | torch.Tensor, skip_special_tokens: bool = False) -> str:
        """The text of some ids; bytes that are no UTF-8 become U+FFFD. Ids past the vocabulary are left out, as in
        `transformers`: a model's output layer may be wider than its vocabulary.

        Raises:
            TokenizerError: for ids that are not whole numbers of at least 0, and for a batch (see `batch_decode`).
        """
        return str(self.backend_tokenizer.decode(_id_list(token_ids), skip_special_tokens=skip_special_tokens))

    def batch_decode(
        self, sequences: Iterable[Iterable[int]] | torch.Tensor, skip_special_tokens: bool = False
    ) -> list[str]:
        """The text of each sequence of ids."""
        return [self.decode(sequence, skip_special_tokens) for sequence in sequences]

    def convert_ids_to_tokens(self, ids: int | Iterable[int] | torch.Tensor) -> Any:
        """The vocabulary's own spelling (`"Ġthe"`) of one id or of a list; `None` for an id it does not have."""
        if isinstance(ids, int):
            return self.backend_tokenizer.id_to_token(_id_list(ids)[0])
        return [self.backend_tokenizer.id_to_token(index) for index in _id_list(ids)]

    def convert_tokens_to_ids(self, tokens: str | Iterable[str]) -> Any:
        """The id of a token's spelling, or of each in a list; the unknown token's id (or `None`) for other texts."""
        if isinstance(tokens, str):
            found = self.backend_tokenizer.token_to_id(tokens)
            return self.unk_token_id if found is None else found
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def token_bytes(self, token_id: int) -> bytes:
        """The exact UTF-8 bytes that one token stands for, which may be a part of a character.

        A SentencePiece vocabulary's `▁` is a space. (The space such a tokenizer puts before a text is a byte here,
        while `decode` takes it away again.)

        Raises:
            TokenizerError: for an id that is not in the vocabulary.
        """
        (index,) = _id_list(token_id)
        value = self._bytes.of(index)
        if value is None:
            raise TokenizerError(f"There is no token with the id {index}; the vocabulary has {len(self)} tokens.")
        return value

    def pieces(self, ids: Iterable[int] | torch.Tensor) -> list[str]:
        """A text to show for each token: bytes that are only a part of a character as `<0xE2>`, so a character that is
        split over several tokens is shown whole on none of them. An id past the vocabulary is `<id 49200>`.
        """
        values = ((index, self._bytes.of(index)) for index in _id_list(ids))
        return [f"<id {index}>" if value is None else value.decode("utf-8", SHOW_BYTES) for index, value in values]

    # Vocabulary -----------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Number of tokens, the added ones included."""
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def vocab_size(self) -> int:
        """Number of tokens of the model, without those added to it."""
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=False))

    @property
    def bos_token_id(self) -> int | None:
        """Id of the token that begins a text."""
        return self._id_of(self.bos_token)

    @property
    def eos_token_id(self) -> int | None:
        """Id of the token that ends a text."""
        return self._id_of(self.eos_token)

    @property
    def unk_token_id(self) -> int | None:
        """Id of the token that stands for what the vocabulary cannot spell."""
        return self._id_of(self.unk_token)

    @property
    def pad_token_id(self) -> int | None:
        """Id of the token that fills up shorter rows of a batch."""
        return self._id_of(self.pad_token)

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Name → text of the named special tokens there are."""
        values = {name: getattr(self, name) for name in NAMED_TOKENS}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of all special tokens: the named ones first, then the other control tokens by id, none twice."""
        named = [self._id_of(text) for text in self.special_tokens_map.values()]
        added = self.backend_tokenizer.get_added_tokens_decoder()
        others = [index for index, token in sorted(added.items()) if token.special]
        return list(dict.fromkeys([index for index in named if index is not None] + others))

    # Chat -----------------------------------------------------------------------------------------------------------

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, Any]],
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        return_dict: bool = True,
        return_tensors: str | None = None,
        **variables: Any,
    ) -> Any:
        """The prompt for a list of messages, as the model's own chat template writes it.

        Args:
            conversation: messages, each `{"role": ..., "content": ...}`.
            chat_template: Jinja text instead of the model's own.
            add_generation_prompt: whether to end with the words that make the model answer.
            tokenize: give token ids; otherwise the text.
            return_dict: with `tokenize`, give `input_ids` and `attention_mask` (as `transformers` 5 does), or the ids.
            return_tensors: as for a call.
            **variables: further names the template may use; `tools` and `documents` are `None` by default.

        Raises:
            TokenizerError: if there is no template, or with what it complained of.
        """
        template = chat_template or self.chat_template
        if template is None:
            raise TokenizerError(
                "This tokenizer has no chat template. Give one: apply_chat_template(messages, chat_template=...)."
            )
        names = {**self.special_tokens_map, "add_generation_prompt": add_generation_prompt, **variables}
        try:
            text = render_chat(template, conversation, **names)
        except ChatTemplateError as error:
            raise TokenizerError(str(error)) from error
        if not tokenize:
            return text
        # The template writes its special tokens itself.
        encoding = self(text, add_special_tokens=False, return_tensors=return_tensors)
        return encoding if return_dict else encoding["input_ids"]

    # Set-up ---------------------------------------------------------------------------------------------------------

    def _id_of(self, token: str | None) -> int | None:
        return None if token is None else self.backend_tokenizer.token_to_id(token)

    def _register_named_tokens(self) -> None:
        """A named token is special, also where the vocabulary lists it as an ordinary one."""
        added = self.backend_tokenizer.get_added_tokens_decoder()
        special = {token.content for token in added.values() if token.special}
        missing = [text for text in dict.fromkeys(self.special_tokens_map.values()) if text not in special]
        if missing:
            self.backend_tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in missing])

    def _set_post_processor(self, add_bos: bool | None, add_eos: bool | None) -> None:
        if add_bos is None and add_eos is None and self.backend_tokenizer.post_processor is not None:
            return
        before = [(self.bos_token, self.bos_token_id)] if add_bos and self.bos_token is not None else []
        after = [(self.eos_token, self.eos_token_id)] if add_eos and self.eos_token is not None else []
        template = [str(text) for text, _ in before] + ["$A"] + [str(text) for text, _ in after]
        self.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=template, pair=[*template, "$B"], special_tokens=[*before, *after]
        )


def _check_text(text: Any) -> None:
    if not isinstance(text, str):
        raise TokenizerError(f"text is a {type(text).__name__}; a str or a list of str is needed.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"The text has the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, which stands "
            "for no character and has no bytes. Remove it, or use text.encode('utf-8', 'replace').decode()."
        ) from None


def _limit(truncation: bool, max_length: int | None) -> int | None:
    if not truncation:
        return None
    if max_length is None or max_length < 1:
        raise TokenizerError(f"max_length is {max_length!r}; with truncation=True it must be at least 1.")
    return max_length


def _to_tensors(columns: dict[str, list[Any]], kind: str) -> BatchEncoding:
    if kind != "pt":
        raise TokenizerError(f"return_tensors is {kind!r}; allowed are 'pt' and None.")
    lengths = sorted({len(row) for row in columns["input_ids"]})
    if len(lengths) > 1:
        raise TokenizerError(
            f"The texts have {lengths[0]} to {lengths[-1]} tokens, but a tensor needs rows of one length. "
            "Add padding=True."
        )
    return BatchEncoding({key: torch.tensor(rows, dtype=torch.long) for key, rows in columns.items()})


def _id_list(ids: Any) -> list[int]:
    values = ids.tolist() if hasattr(ids, "tolist") else ids
    values = [values] if isinstance(values, int) else list(values)
    for value in values:
        if not isinstance(value, int) or not 0 <= value < 1 << 32:
            hint = " For several sequences use batch_decode." if isinstance(value, list | torch.Tensor) else ""
            raise TokenizerError(f"A token id is {value!r:.80}; each must be a whole number of at least 0.{hint}")
    return values
