"""Writes a tokenizer to a folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken

from workbench.tokenizer.errors import TokenizerError, guarded
from workbench.tokenizer.files import (
    CONFIG_FILE,
    MODEL_FILE,
    PLAIN,
    SPECIAL_FILE,
    TEMPLATE_FILE,
    TEMPLATE_FOLDER,
    TOKENIZER_FILE,
)

if TYPE_CHECKING:
    from workbench.tokenizer.llama import LlamaTokenizer


def save_pretrained(tokenizer: LlamaTokenizer, folder: Path) -> tuple[str, ...]:
    """See `LlamaTokenizer.save_pretrained`."""
    templates = _templates(tokenizer.chat_template)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / CONFIG_FILE, folder / SPECIAL_FILE, folder / TOKENIZER_FILE]
        _write_json(folder / CONFIG_FILE, _config(tokenizer))
        _write_json(folder / SPECIAL_FILE, _special_map(tokenizer))
        guarded(f"{folder} cannot be written", tokenizer.backend_tokenizer.save, str(folder / TOKENIZER_FILE))
        for stale in (folder / TEMPLATE_FILE, *folder.glob(f"{TEMPLATE_FOLDER}/*.jinja")):
            stale.unlink(missing_ok=True)  # one that was there before would be read as this one's
        for name, template in templates.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(template, encoding="utf-8")
            written.append(folder / name)
        if tokenizer.vocab_file is not None and tokenizer.vocab_file.endswith(".model"):
            written += _copy_model(Path(tokenizer.vocab_file), folder / MODEL_FILE)
    except OSError as error:
        raise TokenizerError(f"save_directory is {str(folder)!r}, which cannot be written ({error}).") from error
    return tuple(str(path) for path in written)


def save_vocabulary(tokenizer: LlamaTokenizer, folder: Path, prefix: str | None) -> tuple[str, ...]:
    """See `LlamaTokenizer.save_vocabulary`."""
    if not folder.is_dir():
        raise TokenizerError(f"save_directory is {str(folder)!r}; there is no such folder. Make it first.")
    if prefix is not None and (not isinstance(prefix, str) or "/" in prefix):
        raise TokenizerError(f"filename_prefix is {prefix!r:.80}; a text without '/' is needed.")
    if tokenizer.vocab_file is not None and tokenizer.vocab_file.endswith(".model"):
        copied = _copy_model(Path(tokenizer.vocab_file), folder / (f"{prefix}-{MODEL_FILE}" if prefix else MODEL_FILE))
        if copied:
            return tuple(str(path) for path in copied)
    save = tokenizer.backend_tokenizer.model.save
    return tuple(guarded(f"{folder} cannot be written", save, str(folder), prefix))


def _config(tokenizer: LlamaTokenizer) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(tokenizer, name) for name in PLAIN}
    values.update({name: _token(tokenizer._named[name]) for name in tokenizer.special_tokens_map})
    if tokenizer.extra_special_tokens:
        values["extra_special_tokens"] = [_token(value) for value in tokenizer._extra]
    values.update(add_bos_token=tokenizer.add_bos_token, add_eos_token=tokenizer.add_eos_token)
    values.update(legacy=tokenizer.legacy, add_prefix_space=tokenizer.add_prefix_space, backend="tokenizers")
    # Not LlamaTokenizer: `transformers` 5 makes that class of vocabulary and merges alone, with its own rules instead
    # of those in tokenizer.json.
    values["tokenizer_class"] = "PreTrainedTokenizerFast"
    return values


def _special_map(tokenizer: LlamaTokenizer) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in tokenizer.special_tokens_map:
        value = _token(tokenizer._named[name])
        values[name] = (
            {key: item for key, item in value.items() if key != "__type"} if isinstance(value, dict) else value
        )
    return values


def _token(value: str | AddedToken) -> Any:
    return {"__type": "AddedToken", **value.__getstate__()} if isinstance(value, AddedToken) else value


def _templates(template: str | dict[str, str] | None) -> dict[str, str]:
    """File → text."""
    if not isinstance(template, dict):
        return {} if template is None else {TEMPLATE_FILE: template}
    for name in template:
        if not name or Path(name).name != name or name in (".", ".."):
            raise TokenizerError(f"chat_template has the name {name!r:.80}, which cannot be a file's name.")
    files = {name: f"{TEMPLATE_FOLDER}/{name}.jinja" for name in template}
    return {TEMPLATE_FILE if name == "default" else file: template[name] for name, file in files.items()}


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _copy_model(source: Path, target: Path) -> list[Path]:
    if not source.is_file():  # it was deleted since; tokenizer.json says as much
        return []
    if not (target.exists() and target.samefile(source)):
        shutil.copyfile(source, target)
    return [target]
