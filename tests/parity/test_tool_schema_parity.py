"""The JSON schema of a tool is that of transformers."""

import enum
from typing import Any, Literal, Optional, Union

import pytest
from transformers.utils import get_json_schema

from workbench.tokenizer.tool_schema import ChatTemplateError, tool_schema


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Own:
    pass


def simple(a: int, b: str = "x", c: float = 1.0, d: bool = False):
    """
    Does a thing: well.

    Over two paragraphs.

    Args:
        a: The first: with a colon
        b: The second,
            on two lines.

            And a third.
        c: Third
        d: Fourth
    """


def nested(
    a: list[int], b: dict[str, list[str]], c: tuple[int, str], d: list, e: dict, f: Any, g: tuple
) -> dict[str, int]:
    """Nests.

    Args:
        a: A
        b: B
        c: C
        d: D
        e: E
        f: F
        g: G

    Returns:
        What it
        found.
    """


def unions(
    a: Optional[int],  # noqa: UP045
    b: Union[int, str],  # noqa: UP007
    c: int | list[str] | None,
    d: Literal["x", "y"],
    e: Literal[1, "y", None],
    f: Colour,
    g: list | tuple,
) -> None:
    """Chooses.

    Args:
        a: A
        b: B (choices: [1, " two "])
        c: C
        d: D
        e: E
        f: F
        g: G
    """


def nothing() -> Own:
    """Has no arguments.

    Returns:
        Something of its own.

    Raises:
        ValueError: never.
    """


class Holder:
    def method(self, a: int) -> str:
        """Is a method.

        Args:
            a: A
        """


@pytest.mark.parametrize("tool", [simple, nested, unions, nothing, Holder().method], ids=lambda tool: tool.__name__)
def test_schema(tool):
    assert tool_schema(tool) == get_json_schema(tool)


def no_docstring(a: int): ...


def no_hint(a):
    """Says.

    Args:
        a: A
    """


def no_description(a: int):
    """Says."""


def own_type(a: Own):
    """Says.

    Args:
        a: A
    """


def open_tuple(a: tuple[int, ...]):
    """Says.

    Args:
        a: A
    """


def bad_choices(a: str):
    """Says.

    Args:
        a: A (choices: [x])
    """


def odd_literal(a: Literal[b"x"]):
    """Says.

    Args:
        a: A
    """


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        (no_docstring, "The tool no_docstring has no docstring"),
        (no_hint, "The tool no_hint has no type hint for its argument 'a'"),
        (no_description, "The docstring of the tool no_description does not describe its argument 'a'"),
        (own_type, "The tool own_type has the type hint .*Own.*, for which there is no JSON schema"),
        (open_tuple, "The tool open_tuple has the type hint .*; name the type of each entry, or use list"),
        (bad_choices, "are no JSON list"),
        (odd_literal, "The tool odd_literal has a choice of"),
        (3, "tools holds 3; each must be a function or a JSON schema"),
    ],
    ids=str,
)
def test_functions_that_make_no_tool(tool, message):
    with pytest.raises(ChatTemplateError, match=message):
        tool_schema(tool)
    with pytest.raises(Exception):  # noqa: B017  theirs refuses them too, in several ways
        get_json_schema(tool)
