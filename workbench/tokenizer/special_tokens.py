"""The special tokens of a tokenizer: those with names, those added to it, and what is put around a text."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, processors

from workbench.tokenizer.errors import TokenizerError, choice, flag, guarded, token, whole_number
from workbench.tokenizer.token_bytes import ByteTable

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
Part = tuple[str, list[int], int]  # of a template: ("A", [], type id) is the first text, ("", ids, type id) special


class NamedToken:
    """Attribute with the text of a named special token, `None` if there is none."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: SpecialTokens | None, owner: type | None = None) -> Any:
        return self if instance is None else instance.special_tokens_map.get(self._name)

    def __set__(self, instance: SpecialTokens, value: Any) -> None:
        instance._name_token(self._name, value)


class NamedTokenId:
    """Attribute with the id of a named special token, `None` if there is none or the vocabulary lacks it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name.removesuffix("_id")

    def __get__(self, instance: SpecialTokens | None, owner: type | None = None) -> Any:
        return self if instance is None else instance._id_of(instance.special_tokens_map.get(self._name))

    def __set__(self, instance: SpecialTokens, value: Any) -> None:
        text = None
        if value is not None:
            index = whole_number(f"{self._name}_id", value, 0, (1 << 32) - 1)
            text = instance.backend_tokenizer.id_to_token(index)
            if text is None:
                known = instance.backend_tokenizer.get_vocab_size()
                raise TokenizerError(f"{self._name}_id is {value}, but the vocabulary has {known} tokens.")
        instance._name_token(self._name, text)


class SpecialTokens:
    """The special tokens of one backend.

    A token that is given a name (`bos_token` …) has to be in the vocabulary: `add_special_tokens` puts it there. What
    is added around a text follows `bos_token` and `eos_token` only after `update_post_processor()`.
    """

    backend_tokenizer: Tokenizer
    bos_token, eos_token, unk_token, pad_token = NamedToken(), NamedToken(), NamedToken(), NamedToken()
    sep_token, cls_token, mask_token = NamedToken(), NamedToken(), NamedToken()
    bos_token_id, eos_token_id, unk_token_id, pad_token_id = (NamedTokenId() for _ in range(4))
    sep_token_id, cls_token_id, mask_token_id = (NamedTokenId() for _ in range(3))

    def _set_special_tokens(self, backend: Tokenizer, named: Mapping[str, Any], extra: Sequence[Any]) -> None:
        self.backend_tokenizer = backend
        # Its settings for one call would be seen by other threads, and a change of it while another thread encodes is
        # an error; see `Encoder`.
        self._lock = threading.RLock()
        self._named: dict[str, str | AddedToken] = {}
        for name, value in named.items():
            self._name_token(name, value)
        self._extra = [token("extra_special_tokens", value) for value in extra]
        self._register([*self._named.values(), *self._extra])
        self._bytes = ByteTable(backend)

    def __getattr__(self, name: str) -> Any:
        named = self.__dict__.get("_named", {})  # of model-specific ones, such as image_token
        if name in named:
            return _content(named[name])
        if name.removesuffix("_id") in named:
            return self._id_of(_content(named[name.removesuffix("_id")]))
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    # Special tokens ---------------------------------------------------------------------------------------------------

    @property
    def special_tokens_map(self) -> dict[str, str]:
        """Name → text of the named special tokens there are."""
        order = [*NAMED_TOKENS, *(name for name in self._named if name not in NAMED_TOKENS)]
        return {name: _content(self._named[name]) for name in order if name in self._named}

    @property
    def extra_special_tokens(self) -> list[str]:
        """Texts of the further special tokens, which have no name."""
        return [_content(value) for value in self._extra]

    @extra_special_tokens.setter
    def extra_special_tokens(self, values: Sequence[str | AddedToken] | None) -> None:
        self._extra = _token_list("extra_special_tokens", [] if values is None else values)

    additional_special_tokens = extra_special_tokens  # its name before transformers 5

    @property
    def all_special_tokens(self) -> list[str]:
        """Texts of all special tokens: the named ones first, then the other control tokens by id, none twice."""
        return [str(self.backend_tokenizer.id_to_token(index)) for index in self.all_special_ids]

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of all special tokens: the named ones first, then the other control tokens by id, none twice."""
        named = [self._id_of(text) for text in [*self.special_tokens_map.values(), *self.extra_special_tokens]]
        added = self.backend_tokenizer.get_added_tokens_decoder()
        others = [index for index, token in sorted(added.items()) if token.special]
        return list(dict.fromkeys([index for index in named if index is not None] + others))

    def add_special_tokens(
        self, special_tokens_dict: Mapping[str, Any], replace_extra_special_tokens: bool = True
    ) -> int:
        """Names special tokens, and adds those that the vocabulary lacks at its end.

        Args:
            special_tokens_dict: name → token, a name of `NAMED_TOKENS`; or `extra_special_tokens` → list of tokens.
            replace_extra_special_tokens: forget which extra tokens there were; otherwise lengthen that list.

        Returns:
            How many ids are new. A model then needs `resize_token_embeddings(len(tokenizer))`.

        Raises:
            TokenizerError: for another name or a value that is no token; then nothing has changed.
        """
        flag("replace_extra_special_tokens", replace_extra_special_tokens)
        if not isinstance(special_tokens_dict, Mapping):
            raise TokenizerError(f"special_tokens_dict is {special_tokens_dict!r:.80}; name → token is needed.")
        named: dict[str, str | AddedToken] = {}
        extra: list[str | AddedToken] = []
        for name, value in special_tokens_dict.items():
            if name in ("extra_special_tokens", "additional_special_tokens"):
                extra = _token_list(name, value)
            else:
                choice("A name in special_tokens_dict", name, (*NAMED_TOKENS, "extra_special_tokens"))
                named[name] = token(name, value)
        kept = [] if replace_extra_special_tokens and extra else self._extra
        known = set(self.extra_special_tokens) if kept else set()
        before = self.backend_tokenizer.get_vocab_size()
        self._register([*named.values(), *extra])
        self._named.update(named)
        self._extra = [*kept, *(value for value in extra if _content(value) not in known)]
        return self.backend_tokenizer.get_vocab_size() - before

    def add_tokens(
        self, new_tokens: str | AddedToken | Sequence[str | AddedToken], special_tokens: bool = False
    ) -> int:
        """Adds tokens at the end of the vocabulary; they are matched whole in a text, before it is split further.

        Args:
            new_tokens: their texts, or `AddedToken`s, which say more about how they are matched.
            special_tokens: whether `decode` may skip them.

        Returns:
            How many ids are new: those already there are not added again.

        Raises:
            TokenizerError: for an argument that is no such thing; then nothing has changed.
        """
        flag("special_tokens", special_tokens)
        values = _token_list("new_tokens", [new_tokens] if isinstance(new_tokens, str | AddedToken) else new_tokens)
        before = self.backend_tokenizer.get_vocab_size()
        with self._lock:
            add = self.backend_tokenizer.add_special_tokens if special_tokens else self.backend_tokenizer.add_tokens
            guarded("new_tokens cannot be added", add, values)
        self._bytes = ByteTable(self.backend_tokenizer)
        return self.backend_tokenizer.get_vocab_size() - before

    def get_special_tokens_mask(
        self,
        token_ids_0: Iterable[int],
        token_ids_1: Iterable[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for each special token, 0 for each token of the text.

        Args:
            token_ids_0, token_ids_1: ids of one text or of two, without special tokens: the mask is that of
                `build_inputs_with_special_tokens`.
            already_has_special_tokens: `token_ids_0` is complete, and every special id in it counts.
        """
        first = id_list(token_ids_0)
        if not flag("already_has_special_tokens", already_has_special_tokens):
            second = None if token_ids_1 is None else id_list(token_ids_1)
            texts = {"A": [0] * len(first), "B": [0] * len(second or [])}
            parts = self._template(second is not None)
            return [value for name, ids, _ in parts for value in (texts[name] if name else [1] * len(ids))]
        if token_ids_1 is not None:
            raise TokenizerError("token_ids_1 must be None with already_has_special_tokens: give one list with both.")
        special = set(self.all_special_ids)
        return [int(index in special) for index in first]

    def build_inputs_with_special_tokens(
        self, token_ids_0: Iterable[int], token_ids_1: Iterable[int] | None = None
    ) -> list[int]:
        """The ids of one text or of two with the special tokens that encoding would add."""
        texts = {"A": id_list(token_ids_0), "B": [] if token_ids_1 is None else id_list(token_ids_1)}
        return [index for name, ids, _ in self._template(token_ids_1 is not None) for index in texts.get(name, ids)]

    def create_token_type_ids_from_sequences(
        self, token_ids_0: Iterable[int], token_ids_1: Iterable[int] | None = None
    ) -> list[int]:
        """0 for each position of the first text with its special tokens, 1 for each of the second."""
        texts = {"A": id_list(token_ids_0), "B": [] if token_ids_1 is None else id_list(token_ids_1)}
        parts = self._template(token_ids_1 is not None)
        return [kind for name, ids, kind in parts for _ in texts.get(name, ids)]

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many tokens encoding adds to one text, or to two."""
        return int(self.backend_tokenizer.num_special_tokens_to_add(flag("pair", pair)))

    # What is put around a text ----------------------------------------------------------------------------------------

    @property
    def add_bos_token(self) -> bool:
        """Whether encoding begins with `bos_token`."""
        return self._add_bos

    @add_bos_token.setter
    def add_bos_token(self, value: bool) -> None:
        if flag("add_bos_token", value) and self.bos_token is None:
            raise TokenizerError("add_bos_token is True, but there is no bos_token. Set it first.")
        self._add_bos = value
        self.update_post_processor()

    @property
    def add_eos_token(self) -> bool:
        """Whether encoding ends with `eos_token`."""
        return self._add_eos

    @add_eos_token.setter
    def add_eos_token(self, value: bool) -> None:
        if flag("add_eos_token", value) and self.eos_token is None:
            raise TokenizerError("add_eos_token is True, but there is no eos_token. Set it first.")
        self._add_eos = value
        self.update_post_processor()

    def update_post_processor(self) -> None:
        """Makes encoding follow today's `bos_token`, `eos_token`, `add_bos_token` and `add_eos_token`."""
        self._add_bos = self._add_bos and self.bos_token_id is not None
        self._add_eos = self._add_eos and self.eos_token_id is not None
        before = [(self.bos_token, self.bos_token_id)] if self._add_bos else []
        after = [(self.eos_token, self.eos_token_id)] if self._add_eos else []
        single = [*(_mark(text, 0) for text, _ in before), "$A:0", *(_mark(text, 0) for text, _ in after)]
        second = [*(_mark(text, 1) for text, _ in before), "$B:1", *(_mark(text, 1) for text, _ in after)]
        special = {text: {"id": _mark(text), "ids": [index], "tokens": [text]} for text, index in [*before, *after]}
        template = processors.TemplateProcessing(
            single=single, pair=[*single, *second], special_tokens=list(special.values())
        )
        with self._lock:
            self.backend_tokenizer.post_processor = template

    def _set_post_processor(self, add_bos: bool | None, add_eos: bool | None) -> None:
        """`None` for both keeps the backend's own rule."""
        keep = add_bos is None and add_eos is None and self.backend_tokenizer.post_processor is not None
        self._add_bos, self._add_eos = bool(add_bos), bool(add_eos)
        if not keep:
            self.update_post_processor()
            return
        parts = self._template(pair=False)
        self._add_bos = bool(parts) and self.bos_token_id is not None and self.bos_token_id in parts[0][1]
        self._add_eos = bool(parts) and self.eos_token_id is not None and self.eos_token_id in parts[-1][1]

    def _template(self, pair: bool) -> list[Part]:
        """What encoding makes of one text ("A") or of two ("B"), read from the backend's post-processor."""
        plain: list[Part] = [("A", [], 0), ("B", [], 1)]
        processor = self.backend_tokenizer.post_processor
        if processor is None:
            return plain if pair else plain[:1]
        state = json.loads(processor.__getstate__())
        for step in reversed(state["processors"] if state["type"] == "Sequence" else [state]):
            if step["type"] == "TemplateProcessing":
                return [_part(entry, step["special_tokens"]) for entry in step["pair" if pair else "single"]]
        return plain if pair else plain[:1]

    # Set-up -----------------------------------------------------------------------------------------------------------

    def _id_of(self, text: str | None) -> int | None:
        return None if text is None else self.backend_tokenizer.token_to_id(text)

    def _name_token(self, name: str, value: Any) -> None:
        if value is None:
            self._named.pop(name, None)
        else:
            self._named[name] = token(name, value)

    def _register(self, tokens: Iterable[str | AddedToken]) -> None:
        """A named token is special, also where the vocabulary lists it as an ordinary one."""
        added = self.backend_tokenizer.get_added_tokens_decoder()
        special = {entry.content for entry in added.values() if entry.special}
        missing = {_content(value): value for value in tokens if _content(value) not in special}
        values = [
            AddedToken(value, normalized=False) if isinstance(value, str) else value for value in missing.values()
        ]
        if values:
            with self._lock:
                guarded("The special tokens cannot be added", self.backend_tokenizer.add_special_tokens, values)
        self._bytes = ByteTable(self.backend_tokenizer)


def id_list(ids: Any) -> list[int]:
    """The ids of one sequence as a list, each checked."""
    values = ids.tolist() if hasattr(ids, "tolist") else ids
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping):
        values = [values]
    values = list(values)
    for place, value in enumerate(values):
        if not isinstance(value, int) and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
            value = values[place] = value.item()
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 32:
            hint = " For several sequences use batch_decode." if isinstance(value, list | torch.Tensor) else ""
            raise TokenizerError(f"A token id is {value!r:.80}; each must be a whole number of at least 0.{hint}")
    return values


def _content(value: str | AddedToken) -> str:
    return value if isinstance(value, str) else value.content


def _token_list(name: str, values: Any) -> list[str | AddedToken]:
    if not isinstance(values, list | tuple):
        raise TokenizerError(f"{name} is {values!r:.80}; a list of texts or AddedTokens is needed.")
    return [token(f"An entry of {name}", value) for value in values]


def _mark(text: str, kind: int | None = None) -> str:
    """A token in a post-processor's template; its own text, unless that would be read as something else."""
    name = text if ":" not in text and not text.startswith("$") else f"token {text.encode().hex()}"
    return name if kind is None else f"{name}:{kind}"


def _part(entry: dict[str, Any], special: dict[str, Any]) -> Part:
    ((kind, value),) = entry.items()
    if kind == "Sequence":
        return value["id"], [], value["type_id"]
    if value["id"] not in special:
        raise TokenizerError(
            f"The post-processor puts {value['id']!r:.80} around texts, but does not say what ids it has."
        )
    return "", list(special[value["id"]]["ids"]), value["type_id"]
