"""What comes after each node: full logits of the nodes looked at last, the final hidden state of all others."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

BUDGET = 64 << 20  # bytes of full logits; 341 rows of 49,152 numbers

Head = Callable[[Float[Tensor, "1 d_model"]], Float[Tensor, "1 vocab"]]


class LogitsStore:
    """Rows by node index, on the CPU; logits in float32.

    A node's full logits are dropped when others that were used later fill the budget. Then one product of its hidden
    state with the head gives them again, up to rounding. `fixed` ones, which something else than the head made, stay.

    Args:
        budget: bytes of full logits; the newest row is kept in any case.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self.budget = budget
        self.hidden: dict[int, Float[Tensor, " d_model"]] = {}
        self.full: OrderedDict[int, Float[Tensor, " vocab"]] = OrderedDict()
        self.fixed: dict[int, Float[Tensor, " vocab"]] = {}
        self.regimes: dict[int, str] = {}  # what a node was computed under: see `Reader.regime`
        self._held = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        rows = (*self.hidden.values(), *self.fixed.values())
        return self._held + sum(row.nbytes for row in rows)

    def put(
        self,
        index: int,
        hidden: Float[Tensor, " d_model"],
        logits: Float[Tensor, " vocab"] | None,
        regime: str,
        fixed: bool = False,
    ) -> None:
        """Keeps what a forward gave at a node; rows become this object's own."""
        self.forget(index)
        self.hidden[index], self.regimes[index] = hidden, regime
        if logits is not None and fixed:
            self.fixed[index] = logits
        elif logits is not None:
            self._keep(index, logits)

    def get(self, index: int, head: Head | None) -> Float[Tensor, " vocab"] | None:
        """The logits after a node; not to be written into. `None` if they are not held and there is no head."""
        if index in self.fixed:
            return self.fixed[index]
        if index in self.full:
            self.full.move_to_end(index)
            return self.full[index]
        if head is None or index not in self.hidden:
            return None
        with torch.no_grad():
            logits = head(self.hidden[index][None])[0].to("cpu", torch.float32)
        self._keep(index, logits)
        return logits

    def forget(self, index: int) -> None:
        """Drops all of a node."""
        self.hidden.pop(index, None)
        self.regimes.pop(index, None)
        self.fixed.pop(index, None)
        dropped = self.full.pop(index, None)
        self._held -= 0 if dropped is None else dropped.nbytes

    def _keep(self, index: int, logits: Float[Tensor, " vocab"]) -> None:
        self.full[index] = logits
        self._held += logits.nbytes
        while self._held > self.budget and len(self.full) > 1:
            self._held -= self.full.popitem(last=False)[1].nbytes
