"""Ready-made edits: what can be done to a forward without writing a function. `edit` applies them.

Each names its hook point and which layers, heads, neurons and positions it changes; left out means all. Negative
layers, heads and neurons count from the end. Positions are absolute: 0 is the first token of the text (padding counts),
also in a decode step; a number, several, `slice(4, 9)`, or `slice(4, None)` for all from there on.

Tensors are copied and detached: an edit does not change with what it was made from. For a gradient with respect to a
vector, give `edit` a function that adds it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.instrument.activations import Activations
from workbench.instrument.edit_data import (
    Edit,
    edits_from_json,
    edits_to_json,
    indices,
    positions_of,
    whole,
)
from workbench.instrument.edit_sources import (
    captured,
    cut,
    entry_of,
    mean_over,
    pairs_of_rows,
    per_layer,
    rows_of_tensor,
    take,
    tokens_of,
    with_layers,
    within,
)
from workbench.instrument.points import layer_of

__all__ = [
    "Edit",
    "add",
    "edits_from_json",
    "edits_to_json",
    "knock_out",
    "mean",
    "patch",
    "scale",
    "swap_kv",
    "zero",
]

Chosen = int | Iterable[int] | None
At = int | Iterable[int] | slice | None
Source = Tensor | Mapping[int, Tensor] | Activations


def zero(
    point: str, *, heads: Chosen = None, neurons: Chosen = None, positions: At = None, layers: Chosen = None
) -> Edit:
    """Zero-ablation: what is chosen becomes 0. Masked scores stay −∞.

    Args:
        point: a name of `POINTS`, as for `capture`.
        heads: of `q`, `q_rot`, `scores`, `pattern` and `z` query heads; of `k`, `k_rot`, `k_cached`, `v` and `v_cached`
            key/value heads.
        neurons: of `gate`, `up` and `act`.
    """
    return Edit("zero", (point,), **_where(heads, neurons, positions, layers))


def scale(
    point: str,
    factor: float,
    *,
    heads: Chosen = None,
    neurons: Chosen = None,
    positions: At = None,
    layers: Chosen = None,
) -> Edit:
    """What is chosen, times `factor`; arguments as of `zero`. Masked scores stay −∞."""
    return Edit("scale", (point,), factor=_number("factor", factor), **_where(heads, neurons, positions, layers))


def add(
    point: str,
    vector: Tensor | float,
    scale: float = 1.0,
    *,
    heads: Chosen = None,
    neurons: Chosen = None,
    positions: At = None,
    layers: Chosen = None,
) -> Edit:
    """A steering vector (activation addition, arXiv 2308.10248): `scale * vector` is added at every chosen position.

    Args:
        vector: as the last axis of what is chosen, (d_model,), (d_head,) or (neurons,); or as the last two, (heads,
            d_head); or a number.
        others: as of `zero`. Not at `scores` and `pattern`, whose last axis grows with the text.
    """
    if not isinstance(vector, Tensor):
        vector = torch.tensor(_finite("vector", vector))
    where = _where(heads, neurons, positions, layers)
    return Edit("add", (point,), values=per_layer(vector), factor=_number("scale", scale), **where)


def mean(
    point: str,
    source: Source | None = None,
    *,
    heads: Chosen = None,
    neurons: Chosen = None,
    positions: At = None,
    layers: Chosen = None,
) -> Edit:
    """Mean-ablation: what is chosen becomes a mean.

    Args:
        source: what the mean is. `None`: over all positions of the same forward, padding left out, for each row of the
            batch; where that depends on how the text is split (a forward that continues a cache, or reads one
            position, or is followed by another chunk of the text) it is an error. Single tokens may follow: of a
            generation it is the mean over the prompt. Or the mean itself, shaped as `vector` of `add`; or one a layer,
            {layer: tensor}; or a capture, averaged over its batch and positions, padding left out.
        others: as of `zero`. Not at `scores` and `pattern`, whose last axis grows with the text.

    Raises:
        KeyError: if the capture does not hold the point.
    """
    where = _where(heads, neurons, positions, layers)
    if source is None:
        return Edit("mean", (point,), **where)
    if isinstance(source, Activations):
        entry, found = entry_of(point), {}
        for name in captured(source, point, where["layers"]):
            found[layer_of(name)] = mean_over(cut(source[name], source, entry, where), tokens_of(source, name), entry)
        return Edit("mean", (point,), values=found, **within(where, source, entry, found))
    values = per_layer(source)
    return Edit("mean", (point,), values=values, **with_layers(where, values))


def patch(
    point: str,
    source: Source,
    *,
    positions: At = None,
    heads: Chosen = None,
    neurons: Chosen = None,
    source_positions: At = None,
    layers: Chosen = None,
) -> Edit:
    """Activation patching: what is chosen becomes what it was in another forward.

    Args:
        source: a capture; or a tensor with all axes of the point, its rows for `positions` and only the chosen heads
            and neurons; or one such a layer, {layer: tensor}. One batch row serves all.
        positions: where to put it; default: where it comes from. Rows of a tensor come from 0, 1, …
        source_positions: where to take each of them from; default `positions`.
        others: as of `zero`; layers, of a capture, default to those that it holds.

    Raises:
        KeyError: if the capture does not hold the point.
        ValueError: if it does not hold a position, or another number is taken than put.
    """
    entry, where = entry_of(point), _where(heads, neurons, positions, layers)
    wanted = positions_of("source_positions", source_positions)
    found, placed = {}, where["positions"]
    if isinstance(source, Activations):
        for name in captured(source, point, where["layers"]):
            rows, placed = pairs_of_rows(source.positions(name).tolist(), wanted, where["positions"], name)
            found[layer_of(name)] = take(cut(source[name], source, entry, where), entry.position_axis, rows)
        where = within(where, source, entry, found)
    else:
        for layer, tensor in per_layer(source).items():
            rows, placed = rows_of_tensor(tensor, entry, wanted, where["positions"])
            found[layer] = take(tensor, entry.position_axis, rows)
        where = with_layers(where, found)
    return Edit("patch", (point,), values=found, **{**where, "positions": placed})


def knock_out(
    layers: Chosen = None,
    heads: Chosen = None,
    *,
    edges: Iterable[tuple[int, int]] | None = None,
    queries: At = None,
    keys: At = None,
) -> Edit:
    """Attention knockout (arXiv 2304.14767): scores of chosen edges become −∞ before the softmax.

    A query that may then attend to nothing gets zeros. It changes the `Mask` of a layer, so layers stay on their
    kernel, and what is shown of masks and patterns is what was applied. For all heads it is a rule, `knocked_out`; for
    some, part of the mask's bias.

    Args:
        layers: where; default all.
        heads: query heads; default all.
        edges: pairs (query position, key position). Or instead of them:
        queries, keys: every query of one set to every key of the other; either may be left out for all.
    """
    pairs = None if edges is None else tuple(dict.fromkeys(map(_pair, edges)))
    return Edit(
        "knock_out",
        ("mask",),
        layers=indices("layers", layers),
        heads=indices("heads", heads),
        queries=positions_of("queries", queries),
        keys=positions_of("keys", keys),
        edges=pairs,
    )


def swap_kv(layers: Chosen, kv_head: int, with_head: int) -> Edit:
    """Exchanges the keys and the values of two key/value heads, for the tokens read in the block.

    It changes `k_rot` and `v`, so the cache receives them exchanged; what it holds from before stays.

    Args:
        layers: where; `None` for all.
        kv_head, with_head: the two heads.
    """
    return Edit(
        "swap_kv", ("k_rot", "v"), layers=indices("layers", layers), heads=indices("heads", (kv_head, with_head))
    )


# ----------------------------------------------------------------------------------------------------------- arguments


def _where(heads: Chosen, neurons: Chosen, positions: At, layers: Chosen) -> dict[str, Any]:
    return {
        "heads": indices("heads", heads),
        "neurons": indices("neurons", neurons),
        "positions": positions_of("positions", positions),
        "layers": indices("layers", layers),
    }


def _number(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{what} is {value!r}; a number is needed.")
    return float(value)


def _finite(what: str, value: Any) -> float:
    if not math.isfinite(number := _number(what, value)):
        raise ValueError(f"{what} is {number}; a finite number is needed.")
    return number


def _pair(edge: Any) -> tuple[int, int]:
    if not isinstance(edge, Iterable) or len(pair := list(edge)) != 2:
        raise TypeError(f"edges holds {edge!r}; pairs (query position, key position) are needed.")
    return whole("edges", pair[0]), whole("edges", pair[1])
