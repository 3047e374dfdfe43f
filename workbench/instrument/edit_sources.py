"""What ready-made edits are made from: a tensor, one a layer, or a capture."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from workbench.instrument.activations import Activations
from workbench.instrument.edit_data import Indices, Positions, whole
from workbench.instrument.edit_site import is_token
from workbench.instrument.points import POINTS, Point


def entry_of(point: str) -> Point:
    """The table's entry of a name such as `z` or `layers.3.z`."""
    short = point.rpartition(".")[2] if isinstance(point, str) else ""
    if short not in POINTS:
        near = difflib.get_close_matches(short, POINTS, n=3, cutoff=0.5) or list(POINTS)
        raise ValueError(f"{point!r} is no name of the table of hook points; did you mean {', '.join(near)}?")
    return POINTS[short]


def per_layer(source: Any) -> dict[int | None, Tensor]:
    """Own copies of the tensors, by layer."""
    if isinstance(source, Tensor):
        return {None: source.detach().clone(memory_format=torch.contiguous_format)}
    if not isinstance(source, Mapping) or not source or not all(isinstance(t, Tensor) for t in source.values()):
        raise TypeError(
            f"the source is {type(source).__name__}; a tensor, one a layer ({{3: tensor}}) or a capture is needed."
        )
    found: dict[int | None, Tensor] = {}
    for layer, tensor in source.items():
        if whole("a layer of the source", layer) < 0:
            raise ValueError(f"the source has layer {layer}; layers of a source count from 0.")
        found[layer] = tensor.detach().clone(memory_format=torch.contiguous_format)
    return found


def with_layers(where: dict[str, Any], values: dict[int | None, Tensor]) -> dict[str, Any]:
    """Layers default to those that there are values of."""
    if None in values:
        return where
    layers = where["layers"]
    if layers is not None and set(layers) != set(values):
        raise ValueError(
            f"layers is {list(layers)}, but the source has values of layers {list(values)}. Leave layers out."
        )
    return {**where, "layers": tuple(values)}


def captured(source: Activations, point: str, layers: Indices | None) -> list[str]:
    """Full names of what of a capture is meant."""
    if not entry_of(point).per_layer or "." in point:
        names = [point]
    elif layers is not None:
        if min(layers) < 0:
            raise ValueError(f"layers holds {min(layers)}; layers of a capture count from 0.")
        names = [f"layers.{layer}.{point}" for layer in layers]
    else:
        names = [name for name in source if name.rpartition(".")[2] == point] or [point]
    for name in names:
        source.series(name)  # the error for what was not captured
    return names


def within(
    where: dict[str, Any], source: Activations, entry: Point, values: dict[int | None, Tensor]
) -> dict[str, Any]:
    """Heads default to those that the capture kept, layers to those that it holds."""
    heads = where["heads"] or _kept_heads(source, entry)
    return with_layers({**where, "heads": heads}, values)


def _kept_heads(source: Activations, entry: Point) -> Indices | None:
    if entry.head_axis is None:
        return None
    return source.heads if entry.axes[entry.head_axis] == "q_head" else source.kv_heads


def cut(tensor: Tensor, source: Activations, entry: Point, where: dict[str, Any]) -> Tensor:
    """The chosen heads and neurons of a captured tensor."""
    heads, neurons = where["heads"], where["neurons"]
    if heads is not None and entry.head_axis is not None:
        kept = _kept_heads(source, entry) or range(tensor.shape[entry.head_axis])
        rows = [kept.index(_held(head, kept, "head")) for head in heads]
        tensor = take(tensor, entry.head_axis, rows)
    if neurons is not None and entry.axes[-1] == "d_mlp":
        known = range(tensor.shape[-1])
        tensor = take(tensor, -1, [_held(neuron, known, "neuron") for neuron in neurons])
    return tensor


def _held(number: int, kept: Indices | range, what: str) -> int:
    """A head or neuron, negative ones counted from the end where all were captured."""
    found = number + len(kept) if number < 0 and isinstance(kept, range) else number
    if found not in kept:
        raise ValueError(f"{what} {number} was not captured; captured are {_span(list(kept))}.")
    return found


def pairs_of_rows(
    at: list[int], wanted: Positions | None, placed: Positions | None, name: str
) -> tuple[list[int], Indices]:
    """(rows to take, the position to put each at), of a source whose rows are at the positions `at`."""
    if len(set(at)) < len(at):
        twice = next(position for i, position in enumerate(at) if position in at[:i])
        raise ValueError(f"patch: {name} holds several texts: position {twice} is there more than once. Capture one.")
    rows, taken = {position: row for row, position in enumerate(at)}, _listed(placed if wanted is None else wanted, at)
    if missing := [position for position in taken if position not in rows]:
        raise ValueError(f"patch: {name} has no position {missing[0]}; it has {_span(at)}.")
    if wanted is None or placed is None:
        put = taken
    else:
        put = [placed.start + i for i in range(len(taken))] if isinstance(placed, slice) else list(placed)
    if len(put) != len(taken) or not put:
        raise ValueError(f"patch: {len(taken)} positions are taken from {name}, but {len(put)} are to be put.")
    return [rows[position] for position in taken], tuple(put)


def rows_of_tensor(
    tensor: Tensor, entry: Point, wanted: Positions | None, placed: Positions | None
) -> tuple[list[int], Indices]:
    """The same of a tensor whose rows are counted from 0."""
    if tensor.dim() != len(entry.axes):
        raise ValueError(
            f"patch: the tensor has shape {tuple(tensor.shape)}; the axes of {entry.name!r} are "
            f"({', '.join(entry.axes)})."
        )
    at = list(range(tensor.shape[entry.position_axis]))
    return pairs_of_rows(at, slice(0, None) if wanted is None else wanted, placed, "the tensor")


def _listed(positions: Positions | None, at: list[int]) -> list[int]:
    if positions is None:
        return at
    return [p for p in at if p >= positions.start] if isinstance(positions, slice) else list(positions)


def _span(numbers: list[int]) -> str:
    run = len(numbers) > 2 and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return f"{numbers[0]} … {numbers[-1]}" if run else ", ".join(map(str, numbers))


def take(tensor: Tensor, axis: int, rows: list[int]) -> Tensor:
    """A copy of some rows."""
    return tensor.detach().index_select(axis, torch.tensor(rows, device=tensor.device))


def tokens_of(source: Activations, name: str) -> Bool[Tensor, "batch pos"]:
    """Which rows of a captured point are tokens, not padding or empty slots; the batch axis is 1 where all agree."""
    series, found = source.series(name), []
    for step, positions in zip(series.steps, series.positions, strict=True):
        mask = source.spans[step].mask if step < len(source.spans) else None
        found.append(is_token(mask, positions))
    if "slot" in series.point.axes:
        return found[-1]
    rows = max(map(len, found))
    return torch.cat([one.expand(rows, -1) for one in found], 1)


def mean_over(tensor: Tensor, tokens: Bool[Tensor, "batch pos"], entry: Point) -> Tensor:
    """Over batch and positions, in float32 at least."""
    if entry.position_axis != 1:
        raise ValueError(f"mean: {entry.name} has an axis of keys, which grows with the text; it has no mean here.")
    chosen = tensor[tokens.to(tensor.device).expand(tensor.shape[0], -1)]
    return chosen.to(torch.promote_types(chosen.dtype, torch.float32)).mean(0)
