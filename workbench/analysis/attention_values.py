"""Norms of what each key brings into a head's output."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.analysis.attention_blocks import Block
from workbench.analysis.attention_sources import Forward, Source, Stretch

ROWS = 1024  # values that are projected at once


class ValueNorms:
    """‖v_k‖, or ‖v_k W_Oʰ‖ behind the output projection (Kobayashi et al. 2020, arXiv 2004.10102), of a head's values.

    Args:
        o_proj: the layer's weight; `None` for the values alone.

    Raises:
        KeyError: if values were not captured.
        ValueError: for another shape of `o_proj`.
    """

    def __init__(
        self, source: Source, layer: int, head: int, o_proj: Float[Tensor, "d_model q_head*d_head"] | None
    ) -> None:
        source.check_heads(layer, [head])
        if ("v", layer) not in source.acts and ("v_cached", layer) not in source.acts:
            raise KeyError(f"the values of layer {layer} were not captured. Capture 'v' with 'q_rot' and 'k_rot'.")
        self.source = source
        self.layer = layer
        self.head = head
        self.o_proj = None if o_proj is None else o_proj.detach()
        self._last: tuple[Forward | None, Tensor] | None = None

    def __call__(self, block: Block) -> Float[Tensor, " k"]:
        """One norm for each key of a block."""
        source, count = block.stretch.source, block.scores.shape[2]
        if self._last is None or self._last[0] is not source or len(self._last[1]) < count:
            self._last = (source, self._norms(block.stretch))
        return self._last[1][:count]

    def _norms(self, stretch: Stretch) -> Float[Tensor, " k"]:
        [(_, _, kv)] = self.source.groups(self.layer, [self.head])
        values = self.source.values(self.layer, stretch, [kv])[:, 0]  # (k, d_head)
        if self.o_proj is None:
            norms: Tensor = torch.linalg.vector_norm(values, dim=-1)
            return norms
        weight, width = self.o_proj.to(values.device, values.dtype), values.shape[1]
        if weight.dim() != 2 or weight.shape[1] % width or weight.shape[1] <= self.head * width:
            raise ValueError(
                f"o_proj has shape {tuple(weight.shape)}; a weight (d_model, q_head · d_head) with d_head = {width} "
                f"and more than {self.head} heads is needed."
            )
        own = weight[:, self.head * width : (self.head + 1) * width]
        parts = (values[i : i + ROWS] @ own.T for i in range(0, len(values), ROWS))
        return torch.cat([torch.linalg.vector_norm(part, dim=-1) for part in parts])
