"""Builds the `tokenizers.Tokenizer` of a SentencePiece-like vocabulary from its tokens and merges."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from workbench.tokenizer.errors import TokenizerError, guarded, text

SPACE = "▁"


def vocabulary_backend(
    vocab: str | Path | Mapping[str, int] | Sequence[str] | None,
    merges: str | Path | Sequence[Any] | None,
    named: Sequence[str],
) -> Tokenizer:
    """A BPE tokenizer with byte fallback, without rules for spaces (see `set_spaces`).

    Args:
        vocab: token → id, the tokens in the order of their ids, the path of a JSON file of either, or `None` for a
            vocabulary of `named` only.
        merges: pairs of tokens, best first, each a pair or a text with a space between; or the path of a merges.txt.
        named: the special tokens.

    Raises:
        TokenizerError: if the two do not fit together.
    """
    ids = _vocabulary(vocab, named)
    pairs = _merges(merges)
    for left, right in pairs:
        for part in (left, right, left + right):
            if part not in ids:
                raise TokenizerError(f"merges holds {left!r} + {right!r}, but {part!r:.80} is not in vocab.")
    model = guarded(
        "vocab and merges do not fit together", models.BPE, vocab=ids, merges=pairs, fuse_unk=True, byte_fallback=True
    )
    return Tokenizer(model)


def set_spaces(backend: Tokenizer, prefix: bool, *, legacy: bool, exact: bool = False) -> None:
    """Makes spaces `▁`, one more before a text if `prefix`; decoding undoes both.

    Args:
        legacy: put the `▁` also after each special token inside the text, as Llama's first tokenizers did
            (https://github.com/huggingface/transformers/pull/24565).
        exact: put it also before a text that begins with a space, as SentencePiece does. `tokenizers` leaves it out
            before a `▁`; so the spaces of the text are written as `▁` beforehand, and the one put before it afterwards.
    """
    scheme = ("always" if legacy else "first") if prefix else "never"
    if exact:
        backend.normalizer = normalizers.Replace(" ", SPACE)
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Metaspace(replacement=" ", prepend_scheme=scheme, split=False),
                pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=False),
            ]
        )
    else:
        backend.normalizer = None
        backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(content=" ", left=1)] if prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )


def has_spaces_rule(backend: Tokenizer) -> bool:
    """Whether the vocabulary writes a space as `▁`, so that `set_spaces` applies."""
    return backend.decoder is not None and SPACE in str(backend.decoder.__getstate__(), "utf-8")


def _vocabulary(vocab: Any, named: Sequence[str]) -> dict[str, int]:
    if vocab is None:
        return {token: index for index, token in enumerate(dict.fromkeys(named))}
    if isinstance(vocab, str | Path):
        vocab = _json_file("vocab", Path(vocab))
    if isinstance(vocab, Mapping):
        ids = dict(vocab)
    elif isinstance(vocab, Sequence) and not isinstance(vocab, bytes):
        ids = {token: index for index, token in enumerate(vocab) if isinstance(token, str)}
        if len(ids) != len(vocab):
            raise TokenizerError("vocab lists a token twice, or something that is no text.")
    else:
        raise TokenizerError(
            f"vocab is a {type(vocab).__name__}; a dictionary token → id, a list of tokens or a file's path is needed."
        )
    for token, index in ids.items():
        if not isinstance(token, str) or isinstance(index, bool) or not isinstance(index, int):
            raise TokenizerError(f"vocab maps {token!r:.80} to {index!r:.80}; a text and a whole number are needed.")
        text("A token of vocab", token)
        if not 0 <= index < 1 << 31:
            raise TokenizerError(f"vocab gives {token!r:.80} the id {index}; ids go from 0 to {(1 << 31) - 1}.")
    if len(set(ids.values())) != len(ids):
        raise TokenizerError("vocab gives one id to two tokens. Each token needs its own.")
    return ids


def _merges(merges: Any) -> list[tuple[str, str]]:
    if merges is None:
        return []
    if isinstance(merges, str | Path):
        path = Path(merges)
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise TokenizerError(f"merges is {str(merges)!r:.200}, a file that cannot be read ({error}).") from error
        merges = [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version")]
    if not isinstance(merges, Sequence) or isinstance(merges, bytes):
        raise TokenizerError(f"merges is a {type(merges).__name__}; a list of pairs or a file's path is needed.")
    return [_merge(merge) for merge in merges]


def _merge(merge: Any) -> tuple[str, str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, Sequence) or len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
        raise TokenizerError(f"merges holds {merge!r:.80}; each entry must be two tokens, or 'left right'.")
    return parts[0], parts[1]


def _json_file(name: str, path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise TokenizerError(f"{name} is {str(path)!r:.200}, a file that cannot be read ({error}).") from error
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not valid JSON ({error}). Download the file again.") from error
