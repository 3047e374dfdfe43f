"""Reads the header of a GGUF file: metadata and where each tensor lies.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count, length and offset is compared with what
the file still holds before anything of that size is made, because a header is data from a stranger. Written here
because `gguf.GGUFReader` trusts the sizes and takes seconds for a vocabulary of 50,000 tokens.
"""

from __future__ import annotations

import math
import mmap
import struct
import sys
from array import array
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from workbench.checkpoints.errors import CheckpointError, CheckpointNotFoundError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMS = 4
MAX_DEPTH = 4  # arrays of arrays: no known file has them, and a header may not exhaust the stack
SUPPORTED_TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")

_SCALARS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}
# The fewest bytes that one entry can take, so that a count can be checked before a loop over it starts.
_MIN_PAIR = 8 + 4 + 1
_MIN_TENSOR = 8 + 4 + 8 + 4 + 8
_MIN_STRING = 8
_MIN_ARRAY = 4 + 8


class TensorInfo(NamedTuple):
    """Where a tensor lies and how it is stored.

    `shape` is in torch's order (rows first; the file stores it the other way round), `type` the ggml type's name,
    `offset` is counted in bytes from the start of the file, `nbytes` is the stored size.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


class GGUFFile:
    """An opened GGUF file: `path`, `version`, `metadata` (key → Python value) and `tensors` (name → `TensorInfo`).

    In `metadata`, an array of numbers is an `array.array` (truth values are 0 and 1), one of texts a list.

    Args:
        path: a little-endian GGUF file of version 2 or 3.

    Raises:
        CheckpointError: if the file is truncated, malformed, of another version, or holds a tensor of a type that is
            not in `SUPPORTED_TYPES`.
        CheckpointNotFoundError: if there is no such file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                if size < len(MAGIC) + 20:
                    raise CheckpointError(
                        f"{self.path} has {size} bytes, too few for the header of a GGUF file (24). Download it again."
                    )
                # A private mapping: torch may use unquantised tensors in place, writing to them never reaches the file.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except FileNotFoundError as error:
            raise CheckpointNotFoundError(f"There is no file {self.path}.") from error
        except IsADirectoryError as error:
            raise CheckpointError(f"{self.path} is a folder, not a GGUF file.") from error
        reader = _Reader(self._map, self.path)
        self.version, tensor_count, pair_count = reader.preamble()
        self.metadata = reader.metadata(pair_count)
        self.tensors = reader.tensors(tensor_count, self._alignment())

    def blocks(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The stored bytes of one tensor: uint8, shape `(nbytes,)`, a view into the mapped file (copied on write)."""
        info = self.tensors[name]
        return np.frombuffer(self._map, dtype=np.uint8, count=info.nbytes, offset=info.offset)

    def _alignment(self) -> int:
        value = self.metadata.get("general.alignment", 32)
        if not isinstance(value, int) or not 8 <= value <= 1 << 20 or value % 8:
            raise CheckpointError(
                f"{self.path}: general.alignment is {value!r}; it must be a multiple of 8. Download the file again."
            )
        return value


class _Reader:
    """A position in the file, moved forward by each read; nothing is read past the end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.size, self.position = data, path, len(data), 0

    def preamble(self) -> tuple[int, int, int]:
        """Version, number of tensors, number of metadata pairs."""
        if self.data[:4] != MAGIC:
            raise CheckpointError(
                f"{self.path} starts with {self.data[:4]!r}, but a GGUF file starts with {MAGIC!r}. "
                "Give a .gguf file or a folder in Hugging Face format."
            )
        version, tensors, pairs = struct.unpack_from("<IQQ", self.data, 4)
        if version not in VERSIONS:
            swapped = int.from_bytes(self.data[4:8], "big") in VERSIONS
            found = "big-endian" if swapped else f"version {version}"
            raise CheckpointError(
                f"{self.path} is a {found} GGUF file; little-endian files of version 2 and 3 can be read. "
                "Convert it again with a current convert_hf_to_gguf.py of llama.cpp."
            )
        self.position = 24
        self._need(tensors * _MIN_TENSOR, f"a table of {tensors} tensors")
        self._need(pairs * _MIN_PAIR, f"{pairs} metadata entries")
        return version, tensors, pairs

    def metadata(self, count: int) -> dict[str, Any]:
        """The metadata pairs."""
        result: dict[str, Any] = {}
        for _ in range(count):
            key = self._string("a metadata key")
            if key in result:
                self._malformed(f"the metadata key {key!r} appears twice")
            result[key] = self._value(self._scalar("I", f"the type of {key}"), key, 0)
        return result

    def tensors(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        """The tensor table, with offsets made absolute and checked against the file's end."""
        entries = [self._tensor_entry() for _ in range(count)]
        start = -(-self.position // alignment) * alignment
        result: dict[str, TensorInfo] = {}
        for entry in entries:
            if entry.name in result:
                self._malformed(f"the tensor {entry.name!r} appears twice")
            if entry.offset % alignment:
                self._malformed(f"{entry.name} starts at {entry.offset}, not a multiple of the alignment {alignment}")
            info = entry._replace(offset=start + entry.offset)
            if info.offset + info.nbytes > self.size:
                raise CheckpointError(
                    f"{self.path} is truncated: {info.name} ({info.type}, {info.nbytes} bytes) ends at byte "
                    f"{info.offset + info.nbytes}, but the file has {self.size}. Download it again."
                )
            result[info.name] = info
        return result

    def _tensor_entry(self) -> TensorInfo:
        name = self._string("a tensor's name")
        n_dims = self._scalar("I", f"the number of dimensions of {name}")
        if not 1 <= n_dims <= MAX_DIMS:
            self._malformed(f"{name} has {n_dims} dimensions; 1 to {MAX_DIMS} are allowed")
        shape = tuple(reversed(self._scalars("Q", n_dims, f"the shape of {name}")))
        if not all(shape):
            self._malformed(f"{name} has the shape {list(shape)}; no dimension may be 0")
        type_id = self._scalar("I", f"the type of {name}")
        offset = self._scalar("Q", f"the offset of {name}")
        kind = self._type_name(name, type_id)
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
        if shape[-1] % block:
            self._malformed(f"{name} has rows of {shape[-1]} values, not a multiple of the {block} of a {kind} block")
        return TensorInfo(name, shape, kind, offset, math.prod(shape) // block * block_bytes)

    def _type_name(self, tensor: str, type_id: int) -> str:
        try:
            kind = GGMLQuantizationType(type_id).name
        except ValueError:
            kind = f"unknown ({type_id})"
        if kind not in SUPPORTED_TYPES:
            raise CheckpointError(
                f"{self.path}: {tensor} is stored as {kind}; supported are {', '.join(SUPPORTED_TYPES)}. "
                "Use a file of the same model in one of these types, for example Q8_0 or Q4_K_M's Q4_K and Q6_K."
            )
        return kind

    def _value(self, kind: int, key: str, depth: int) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[GGUFValueType(kind)], key)
        if kind == GGUFValueType.STRING:
            return self._string(key)
        if kind == GGUFValueType.ARRAY and depth < MAX_DEPTH:
            return self._array(key, depth)
        return self._malformed(f"{key} has the value type {kind}, which does not exist or nests too deep")

    def _array(self, key: str, depth: int) -> list[Any] | array[Any]:
        kind = self._scalar("I", f"the element type of {key}")
        count = self._scalar("Q", f"the length of {key}")
        if kind in _SCALARS:
            return self._numbers(_SCALARS[GGUFValueType(kind)], count, key)
        smallest = _MIN_STRING if kind == GGUFValueType.STRING else _MIN_ARRAY
        self._need(count * smallest, f"{key}, an array of {count} values,")
        if kind == GGUFValueType.STRING:
            return self._strings(count, key)
        return [self._value(kind, key, depth + 1) for _ in range(count)]

    def _strings(self, count: int, what: str) -> list[str]:
        # The vocabulary and the merges: 100,000 strings and more, so this loop is flat.
        data, size, position = self.data, self.size, self.position
        length_of = struct.Struct("<Q").unpack_from
        result: list[str] = []
        try:
            for _ in range(count):
                start = position + 8
                position = start + (length_of(data, position)[0] if start <= size else size)
                if position > size:
                    self._need(position - self.position, what)
                result.append(data[start:position].decode())
        except UnicodeDecodeError as error:
            return self._malformed(f"{what} holds text that is not UTF-8 ({error})")
        self.position = position
        return result

    def _numbers(self, code: str, count: int, what: str) -> array[Any]:
        """Many numbers as they lie in the file: a list of Python numbers would take up to sixteen times as much."""
        length = struct.calcsize(f"<{code}") * count
        self._need(length, what)
        values: array[Any] = array("B" if code == "?" else code)
        values.frombytes(self.data[self.position : self.position + length])
        if sys.byteorder == "big":
            values.byteswap()
        self.position += length
        return values

    def _string(self, what: str) -> str:
        return self._strings(1, what)[0]

    def _scalar(self, code: str, what: str) -> Any:
        return self._scalars(code, 1, what)[0]

    def _scalars(self, code: str, count: int, what: str) -> tuple[Any, ...]:
        length = struct.calcsize(f"<{code}") * count
        self._need(length, what)
        values = struct.unpack_from(f"<{count}{code}", self.data, self.position)
        self.position += length
        return values

    def _need(self, length: int, what: str) -> None:
        if length > self.size - self.position:
            raise CheckpointError(
                f"{self.path} is truncated or malformed: {what} would take at least {length} bytes at byte "
                f"{self.position}, but the file has {self.size}. Download it again."
            )

    def _malformed(self, what: str) -> NoReturn:
        raise CheckpointError(f"{self.path} is malformed: {what}. Download it again.")
