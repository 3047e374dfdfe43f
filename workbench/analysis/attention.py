"""Exact attention of any head, computed from captured queries and keys when somebody looks."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.analysis.attention_blocks import Block, score_blocks
from workbench.analysis.attention_pool import Pooling, Reduce, Squares
from workbench.analysis.attention_rollout import rollout, rollout_row
from workbench.analysis.attention_sources import Source
from workbench.analysis.attention_values import ValueNorms
from workbench.analysis.workers import alone, in_parallel, threads
from workbench.instrument import Activations
from workbench.model.mask import Mask

Array = npt.NDArray[np.float32]
EVERY = slice(None)
BANDED = 1 << 22  # cells of a picture from which on it is divided among threads


def never() -> bool:
    """Nobody asked to stop."""
    return False


@dataclasses.dataclass(frozen=True)
class Tile:
    """Attention weights of one head for a range of queries and keys.

    `weights[i, j]` is the weight of query `q0 + i * factor` on key `k0 + j * factor`, or the largest one, or the mean,
    of the `factor × factor` cells there; at the far edges of as many as there are. A masked cell weighs 0. `masked`
    marks cells with nothing that may attend.
    """

    weights: Array
    masked: npt.NDArray[np.bool_]
    q0: int
    k0: int
    factor: int
    reduce: Reduce = "max"


@dataclasses.dataclass(frozen=True)
class Thumbnails:
    """Small pictures of several heads of one layer: `weights` (head, q, k), each cell of `factor × factor` weights."""

    layer: int
    heads: tuple[int, ...]
    weights: Array
    factor: int


@dataclasses.dataclass(frozen=True)
class RowStats:
    """What turns one query's scores into weights: `weight = exp(score − logsumexp)`. −∞ if it may attend to nothing.

    `top` is the largest score.
    """

    top: float
    logsumexp: float


class AttentionMap:
    """Attention of one text, from queries and keys that were captured while the model read it. Holds no T × T matrix.

        with capture(model, "q_rot", "k_rot") as acts:
            model(ids)
        AttentionMap(acts).tile(layer=3, head=5, q=slice(0, 512), k=slice(0, 512))

    Weights are those of the forwards that were captured, to float32 rounding: with their masks, whether the text was
    read at once, in chunks or token by token, and under every cache. For a cache that alters or drops keys, capture
    `k_cached` too (and `v_cached` for `value_weighted`): then the keys that each forward used are read, instead of
    `k_rot`, which the cache was given. The masks are those of the forwards, or of each layer if the point `mask` was
    captured. Queries and keys are counted by position in the row of the batch, padding included; a position that no
    cache slot held is masked. Query head h reads key/value head h // n_rep. Edits of queries, keys and (with the point
    `mask`) masks are in what was captured; edits of `scores` or `pattern` themselves are not: capture these points.

    Args:
        acts: a capture of `q_rot` and `k_rot`. Of a capture of some positions or heads, these can be looked at.
        length: how many positions of it to look at; default all. Their weights are those of the forwards all the same:
            where the mask let them see later positions, rows sum to less than 1.
        mask: what was applied to these positions, instead of what the capture says; keys are then those of `k_rot`.
        scale: what scores are multiplied by; default what each layer multiplied by.
        row: which row of the batch, negative ones from the end.

    Raises:
        ValueError: for forwards that do not continue each other from one position to the next, forwards of an unknown
            mask that was not simply causal, a length that was not captured, and a row that does not exist; when looked
            at, for layers whose attention is known to have used other keys than those of `k_rot`.

    Warns:
        UserWarning: for a cache that rounds keys, without `k_cached`.
    """

    def __init__(
        self,
        acts: Activations,
        length: int | None = None,
        mask: Mask | None = None,
        scale: float | None = None,
        row: int = 0,
    ) -> None:
        self.acts = acts
        self.source = Source(acts, length, mask, scale, row)
        if self.rounded:
            warnings.warn(
                "the cache of this text rounds keys, and what it gave back was not captured: attention is that of the "
                "keys as they were computed. Capture 'k_cached' (and 'v_cached') too for that which was applied.",
                stacklevel=2,
            )

    @property
    def rounded(self) -> bool:
        """Whether the cache gave attention other keys, nearly those of this map, which were not captured."""
        lossy = not self.source.given and any(span.lossy for span in self.acts.spans)
        return lossy and not any("k_cached" in name for name in self.acts)

    @property
    def length(self) -> int:
        """How many positions there are to look at."""
        return self.source.length

    @property
    def layers(self) -> list[int]:
        """The layers that were captured."""
        return self.source.layers

    def row(self, layer: int, head: int, q: int) -> Array:
        """Weights of one query on every key up to it, (q + 1,); on later ones too where the mask lets it see them.

        Raises:
            KeyError: for a layer that was not captured.
            ValueError: for a head or a query that does not exist or was not captured.
        """
        block = alone(lambda: self._one(layer, head, q))
        seen = block.may_attend()[0, 0, : self.length].nonzero()
        row = np.zeros(max(q, int(seen[-1]) if len(seen) else 0) + 1, np.float32)
        weights = block.pattern()[0, 0, : len(row)].cpu().numpy()
        row[: len(weights)] = weights
        return row

    def stats(self, layer: int, head: int, q: int) -> RowStats:
        """The largest score of one query and the logarithm of the sum of their exponentials. Errors as of `row`."""
        block = alone(lambda: self._one(layer, head, q))
        allowed = block.scores[0, 0, block.may_attend()[0, 0]]
        if not len(allowed):
            return RowStats(-np.inf, -np.inf)
        return RowStats(float(allowed.max()), float(allowed.logsumexp(0)))

    def head(self, layer: int, head: int) -> Array:
        """The whole pattern of a head, (q, k): T × T on purpose. Errors as of `row`."""
        whole = np.zeros((self.length, self.length), np.float32)

        def fill() -> None:
            for block in self._blocks(layer, [head], 0, self.length):
                part = block.pattern()[0, :, : self.length].cpu().numpy()
                whole[block.start : block.stop, : part.shape[1]] = part

        alone(fill)
        return whole

    def scores(self, layer: int, head: int, q: slice, k: slice) -> Array:
        """Scores as they go into the softmax, (q, k), −∞ where masked. Errors as of `tile`."""
        s = Squares.of(q, k, self.length, self.length)
        found = np.full((s.q1 - s.q0, s.k1 - s.k0), -np.inf, np.float32)

        def fill() -> None:
            for block in self._blocks(layer, [head], s.q0, s.q1):
                part = block.scores[0, :, s.k0 : s.k1].cpu().numpy()
                rows = found[block.start - s.q0 : block.stop - s.q0, : part.shape[1]]
                np.copyto(rows, part, where=block.may_attend()[0, :, s.k0 : s.k1].cpu().numpy())

        alone(fill)
        return found

    def tile(self, layer: int, head: int, q: slice, k: slice, size: int = 256, reduce: Reduce = "max") -> Tile:
        """A range of queries and keys in at most `size × size` cells.

        Where the range has more cells, each one shown is the exact maximum or mean over a square of them: of the
        maximum, a single strong weight never disappears; of the mean, cell × number of its weights adds up to the
        attention paid. Memory is O(rows · T), rows being those of a block.

        Raises:
            KeyError: for a layer that was not captured.
            ValueError: for a head that does not exist, a query that was not captured, a range or size without a cell,
                another reduction.
            TypeError: for a range that is no slice.
        """
        return self._tile(layer, head, q, k, size, reduce, None)

    def value_weighted(
        self,
        layer: int,
        head: int,
        q: slice = EVERY,
        k: slice = EVERY,
        size: int = 256,
        reduce: Reduce = "max",
        o_proj: Float[Tensor, "d_model q_head*d_head"] | None = None,
    ) -> Tile:
        """As `tile`, each weight times the norm of the value it brings in: ‖pattern[q, k] · v_k‖.

        A weight on a key whose value is small moves little (Kobayashi et al. 2020, arXiv 2004.10102). Their norm is
        that of the value behind the output projection: give `o_proj`, the layer's weight
        (`model.model.layers[i].self_attn.o_proj.weight`). Needs a capture of `v`, or of `v_cached` where the cache
        alters values.

        Raises:
            KeyError, ValueError: as `tile`; if values were not captured; for another shape of `o_proj`.
        """
        norms = ValueNorms(self.source, layer, head, o_proj)
        return self._tile(layer, head, q, k, size, reduce, norms)

    def thumbnails(
        self,
        layers: Iterable[int] | None = None,
        heads: Sequence[int] | None = None,
        size: int = 64,
        reduce: Reduce = "max",
        should_stop: Callable[[], bool] = never,
    ) -> Iterator[Thumbnails]:
        """Every head in at most `size × size` cells (see `tile`), layer by layer, all heads of a layer at once.

        Args:
            layers, heads: which ones; default all that were captured.
            should_stop: asked between blocks, from several threads; a layer that is not complete is not given.
        """
        squares = Squares.of(EVERY, EVERY, self.length, size)
        if heads is not None and not len(heads):
            raise ValueError("heads is empty; name some, or leave it out for all that were captured.")

        def pictures(layer: int) -> Thumbnails | None:
            chosen = self.source.heads(layer) if heads is None else tuple(sorted(set(heads)))
            pooling = Pooling(squares, len(chosen), reduce, self.source.device)
            for block in self._blocks(layer, chosen, 0, self.length):
                if should_stop():
                    return None
                pooling.add(block, block.pattern())
            return Thumbnails(layer, chosen, pooling.weights().cpu().numpy(), squares.factor)

        for found in in_parallel(pictures, self.layers if layers is None else layers):
            if found is None:
                return
            yield found

    def rollout(self, layers: Sequence[int] | None = None, should_stop: Callable[[], bool] = never) -> Array | None:
        """Attention rollout of every position, (q, k): T × T memory. See `rollout_row` for one.

        Attention of all heads averaged, half of it kept for the residual stream, multiplied up the layers: how much
        of each token there is in a position, if attention were all that mixes them (Abnar & Zuidema 2020,
        arXiv 2005.00928). Rows sum to 1, unless positions behind `length` are seen; a position that attends to nothing
        stays itself.

        Args:
            layers: which ones, from the lowest; default all, which have to be captured from 0 on.
            should_stop: asked between blocks; `None` is returned then.

        Raises:
            ValueError: if a layer is missing between those that were captured, or some heads or queries were not.
        """
        return alone(lambda: rollout(self.source, layers, should_stop))

    def rollout_row(
        self, q: int, layers: Sequence[int] | None = None, should_stop: Callable[[], bool] = never
    ) -> Array | None:
        """Row q of the rollout, (k,), computed from the highest layer down in O(rows · T) memory.

        Raises:
            ValueError: as `rollout`; for a query that does not exist.
        """
        self._check_query(q)
        return alone(lambda: rollout_row(self.source, q, layers, should_stop))

    # --- inside --------------------------------------------------------------------------------------------------

    def _blocks(self, layer: int, heads: Sequence[int], start: int, stop: int) -> Iterator[Block]:
        return score_blocks(self.source, layer, heads, start, stop)

    def _one(self, layer: int, head: int, q: int) -> Block:
        self._check_query(q)
        return next(self._blocks(layer, [head], q, q + 1))

    def _check_query(self, q: int) -> None:
        if not 0 <= q < self.length:
            there = f"positions 0 … {self.length - 1}" if self.length else "no positions"
            raise ValueError(f"query {q} does not exist; this map has {there}.")

    def _tile(
        self,
        layer: int,
        head: int,
        q: slice,
        k: slice,
        size: int,
        reduce: Reduce,
        factors: Callable[[Block], Tensor] | None,
    ) -> Tile:
        squares = Squares.of(q, k, self.length, size)

        def picture(band: Squares) -> tuple[Tensor, Tensor]:
            pooling = Pooling(band, 1, reduce, self.source.device)
            for block in self._blocks(layer, [head], band.q0, band.q1):
                pattern = block.pattern()
                pooling.add(block, pattern if factors is None else pattern.mul_(factors(block)))
            return pooling.weights()[0].cpu(), pooling.masked()[0].cpu()

        large = (squares.q1 - squares.q0) * self.length > BANDED and factors is None
        bands = squares.bands(4 * threads() if large and threads() > 1 else 1)
        # The last ones first: they have the most keys, and a thread that ends early is to find a short one.
        weights, masked = zip(*[*in_parallel(picture, bands[::-1])][::-1], strict=True)
        return Tile(
            torch.cat(weights).numpy(), torch.cat(masked).numpy(), squares.q0, squares.k0, squares.factor, reduce
        )
