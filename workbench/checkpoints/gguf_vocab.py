"""Builds a LlamaTokenizer from the vocabulary in a GGUF file's metadata.

A GGUF file has no `tokenizer.json`: it lists tokens, their types, and merges or scores, and names the rule by which
text is split before merging. The keys are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, the rules
behind the names those of llama.cpp's `src/llama-vocab.cpp`.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from workbench.checkpoints.errors import CheckpointError
from workbench.tokenizer import LlamaTokenizer
from workbench.tokenizer.sentencepiece import merges_from_scores
from workbench.tokenizer.token_bytes import byte_alphabet

CONTROL, USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type
SPACE = "▁"

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class PreTokenizer(NamedTuple):
    """How a byte-level vocabulary splits text before merging.

    `split` is a regular expression, `None` for GPT-2's own; `digits` splits every digit off first; `whole_words` takes
    a word that is in the vocabulary as it is, without merges; `add_bos` is the default where the file does not say.
    """

    split: str | None = None
    digits: bool = False
    whole_words: bool = False
    add_bos: bool = False


_LLAMA3 = PreTokenizer(_LLAMA3_SPLIT, whole_words=True, add_bos=True)

PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer(),
    "default": PreTokenizer(),
    # SmolLM2 was trained with every digit split off first (smollm-digits), and llama.cpp does so. `transformers` does
    # not when it reads a GGUF file, and its ids are the reference here. They differ where two or more whitespace
    # characters come before a digit ("  1" is two spaces, not one token of two), and for some numerals beyond ASCII.
    "smollm": PreTokenizer(),
    "smollm-digits": PreTokenizer(digits=True),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral"), _LLAMA3),
    "smaug-bpe": PreTokenizer(_LLAMA3_SPLIT),
    "tekken": PreTokenizer(_TEKKEN_SPLIT, whole_words=True, add_bos=True),
}


def tokenizer_from_gguf(
    metadata: Mapping[str, Any], *, pre_tokenizer: str | None = None, **options: Any
) -> LlamaTokenizer:
    """The tokenizer that a GGUF file's metadata describes.

    Args:
        metadata: key → value, as in `GGUFFile.metadata`.
        pre_tokenizer: name of a rule in `PRE_TOKENIZERS`, instead of the one the file names.
        **options: arguments of `LlamaTokenizer`, instead of what the file says.

    Raises:
        CheckpointError: if the vocabulary is missing, contradicts itself, or is of a kind that is not known here.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise CheckpointError(
            f"The file's vocabulary (tokenizer.ggml.model) is {kind!r}; known are 'gpt2' (byte-level BPE) and 'llama' "
            "(SentencePiece). Load the model's folder in Hugging Face format instead."
        )
    vocabulary = _Vocabulary(metadata)
    rule = _rule(pre_tokenizer or metadata.get("tokenizer.ggml.pre", "default")) if kind == "gpt2" else None
    try:
        backend = _byte_level(vocabulary, rule) if rule else _sentencepiece(vocabulary, metadata)
    except Exception as error:  # the Rust library raises plain Exception, for example for a merge of unknown tokens
        raise CheckpointError(f"The file's vocabulary does not fit together: {error}") from error
    _add_tokens(backend, vocabulary)
    template = metadata.get("tokenizer.chat_template")
    found = {
        "bos_token": vocabulary.named("bos"),
        "eos_token": vocabulary.named("eos"),
        "unk_token": vocabulary.named("unknown"),
        "pad_token": vocabulary.named("padding"),
        "add_bos_token": bool(metadata.get("tokenizer.ggml.add_bos_token", rule.add_bos if rule else True)),
        "add_eos_token": bool(metadata.get("tokenizer.ggml.add_eos_token", False)),
        "chat_template": template if isinstance(template, str) else None,
    }
    return LlamaTokenizer.from_backend(backend, **{**found, **options})


