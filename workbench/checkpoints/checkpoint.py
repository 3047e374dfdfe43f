"""What the loader needs to know of a checkpoint, whatever its format: sizes first, weights one by one afterwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from workbench.checkpoints.errors import CheckpointError
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
    """

    where: str
    config: LlamaConfig
    shapes: Mapping[str, tuple[int, ...]]
    dtype: torch.dtype
    tensors: Callable[[], Iterator[tuple[str, Tensor]]]

    def check_shapes(self, expected: Mapping[str, tuple[int, ...]], optional: frozenset[str]) -> None:
        """Compares the tensors there are with those that the config asks for.

        Raises:
            CheckpointError: naming missing, unexpected and wrongly shaped tensors, the first few of each.
        """
        missing = [name for name in expected if name not in self.shapes and name not in optional]
        unexpected = [name for name in self.shapes if name not in expected]
        wrong = [
            f"{name} is {list(shape)} instead of {list(expected[name])}"
            for name, shape in self.shapes.items()
            if name in expected and tuple(shape) != tuple(expected[name])
        ]
        found = [
            f"{len(names)} {what}: {first_few(names)}"
            for names, what in ((missing, "missing"), (unexpected, "unexpected"), (wrong, "of another shape"))
            if names
        ]
        if found:
            raise CheckpointError(
                f"{self.where}: the tensors do not fit the config. {'; '.join(found)}. "
                "Weights and config must be of one model, and every file of it must be there."
            )


def first_few(names: list[str]) -> str:
    """`a, b, c and 12 more`."""
    more = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {more} more" if more > 0 else "")
