"""The tokenizer's error, and the checks of arguments that raise it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import AddedToken


class TokenizerError(ValueError):
    """Text, ids, arguments or tokenizer files that cannot be used: says what was found and what is needed."""


def flag(name: str, value: Any) -> bool:
    """`value`, if it is True or False."""
    if not isinstance(value, bool):
        raise TokenizerError(f"{name} is {value!r:.80}; allowed are True and False.")
    return value


def choice(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    """`value`, if it is among `allowed`. Compared with its type, so that 1 is not True."""
    if not any(type(value) is type(option) and value == option for option in allowed):
        raise TokenizerError(f"{name} is {value!r:.80}; allowed are {', '.join(map(str, allowed))}.")
    return value


def whole_number(name: str, value: Any, least: int, most: int | None = None) -> int:
    """`value`, if it is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise TokenizerError(f"{name} is {value!r:.80}; it must be a whole number {limits}.")
    return value


def text(name: str, value: Any) -> str:
    """`value`, if it is a text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise TokenizerError(f"{name} is {value!r:.80} ({type(value).__name__}); a text is needed.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise TokenizerError(
            f"{name} has the lone surrogate U+{ord(value[error.start]):04X} at character {error.start}, which stands "
            "for no character and has no bytes. Remove it, or use text.encode('utf-8', 'replace').decode()."
        ) from None
    return value


def token(name: str, value: Any) -> str | AddedToken:
    """`value`, if it is the text of a token, not empty, or an `AddedToken`."""
    content = value.content if isinstance(value, AddedToken) else value
    if not isinstance(content, str):
        raise TokenizerError(f"{name} is {value!r:.80}; a text or an AddedToken is needed.")
    if not text(name, content):
        raise TokenizerError(f"{name} is an empty text, which no token can be. Give its text, or None.")
    return value if isinstance(value, AddedToken) else content


def guarded(doing: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """`call(...)`, with every failure inside the Rust library told as a `TokenizerError` that begins with `doing`.

    The library raises plain `Exception`, and a bug inside it surfaces as pyo3's `PanicException`, which is a
    `BaseException` that no caller expects.
    """
    try:
        return call(*arguments, **options)
    except TokenizerError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TokenizerError(f"{doing} ({reason:.300}).") from error
