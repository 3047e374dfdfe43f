"""Reads and checks the header of a safetensors file.

Format: https://github.com/huggingface/safetensors#format. An 8-byte length, a JSON object name → type, shape and byte
range, then the bytes, without gaps. The `safetensors` package checks the same; here the messages say what to do.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch

from workbench.checkpoints.errors import CheckpointError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
MAX_HEADER = 100_000_000  # bytes; the limit of the format


class StoredTensor(NamedTuple):
    """Type and shape of a tensor in a safetensors file, and its size in bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file, in the order of their bytes; no weight is read.

    Raises:
        CheckpointError: if the file is truncated or malformed, or a tensor's type is not in `DTYPES`.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise CheckpointError(
                f"{path} is truncated or no safetensors file: its header should have {length} bytes, but the file has "
                f"{size}. Download it again."
            )
        text = file.read(length)
    entries = _parse(path, text)
    entries.pop("__metadata__", None)
    spans = sorted((_span(path, name, entry), name) for name, entry in entries.items())
    position = 0
    for (begin, end), name in spans:
        if begin != position:
            _malformed(path, f"{name} starts at byte {begin} of the data, but the one before it ends at {position}")
        position = end
    if 8 + length + position != size:
        raise CheckpointError(
            f"{path} is truncated or malformed: its tensors end at byte {8 + length + position}, but the file has "
            f"{size}. Download it again."
        )
    return {name: _stored(path, name, entries[name], end - begin) for (begin, end), name in spans}


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} appears twice")
        return dict(pairs)

    try:
        entries = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        _malformed(path, f"its header cannot be read ({error})")
    if not isinstance(entries, dict):
        _malformed(path, f"its header is a {type(entries).__name__}, not an object")
    return entries


def _span(path: Path, name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(value) is int for value in offsets):
        _malformed(path, f"{name} has no byte range")
    begin, end = offsets
    if not 0 <= begin <= end:
        _malformed(path, f"{name} has the byte range {begin} to {end}")
    return begin, end


def _stored(path: Path, name: str, entry: dict[str, Any], nbytes: int) -> StoredTensor:
    kind, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(kind, str) or kind not in DTYPES:
        raise CheckpointError(
            f"{path}: {name} is stored as {kind}; supported are {', '.join(DTYPES)}. Save the model in one of them, "
            "for example with transformers: from_pretrained(..., dtype='bfloat16').save_pretrained(...)."
        )
    if not isinstance(shape, list) or not all(type(value) is int and value >= 0 for value in shape):
        _malformed(path, f"{name} has the shape {shape!r}")
    if math.prod(shape) * DTYPES[kind].itemsize != nbytes:
        _malformed(path, f"{name} of type {kind} and shape {shape} cannot have {nbytes} bytes")
    return StoredTensor(DTYPES[kind], tuple(shape), nbytes)


def _malformed(path: Path, what: str) -> NoReturn:
    raise CheckpointError(f"{path} is malformed: {what}. Download it again.")
