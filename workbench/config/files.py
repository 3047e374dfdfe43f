"""Where a config comes from, and `config.json` as text: reading it with errors that name the file, and writing it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from workbench.config.checks import ConfigError


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ConfigError: naming the file, if it is missing, not JSON, or not an object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, a number too long to be one, too deep a nesting
        raise ConfigError(f"{path} is not valid JSON ({error}). Download the file again.") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}, but a JSON object is expected.")
    return values


def json_text(values: dict[str, Any]) -> str:
    """A dictionary as the text of a `config.json`: sorted, two spaces of indentation, a line feed at the end.

    Raises:
        ConfigError: if JSON cannot hold one of the values.
    """
    try:
        return json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"The config cannot be written as JSON: {error}. Is it in quantization_config?") from error


def locate(source: str | os.PathLike[str], **hub_options: Any) -> Path:
    """The `config.json` or GGUF file of a source: one of them, a folder with a `config.json`, or a Hub id.

    Args:
        source: what exists on this machine is never looked for elsewhere.
        hub_options: those of `workbench.checkpoints.hub.fetch`.

    Raises:
        TypeError: if `source` is no text and no path.
        CheckpointNotFoundError: (a `FileNotFoundError`) if it is not there.
    """
    # A config comes with a checkpoint, so these are reached up for when called; nothing else here knows of them.
    from workbench.checkpoints.errors import CheckpointNotFoundError
    from workbench.checkpoints.hub import fetch, looks_like_hub_id

    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"source is {source!r}; it must be a folder, a config.json, a .gguf file or a Hub id.")
    path = Path(source).expanduser()
    if not path.exists() and isinstance(source, str) and looks_like_hub_id(source):
        path = fetch(source, files=("config.json",), **hub_options)
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise CheckpointNotFoundError(
            f"There is no file {str(path)!r}. Give a folder with a config.json, its path, a .gguf file, or a Hub id "
            "such as 'HuggingFaceTB/SmolLM2-135M'."
        )
    return path


def read_values(path: Path) -> dict[str, Any]:
    """What a `config.json` says, or the metadata of a GGUF file in the same words.

    Raises:
        ConfigError, CheckpointError: naming the file, if it is damaged or describes no Llama.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            return read_json(path)
    from workbench.checkpoints.gguf import GGUFFile  # reached up for, as in locate
    from workbench.checkpoints.gguf_model import config_from_gguf

    return config_from_gguf(GGUFFile(path)).to_diff_dict()
