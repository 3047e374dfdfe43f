"""What a view hands to a widget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy.typing as npt


class Payload(NamedTuple):
    """`content` is JSON; `arrays` travel beside it as bytes with shape and dtype."""

    content: dict[str, Any]
    arrays: Mapping[str, npt.NDArray[Any]]

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.arrays.values())
