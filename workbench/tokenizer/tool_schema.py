"""Describes a Python function to a model: the JSON schema of its name, purpose and arguments.

The form is that of https://huggingface.co/docs/transformers/chat_extras#schema; types come from the annotations, texts
from a docstring with Google's sections.
"""

from __future__ import annotations

import contextlib
import enum
import inspect
import json
import re
import types
import typing
from collections.abc import Callable
from typing import Any

_TYPES: dict[Any, dict[str, Any]] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    bool: {"type": "boolean"},
    list: {"type": "array"},
    tuple: {"type": "array"},
    dict: {"type": "object"},
    type(None): {"type": "null"},
    Any: {},
}
_SCALARS = {"integer", "number", "string", "boolean", "null"}
_CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)
_ENTRY = re.compile(r"^( *)(\w+)(?: *\([^)]*\))?: *(.*)$")


class ChatTemplateError(ValueError):
    """A chat template that cannot be compiled or rendered, or that refuses the messages or tools it was given."""


def tool_schema(function: Callable[..., Any]) -> dict[str, Any]:
    """The JSON schema of a function.

    Args:
        function: with annotated arguments, and a docstring that says what it does and, under `Args:`, what each
            argument is, possibly with `(choices: ["a", "b"])` at the end.

    Raises:
        ChatTemplateError: naming what the function lacks.
    """
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        raise ChatTemplateError(f"tools holds {function!r:.80}; each must be a function or a JSON schema.")
    name = function.__name__
    document = inspect.getdoc(function)
    if not document:
        raise ChatTemplateError(f"The tool {name} has no docstring; it is what tells the model what the tool does.")
    purpose, arguments, returns = _sections(document)
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError) as error:
        raise ChatTemplateError(f"The tool {name} has a type hint that cannot be read ({error}).") from error
    properties, required = {}, []
    for argument, parameter in inspect.signature(function).parameters.items():
        if argument not in hints:
            raise ChatTemplateError(f"The tool {name} has no type hint for its argument {argument!r}.")
        if argument not in arguments:
            raise ChatTemplateError(f"The docstring of the tool {name} does not describe its argument {argument!r}.")
        properties[argument] = _described(_schema(name, hints[argument]), arguments[argument])
        if parameter.default is parameter.empty:
            required.append(argument)
    parameters: dict[str, Any] = {"type": "object", "properties": properties}
    if required:
        parameters["required"] = required
    result: dict[str, Any] = {"name": name, "description": purpose, "parameters": parameters}
    if "return" in hints:
        # Not one of the model's concerns: a type without a schema is left out, as in `transformers`.
        with contextlib.suppress(ChatTemplateError):
            result["return"] = {**_schema(name, hints["return"]), **({"description": returns} if returns else {})}
    return {"type": "function", "function": result}


def _described(schema: dict[str, Any], text: str) -> dict[str, Any]:
    found = _CHOICES.search(text)
    if found is None:
        return {**schema, "description": text}
    try:
        choices = [choice.strip() if isinstance(choice, str) else choice for choice in json.loads(found[1])]
    except (ValueError, TypeError) as error:
        raise ChatTemplateError(f"The choices {found[1]!r:.80} of a tool are no JSON list ({error}).") from error
    return {**schema, "enum": choices, "description": text[: found.start()].strip()}


def _sections(document: str) -> tuple[str, dict[str, str], str | None]:
    """What a docstring says: the purpose, each argument, the result."""
    parts = re.split(r"^(Args|Returns|Raises):[ ]*$", document.strip(), flags=re.MULTILINE)
    named = dict(zip(parts[1::2], parts[2::2], strict=True))
    arguments: dict[str, str] = {}
    current, indent = None, None
    for line in named.get("Args", "").splitlines():
        found = _ENTRY.match(line)
        if found and (indent is None or len(found[1]) == indent):
            current, indent = found[2], len(found[1])
            arguments[current] = found[3].strip()
        elif current is not None and line.strip():
            arguments[current] = f"{arguments[current]} {line.strip()}"
    returns = named.get("Returns")
    return parts[0].strip(), arguments, None if returns is None else returns.strip()


def _schema(name: str, hint: Any) -> dict[str, Any]:
    """The schema of one type."""
    if isinstance(hint, typing.Hashable) and hint in _TYPES:
        return dict(_TYPES[hint])
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _union(name, inner)
    if origin is typing.Literal:
        return _values(name, list(inner))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _values(name, [member.value for member in hint])
    if origin is list:
        return {"type": "array", **({"items": _schema(name, inner[0])} if inner else {})}
    if origin is tuple and inner and Ellipsis not in inner:
        return {"type": "array", "prefixItems": [_schema(name, part) for part in inner]}
    if origin is tuple:
        raise ChatTemplateError(
            f"The tool {name} has the type hint {hint!r:.80}; name the type of each entry, or use list."
        )
    if origin is dict:
        return {"type": "object", **({"additionalProperties": _schema(name, inner[1])} if len(inner) == 2 else {})}
    raise ChatTemplateError(f"The tool {name} has the type hint {hint!r:.80}, for which there is no JSON schema.")


def _values(name: str, values: list[Any]) -> dict[str, Any]:
    kinds = [_TYPES.get(type(value), {}).get("type") for value in values]
    if not kinds or not set(kinds) <= _SCALARS:
        raise ChatTemplateError(
            f"The tool {name} has a choice of {values!r:.80}; texts, numbers, bools or None are needed."
        )
    unique = list(dict.fromkeys(kinds))
    return {"type": unique[0] if len(unique) == 1 else unique, "enum": values}


def _union(name: str, inner: tuple[Any, ...]) -> dict[str, Any]:
    parts = [_schema(name, part) for part in inner if part is not type(None)]
    if len(parts) == 1:
        found = parts[0]
    elif all(list(part) == ["type"] and isinstance(part["type"], str) for part in parts):
        kinds = sorted({part["type"] for part in parts})
        found = {"type": kinds[0] if len(kinds) == 1 else kinds}
    else:
        found = {"anyOf": parts}
    return {**found, **_nullable(type(None) in inner)}


def _nullable(there: bool) -> dict[str, Any]:
    return {"nullable": True} if there else {}
