"""What each attention head does on the text at hand: metrics of all heads, and the heads that look like a pattern."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.analysis.arguments import at_least_one
from workbench.analysis.attention import AttentionMap, never
from workbench.analysis.attention_blocks import Block, score_blocks
from workbench.analysis.attention_sources import Source
from workbench.analysis.head_rows import TextRows
from workbench.analysis.workers import in_parallel
from workbench.instrument import Activations

METRICS = (
    "previous_token",
    "current_token",
    "first_token",
    "induction",
    "duplicate_token",
    "entropy",
    "distance",
    "group_similarity",
)
Like = tuple[int, int] | npt.NDArray[Any] | Tensor | Callable[[Any, Any], Any]


def head_metrics(
    attention: AttentionMap | Activations,
    tokens: Sequence[int] | Int[Tensor, " pos"] | npt.NDArray[np.integer[Any]] | None = None,
    layers: Iterable[int] | None = None,
    should_stop: Callable[[], bool] = never,
    on_layer: Callable[[int, pd.DataFrame], None] | None = None,
) -> pd.DataFrame:
    """One row a head: how it divides its attention, on average over the queries of this text.

    All heads of a layer are computed together, in blocks; no T × T matrix is made. A query counts if it was captured,
    is no padding, and may attend to something. A metric that looks for certain keys averages over the counted queries
    that may attend to such a key; where there is none, it is NaN.

    | column | mean over queries q of |
    |---|---|
    | `previous_token` | the weight on q − 1 |
    | `current_token` | the weight on q |
    | `first_token` | the weight on the first token of q's text: behind padding, or of its document (attention sink) |
    | `induction` | the summed weight on keys k ≤ q whose previous token, k − 1, is the token at q: what came after an
      earlier occurrence (Olsson et al. 2022, arXiv 2209.11895) |
    | `duplicate_token` | the summed weight on keys k < q with the same token |
    | `entropy` | −Σ w ln w, in nats |
    | `distance` | Σ w (q − k), in positions |
    | `group_similarity` | – ; the cosine between this head's pattern and that of another head of the same key/value
      head, all counted queries as one vector, averaged over these heads. NaN where there is no other |

    For `induction` and `duplicate_token` the earlier occurrence has to be in q's own text. Padding and documents are
    those of the rules `padding` and `document`: what a 4-D mask means by its cells is not known.

    Args:
        tokens: the ids of this text, at least as many as the map has positions; default those that were captured.
        layers: which ones; default all that were captured.
        should_stop: asked between blocks, from several threads; the layers that are complete are returned.
        on_layer: told (layer, its rows) as they are done.

    Returns:
        Columns layer, head, kv_head, then the above.

    Raises:
        KeyError: for a layer that was not captured.
        ValueError: for too few tokens, or none where none were captured.
    """
    source = _source(attention)
    ids = _token_ids(source, tokens)
    frames = []

    chosen = list(source.layers if layers is None else layers)

    def measure(layer: int) -> pd.DataFrame | None:
        return _layer_metrics(source, layer, ids, should_stop)

    for frame in in_parallel(measure, chosen):
        if frame is None:
            break
        frames.append(frame)
        if on_layer is not None:
            on_layer(int(frame["layer"].iloc[0]), frame)
    return pd.concat(frames, ignore_index=True) if frames else _frame(source, None, {name: [] for name in METRICS})


def find_heads(
    attention: AttentionMap | Activations,
    like: Like,
    top: int | None = None,
    layers: Iterable[int] | None = None,
    should_stop: Callable[[], bool] = never,
) -> pd.DataFrame:
    """The heads whose pattern looks most like a given one, by the cosine between the two.

    The cosine is over the cells (q, k) of counted queries (see `head_metrics`) that may attend; 1 is the same up to a
    factor, 0 is no weight in common. Patterns are compared in blocks; no T × T matrix is made.

        find_heads(attention, like=(7, 2))                      # like this head
        find_heads(attention, like=lambda q, k: k == q - 1)     # a previous-token head

    Args:
        like: (layer, head); or an array (T, T) of weights; or a function of query positions (q, 1) and key positions
            (1, k), arrays of numpy, that says which cells have weight, or how much.
        top: how many; default all.
        layers: where to look; default all that were captured.
        should_stop: asked between blocks, from several threads; the heads of the layers that are complete are returned.

    Returns:
        Columns layer, head, kv_head, similarity; the most similar first.

    Raises:
        KeyError: for a layer that was not captured.
        ValueError: for an array of another shape, a pattern without weight where queries may attend, or one that is
            not finite there, and a `top` below 1.
        TypeError: for something else to look for.
    """
    source = _source(attention)
    most = None if top is None else at_least_one(top, "top", "heads")
    wanted = _wanted(source, like)
    frames = []

    chosen = list(source.layers if layers is None else layers)

    def compare(layer: int) -> pd.DataFrame | None:
        return _layer_similarity(source, layer, wanted, should_stop)

    for frame in in_parallel(compare, chosen):
        if frame is None:
            break
        frames.append(frame)
    found = pd.concat(frames, ignore_index=True) if frames else _frame(source, None, {"similarity": []})
    found = found.sort_values("similarity", ascending=False, kind="stable", ignore_index=True)
    return found if most is None else found.head(most)


# --- metrics ---------------------------------------------------------------------------------------------------------


def _layer_metrics(
    source: Source, layer: int, ids: Int[Tensor, " pos"], should_stop: Callable[[], bool]
) -> pd.DataFrame | None:
    heads, rows = source.heads(layer), TextRows.of(source, layer)
    groups = [(low, high) for low, high, _ in source.groups(layer, heads)]
    sums = torch.zeros(len(METRICS) - 1, len(heads), dtype=torch.float64)
    counts = torch.zeros_like(sums)
    grams = [torch.zeros(high - low, high - low, dtype=torch.float64) for low, high in groups]
    for block in _blocks(source, layer):
        if should_stop():
            return None
        values, where, pattern = _measure(block, ids, rows)
        sums += (values * where).sum(2).double().cpu()
        counts += where.sum(2).cpu()
        for gram, (low, high) in zip(grams, groups, strict=True):
            cells = pattern[low:high].flatten(1)
            gram += (cells @ cells.T).double().cpu()
    columns = dict(zip(METRICS, (sums / counts).numpy(), strict=False))
    similarity = [_mean_cosine(gram) for gram in grams]
    return _frame(source, layer, {**columns, METRICS[-1]: np.concatenate(similarity)})


def _measure(
    block: Block, ids: Int[Tensor, " pos"], rows: TextRows
) -> tuple[Float[Tensor, "metric head q"], Bool[Tensor, "metric head q"], Float[Tensor, "head q k"]]:
    """The value of each metric but the last for each query; for which queries there is one; and the pattern, 0 where
    the query does not count. Uses up the block's scores.
    """
    scores, pattern = block.scores, block.pattern()
    device, (heads, count, keys) = scores.device, scores.shape
    q, k = torch.arange(block.start, block.stop, device=device)[:, None], torch.arange(keys, device=device)
    real, begins = (x[block.start : block.stop].to(device)[:, None] for x in (rows.real, rows.begins))
    if not bool(real.all()):
        pattern.mul_(real)
    may = block.may_attend() & real  # (head or 1, q, k)
    # −Σ w ln w with ln w = score − top − ln Σ exp(score − top), where the largest weight is 1 / that sum.
    scores.sub_(scores.amax(-1, keepdim=True))
    entropy = -pattern.amax(-1).clamp(min=1e-38).log() - scores.mul_(pattern).sum(-1)
    own, seen = ids[block.start : block.stop].to(device)[:, None], ids[:keys].to(device)
    same = (own == seen) & (k < q) & may  # the token at k is the token at q
    after = (own == seen.roll(1)) & (k > begins) & (k <= q) & may  # the token before k is, in the same text
    values, where = [], []
    for target in (q - 1, q, begins):
        at = target.clamp(0, keys - 1)
        values.append(pattern.gather(2, at.expand(heads, count, 1))[..., 0])
        where.append((may.gather(2, at.expand(len(may), count, 1)) & (target >= 0) & (target < keys))[..., 0])
    for cells in (after, same):
        values.append(torch.mul(pattern, cells.float(), out=scores).sum(-1))
        where.append(cells.any(-1))
    values += [entropy, q[:, 0] - pattern @ k.float()]
    where += [may.any(-1)] * 2
    return torch.stack(values), torch.stack(where).expand(-1, heads, -1), pattern


def _mean_cosine(gram: Float[Tensor, "head head"]) -> npt.NDArray[np.float64]:
    """Of each head with the others."""
    if len(gram) == 1:
        return np.full(1, np.nan)
    norms = gram.diagonal().sqrt()
    cosines = gram / (norms[:, None] * norms)
    return np.asarray(((cosines.sum(1) - cosines.diagonal()) / (len(gram) - 1)).numpy())


# --- similarity ------------------------------------------------------------------------------------------------------


def _layer_similarity(
    source: Source, layer: int, wanted: Callable[[int, int, int], Tensor], should_stop: Callable[[], bool]
) -> pd.DataFrame | None:
    heads, rows = source.heads(layer), TextRows.of(source, layer)
    products, squares = torch.zeros(len(heads), dtype=torch.float64), torch.zeros(len(heads), dtype=torch.float64)
    size = 0.0
    for block in _blocks(source, layer):
        if should_stop():
            return None
        pattern, may = block.pattern()[:, :, : source.length], block.may_attend()[:, :, : source.length]
        counted = rows.real[block.start : block.stop].to(pattern.device)[:, None]
        other = _open_cells(wanted, block, may.any(0) & counted)  # cells that some head may see
        pattern.mul_(counted)
        products += (pattern.flatten(1) @ other.flatten()).double().cpu()
        squares += torch.linalg.vector_norm(pattern, dim=(1, 2)).double().cpu() ** 2
        size += float(torch.linalg.vector_norm(other)) ** 2
    if not size:
        raise ValueError(
            "the pattern to look for has no weight in any cell where a query may attend (a key at or before it, that "
            "the mask allows). Check its axes: queries come first."
        )
    return _frame(source, layer, {"similarity": (products / (squares.sqrt() * size**0.5)).numpy()})


def _open_cells(
    wanted: Callable[[int, int, int], Tensor], block: Block, may: Bool[Tensor, "q k"]
) -> Float[Tensor, "q k"]:
    """The weights looked for in cells that may attend, 0 in the others, whatever those hold.

    Raises:
        ValueError: for one that is no number.
    """
    other = wanted(block.start, block.stop, may.shape[1]).to(may.device)
    other = torch.where(may, other, 0.0)
    if not bool((finite := other.isfinite()).all()):
        q, k = (~finite).nonzero()[0].tolist()
        raise ValueError(
            f"like is {float(other[q, k])} for query {block.start + q} and key {k}, which may attend; finite weights "
            "are needed there. What masked cells hold does not matter."
        )
    return other


def _wanted(source: Source, like: Any) -> Callable[[int, int, int], Tensor]:
    """(first query, behind the last, number of keys) → the weights looked for, (q, k)."""
    length = source.length
    if isinstance(like, tuple) and len(like) == 2 and all(isinstance(n, int | np.integer) for n in like):
        layer, head = (int(n) for n in like)
        source.check_heads(layer, [head])

        def of_head(start: int, stop: int, keys: int) -> Tensor:
            found = torch.zeros(stop - start, keys)
            for block in score_blocks(source, layer, [head], start, stop):
                pattern = block.pattern()[0, :, :keys]
                found[block.start - start : block.stop - start, : pattern.shape[1]] = pattern
            return found

        return of_head
    if callable(like) and not isinstance(like, Tensor):

        def of_function(start: int, stop: int, keys: int) -> Tensor:
            cells = np.asarray(like(np.arange(start, stop)[:, None], np.arange(keys)[None]), np.float32)
            return torch.from_numpy(np.broadcast_to(cells, (stop - start, keys)).copy())

        return of_function
    if not isinstance(like, np.ndarray | Tensor):
        raise TypeError(
            f"like is {like!r}; give (layer, head), an array of weights (queries, keys), or a function of query and "
            "key positions."
        )
    weights = torch.as_tensor(like).detach().float()
    if tuple(weights.shape) != (length, length):
        raise ValueError(
            f"like has shape {tuple(weights.shape)}; this map has {length} positions, so ({length}, {length}) is "
            "needed."
        )
    return lambda start, stop, keys: weights[start:stop, :keys]


# --- both ------------------------------------------------------------------------------------------------------------


def _blocks(source: Source, layer: int) -> Iterator[Block]:
    """All captured queries."""
    kept = source.positions(layer)
    kept = kept[kept < source.length]
    breaks = (kept.diff() != 1).nonzero()[:, 0].add(1).tolist()
    for first, last in pairwise([0, *breaks, len(kept)]):
        if first < last:
            start = int(kept[first])
            yield from score_blocks(source, layer, source.heads(layer), start, start + last - first)


def _source(attention: Any) -> Source:
    if isinstance(attention, Activations):
        attention = AttentionMap(attention)
    if not isinstance(attention, AttentionMap):
        raise TypeError(f"an AttentionMap or the Activations of a capture are needed; got {type(attention).__name__}.")
    return attention.source


def _token_ids(source: Source, tokens: Any) -> Int[Tensor, " pos"]:
    length = source.length
    if tokens is None:
        parts = [span.tokens for span in source.acts.spans]
        if not parts or any(part is None for part in parts):
            raise ValueError("the tokens of this text were not captured. Give their ids: tokens=[…].")
        before = torch.full((source.acts.spans[0].start,), -1)  # of a text whose beginning was not captured
        tokens = torch.cat([before, *(part[source.row].cpu() for part in parts if part is not None)])
    ids = torch.as_tensor(tokens)
    if ids.dim() != 1 or len(ids) < length or ids.is_floating_point():
        raise ValueError(
            f"tokens has shape {tuple(ids.shape)} ({ids.dtype}); the ids of the {length} positions of this map are "
            "needed, as one row."
        )
    # Later keys, which some masks let queries see, are in no metric that looks at tokens.
    return torch.nn.functional.pad(ids[:length].cpu(), (0, source.end - length), value=-1)


def _frame(source: Source, layer: int | None, columns: dict[str, Any]) -> pd.DataFrame:
    heads = () if layer is None else source.heads(layer)
    read_by = {} if layer is None else source.read_by(layer)
    front = {"layer": [layer] * len(heads), "head": list(heads), "kv_head": [read_by[head] for head in heads]}
    return pd.DataFrame({**front, **columns})
