"""LlamaTokenizer: text to token ids and back, with the exact bytes and the place of every token.

Names and results are those of `transformers`; the work is done by the `tokenizers` package. Added here, because a
workbench shows single tokens: `token_bytes` and `pieces`. Read: a folder's `tokenizer.json`, its SentencePiece
`tokenizer.model`, its vocabulary and merges, and the vocabulary inside a GGUF file.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from workbench.tokenizer import files, save
from workbench.tokenizer.backend import has_spaces_rule, set_spaces, vocabulary_backend
from workbench.tokenizer.chat import Chat
from workbench.tokenizer.decode import Decoder
from workbench.tokenizer.errors import TokenizerError, choice, flag, guarded, whole_number
from workbench.tokenizer.errors import token as checked_token
from workbench.tokenizer.sentencepiece import backend_of, read_model
from workbench.tokenizer.shape import NO_LIMIT, SIDES
from workbench.tokenizer.special_tokens import NAMED_TOKENS
from workbench.tokenizer.token_bytes import ByteTable

_UNSAID: Any = object()  # of a special token: the vocabulary's own, or Llama's
DEFAULTS = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


class LlamaTokenizer(Chat, Decoder):
    """A tokenizer of a Llama-family model.

    The vocabulary comes from one of `tokenizer_object`, `tokenizer_file`, `vocab_file`, or `vocab` with `merges`. For a
    model's folder, its GGUF file or its place on the Hub there is `from_pretrained`.

    Args:
        vocab: token → id, the tokens in the order of their ids, or the path of a JSON file of either.
        merges: pairs of tokens, best first, or the path of a merges.txt.
        clean_up_tokenization_spaces: kept for the record; see `decode`.
        unk_token, bos_token, eos_token: texts (or `AddedToken`s) of the named special tokens, `None` for none. Left
            out: those of a tokenizer.model; `<unk>`, `<s>`, `</s>` with `vocab`; none otherwise.
        use_default_system_prompt: kept for the record: since chat templates, nothing reads it.
        legacy: put a space also after special tokens inside a text, as Llama's first tokenizers did.
        add_prefix_space: put a space before a text; `None` for what the vocabulary's file says, else `True`.
        vocab_file: path of a SentencePiece tokenizer.model; or of a JSON file, as `vocab`.
        merges_file: as `merges`.
        tokenizer_file: path of a tokenizer.json.
        tokenizer_object: a `tokenizers.Tokenizer`; it is changed (special tokens are registered).
        add_bos_token, add_eos_token: whether encoding puts them around a text. Left out: what a tokenizer.json says,
            else `True` and `False`.
        pad_token, sep_token, cls_token, mask_token: as `unk_token`.
        extra_special_tokens: further special tokens: a list, or name → token for tokens that become attributes.
        additional_special_tokens: the same under its former name.
        added_tokens_decoder: id → `AddedToken` of tokens to add, in the order of the ids.
        chat_template: Jinja text for `apply_chat_template`, or name → text.
        padding_side, truncation_side: where padding goes (left, so that the last position is always a real token), and
            where texts are cut.
        model_max_length: in tokens; what padding and truncation use where no `max_length` is given.
        model_input_names: what a call returns without being asked.
        split_special_tokens: spell special tokens that a text holds as ordinary text.
        name_or_path: where it is from.
        **special: further special tokens, `image_token="<image>"`.

    Raises:
        TokenizerError: (a `ValueError`) naming the argument that cannot be used.
    """

    is_fast = True

    def __init__(
        self,
        vocab: str | Path | Mapping[str, int] | Sequence[str] | None = None,
        merges: str | Path | Sequence[Any] | None = None,
        clean_up_tokenization_spaces: bool = False,
        unk_token: str | AddedToken | None = _UNSAID,
        bos_token: str | AddedToken | None = _UNSAID,
        eos_token: str | AddedToken | None = _UNSAID,
        use_default_system_prompt: bool = False,
        legacy: bool | None = None,
        add_prefix_space: bool | None = None,
        *,
        vocab_file: str | Path | None = None,
        merges_file: str | Path | None = None,
        tokenizer_file: str | Path | None = None,
        tokenizer_object: Tokenizer | None = None,
        add_bos_token: bool | None = None,
        add_eos_token: bool | None = None,
        extra_special_tokens: Sequence[str | AddedToken] | Mapping[str, Any] | None = None,
        additional_special_tokens: Sequence[str | AddedToken] | None = None,
        added_tokens_decoder: Mapping[int, AddedToken] | None = None,
        chat_template: str | Mapping[str, str] | None = None,
        padding_side: str = "left",
        truncation_side: str = "right",
        model_max_length: int | None = None,
        model_input_names: Sequence[str] = ("input_ids", "attention_mask"),
        split_special_tokens: bool = False,
        clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output: bool = False,
        name_or_path: str = "",
        **special: Any,
    ) -> None:
        for name, value in (("legacy", legacy), ("add_prefix_space", add_prefix_space)):
            if value is not None:
                flag(name, value)
        self.legacy, self.add_prefix_space = bool(legacy), add_prefix_space
        self.use_default_system_prompt = flag("use_default_system_prompt", use_default_system_prompt)
        self.clean_up_tokenization_spaces = flag("clean_up_tokenization_spaces", clean_up_tokenization_spaces)
        self.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = (
            clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output
        )
        self.padding_side = choice("padding_side", padding_side, SIDES)
        self.truncation_side = choice("truncation_side", truncation_side, SIDES)
        self.model_max_length = whole_number(
            "model_max_length", NO_LIMIT if model_max_length is None else model_max_length, 1
        )
        self.model_input_names = _names("model_input_names", model_input_names)
        self.split_special_tokens = flag("split_special_tokens", split_special_tokens)
        self.chat_template = _template(chat_template)
        self.name_or_path = name_or_path
        self.vocab_file = None if vocab_file is None else str(vocab_file)
        named = {"unk_token": unk_token, "bos_token": bos_token, "eos_token": eos_token, **_special(special)}
        for name, value in named.items():
            if value is not None and value is not _UNSAID:
                checked_token(name, value)
        given = {"tokenizer_object": tokenizer_object, "tokenizer_file": tokenizer_file}
        backend, own = self._backend(given, vocab, merges, merges_file, named, legacy, add_prefix_space)
        named = {name: own.get(name) if value is _UNSAID else value for name, value in named.items()}
        extra = extra_special_tokens if extra_special_tokens is not None else additional_special_tokens
        if isinstance(extra, Mapping):
            named, extra = {**named, **_special(extra)}, []
        for name, value in (("add_bos_token", add_bos_token), ("add_eos_token", add_eos_token)):
            if value is not None:
                flag(name, value)
        # Padding and truncation are settings of a call here: the backend's would outlast it.
        backend.no_padding()
        backend.no_truncation()
        _add_listed(backend, added_tokens_decoder)
        self._set_special_tokens(backend, {**own, **named}, _extra(extra))
        keep = given["tokenizer_object"] is not None or given["tokenizer_file"] is not None
        self._set_post_processor(True if add_bos_token is None and not keep else add_bos_token, add_eos_token)

    def _backend(
        self,
        given: dict[str, Any],
        vocab: Any,
        merges: Any,
        merges_file: Any,
        named: Mapping[str, Any],
        legacy: bool | None,
        prefix: bool | None,
    ) -> tuple[Tokenizer, dict[str, Any]]:
        """The backend, and the special tokens its file names."""
        if given["tokenizer_object"] is not None or given["tokenizer_file"] is not None:
            backend = given["tokenizer_object"]
            if backend is None:
                backend = files.read_backend(_path("tokenizer_file", given["tokenizer_file"]))
            if not isinstance(backend, Tokenizer):
                raise TokenizerError(
                    f"tokenizer_object is a {type(backend).__name__}; a tokenizers.Tokenizer is needed."
                )
            if (legacy is not None or prefix is not None) and has_spaces_rule(backend):
                set_spaces(backend, prefix is not False, legacy=bool(legacy), exact=True)
            return backend, {}
        if self.vocab_file is not None and vocab is None and self.vocab_file.endswith(".model"):
            model = read_model(_path("vocab_file", self.vocab_file))
            return backend_of(model, prefix=prefix, legacy=bool(legacy)), model.named()
        own = {**DEFAULTS, **{name: value for name, value in named.items() if value is not _UNSAID}}
        texts = [str(getattr(own[name], "content", own[name])) for name in DEFAULTS if own[name] is not None]
        source = self.vocab_file if vocab is None else vocab
        backend = vocabulary_backend(source, merges_file if merges is None else merges, texts)
        set_spaces(backend, prefix is not False, legacy=bool(legacy))
        return backend, DEFAULTS

    # Reading and writing ----------------------------------------------------------------------------------------------

    @classmethod
    def from_backend(cls, backend: Tokenizer, **options: Any) -> LlamaTokenizer:
        """A tokenizer around a `tokenizers.Tokenizer`, without special tokens but those given."""
        return cls(tokenizer_object=backend, **options)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        subfolder: str = "",
        gguf_file: str | None = None,
        **overrides: Any,
    ) -> LlamaTokenizer:
        """The tokenizer of a folder, of a GGUF file, or of a model on the Hub.

        Args:
            source: a folder in Hugging Face format, a .gguf file, or `"owner/name"`.
            revision, token, cache_dir, local_files_only: for the Hub: branch, tag or commit; access token; where files
                are kept; use only what is there.
            subfolder, gguf_file: what to read inside `source`.
            **overrides: arguments of the class, instead of what the files say.

        Raises:
            TokenizerError: (a `ValueError`) if a file is missing or malformed.
            CheckpointNotFoundError: (a `FileNotFoundError`) if there is nothing at `source`.
        """
        # Reached up for when called: reading files of models is above tokenizers.
        from workbench.checkpoints.gguf import GGUFFile
        from workbench.checkpoints.gguf_vocab import tokenizer_from_gguf
        from workbench.checkpoints.locate import locate

        for name in ("use_fast", "trust_remote_code"):  # what code for transformers passes; nothing here differs
            overrides.pop(name, None)
        path = locate(
            source,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            subfolder=subfolder,
            gguf_file=gguf_file,
            files=files.ALL,
        ).path
        overrides.setdefault("name_or_path", str(source))
        if not path.is_file():
            return cls.from_folder(path, **overrides)
        if path.name == files.TOKENIZER_FILE:
            return cls(tokenizer_file=path, **overrides)
        if path.suffix == ".model":
            return cls(vocab_file=path, **overrides)
        return tokenizer_from_gguf(GGUFFile(path).metadata, **overrides)

    @classmethod
    def from_folder(cls, path: str | Path, **overrides: Any) -> LlamaTokenizer:
        """Reads a folder in Hugging Face format: `tokenizer.json`, else `tokenizer.model`, else `vocab.json` and
        `merges.txt`; and where there, `tokenizer_config.json`, `special_tokens_map.json` and `chat_template.jinja`.

        Raises:
            TokenizerError: if a file is missing or malformed.
        """
        folder = Path(path)
        options = files.read_options(folder)
        model = folder / files.MODEL_FILE
        sources: dict[str, Any] = {}
        if (folder / files.TOKENIZER_FILE).is_file():
            backend = files.read_backend(folder / files.TOKENIZER_FILE)
            # As in `transformers` 5, the file's own rules stand where it has any.
            stated = ("add_bos_token", "add_eos_token") if backend.post_processor is not None else ()
            for name in (*stated, "legacy", "add_prefix_space"):
                options.pop(name, None)
            if backend.padding is not None:
                options = {"pad_token": backend.padding["pad_token"], **options}
            sources["tokenizer_object"] = backend
            if model.is_file():
                sources["vocab_file"] = model
        elif model.is_file():
            sources["vocab_file"] = model
        elif (folder / files.VOCAB_FILE).is_file():
            merges = folder / files.MERGES_FILE
            sources = {"vocab": folder / files.VOCAB_FILE, "merges": merges if merges.is_file() else None}
        else:
            raise TokenizerError(
                f"{folder} has no tokenizer.json. Save it with transformers: "
                f"AutoTokenizer.from_pretrained(...).save_pretrained({str(folder)!r}). (A tokenizer.model, or "
                "vocab.json and merges.txt, are read too; there are none.)"
            )
        return cls(**{"name_or_path": str(path), **sources, **options, **overrides})

    def save_pretrained(self, save_directory: str | Path, **unsupported: Any) -> tuple[str, ...]:
        """Writes a folder that `from_pretrained`, here and in `transformers`, reads: `tokenizer.json`,
        `tokenizer_config.json`, `special_tokens_map.json`, the chat template, and the `tokenizer.model` it came from.

        Returns:
            The paths of the files.

        Raises:
            TokenizerError: if `save_directory` is a file or cannot be written.
        """
        if unsupported:
            raise TokenizerError(f"save_pretrained takes a folder only; {', '.join(unsupported)} is not supported.")
        return save.save_pretrained(self, Path(save_directory))

    def save_vocabulary(self, save_directory: str | Path, filename_prefix: str | None = None) -> tuple[str, ...]:
        """Writes the vocabulary alone: the `tokenizer.model` it came from, else `vocab.json` and `merges.txt`.

        Args:
            save_directory: a folder, which must exist.
            filename_prefix: put before the names of the files, with a `-` between.

        Returns:
            The paths of the files.

        Raises:
            TokenizerError: if there is no such folder.
        """
        return save.save_vocabulary(self, Path(save_directory), filename_prefix)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(name_or_path={self.name_or_path!r}, vocab_size={self.vocab_size}, "
            f"model_max_length={self.model_max_length}, padding_side={self.padding_side!r}, "
            f"truncation_side={self.truncation_side!r}, special_tokens={self.special_tokens_map})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_bytes")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock(), _bytes=ByteTable(state["backend_tokenizer"]))


LlamaTokenizerFast = LlamaTokenizer


def _special(tokens: Mapping[str, Any]) -> dict[str, Any]:
    for name in tokens:
        if not isinstance(name, str) or not name.endswith("_token") or not name.isidentifier():
            raise TokenizerError(
                f"LlamaTokenizer has no argument {name!r:.80}. Special tokens may be named, NAME_token; known are "
                f"{', '.join(NAMED_TOKENS)}."
            )
    return dict(tokens)


def _extra(tokens: Any) -> Sequence[Any]:
    if tokens is not None and not isinstance(tokens, list | tuple):
        raise TokenizerError(f"extra_special_tokens is {tokens!r:.80}; a list, or name → token, is needed.")
    return tokens or []


def _names(argument: str, names: Any) -> list[str]:
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise TokenizerError(f"{argument} is {names!r:.80}; a list of names is needed.")
    return list(names)


def _template(template: Any) -> str | dict[str, str] | None:
    if isinstance(template, list | tuple) and all(isinstance(entry, Mapping) for entry in template):
        template = {entry.get("name"): entry.get("template") for entry in template}
    parts = list(template.items()) if isinstance(template, Mapping) else [("", "" if template is None else template)]
    if not all(isinstance(name, str) and isinstance(part, str) for name, part in parts):
        raise TokenizerError(f"chat_template is {template!r:.80}; a Jinja text, or name → text, is needed.")
    return dict(template) if isinstance(template, Mapping) else template


def _path(name: str, path: Any) -> Path:
    if not isinstance(path, str | Path) or not Path(path).is_file():
        raise TokenizerError(f"{name} is {str(path)!r:.200}, but there is no such file.")
    return Path(path)


def _add_listed(backend: Tokenizer, listed: Mapping[int, AddedToken] | None) -> None:
    """Tokens that only `added_tokens_decoder` names, in the order of their ids."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for index, token in sorted((listed or {}).items()):
        if not isinstance(token, AddedToken) or isinstance(index, bool) or not isinstance(index, int):
            raise TokenizerError(
                f"added_tokens_decoder maps {index!r:.80} to {token!r:.80}; id → AddedToken is needed."
            )
        if token.content not in known:
            guarded("added_tokens_decoder holds a token that cannot be added", backend.add_tokens, [token])
            if backend.token_to_id(token.content) != index:
                raise TokenizerError(
                    f"added_tokens_decoder gives {token.content!r:.80} the id {index}, but it can only get "
                    f"{backend.token_to_id(token.content)}: ids have no gaps, and known tokens keep theirs."
                )
