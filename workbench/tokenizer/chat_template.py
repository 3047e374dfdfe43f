"""Renders a chat template: the Jinja text by which a model's makers turn a list of messages into a prompt.

A template comes with the checkpoint, so it is a stranger's program: it runs in Jinja's immutable sandbox and sees plain
data only. Options and helper functions are those of
https://huggingface.co/docs/transformers/chat_templating_writing.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.sandbox

from workbench.tokenizer.tool_schema import ChatTemplateError, tool_schema

# Names under which a message's reasoning is given; the first is what templates read today.
REASONING = ("reasoning_content", "thinking", "reasoning")
# Texts that stand for a place while a prompt is made; private-use characters, so that no message holds them.
_BEGINS, _ENDS, _END_MARK = "\ue0f0<generation\ue0f0", "\ue0f0generation>\ue0f0", "\ue0f0<end of message\ue0f0 "


class RenderedChat(NamedTuple):
    """A prompt, and the characters (start, end) of it that stand in `{% generation %}` blocks."""

    text: str
    spans: list[tuple[int, int]]


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    continue_final_message: bool | str = False,
    find_generated: bool = False,
    **variables: Any,
) -> RenderedChat:
    """The prompt that `template` makes of `messages`.

    Args:
        template: Jinja source.
        messages: each a mapping with at least `role` and `content`; keys whose value is `None` are left out. As in
            `transformers`, reasoning given under any name of `REASONING` is found as `reasoning_content` and, unless
            that is there already, as `thinking`.
        continue_final_message: end the prompt inside the last message: at the end of its `content`, or of the field of
            this name.
        find_generated: find the spans of `{% generation %}` blocks.
        **variables: further names the template may use, such as `add_generation_prompt` and `bos_token`; `tools` (JSON
            schemas, or functions) and `documents` are `None` by default.

    Raises:
        ChatTemplateError: if the messages are not such a list, or with what the template or the sandbox complained of.
    """
    chat = [_message(index, message) for index, message in enumerate(_checked(messages))]
    names = {"tools": None, "documents": None, **variables}
    names["tools"] = _tools(names["tools"])
    _check_documents(names["documents"])
    names = {key: _plain(value) for key, value in names.items()}
    if not continue_final_message:
        marks = {"generation_begins": _BEGINS, "generation_ends": _ENDS} if find_generated else {}
        text = _render(template, chat, {**names, **marks})
        return RenderedChat(*_spans(text)) if find_generated else RenderedChat(text, [])
    field = continue_final_message if isinstance(continue_final_message, str) else "content"
    last = _mark_end(template, chat, field)
    return RenderedChat(_cut(_render(template, chat, names), last), [])


def _render(template: str, chat: list[dict[str, Any]], names: dict[str, Any]) -> str:
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


def _tools(tools: Any) -> Any:
    if tools is None:
        return None
    if not isinstance(tools, list | tuple):
        raise ChatTemplateError(f"tools is {tools!r:.80}; a list of functions or of JSON schemas is needed.")
    return [tool if isinstance(tool, Mapping) else tool_schema(tool) for tool in tools]


def _check_documents(documents: Any) -> None:
    if documents is None:
        return
    if not isinstance(documents, list | tuple) or not all(isinstance(entry, Mapping) for entry in documents):
        raise ChatTemplateError(
            f"documents is {documents!r:.80}; a list of dictionaries with 'title' and 'text' is needed."
        )


def _mark_end(template: str, chat: list[dict[str, Any]], field: str) -> str:
    """Puts a mark at the end of the last message's text, in `chat`; gives the text."""
    last = chat[-1]
    if last.get(field) is None:
        raise ChatTemplateError(f"continue_final_message asks to go on with {field!r}, which the last message lacks.")
    fields = [name for name in REASONING if last.get(name) == last[field]] if field in REASONING else [field]
    if not any(name in template for name in fields):
        raise ChatTemplateError(f"continue_final_message asks for {field!r}, which the chat template does not use.")
    value = last[field]
    if isinstance(value, str):
        last.update(dict.fromkeys(fields, value + _END_MARK))
        return value
    blocks = value if isinstance(value, list) else []
    for block in reversed(blocks):
        if isinstance(block, dict) and isinstance(block.get("text"), str):
            text: str = block["text"]
            block["text"] = text + _END_MARK
            return text
    raise ChatTemplateError(f"continue_final_message found no text in {field!r} of the last message.")


def _cut(text: str, last: str) -> str:
    place = text.rfind(_END_MARK.strip())
    if place < 0 or last.strip() not in text:
        raise ChatTemplateError(
            "continue_final_message: the chat template leaves the last message out, or changes it. Add the text to the "
            "prompt yourself."
        )
    # A template that strips the message has stripped the mark's space, and wants the message's own gone too.
    kept = text[place : place + len(_END_MARK)] == _END_MARK
    return text[:place] if kept else text[:place].rstrip()


def _spans(text: str) -> tuple[str, list[tuple[int, int]]]:
    """The text without the marks of generation, and what was between them."""
    parts = re.split(f"({_BEGINS}|{_ENDS})", text)
    plain, spans, begun = "", [], None
    for part in parts:
        if part == _BEGINS:
            begun = len(plain)
        elif part == _ENDS:
            if begun is not None and len(plain) > begun:
                spans.append((begun, len(plain)))
            begun = None
        else:
            plain += part
    return plain, spans


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
    """`{% generation %}` marks what the assistant wrote: by two texts around it, which are empty unless asked for."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        begins, ends = (
            jinja2.nodes.Output([jinja2.nodes.Name(name, "load")], lineno=line)
            for name in ("generation_begins", "generation_ends")
        )
        return [begins, *parser.parse_statements(("name:endgeneration",), drop_needle=True), ends]


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
