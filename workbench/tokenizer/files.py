"""Reads the tokenizer files of a folder in Hugging Face format.

What each file holds: https://huggingface.co/docs/transformers/main_classes/tokenizer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


class TokenizerError(ValueError):
    """Text, ids or tokenizer files that cannot be used: says what was found and what is needed."""


def read_folder(path: str | Path) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer of a folder, and the keyword arguments of `LlamaTokenizer` that the files beside it give.

    Raises:
        TokenizerError: if a file is missing or malformed.
    """
    folder = Path(path)
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise TokenizerError(
            f"{folder} has no tokenizer.json. Save it with transformers: "
            f"AutoTokenizer.from_pretrained(...).save_pretrained({str(folder)!r})."
        )
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # the Rust library raises plain Exception
        raise TokenizerError(f"{file} is not a tokenizer of the `tokenizers` package ({error}).") from error
    return backend, _options(folder, backend)


def _options(folder: Path, backend: Tokenizer) -> dict[str, Any]:
    config = {**_json_object(folder / "special_tokens_map.json"), **_json_object(folder / "tokenizer_config.json")}
    _add_listed_tokens(backend, config.get("added_tokens_decoder") or {})
    options: dict[str, Any] = {name: _token_text(config.get(name)) for name in NAMED_TOKENS}
    template_file = folder / "chat_template.jinja"
    if template_file.is_file():
        options["chat_template"] = template_file.read_text(encoding="utf-8")
    else:
        options["chat_template"] = _default_template(config.get("chat_template"))
    for name in ("add_bos_token", "add_eos_token"):
        options[name] = config.get(name)
    for name in ("padding_side", "clean_up_tokenization_spaces"):
        if name in config:
            options[name] = config[name]
    return options


def _json_object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TokenizerError(f"{file} is not valid JSON ({error}). Download the file again.") from error
    if not isinstance(values, dict):
        raise TokenizerError(f"{file} holds a {type(values).__name__}, but a JSON object is expected.")
    return values


def _token_text(value: Any) -> str | None:
    """A token in a configuration file is its text, or an object with the text as `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _default_template(value: Any) -> str | None:
    """A chat template is text, or a list of named ones, of which `default` is taken."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _add_listed_tokens(backend: Tokenizer, listed: dict[str, Any]) -> None:
    """Tokens that only `tokenizer_config.json` names, in the order of their ids."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for _, entry in sorted(listed.items(), key=lambda item: int(item[0])):
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and entry["content"] not in known:
            flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
            backend.add_tokens([AddedToken(entry["content"], **{flag: entry[flag] for flag in flags if flag in entry})])
