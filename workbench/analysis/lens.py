"""Logit lens (nostalgebraist 2020): what each layer's residual stream would predict if it were the last."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.generation.timeline import score_tokens
from workbench.model import LlamaForCausalLM

Array = npt.NDArray[np.float32]


class Pieces(Protocol):
    """What names tokens: a `LlamaTokenizer`."""

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token."""
        ...


CHUNK = 124  # rows of logits held at once: 124 × 49,152 × 4 bytes = 24 MB, and about 60 ms between two looks at Stop


@dataclasses.dataclass(frozen=True)
class Lens:
    """One row a residual state (the embedding, then each layer), one column a position.

    `top_ids` (state, pos, k) are −1 and the floats NaN where nothing was computed yet. `entropy` is in nats.
    `next_rank` (from 1) and `next_p` are of the token that really followed; NaN at the last position, which has none.
    """

    top_ids: npt.NDArray[np.int32]
    top_p: Array
    entropy: Array
    next_p: Array
    next_rank: Array

    @classmethod
    def empty(cls, states: int, positions: int, k: int = 5) -> Lens:
        """All cells not computed yet."""
        blank = np.full((states, positions), np.nan, np.float32)
        return cls(
            top_ids=np.full((states, positions, k), -1, np.int32),
            top_p=np.full((states, positions, k), np.nan, np.float32),
            entropy=blank,
            next_p=blank.copy(),
            next_rank=blank.copy(),
        )

    @property
    def length(self) -> int:
        """Number of positions, computed or not."""
        return int(self.top_ids.shape[1])

    @property
    def computed(self) -> npt.NDArray[np.bool_]:
        """Whether a position's column is there."""
        return self.top_ids[0, :, 0] >= 0

    @property
    def progress(self) -> int:
        """Counts the columns that are there and those whose next token is known: grows with every `write`."""
        return int(self.computed.sum() + np.isfinite(self.next_rank[0]).sum())

    def to_pandas(self, tokenizer: Pieces) -> pd.DataFrame:
        """One row a computed cell; `layer` is −1 for the embedding, entropy in nats."""
        states, columns = np.nonzero(self.top_ids[:, :, 0] >= 0)
        top = self.top_ids[states, columns]
        frame = pd.DataFrame({"layer": states - 1, "position": columns, "top": tokenizer.pieces(top[:, 0].tolist())})
        for name in ("entropy", "next_p", "next_rank"):
            frame[name] = getattr(self, name)[states, columns]
        frame.insert(3, "p", self.top_p[states, columns, 0])
        return frame

    def missing(self) -> range:
        """The columns to compute: not there yet, or computed before the token that follows was known."""
        incomplete = ~self.computed
        incomplete[:-1] |= np.isnan(self.next_rank[0, :-1])
        where = incomplete.nonzero()[0]
        return range(int(where[0]), int(where[-1]) + 1) if len(where) else range(0)

    def write(self, base: int, start: int, columns: Lens) -> None:
        """Puts columns at `base + start`. `top_ids` last: they say that a column is complete."""
        first = base + start
        for name in ("top_p", "entropy", "next_p", "next_rank", "top_ids"):
            part = getattr(columns, name)
            getattr(self, name)[:, first : first + part.shape[1]] = part

    def resized(self, positions: int) -> Lens:
        """The same lens with columns cut off or not-computed ones added at the end."""
        states, old, k = self.top_ids.shape
        grown = Lens.empty(states, positions, k)
        for field in dataclasses.fields(self):
            getattr(grown, field.name)[:, : min(old, positions)] = getattr(self, field.name)[:, :positions]
        return grown


@torch.no_grad()
def lens_columns(
    model: LlamaForCausalLM,
    states: Float[Tensor, "state pos d_model"],
    followers: Int[Tensor, " pos"],
    k: int = 5,
    should_stop: Callable[[], bool] = lambda: False,
    on_columns: Callable[[int, Lens], None] | None = None,
) -> Lens:
    """The lens of some positions: final norm and head applied to every residual state, in chunks.

    Args:
        states: the embedding and each layer's `resid_post`; the last row gives the model's own prediction.
        followers: the token after each position; −1 where there is none.
        should_stop: asked between chunks; the rest stays not computed.
        on_columns: told (first column, lens of these columns) as they are done.
    """
    count, length, _ = states.shape
    k = min(k, model.config.vocab_size)
    done = Lens.empty(count, length, k)
    step = max(1, CHUNK // count)
    for start in range(0, length, step):
        if should_stop():
            break
        part = states[:, start : start + step]
        width = part.shape[1]
        # .forward: nobody's hooks on the norm or the head are to take this for a forward of the model.
        hidden = model.model.norm.forward(part.to(model.device, model.dtype).flatten(0, 1))
        logits = model.lm_head.forward(hidden)
        targets = followers[start : start + width].repeat(count)
        scores = score_tokens(logits, targets.clamp(min=0), top=k)
        shape = (count, width)
        known = (targets >= 0).numpy().reshape(shape)
        columns = Lens(
            top_ids=scores.top_ids.numpy().astype(np.int32).reshape(*shape, -1),
            top_p=scores.top_logprobs.exp().numpy().reshape(*shape, -1),
            entropy=scores.entropy.numpy().reshape(shape),
            next_p=np.where(known, scores.logprob.exp().numpy().reshape(shape), np.nan).astype(np.float32),
            next_rank=np.where(known, scores.rank.numpy().reshape(shape), np.nan).astype(np.float32),
        )
        done.write(0, start, columns)
        if on_columns is not None:
            on_columns(start, columns)
    return done
