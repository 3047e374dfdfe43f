"""Whole numbers as they are given, of Python, numpy or torch, one or several; and in words."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch


def whole(value: Any, what: str) -> int:
    """One number. Raises `TypeError` for anything else, booleans too."""
    if not isinstance(value, bool) and getattr(value, "dtype", None) != torch.bool:
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(f"{what} is {value!r}; a whole number is needed.")


def whole_numbers(values: Any, what: str) -> list[int]:
    """One number, or all of a sequence. Raises `TypeError` where one is none."""
    try:
        given = list(values)
    except TypeError:  # no sequence, or a tensor without axes
        given = [values]
    return [whole(value, what) for value in given]


def row_of(row: Any, count: int) -> int:
    """A row of a batch of `count`, negative ones from the end. Raises `ValueError` for one that does not exist."""
    number = whole(row, "row")
    if not -count <= number < count:
        raise ValueError(f"row {number} does not exist; this capture has rows 0 … {count - 1} of a batch.")
    return number % count


def at_least_one(value: Any, what: str, counted: str) -> int:
    """How many of something. Raises `ValueError` for less than 1."""
    number = whole(value, what)
    if number < 1:
        raise ValueError(f"{what} is {number}; 1 or more {counted} are needed.")
    return number


def ranges(numbers: Sequence[int]) -> str:
    """Ascending whole numbers in words: `0 … 3, 7`."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    shown = [str(a) if a == b else f"{a} … {b}" for a, b in runs]
    if len(shown) > 6:
        shown = [*shown[:3], "…", *shown[-2:]]
    return ", ".join(shown) or "none"
