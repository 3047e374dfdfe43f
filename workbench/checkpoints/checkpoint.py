"""What the loader needs to know of a checkpoint, whatever its format: sizes first, weights one by one afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from workbench.config import LlamaConfig

LISTED = 3  # names shown of a long list


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint, of which only headers have been read.

    Attributes:
        where: the file or folder, for messages.
        config: the model's sizes.
        shapes: parameter name (Hugging Face's) → shape, of every tensor there is.
        dtype: the float type the weights are stored in; float32 for block-quantised ones.
        tensors: gives (name, tensor) for each of `shapes`, reading one at a time. A tensor may lie in a private mapping
            of the file: writing to it is allowed and does not reach the file.
        four_bits: gives the codes and scales of one of `shapes`, if it is stored in 4 bits and no others
            (`workbench.checkpoints.dequantize.four_bit_codes`).
    """

    where: str
    config: LlamaConfig
    shapes: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]
    four_bits: Callable[[str], tuple[Tensor, Tensor] | None] = lambda name: None


def first_few(names: list[str]) -> str:
    """`a, b, c and 12 more`."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")
