"""What a single value of a config may be. Each error names the argument, what was found and what is allowed."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

LARGEST = 2**63 - 1  # a size, a position or an id is an int64


class ConfigError(ValueError):
    """A configuration that no Llama can have: says the field, what was found, what is allowed."""


class _Short(reprlib.Repr):
    """The `repr` of a value, cut where it is long: a damaged file can hold anything."""

    def repr_int(self, x: int, level: int) -> str:
        """A whole number, also one that Python refuses to write out."""
        return repr(x) if abs(x) < 10**30 else f"a whole number of about {round(x.bit_length() * 0.30103)} digits"


_SHORT = _Short()
_SHORT.maxother = _SHORT.maxstring = 80
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 6


def shown(value: Any) -> str:
    """A value as an error shows it: its `repr`, cut where it is long."""
    return _SHORT.repr(value)


def refuse(name: str, value: Any, allowed: str) -> NoReturn:
    """Raises the error of a value that is not allowed."""
    raise ConfigError(f"{name} is {shown(value)}; {allowed}")


def is_whole(value: Any) -> bool:
    """Whether a value is an int (True and False are not)."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether a value is a number that a float can hold (True and False are not)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def check_size(name: str, value: Any, least: int = 1) -> None:
    """A whole number of at least `least`."""
    if not is_whole(value) or not least <= value <= LARGEST:
        limit = " and below 2**63" if is_whole(value) and value > LARGEST else ""
        refuse(name, value, f"it must be a whole number of at least {least}{limit}.")


def check_flag(name: str, value: Any) -> None:
    """True or False, nothing that merely counts as one of them."""
    if not isinstance(value, bool):
        refuse(name, value, "it must be true or false, not text or a number.")


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> None:
    """One of a few texts."""
    allowed = tuple(allowed)
    if not isinstance(value, str) or value not in allowed:
        refuse(name, value, f"allowed are {', '.join(allowed)}.")


def check_positive(name: str, value: Any) -> None:
    """A positive, finite number."""
    if not is_finite(value) or not value > 0:
        refuse(name, value, "it must be a positive, finite number.")


def check_token(name: str, value: Any) -> None:
    """A token id, or None."""
    if value is not None and not is_token(value):
        refuse(name, value, "it must be a whole number of at least 0, or None.")


def is_token(value: Any) -> bool:
    """Whether a value can be a token's id."""
    return is_whole(value) and 0 <= value <= LARGEST


def check_dictionary(name: str, value: Any, example: str = "") -> None:
    """A dictionary, or None."""
    if value is not None and not isinstance(value, dict):
        refuse(name, value, f"it must be None or a dictionary{example}.")
