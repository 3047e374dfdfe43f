"""Chats become the prompts, ids and masks that transformers makes of them."""

# ruff: noqa: F401, F811  pair is a fixture

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from typing import Literal

import pytest
import transformers

from tests.parity.tokenizer_pairs import pair, plain
from workbench.tokenizer import LlamaTokenizer

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<s>{% generation %}{{ m.content }}</s>{% endgeneration %}\n"
    "{% else %}<s>{{ m.role }}: {{ m.content | trim }}</s>\n{% endif %}{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if documents %}{{ documents[0]['text'] }}{% endif %}"
    "{% if add_generation_prompt %}<s>{% endif %}{{ extra }}"
)
CHATS = [
    [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "two"}],
    [
        {"role": "user", "content": "a "},
        {"role": "assistant", "content": "one "},
        {"role": "assistant", "content": "x"},
    ],
]


def weather(place: str, days: int = 1, unit: Literal["C", "F"] | None = None, tags: list[str] | None = None) -> float:
    """
    Looks up the weather.
    In one place.

    Args:
        place: Where to look,
            in words.
        days: How many (choices: [1, 2])
        unit: Of the temperature.
        tags: More.

    Returns:
        The temperature.
    """


def lookup(key: int | str, table: dict[str, int], where: tuple[int, str]) -> None:
    """Finds an entry.

    Args:
        key: What to find.
        table: In what.
        where: A place.
    """


CHAT_OPTIONS = [
    {},
    {"add_generation_prompt": True},
    {"tokenize": False},
    {"return_dict": False},
    {"return_tensors": "pt", "padding": True},
    {"truncation": True, "max_length": 8},
    {"return_assistant_tokens_mask": True},
    {"return_assistant_tokens_mask": True, "truncation": True, "max_length": 12},
    {"return_assistant_tokens_mask": True, "return_tensors": "pt", "padding": True},
    {"continue_final_message": True, "tokenize": False},
    {"continue_final_message": "content", "return_dict": False},
    {"tools": [weather, lookup], "tokenize": False},
    {"tools": [{"type": "function", "function": {"name": "f"}}], "tokenize": False},
    {"documents": [{"title": "t", "text": "d"}], "tokenize": False},
    {"tokenizer_kwargs": {"return_offsets_mapping": True}},
    {"extra": "more", "tokenize": False},
]


@pytest.mark.parametrize("options", CHAT_OPTIONS, ids=str)
def test_chat(pair, options):
    ours, theirs = pair
    for chat in (CHATS[0], CHATS[1], CHATS, CHATS[1][:1]):
        expected = theirs.apply_chat_template(chat, chat_template=TEMPLATE, **options)
        actual = ours.apply_chat_template(chat, chat_template=TEMPLATE, **options)
        if isinstance(expected, str | list):
            assert actual == expected
        else:
            assert plain(actual) == plain(expected)


def test_assistant_masks_hold_what_was_said(pair):
    ours, _ = pair
    template = TEMPLATE.replace("<s>", "{{ bos_token }}").replace("</s>", "{{ eos_token }}")
    options = {"return_assistant_tokens_mask": True, "return_tensors": "pt", "padding": True}
    result = ours.apply_chat_template(CHATS, chat_template=template, **options)
    for ids, mask, chat in zip(result.input_ids, result.assistant_masks, CHATS, strict=True):
        said = "".join(m["content"] + ours.eos_token for m in chat if m["role"] == "assistant")
        assert ours.decode(ids[mask.bool()]).replace(" ", "") == said.replace(" ", "")


def test_named_templates(pair, tmp_path):
    ours, theirs = pair
    named = {"default": "d {{ messages[0].content }}", "tool_use": "t {{ tools | length }}", "other": "o"}
    for tokenizer in pair:
        tokenizer.chat_template = dict(named)
    for options in [{}, {"tools": [weather]}, {"chat_template": "other"}, {"chat_template": "mine"}]:
        expected = theirs.apply_chat_template(CHATS[0], tokenize=False, **options)
        assert ours.apply_chat_template(CHATS[0], tokenize=False, **options) == expected
    ours.save_pretrained(tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).chat_template == named
    assert LlamaTokenizer.from_pretrained(tmp_path).chat_template == named
    theirs.save_pretrained(tmp_path / "theirs")
    assert LlamaTokenizer.from_pretrained(tmp_path / "theirs").chat_template == named
    for tokenizer in pair:
        tokenizer.chat_template = None
    ours.save_pretrained(tmp_path)
    assert LlamaTokenizer.from_pretrained(tmp_path).chat_template is None
