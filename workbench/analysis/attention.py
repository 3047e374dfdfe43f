"""Exact attention of any head, computed from captured queries and keys when somebody looks."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from workbench.instrument import Activations
from workbench.model.attention import attention_pattern
from workbench.model.mask import Mask, causal

Array = npt.NDArray[np.float32]
ROWS = 256  # queries whose full rows are held at once: 256 × 8,192 × 4 bytes = 8 MB


@dataclasses.dataclass(frozen=True)
class Tile:
    """Attention weights of one head for a range of queries and keys.

    `weights[i, j]` is the weight of query `q0 + i * factor` on key `k0 + j * factor`, or the largest one among the
    `factor × factor` cells there. `masked` marks cells with nothing that may attend.
    """

    weights: Array
    masked: npt.NDArray[np.bool_]
    q0: int
    k0: int
    factor: int


class AttentionMap:
    """Attention of one text (batch row 0), from `q_rot` and `k_rot` of the layers looked at. Holds no T × T matrix.

    Args:
        acts: a capture of `q_rot` and `k_rot`.
        length: how many positions of it to look at; default all.
        mask: what was applied, over all of these positions; default causal, which needs one text from position 0.
        scale: what scores are multiplied by; 1/√d_head unless the model says otherwise.

    Raises:
        ValueError: without a mask, for a capture that began later, was padded or masked, or holds several texts.
    """

    def __init__(
        self, acts: Activations, length: int | None = None, mask: Mask | None = None, scale: float | None = None
    ) -> None:
        self.acts = acts
        self.length = acts.length if length is None else length
        self.scale = scale
        if mask is None:
            if not acts.is_one_text:
                starts = ", ".join(str(span.start) for span in acts.spans)
                masked = "with" if any(span.masked for span in acts.spans) else "without"
                raise ValueError(
                    f"this capture is not one unpadded text from position 0 (its forwards began at {starts}, {masked} "
                    "an attention mask), so its mask is not simply causal. Capture one text, or give mask=."
                )
            positions = torch.arange(self.length)
            mask = Mask([causal()], positions, positions)
        self.mask = mask

    def row(self, layer: int, head: int, q: int) -> Array:
        """Weights of one query on every key up to it, (q + 1,).

        Raises:
            ValueError: for a head or a query that does not exist.
        """
        if not 0 <= q < self.length:
            raise ValueError(f"query {q} does not exist; this map has positions 0 … {self.length - 1}.")
        return self._rows(layer, head, q, q + 1)[0][0, : q + 1].numpy()

    def head(self, layer: int, head: int) -> Array:
        """The whole pattern of a head, (q, k): T × T on purpose."""
        return self._rows(layer, head, 0, self.length)[0].numpy()

    def tile(self, layer: int, head: int, q: slice, k: slice, size: int = 256) -> Tile:
        """A range of queries and keys in at most `size × size` cells.

        Where the range has more cells, each one shown is the exact maximum over a square of them: a single strong
        weight never disappears. Memory is O(rows · T).

        Raises:
            ValueError: for a head that does not exist, or a range or size without a cell.
        """
        (q0, q1, _), (k0, k1, _) = q.indices(self.length), k.indices(self.length)
        if q0 >= q1 or k0 >= k1 or size < 1:
            raise ValueError(
                f"queries {q0} … {q1} and keys {k0} … {k1} in {size} cells hold nothing to show; this map has "
                f"{self.length} positions."
            )
        factor = max(1, -(-max(q1 - q0, k1 - k0) // size))
        weights, masked = [], []
        rows = max(factor, ROWS // factor * factor)  # whole pooling squares only
        for start in range(q0, q1, rows):
            pattern, allowed = self._rows(layer, head, start, min(start + rows, q1))
            weights.append(_pool(pattern[:, k0:k1], factor))
            masked.append(_pool(allowed[:, k0:k1].float(), factor) == 0)
        return Tile(torch.cat(weights).numpy(), torch.cat(masked).numpy(), q0, k0, factor)

    def _rows(self, layer: int, head: int, start: int, stop: int) -> tuple[Float[Tensor, "q k"], Tensor]:
        """Complete rows: the softmax needs every key."""
        queries, keys = self.acts["q_rot", layer], self.acts["k_rot", layer]
        heads, kv_heads = queries.shape[2], keys.shape[2]
        if not 0 <= head < heads:
            raise ValueError(f"head {head} does not exist; this layer has query heads 0 … {heads - 1}.")
        q = queries[0, start:stop, head]  # (q, d_head)
        k = keys[0, : self.length, head // (heads // kv_heads)]
        allowed = self.mask.allowed(slice(start, stop), slice(0, self.length), q.device)[0]
        scores = (q @ k.T) * (self.scale or q.shape[-1] ** -0.5)
        if self.mask.extra is not None:
            extra = self.mask.extra[0, head % self.mask.extra.shape[1], start:stop, : self.length]
            scores = scores + extra.to(scores.device, scores.dtype)
        pattern = attention_pattern(scores.masked_fill(~allowed, -torch.inf))
        return pattern.float().cpu(), allowed.cpu()


def _pool(x: Float[Tensor, "q k"], factor: int) -> Float[Tensor, "pooled_q pooled_k"]:
    return x if factor == 1 else F.max_pool2d(x[None], factor, ceil_mode=True)[0]
