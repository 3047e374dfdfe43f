"""What the model needs from a KV cache, whatever it does inside."""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor


class KVCache(Protocol):
    """Keys and values of the positions seen so far, one store a layer.

    Keys are stored after RoPE, with the model's key/value heads (never expanded to its query heads).
    """

    @property
    def length(self) -> int:
        """Number of positions seen: the position the next token gets."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held, spare room included."""
        ...

    def update(
        self, layer: int, k: Float[Tensor, "batch kv_head new d_head"], v: Float[Tensor, "batch kv_head new d_head"]
    ) -> tuple[Float[Tensor, "batch kv_head slot d_head"], Float[Tensor, "batch kv_head slot d_head"]]:
        """Takes the new positions' keys and values and returns everything this forward's queries may look at."""
        ...

    def positions(self, layer: int, new: int = 0) -> Int[Tensor, " slot"]:
        """Slot → position of the token in it, −1 for an empty slot, after `new` more positions."""
        ...

    def crop(self, length: int) -> None:
        """Forgets every position from `length` on."""
        ...

    def reorder(self, rows: Int[Tensor, " batch"]) -> None:
        """Makes row i of the batch what row `rows[i]` was."""
        ...

    def reset(self) -> None:
        """Forgets everything."""
        ...