class _Vocabulary:
    """The lists of the metadata, checked: `tokens`, `types` (one a token), `merges` and `scores` if there are any."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.tokens: list[str] = self._list("tokens", str) or []
        if not self.tokens:
            raise CheckpointError(
                "The file has no vocabulary (tokenizer.ggml.tokens). Load a file of the same model that has one."
            )
        self.types: list[int] = self._list("token_type", int, len(self.tokens)) or [1] * len(self.tokens)
        self.scores: list[float] | None = self._list("scores", float, len(self.tokens))
        lines = self._list("merges", str)
        self.merges = None if lines is None else [_merge(line) for line in lines]

    def named(self, name: str) -> str | None:
        """Text of a named special token, `None` if the file names none."""
        index = self._metadata.get(f"tokenizer.ggml.{name}_token_id")
        if index is None:
            return None
        if not isinstance(index, int) or not 0 <= index < len(self.tokens):
            raise CheckpointError(
                f"tokenizer.ggml.{name}_token_id is {index!r}, but the vocabulary has {len(self.tokens)} tokens."
            )
        return self.tokens[index]

    def _list(self, name: str, kind: type, length: int | None = None) -> list[Any] | None:
        values = self._metadata.get(f"tokenizer.ggml.{name}")
        if values is None:
            return None
        values = values.tolist() if isinstance(values, array) else values
        if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
            raise CheckpointError(f"tokenizer.ggml.{name} is not a list of {kind.__name__}.")
        if length is not None and len(values) != length:
            raise CheckpointError(f"tokenizer.ggml.{name} has {len(values)} entries for {length} tokens.")
        return values


def _merge(line: str) -> tuple[str, str]:
    left, gap, right = line.partition(" ")
    if not gap or not left or not right or " " in right:
        raise CheckpointError(
            f"tokenizer.ggml.merges holds {line!r}; each entry must be two tokens with a space between."
        )
    return left, right


def _rule(name: Any) -> PreTokenizer:
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        raise CheckpointError(
            f"The file splits text by the rule {name!r} (tokenizer.ggml.pre), which is not known here; known are "
            f"{', '.join(PRE_TOKENIZERS)}. Load the model's folder in Hugging Face format instead."
        )
    return PRE_TOKENIZERS[name]


def _byte_level(vocabulary: _Vocabulary, rule: PreTokenizer) -> Tokenizer:
    model = models.BPE(
        vocab={token: index for index, token in enumerate(_spelled(vocabulary))},
        merges=vocabulary.merges or [],
        ignore_merges=rule.whole_words,
    )
    backend = Tokenizer(model)
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if rule.digits else []
    if rule.split is not None:
        steps.append(pre_tokenizers.Split(Regex(rule.split), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule.split is None))
    backend.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    return backend


def _spelled(vocabulary: _Vocabulary) -> list[str]:
    """Tokens in the byte alphabet. Some files hold ordinary tokens as plain text; control tokens stay as they are."""
    alphabet = byte_alphabet()
    spelling = {byte: character for character, byte in alphabet.items()}
    known = set(alphabet)

    def spell(token: str, kind: int) -> str:
        if kind in (CONTROL, USER_DEFINED) or known.issuperset(token):
            return token
        return "".join(spelling[byte] for byte in token.encode())

    return [spell(token, kind) for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)]


def _sentencepiece(vocabulary: _Vocabulary, metadata: Mapping[str, Any]) -> Tokenizer:
    merges = vocabulary.merges if vocabulary.merges is not None else _merges_from_scores(vocabulary)
    model = models.BPE(
        vocab={token: index for index, token in enumerate(vocabulary.tokens)},
        merges=merges,
        unk_token=vocabulary.named("unknown"),
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Tokenizer(model)
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=SPACE, prepend_scheme="first" if prefix else "never", split=False
    )
    strip = [decoders.Strip(content=" ", left=1)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend


def _merges_from_scores(vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """The merges that SentencePiece's scores stand for, of all tokens, as in `transformers`."""
    if vocabulary.scores is None:
        raise CheckpointError("The file's SentencePiece vocabulary has neither scores nor merges. Use another file.")
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    return merges_from_scores(zip(vocabulary.tokens, vocabulary.scores, strict=True), ids, ids)


def _add_tokens(backend: Tokenizer, vocabulary: _Vocabulary) -> None:
    """Control tokens are matched whole in a text and skipped on demand; user-defined ones are only matched whole."""
    by_type: dict[int, list[AddedToken]] = {CONTROL: [], USER_DEFINED: []}
    for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True):
        if kind in by_type:
            by_type[kind].append(AddedToken(token, normalized=False, special=kind == CONTROL))
    backend.add_special_tokens(by_type[CONTROL])
    backend.add_tokens(by_type[USER_DEFINED])
