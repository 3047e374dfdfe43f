"""Arguments that several functions take: sizes in bytes, data types, switches."""

from __future__ import annotations

import re
from typing import Any

import torch

from workbench.checkpoints.errors import CheckpointError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([KMGT]?)(I?)B", re.IGNORECASE)


def parse_size(name: str, size: Any, least: int = 1) -> int:
    """Bytes of `5_000_000_000`, `"5GB"` (10⁹ each) or `"5GiB"` (2³⁰ each).

    Args:
        name: of the argument, for the error.
        size: the number or the text.
        least: what it must be at least.

    Raises:
        TypeError, CheckpointError: naming the argument.
    """
    if isinstance(size, bool) or not isinstance(size, int | str):
        raise TypeError(f"{name} is {size!r:.80}; it must be a whole number of bytes or a text such as '5GB'.")
    if isinstance(size, str):
        match = _SIZE.fullmatch(size.strip())
        if match is None or (match[3] and not match[2]):
            raise CheckpointError(f"{name} is {size!r:.80}; a size is a number and a unit, such as '5GB' or '500MiB'.")
        unit = match[2].upper()
        size = int(float(match[1]) * (_BINARY[unit] if match[3] else _UNITS[unit]))
    count = int(size)
    if count < least:
        raise CheckpointError(f"{name} is {count} bytes; it must be at least {least}.")
    return count


def parse_dtype(dtype: Any) -> torch.dtype | None:
    """The torch type of `"bfloat16"`, `"torch.bfloat16"` or `torch.bfloat16`; `None` for `"auto"`.

    Raises:
        CheckpointError: for another one.
    """
    if dtype is None or dtype == "auto":
        return None
    found = DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise CheckpointError(f"dtype is {dtype!r:.80}; allowed are auto, {', '.join(DTYPES)}.")
    return found


def check_flag(name: str, value: Any) -> None:
    """True or False, nothing that merely counts as one of them.

    Raises:
        TypeError: naming the argument.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r:.80}; it must be True or False.")
