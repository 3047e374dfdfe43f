"""Reads and checks the header of a safetensors file, and maps its tensors.

Format: https://github.com/huggingface/safetensors#format. An 8-byte length, a JSON object name → type, shape and byte
range, then the bytes, without gaps. The `safetensors` package checks the same; here the messages say what to do.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from workbench.checkpoints.errors import CheckpointError

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CODES = {"U8": torch.uint8, "I8": torch.int8}  # of quantized weights
MAX_HEADER = 100_000_000  # bytes; the limit of the format


class StoredTensor(NamedTuple):
    """Type and shape of a tensor in a safetensors file, its size in bytes, and where in the file it starts."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int
    offset: int


def read_header(path: Path, quantized: bool = False) -> dict[str, StoredTensor]:
    """The tensors of a file, in the order of their bytes; no weight is read.

    Args:
        path: the file.
        quantized: whether the types of `CODES` are allowed too.

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
    kinds = DTYPES | CODES if quantized else DTYPES
    start = 8 + length
    return {name: _stored(path, name, entries[name], end - begin, start + begin, kinds) for (begin, end), name in spans}


def map_tensors(path: Path, header: dict[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file: views of one private mapping of it, so that neighbours in the file are so in memory.

    Writing to one does not reach the file. A tensor that does not start at a multiple of its type's size is a copy.
    """
    size = path.stat().st_size
    storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=size)
    for name, info in header.items():
        if info.offset + info.nbytes > size:  # the file has become shorter since its header was read
            raise CheckpointError(f"{path} has changed while it was read. Load it again when it is complete.")
        start, rest = divmod(info.offset, info.dtype.itemsize)
        if rest == 0:
            yield name, torch.empty(0, dtype=info.dtype).set_(storage, start, info.shape)  # type: ignore[call-overload]
        else:
            raw = torch.empty(0, dtype=torch.uint8).set_(storage, info.offset, (info.nbytes,))  # type: ignore[call-overload]
            yield name, raw.clone().view(info.dtype).view(info.shape)


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


def _stored(
    path: Path, name: str, entry: dict[str, Any], nbytes: int, offset: int, kinds: dict[str, torch.dtype]
) -> StoredTensor:
    kind, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(kind, str) or kind not in kinds:
        raise CheckpointError(
            f"{path}: {name} is stored as {kind}; supported are {', '.join(DTYPES)}. Save the model in one of them, "
            "for example with transformers: from_pretrained(..., dtype='bfloat16').save_pretrained(...)."
        )
    if not isinstance(shape, list) or not all(type(value) is int and value >= 0 for value in shape):
        _malformed(path, f"{name} has the shape {shape!r}")
    if math.prod(shape) * kinds[kind].itemsize != nbytes:
        _malformed(path, f"{name} of type {kind} and shape {shape} cannot have {nbytes} bytes")
    return StoredTensor(kinds[kind], tuple(shape), nbytes, offset)


def _malformed(path: Path, what: str) -> NoReturn:
    raise CheckpointError(f"{path} is malformed: {what}. Download it again.")
