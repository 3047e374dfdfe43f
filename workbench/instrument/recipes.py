"""Points that need not be stored, because they follow from others that are.

In a forward that nobody edits, `resid_mid` is `resid_pre + attn_out`, `attn_norm` is the norm of `resid_pre`, and so
on: the same operation on the same numbers gives the same bits again, whenever somebody looks. Attention patterns follow
from queries, keys and the mask; they are not even computed by the fused kernels, and stored they would take T × T.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from workbench.instrument.mask_part import allowed_rows
from workbench.instrument.series import Series
from workbench.model.attention import attention_pattern, dot_products
from workbench.model.mask import Mask

# What each derived point is computed from, in the same layer; resid_pre in the layer before.
INPUTS = {
    "resid_pre": ("resid_post",),
    "attn_norm": ("resid_pre",),
    "q_rot": ("q",),
    "k_rot": ("k",),
    "k_cached": ("k_rot",),
    "v_cached": ("v",),
    "resid_mid": ("resid_pre", "attn_out"),
    "mlp_norm": ("resid_mid",),
    "act": ("gate", "up"),
    "final_norm": ("resid_post",),
}
FROM_ATTENTION = ("scores", "pattern")  # from q_rot and k_rot, which are kept for them if nobody asked for these


@dataclasses.dataclass(frozen=True)
class Rows:
    """Some rows of another point: not their memory, so that joining the point's parts does not double it."""

    series: Series
    start: int
    stop: int

    @classmethod
    def last(cls, series: Series) -> Rows:
        """What the last forward gave."""
        return cls(series, series.total - series.sizes[-1], series.total)

    @classmethod
    def all(cls, series: Series) -> Rows:
        """What all forwards gave."""
        return cls(series, 0, series.total)

    @property
    def shape(self) -> torch.Size:
        """Of these rows."""
        sizes = list(self.series.parts[-1].shape)
        sizes[self.series.axis] = self.stop - self.start
        return torch.Size(sizes)

    @property
    def dtype(self) -> torch.dtype:
        """Of the point."""
        return self.series.parts[-1].dtype

    def read(self) -> Tensor:
        """These rows."""
        return self.series.window(self.start, self.stop)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A captured tensor that is computed again when it is looked at.

    A whole forward is computed at a time, since some kernels round differently for another number of rows.
    """

    inputs: tuple[Rows, ...]
    compute: Callable[..., Tensor]
    nbytes: int = 0

    @property
    def shape(self) -> torch.Size:
        """That of the inputs."""
        return self.inputs[0].shape

    @property
    def dtype(self) -> torch.dtype:
        """That of the inputs."""
        return self.inputs[0].dtype

    def read(self, start: int, stop: int) -> Tensor:
        """Rows of it, as a tensor of its own: an edit of it changes no other point."""
        axis = self.inputs[0].series.axis
        whole = self.compute(*(rows.read() for rows in self.inputs))
        return whole if stop - start == whole.shape[axis] else whole.narrow(axis, start, stop - start).clone()


@dataclasses.dataclass(frozen=True)
class AttentionRecipe:
    """`scores` or `pattern` of one forward, from its queries, the keys it saw and its mask.

    Attributes:
        queries: (batch, q, q_head, d_head).
        keys: (batch, slot, kv_head, d_head).
        rows: which of the forward's queries were kept; `None` for all.
        heads: the query heads that were kept, and which of the kept key/value heads each one reads; `None` for all.
        softmax: whether it is `pattern`.
    """

    queries: Rows
    keys: Rows
    mask: Mask
    scale: float
    rows: tuple[int, ...] | None
    heads: tuple[tuple[int, int], ...] | None
    softmax: bool
    nbytes: int = 0

    @property
    def dtype(self) -> torch.dtype:
        """That of the queries."""
        return self.queries.dtype

    @property
    def shape(self) -> torch.Size:
        """(batch, q_head, q, k)."""
        batch, count, heads, _ = self.queries.shape
        return torch.Size((batch, heads, count, self.keys.shape[1]))

    def read(self, start: int, stop: int) -> Tensor:
        """Some queries of it: (batch, q_head, q, k)."""
        q = self.queries.read()[:, start:stop].transpose(1, 2)
        k = self.keys.read().transpose(1, 2)
        if self.heads is not None:
            k = k[:, [reads for _, reads in self.heads]]
        allowed = allowed_rows(self.mask, self.rows, start, stop)[:, None].to(q.device)
        scores = dot_products(q, k, self.scale)
        if self.mask.extra is not None:
            scores = scores + self._bias(start, stop).to(scores.device, scores.dtype)
        scores = scores.masked_fill(~allowed, -torch.inf)
        return attention_pattern(scores) if self.softmax else scores

    def _bias(self, start: int, stop: int) -> Tensor:
        assert self.mask.extra is not None
        bias = self.mask.extra[:, :, range(start, stop) if self.rows is None else list(self.rows[start:stop])]
        return bias if self.heads is None or bias.shape[1] == 1 else bias[:, [head for head, _ in self.heads]]


def gated(activation: Callable[[Tensor], Tensor], gate: Tensor, up: Tensor) -> Tensor:
    """`activation(gate) * up`, with both in the places that the forward's one product put them: vectorised functions
    round differently where a row ends elsewhere in memory.
    """
    gate, up = torch.cat((gate, up), -1).chunk(2, -1)
    return activation(gate) * up
