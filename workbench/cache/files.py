"""Caches in a file: safetensors, with a JSON manifest in its metadata.

The manifest says what kind of cache it is and with which options, how many positions it has seen, which are in its
slots, and the shape of what attention is given. Tensors are stored as the cache holds them: quantized codes as codes.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from workbench.cache.base import BaseCache
from workbench.cache.checks import check_device
from workbench.cache.kinds import KINDS
from workbench.config import LlamaConfig

FORMAT = "workbench-cache"
VERSION = 1


def save_cache(cache: BaseCache, path: str | os.PathLike[str]) -> None:
    """See `BaseCache.save`; a file that is there is replaced when all is written."""
    if not cache.length:
        raise ValueError("this cache is empty: nothing was read into it. Run a forward with it before saving.")
    numbers, tensors = cache.state()
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "workbench": importlib.metadata.version("llama-workbench"),
        "kind": cache.name,
        "options": {name: _as_data(value) for name, value in cache.options().items()},
        "length": cache.length,
        "positions": cache.positions(0).tolist(),
        "shape": list(cache.keys(0).shape),
        "numbers": numbers,
    }
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"there is no folder {path.parent} to write {path.name} to. Make it first, or give another path."
        )
    partial = path.with_name(path.name + ".partial")
    try:
        whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(whole, partial, metadata={"manifest": json.dumps(manifest)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_cache(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Any:
    """The cache that `save` wrote: the same kind, options and contents.

    Args:
        path: the file.
        device: where its tensors go.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: naming the file, if it holds no cache, one of a later version, or is damaged; and for a
            device that is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    check_device(device)
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            manifest = json.loads((file.metadata() or {}).get("manifest", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is no safetensors file with a manifest ({error}).") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path} holds no KV cache; give a file that cache.save(path) wrote.")
    version, kind = manifest.get("version"), manifest.get("kind")
    if not isinstance(kind, str) or not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"{path} is damaged: it says version {version!r} and kind {kind!r}. Save the cache again.")
    if version > VERSION or kind not in KINDS:
        raise ValueError(
            f"{path} was written by workbench {manifest.get('workbench', 'of an unknown version')}, as version "
            f"{version} and kind {kind!r}; this one reads version {VERSION} of {', '.join(KINDS)}. Update workbench."
        )
    try:
        return _described(manifest, tensors)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(f"{path} is damaged: {reason}. Save the cache again.") from error


def _described(manifest: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    """The cache that a manifest describes, with these tensors."""
    options = {name: _from_data(name, value) for name, value in manifest["options"].items()}
    cache = KINDS[manifest["kind"]](**options)
    cache.set_state(manifest["numbers"], tensors)
    found = (cache.length, cache.positions(0).tolist(), [*cache.keys(0).shape])
    if found != (manifest["length"], manifest["positions"], manifest["shape"]):
        raise ValueError("its tensors are not those that the manifest describes")
    return cache


def _as_data(value: Any) -> Any:
    if isinstance(value, LlamaConfig):
        return value.to_dict()
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype | torch.device) else value


def _from_data(name: str, value: Any) -> Any:
    return LlamaConfig.from_dict(value) if name == "config" else value
