"""Writes safetensors files, one tensor after the other: a model is never in memory twice.

Format: https://github.com/huggingface/safetensors#format. Written here because the `safetensors` package makes bytes of
all tensors first, and refuses tensors that lie in one storage, as packed projections do (`workbench.model.joined`).
Tensors keep their order: those that are neighbours in memory are so in the file, and are read without a copy.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from workbench.checkpoints.errors import CheckpointError

TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
ALIGNMENT = 64  # bytes at which the tensors begin: what the widest instructions of a CPU read at once


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    read: Callable[[str, Tensor], Tensor] = lambda name, value: value,
) -> None:
    """Writes one file.

    Args:
        path: where to.
        tensors: name → tensor, on any device, also the meta device.
        read: gives the values of a tensor, which is asked for when its turn comes.

    Raises:
        CheckpointError: for a type that the format does not have.
    """
    if sys.byteorder != "little":
        raise CheckpointError("safetensors files are little-endian, and this machine is not.")
    # Widest types first, so that each tensor begins at a multiple of its type's size.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, value in ordered:
        check_type(name, value)
        end = position + value.nbytes
        header[name] = {
            "dtype": TYPES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, value in ordered:
            whole = read(name, value).detach().cpu().contiguous()
            if (whole.dtype, whole.shape) != (value.dtype, value.shape):
                raise CheckpointError(
                    f"{name} was announced as {value.dtype} {list(value.shape)}, but is another tensor."
                )
            file.write(whole.flatten().view(torch.uint8).numpy().data)


def check_type(name: str, value: Tensor) -> None:
    """Refuses what no safetensors file can hold.

    Raises:
        CheckpointError: naming the tensor.
    """
    if value.dtype not in TYPES or value.layout != torch.strided:
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in TYPES)
        raise CheckpointError(
            f"{name} is a {value.layout} tensor of {value.dtype}; a safetensors file holds dense ones of {allowed}."
        )
