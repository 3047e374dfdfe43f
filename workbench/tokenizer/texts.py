"""What a tokenizer call is given: texts, pairs, words, and lists of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workbench.tokenizer.errors import TokenizerError
from workbench.tokenizer.errors import text as checked_text


def batch_of(text: Any, pair: Any, is_split: bool) -> tuple[list[Any], bool]:
    """The texts as a list of entries, a pair as a tuple; and whether there was only one, not in a list.

    Raises:
        TokenizerError: for what is no text, or a number of seconds that differs from that of firsts.
    """
    item = _words if is_split else checked_text
    if _is_single(text, is_split):
        first = item("text", text)
        # As in `transformers`, an empty second text is none.
        return [(first, item("text_pair", pair)) if pair else first], True
    if pair is None:
        return [_entry(entry, is_split) for entry in _listed("text", text, is_split)], False
    firsts, seconds = _listed("text", text, is_split), pair
    if _is_single(pair, is_split) or len(seconds := _listed("text_pair", pair, is_split)) != len(firsts):
        count = "one text" if _is_single(pair, is_split) else f"{len(seconds)} texts"
        raise TokenizerError(f"text_pair is {count}, but text has {len(firsts)}; both lists must be of one length.")
    return [(item("text", one), item("text_pair", two)) for one, two in zip(firsts, seconds, strict=True)], False


def _is_single(value: Any, is_split: bool) -> bool:
    if isinstance(value, str):
        return True
    return is_split and isinstance(value, Sequence) and (not value or isinstance(value[0], str))


def _entry(entry: Any, is_split: bool) -> Any:
    item = _words if is_split else checked_text
    nested = isinstance(entry, list | tuple) and len(entry) == 2
    if nested and all(_is_single(part, is_split) and not (is_split and isinstance(part, str)) for part in entry):
        return item("text", entry[0]), item("text", entry[1])
    if not is_split and not isinstance(entry, str):
        raise TokenizerError(f"text is a {type(entry).__name__}; a str or a list of str is needed.")
    return item("text", entry)


def _listed(name: str, value: Any, is_split: bool) -> list[Any]:
    if not isinstance(value, Iterable) or isinstance(value, bytes | Mapping):
        form = "a list of words, or a list of such lists" if is_split else "a str or a list of str"
        raise TokenizerError(f"{name} is a {type(value).__name__}; {form} is needed.")
    return list(value)


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TokenizerError(f"{name} is a {type(value).__name__}; with is_split_into_words a list of words is needed.")
    return [checked_text(f"A word of {name}", word) for word in value]
