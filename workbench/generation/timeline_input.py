"""What the methods of a timeline are given: each check says what was given, what is allowed and what to do."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from workbench.generation.timeline_tree import Node


def token_ids(given: Any, tokenizer: Any, vocab_size: int, *, begins: bool) -> list[int]:
    """Ids of a text, or the ids themselves.

    Args:
        given: a text, or token ids: a list, a tensor of one text.
        begins: whether special tokens are to be put before a text, as the tokenizer does.

    Raises:
        TypeError: if it is neither.
        ValueError: if it is empty, a token is outside the vocabulary, or a text comes without a tokenizer.
    """
    if isinstance(given, str):
        if tokenizer is None:
            raise ValueError(
                "a text needs the tokenizer, and this timeline has none. Give token ids, or make it with "
                "Timeline(model, tokenizer)."
            )
        if not given:
            raise ValueError("the text is empty; give some text, or token ids.")
        given = tokenizer.encode(given) if begins else tokenizer.encode(given, add_special_tokens=False)
    elif isinstance(given, Tensor):
        if given.dim() > 2 or (given.dim() == 2 and len(given) != 1):
            raise ValueError(f"token ids have shape {tuple(given.shape)}; a timeline is one text: give (positions,).")
        given = given.flatten().tolist()
    if not isinstance(given, Iterable):
        raise TypeError(f"a text or token ids are needed; got {given!r}.")
    ids = [token_id(one, vocab_size) for one in given]
    if not ids:
        raise ValueError("there is no token in it; give some text, or token ids.")
    return ids


def token_id(given: Any, vocab_size: int) -> int:
    """One token id.

    Raises:
        TypeError: if it is no whole number.
        ValueError: if it is outside the vocabulary.
    """
    try:
        if isinstance(given, bool):
            raise TypeError
        token = operator.index(given)
    except TypeError:
        raise TypeError(f"token is {given!r}; token ids are whole numbers.") from None
    if not 0 <= token < vocab_size:
        raise ValueError(
            f"token {token} does not exist; ids of this model lie in 0 … {vocab_size - 1}. Is this the tokenizer of "
            "another model?"
        )
    return token


def count_of(name: str, value: Any) -> int:
    """A whole number of at least 0.

    Raises:
        TypeError, ValueError: for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}; it must be a whole number, 0 or more.")
    if value < 0:
        raise ValueError(f"{name} is {value}; it must be 0 or more.")
    return value


def place_of(at: Any, path: list[Node]) -> int:
    """The position of a node on the current text, or a position itself.

    Raises:
        TypeError: for anything else.
        ValueError: if there is no such position, or the node is on another branch.
    """
    if isinstance(at, Node):
        if at.position >= len(path) or path[at.position].index != at.index:
            raise ValueError(
                f"node {at.index} is not on the current text; rewind to a node of its branch first, "
                f"or use branch(node, token)."
            )
        return at.position
    if isinstance(at, bool) or not isinstance(at, int):
        raise TypeError(
            f"position is {at!r}; give a position of the current text, a whole number, or one of its Nodes."
        )
    if not path:
        raise ValueError("there is no text yet. Read a prompt first: timeline.read('…').")
    if not 0 <= at < len(path):
        raise ValueError(f"position {at} does not exist; the current text has positions 0 … {len(path) - 1}.")
    return at
