"""Renders a chat template: the Jinja text by which a model's makers turn a list of messages into a prompt.

A template comes with the checkpoint, so it is a stranger's program: it runs in Jinja's immutable sandbox and sees plain
data only. Options and helper functions are those of
https://huggingface.co/docs/transformers/chat_templating_writing.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox

# Names under which a message's reasoning is given; the first is what templates read today.
REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplateError(ValueError):
    """A chat template that cannot be compiled or rendered, or that refuses the messages it was given."""


def render_chat(template: str, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
    """The prompt that `template` makes of `messages`.

    Args:
        template: Jinja source.
        messages: each a mapping with at least `role` and `content`; keys whose value is `None` are left out. As in
            `transformers`, reasoning given under any name of `REASONING` is found as `reasoning_content` and, unless
            that is there already, as `thinking`.
        **variables: further names the template may use, such as `add_generation_prompt` and `bos_token`; `tools` and
            `documents` are `None` by default.

    Raises:
        ChatTemplateError: if the messages are not such a list, or with what the template or the sandbox complained of.
    """
    chat = [_message(index, message) for index, message in enumerate(_checked(messages))]
    names = {"tools": None, "documents": None, **{key: _plain(value) for key, value in variables.items()}}
    try:
        return _compiled(template).render(messages=chat, **names)
    except jinja2.TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"The chat template is not valid Jinja (line {error.lineno}): {error.message}"
        ) from error
    except jinja2.TemplateError as error:
        raise ChatTemplateError(f"The chat template refused these messages: {error}") from error
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError, OverflowError, RecursionError) as error:
        raise ChatTemplateError(
            f"The chat template failed on these messages ({type(error).__name__}: {error}). "
            "Check that each has a 'role' and a text 'content'."
        ) from error


def _checked(messages: Any) -> Sequence[Any]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ChatTemplateError(
            f"messages is {messages!r:.80}; a list is needed, [{{'role': 'user', 'content': 'Hello'}}] for one."
        )
    return messages


def _message(index: int, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ChatTemplateError(
            f"Message {index} is {message!r:.80}; each must be a dictionary with a 'role' and a 'content'."
        )
    plain = {key: _plain(value) for key, value in message.items() if value is not None}
    reasoning = next((plain[key] for key in REASONING if key in plain), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """A copy made of plain JSON types, so that a template never holds an object with methods that do things."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant wrote, for training masks; here only its content matters."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@functools.lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment.from_string(template)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters, which would change the prompt.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
