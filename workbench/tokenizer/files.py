"""Reads the tokenizer files of a folder in Hugging Face format.

What each file holds: https://huggingface.co/docs/transformers/main_classes/tokenizer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from workbench.tokenizer.errors import TokenizerError, guarded
from workbench.tokenizer.special_tokens import NAMED_TOKENS

TOKENIZER_FILE, MODEL_FILE, VOCAB_FILE, MERGES_FILE = "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"
CONFIG_FILE, SPECIAL_FILE, TEMPLATE_FILE = "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"
ADDED_FILE = "added_tokens.json"
TEMPLATE_FOLDER = "additional_chat_templates"
ALL = ("*.json", "*.jinja", MODEL_FILE, MERGES_FILE)  # patterns of what there may be
# Entries of tokenizer_config.json that are arguments of LlamaTokenizer as they stand.
PLAIN = (
    "padding_side",
    "truncation_side",
    "clean_up_tokenization_spaces",
    "use_default_system_prompt",
    "model_max_length",
    "model_input_names",
    "split_special_tokens",
)
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
LONGEST_TEMPLATE = 1 << 22  # bytes


def read_backend(file: Path) -> Tokenizer:
    """The backend that a tokenizer.json describes.

    Raises:
        TokenizerError: if the file is malformed.
    """
    found: Tokenizer = guarded(f"{file} is not a tokenizer of the `tokenizers` package", Tokenizer.from_file, str(file))
    return found


def read_options(folder: Path) -> dict[str, Any]:
    """The keyword arguments of `LlamaTokenizer` that the files beside the vocabulary give.

    Raises:
        TokenizerError: if a file is malformed.
    """
    config = {**_json_object(folder / SPECIAL_FILE), **_json_object(folder / CONFIG_FILE)}
    options = {name: config[name] for name in PLAIN if config.get(name) is not None}
    if isinstance(options.get("model_max_length"), float):  # 1e30 stands for "no limit"
        options["model_max_length"] = _whole(options["model_max_length"])
    options.update({name: _token(name, value) for name, value in config.items() if _is_named(name, value)})
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    if isinstance(extra, dict):
        options.update({name: _token(name, value) for name, value in extra.items()})
    elif extra is not None:
        values = extra if isinstance(extra, list) else [extra]
        options["extra_special_tokens"] = [_token("extra_special_tokens", value) for value in values]
    options["chat_template"] = _templates(folder, config.get("chat_template"))
    for name in ("add_bos_token", "add_eos_token", "legacy", "add_prefix_space"):
        if config.get(name) is not None:
            options[name] = config[name]
    options["added_tokens_decoder"] = _listed_tokens(config.get("added_tokens_decoder"))
    if not options["added_tokens_decoder"]:
        special = {str(getattr(value, "content", value)) for name, value in options.items() if name.endswith("_token")}
        options["added_tokens_decoder"] = _former_list(folder, special)
    return options


def _former_list(folder: Path, special: set[str]) -> dict[int, AddedToken]:
    """Tokens of added_tokens.json (token → id), which lies beside a tokenizer.model that transformers 4 wrote."""
    listed = {} if (folder / TOKENIZER_FILE).is_file() else _json_object(folder / ADDED_FILE)
    for content, index in listed.items():
        if not content or isinstance(index, bool) or not isinstance(index, int):
            raise TokenizerError(f"{ADDED_FILE} maps {content!r:.80} to {index!r:.80}; a text and an id are needed.")
    tokens = {
        index: AddedToken(content, normalized=content not in special, special=content in special)
        for content, index in listed.items()
    }
    return dict(sorted(tokens.items()))


def _json_object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{file} is not valid JSON ({error}). Download the file again.") from error
    if not isinstance(values, dict):
        raise TokenizerError(f"{file} holds a {type(values).__name__}, but a JSON object is expected.")
    return values


def _is_named(name: str, value: Any) -> bool:
    return value is not None and (
        name in NAMED_TOKENS or (name.endswith("_token") and isinstance(value, str | dict) and bool(value))
    )


def _token(name: str, value: Any) -> str | AddedToken:
    """A token in a configuration file is its text, or an object with the text as `content`."""
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str):
        raise TokenizerError(f"{CONFIG_FILE} has {name} = {value!r:.80}; a text or an object with 'content' is needed.")
    if not isinstance(value, dict):
        return content
    flags = {flag: value[flag] for flag in _FLAGS if isinstance(value.get(flag), bool)}
    return AddedToken(content, **{"normalized": False, **flags})


def _listed_tokens(listed: Any) -> dict[int, AddedToken]:
    """Tokens that `tokenizer_config.json` names, by their ids."""
    if not isinstance(listed, dict | None):
        raise TokenizerError(f"{CONFIG_FILE} has added_tokens_decoder = {listed!r:.80}; id → token is needed.")
    found = {}
    for key, entry in (listed or {}).items():
        if not (key.isascii() and key.isdigit() and len(key) < 11):
            raise TokenizerError(f"{CONFIG_FILE} has the id {key!r:.80} in added_tokens_decoder; a number is needed.")
        token = _token("added_tokens_decoder", entry)
        found[int(key)] = token if isinstance(token, AddedToken) else AddedToken(token)
    return dict(sorted(found.items()))


def _templates(folder: Path, value: Any) -> Any:
    """The chat template, or several by name: from their own files, else from the configuration."""
    if (folder / TEMPLATE_FILE).is_file():
        value = _template_text(folder / TEMPLATE_FILE)
    elif isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, dict) and isinstance(entry.get("name"), str)]
        value = {entry["name"]: entry.get("template") for entry in entries}
    others = sorted(folder.glob(f"{TEMPLATE_FOLDER}/*.jinja"))
    if others:
        named = value if isinstance(value, dict) else {} if value is None else {"default": value}
        value = {**named, **{file.stem: _template_text(file) for file in others}}
    parts = list(value.values()) if isinstance(value, dict) else [] if value is None else [value]
    if not all(isinstance(part, str) for part in parts):
        raise TokenizerError(f"{CONFIG_FILE} has chat_template = {value!r:.80}; a text, or name → text, is needed.")
    return value


def _template_text(file: Path) -> str:
    try:
        if file.stat().st_size > LONGEST_TEMPLATE:
            raise TokenizerError(f"{file} has {file.stat().st_size} bytes; a template of at most 4 MiB is read.")
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{file} is not a readable text ({error}). Download the file again.") from error


def _whole(value: float) -> int:
    if value != value or value in (float("inf"), float("-inf")):
        raise TokenizerError(f"{CONFIG_FILE} has model_max_length = {value}; a whole number is needed.")
    return int(value)
