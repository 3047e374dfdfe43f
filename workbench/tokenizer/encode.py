"""Encoding: texts to token ids, padded, cut and masked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tokenizers import Encoding

from workbench.tokenizer.batch_encoding import TENSORS, BatchEncoding
from workbench.tokenizer.errors import TokenizerError, choice, flag, guarded
from workbench.tokenizer.shape import Shape, shape_of
from workbench.tokenizer.texts import batch_of
from workbench.tokenizer.vocabulary import Vocabulary


class Encoder(Vocabulary):
    """The part of a tokenizer that encodes."""

    padding_side: str
    truncation_side: str
    model_max_length: int
    model_input_names: list[str]
    split_special_tokens: bool

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
        split_special_tokens: bool | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Token ids of a text, of a pair of texts, or of each in a list.

        Args:
            text: a text, or a list of texts (or of pairs). With `is_split_into_words` a list of words, or such lists.
            text_pair: the second text of each, in the same form.
            text_target, text_pair_target: texts whose ids become `labels`.
            add_special_tokens: add the beginning and end tokens the model was trained with.
            padding: fill the shorter rows with the padding token: `True` or `"longest"` up to the longest row,
                `"max_length"` up to `max_length`.
            truncation: cut rows to `max_length` tokens, special tokens included: `True` or `"longest_first"` takes from
                the longer of two texts, `"only_first"` and `"only_second"` from that one. Left out, `max_length` alone
                cuts too.
            max_length: in tokens; `None` is `model_max_length`.
            stride: with `return_overflowing_tokens`, how many tokens a row repeats of the one before.
            is_split_into_words: the texts come as words, which `word_ids` counts.
            pad_to_multiple_of: pad on to a multiple of so many tokens.
            padding_side: `"left"` or `"right"` instead of the tokenizer's own.
            return_tensors: `"pt"` or `"np"` for int64 tensors of shape (rows, positions), or `None` for lists.
            return_token_type_ids: also give `token_type_ids`: 0 for the first text, 1 for the second.
            return_attention_mask: give `attention_mask`, 0 for padding; `None` is yes.
            return_overflowing_tokens: what is cut off makes further rows; `overflow_to_sample_mapping` says of
                which text.
            return_special_tokens_mask: also give `special_tokens_mask`, 1 for what was added.
            return_offsets_mapping: also give `offset_mapping`, each token's (start, end) in characters of the text;
                tokens that share a character have overlapping spans, added tokens (0, 0).
            return_length: also give `length`, tokens a row.
            split_special_tokens: spell special tokens that a text holds as ordinary text.
            verbose: changes nothing; it is there for code that passes it.

        Returns:
            `input_ids` and what was asked for; without an axis for rows if `text` is a single one, unless
            `return_tensors` or `return_overflowing_tokens`.

        Raises:
            TokenizerError: for lone surrogates in a text and for options that cannot be met.
        """
        options = {key: value for key, value in locals().items() if not key.startswith(("text", "self", "__"))}
        if text is None and text_target is None:
            raise TokenizerError("text is None; give text, or text_target for labels.")
        if text is None:
            return self._encode(text_target, text_pair_target, **options)
        result = self._encode(text, text_pair, **options)
        if text_target is not None:
            result["labels"] = self._encode(text_target, text_pair_target, **options)["input_ids"]
        return result

    def encode(self, text: Any, text_pair: Any = None, add_special_tokens: bool = True, **options: Any) -> Any:
        """`input_ids` alone: a list, or what `return_tensors` asks for. Arguments and errors are those of a call."""
        return self(text, text_pair, add_special_tokens=add_special_tokens, **options)["input_ids"]

    def tokenize(self, text: Any, pair: Any = None, add_special_tokens: bool = False, **options: Any) -> list[str]:
        """The tokens of a text, as the vocabulary spells them. Further arguments are those of a call."""
        return self(text, pair, add_special_tokens=add_special_tokens, **options).tokens()

    @property
    def max_len_single_sentence(self) -> int:
        """How many tokens of one text fit into `model_max_length`."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=False)

    @property
    def max_len_sentences_pair(self) -> int:
        """How many tokens of two texts fit into `model_max_length`."""
        return self.model_max_length - self.num_special_tokens_to_add(pair=True)

    def pad(
        self,
        encoded_inputs: Any,
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> BatchEncoding:
        """Pads rows of ids that were encoded before, for example those that a data loader collects.

        Args:
            encoded_inputs: a `BatchEncoding`, a dictionary of rows (or of one row), or a list of dictionaries. Of what
                it holds `input_ids`, `attention_mask`, `token_type_ids`, `special_tokens_mask` are padded; the rest
                stays as it is.
            padding, max_length, pad_to_multiple_of, padding_side, return_attention_mask, return_tensors, verbose: as
                for a call.

        Raises:
            TokenizerError: for an argument that is no such thing.
        """
        columns, single = _columns(encoded_inputs)
        if any(isinstance(value, torch.Tensor) for value in columns.values()) and return_tensors is None:
            return_tensors = "pt"
        columns = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in columns.items()}
        columns = {key: [_plain(row) for row in value] for key, value in columns.items()}
        shape = self._shape(padding, False, max_length, 0, pad_to_multiple_of, padding_side)
        rows = columns["input_ids"]
        if self._wants("attention_mask", return_attention_mask) and "attention_mask" not in columns:
            columns["attention_mask"] = [[1] * len(row) for row in rows]
        longest = max((len(row) for row in rows), default=0)
        width = shape.max_length if shape.padding == "max_length" and shape.max_length is not None else longest
        if shape.pad_to_multiple_of is not None:
            width = -(-width // shape.pad_to_multiple_of) * shape.pad_to_multiple_of
        fillings = {"input_ids": self.pad_token_id, "attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}
        for key in fillings.keys() & columns.keys() if shape.padding else ():
            columns[key] = [_filled(row, width, fillings[key], shape.padding_side) for row in columns[key]]
        if single and return_tensors is None:
            return BatchEncoding({key: value[0] for key, value in columns.items()})
        return BatchEncoding(columns, tensor_type=return_tensors)

    def _encode(
        self,
        text: Any,
        text_pair: Any,
        *,
        add_special_tokens: bool,
        padding: Any,
        truncation: Any,
        max_length: Any,
        stride: Any,
        is_split_into_words: bool,
        pad_to_multiple_of: Any,
        padding_side: Any,
        return_tensors: str | None,
        return_overflowing_tokens: bool,
        split_special_tokens: bool | None,
        verbose: bool,
        **wanted: Any,
    ) -> BatchEncoding:
        for name, value in (
            ("add_special_tokens", add_special_tokens),
            ("is_split_into_words", is_split_into_words),
            ("return_overflowing_tokens", return_overflowing_tokens),
            ("verbose", verbose),
        ):
            flag(name, value)
        choice("return_tensors", return_tensors, (*TENSORS, None))
        split = self.split_special_tokens if split_special_tokens is None else split_special_tokens
        flag("split_special_tokens", split)
        shape = self._shape(padding, truncation, max_length, stride, pad_to_multiple_of, padding_side)
        batch, single = batch_of(text, text_pair, is_split_into_words)
        found = self._run(batch, shape, add_special_tokens, is_split_into_words, split)
        groups = [[row, *(row.overflowing if return_overflowing_tokens else [])] for row in found]
        columns = self._gather([row for group in groups for row in group], wanted)
        if return_overflowing_tokens:
            columns["overflow_to_sample_mapping"] = [index for index, group in enumerate(groups) for _ in group]
        rows = [row for group in groups for row in group]
        if single and return_tensors is None and not return_overflowing_tokens:
            columns = {key: value if key == "length" else value[0] for key, value in columns.items()}
        return BatchEncoding(columns, rows, tensor_type=return_tensors)

    def _gather(self, rows: list[Encoding], wanted: dict[str, Any]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {"input_ids": [row.ids for row in rows]}
        if self._wants("token_type_ids", wanted["return_token_type_ids"]):
            columns["token_type_ids"] = [row.type_ids for row in rows]
        if self._wants("attention_mask", wanted["return_attention_mask"]):
            columns["attention_mask"] = [row.attention_mask for row in rows]
        if flag("return_special_tokens_mask", wanted["return_special_tokens_mask"]):
            columns["special_tokens_mask"] = [row.special_tokens_mask for row in rows]
        if flag("return_offsets_mapping", wanted["return_offsets_mapping"]):
            columns["offset_mapping"] = [row.offsets for row in rows]
        if flag("return_length", wanted["return_length"]):
            columns["length"] = [len(row) for row in rows]
        return columns

    def _wants(self, name: str, asked: Any) -> bool:
        return name in self.model_input_names if asked is None else flag(f"return_{name}", asked)

    def _run(
        self, batch: list[Any], shape: Shape, special: bool, is_split: bool, split_special: bool
    ) -> list[Encoding]:
        """Encodes under a lock: what one call asks of the backend are settings, which other threads must not see."""
        backend = self.backend_tokenizer
        if shape.truncation and shape.max_length is not None:
            pairs = any(isinstance(entry, tuple) for entry in batch)
            extra = self.num_special_tokens_to_add(pairs) if special else 0
            if shape.max_length < extra:
                raise TokenizerError(f"max_length is {shape.max_length}, but the special tokens alone take {extra}.")
            if shape.stride and shape.stride >= shape.max_length - extra:
                raise TokenizerError(
                    f"stride is {shape.stride}; with max_length={shape.max_length}, of which the special tokens take "
                    f"{extra}, it must be below {shape.max_length - extra}."
                )
        with self._lock:
            try:
                if shape.truncation and shape.max_length is not None:
                    backend.enable_truncation(
                        shape.max_length,
                        stride=shape.stride,
                        strategy=shape.truncation,
                        direction=shape.truncation_side,
                    )
                if shape.padding:
                    self._enable_padding(shape)
                backend.encode_special_tokens = split_special
                found: list[Encoding] = guarded(
                    f"The texts cannot be encoded with truncation={shape.truncation!r}, max_length={shape.max_length}, "
                    f"stride={shape.stride}",
                    backend.encode_batch,
                    batch,
                    is_pretokenized=is_split,
                    add_special_tokens=special,
                )
                return found
            finally:
                backend.no_truncation()
                backend.no_padding()
                backend.encode_special_tokens = False

    def _enable_padding(self, shape: Shape) -> None:
        self.backend_tokenizer.enable_padding(
            direction=shape.padding_side,
            pad_id=self.pad_token_id,
            pad_token=self.pad_token,
            length=shape.max_length if shape.padding == "max_length" else None,
            pad_to_multiple_of=shape.pad_to_multiple_of,
        )

    def _shape(
        self, padding: Any, truncation: Any, max_length: Any, stride: Any, multiple: Any, padding_side: Any
    ) -> Shape:
        side = self.padding_side if padding_side is None else padding_side
        own = self.truncation_side, self.model_max_length
        shape = shape_of(padding, truncation, max_length, stride, multiple, side, *own)
        if shape.padding and self.pad_token_id is None:
            raise TokenizerError(self._no_padding_token())
        return shape

    def _no_padding_token(self) -> str:
        if self.pad_token is not None:
            return (
                f"The padding token {self.pad_token!r} is not in the vocabulary. Add it: "
                f"tokenizer.add_special_tokens({{'pad_token': {self.pad_token!r}}})."
            )
        return "This tokenizer has no padding token. Set one, for example tokenizer.pad_token = tokenizer.eos_token."


def _columns(encoded: Any) -> tuple[dict[str, Any], bool]:
    """What `pad` was given as name → rows, and whether it was one row."""
    if isinstance(encoded, list | tuple) and encoded and all(isinstance(row, Mapping) for row in encoded):
        names = list(encoded[0])
        if any(list(row) != names for row in encoded):
            raise TokenizerError("encoded_inputs holds rows with different entries; all must have the same.")
        encoded = {name: [row[name] for row in encoded] for name in names}
    if not isinstance(encoded, Mapping) or "input_ids" not in encoded:
        found = list(encoded) if isinstance(encoded, Mapping) else type(encoded).__name__
        raise TokenizerError(
            f"encoded_inputs must hold input_ids, as a tokenizer call gives them; it is {found!s:.80}."
        )
    columns = dict(encoded)
    ids = columns["input_ids"]
    if len(ids) and not isinstance(ids[0], Sequence) and not getattr(ids[0], "ndim", 0):
        return {name: [value] for name, value in columns.items()}, True
    sizes = {name: len(value) for name, value in columns.items()}
    if len(set(sizes.values())) > 1:
        raise TokenizerError(f"encoded_inputs holds different numbers of rows: {sizes}.")
    return columns, False


def _plain(row: Any) -> Any:
    return row.tolist() if hasattr(row, "tolist") else list(row) if isinstance(row, tuple) else row


def _filled(row: list[Any], width: int, filling: Any, side: str) -> list[Any]:
    missing = [filling] * (width - len(row))
    return missing + row if side == "left" else row + missing
