"""What a ready-made edit does: to which models it can be applied, to one tensor, to one mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.config import LlamaConfig
from workbench.instrument.edit_data import Edit, Indices, Positions
from workbench.instrument.edit_site import EditError, Site, rows_at
from workbench.instrument.points import POINTS, Located, Point
from workbench.model.mask import Mask, Rule, custom

KNOCKED_OUT = "knocked_out"  # name of the rule


# ------------------------------------------------------------------------------------------------ does it fit the model


def check_edit(edit: Edit, located: Sequence[Located], config: LlamaConfig) -> None:
    """Raises `ValueError` for an edit that a model of this config has no place for."""
    for point in {item.point.name: item.point for item in located}.values():
        if edit.kind == "knock_out":
            _check_numbers(edit, "head", edit.heads, config.num_attention_heads, "query head")
            continue
        if "k_pos" in point.axes and (point.name == "mask" or edit.kind in ("add", "mean")):
            raise ValueError(
                f"{edit} cannot be applied to {point.name!r}: "
                + ("it is a Mask, not a tensor. " if point.name == "mask" else "its last axis grows with the text. ")
                + "Use knock_out, or give a function."
            )
        if edit.layers is not None and not point.per_layer:
            raise ValueError(f"{edit} names layers, but {point.name!r} is in none. Leave layers out.")
        if edit.kind == "mean" and edit.values is None and "slot" in point.axes:
            raise ValueError(f"{edit}: {point.name!r} holds all of the text at every step. Give the mean: a tensor.")
        _check_axes(edit, point, config)
        _check_values(edit, point, config, [item.layer for item in located])
    if edit.kind == "swap_kv" and config.kv_heads == 1:
        raise ValueError(f"{edit} needs two key/value heads; this model has one (MQA), which every query head reads.")
    _check_positions(edit, config)


def _sizes(config: LlamaConfig) -> dict[str, int]:
    return {
        "q_head": config.num_attention_heads,
        "kv_head": config.kv_heads,
        "d_head": config.d_head,
        "d_model": config.hidden_size,
        "d_mlp": config.intermediate_size,
        "vocab": config.vocab_size,
    }


def _check_axes(edit: Edit, point: Point, config: LlamaConfig) -> None:
    head = None if point.head_axis is None else point.axes[point.head_axis]
    if edit.heads is not None:
        if head is None:
            having = ", ".join(p.name for p in POINTS.values() if p.head_axis is not None)
            raise ValueError(f"{edit} names heads, but {point.name!r} has none. Heads can be chosen at {having}.")
        kind = "query head" if head == "q_head" else "key/value head"
        if edit.kind != "swap_kv" or config.kv_heads > 1:
            _check_numbers(edit, "head", edit.heads, _sizes(config)[head], kind)
    if edit.neurons is not None:
        if point.axes[-1] != "d_mlp":
            raise ValueError(
                f"{edit} names neurons, but {point.name!r} has none. Neurons can be chosen at gate, up, act."
            )
        _check_numbers(edit, "neuron", edit.neurons, config.intermediate_size, "neuron")


def _check_numbers(edit: Edit, what: str, numbers: Indices | None, count: int, kind: str) -> None:
    for number in numbers or ():
        if not -count <= number < count:
            raise ValueError(f"{edit}: {what} {number} does not exist; this model has {kind}s 0 … {count - 1}.")
    found = [number % count for number in numbers or ()]
    if len(set(found)) < len(found):
        raise ValueError(f"{edit}: {what}s {list(numbers or ())} name one {kind} twice; this model has {count}.")


def _check_positions(edit: Edit, config: LlamaConfig) -> None:
    """The length that dynamic scaling is made for has no end."""
    if (config.rope_parameters or {}).get("rope_type") == "dynamic":
        return
    edges = None if edit.edges is None else tuple(query for query, _ in edit.edges)
    for wanted in (edit.positions, edit.queries, edit.keys, edges):
        last = -1 if wanted is None else wanted.start if isinstance(wanted, slice) else max(wanted)
        if last >= config.max_position_embeddings:
            raise ValueError(
                f"{edit}: position {last} is out of range; this model has positions 0 … "
                f"{config.max_position_embeddings - 1} (max_position_embeddings)."
            )


def _check_values(edit: Edit, point: Point, config: LlamaConfig, layers: Sequence[int | None]) -> None:
    """Shapes of values: those of the chosen part, without batch and position; of `patch` with them."""
    sizes = _sizes(config)
    if edit.values is None:
        return
    if without := [layer for layer in layers if edit.value(layer) is None]:
        raise ValueError(f"{edit} has no values for layer {without[0]}; it has some for {list(edit.values)}.")
    chosen = [
        len(edit.heads) if edit.heads is not None and i == point.head_axis else
        len(edit.neurons) if edit.neurons is not None and axis == "d_mlp" else sizes.get(axis)
        for i, axis in enumerate(point.axes)
    ]  # fmt: skip
    for value in edit.values.values():
        if edit.kind == "patch":
            assert isinstance(edit.positions, tuple)
            chosen[point.position_axis] = len(edit.positions)
            fits = value.dim() == len(chosen) and all(
                size is None or size == found for size, found in zip(chosen, value.shape, strict=True)
            )
            needed = ", ".join(str(size or axis) for size, axis in zip(chosen, point.axes, strict=True))
        else:
            rest = chosen[2:]
            fits = value.dim() <= len(rest) and list(value.shape) == rest[len(rest) - value.dim() :]
            needed = " or ".join(str(tuple(rest[i:])) for i in range(len(rest))) + " or one number"
        if not fits:
            raise ValueError(f"{edit}: its values have shape {tuple(value.shape)}; needed is {needed}.")


# ----------------------------------------------------------------------------------------------------------- one tensor


def rows_of(edit: Edit, site: Site) -> Int[Tensor, " row"]:
    """The rows of the position axis that an edit changes."""
    return rows_at(edit.positions, site.positions)


def changed(edit: Edit, point: Point, tensor: Tensor, site: Site, rows: Int[Tensor, " row"]) -> Tensor:
    """The tensor after an edit. A new one: what the model or a capture holds stays as it is.

    Args:
        rows: those of `rows_of`, at least one.

    Raises:
        EditError: for a mean that depends on how the text is split, or values that do not fit the forward.
    """
    if edit.kind == "swap_kv":
        assert edit.heads is not None
        assert point.head_axis is not None
        order = list(range(tensor.shape[point.head_axis]))
        one, other = (head % len(order) for head in edit.heads)
        order[one], order[other] = order[other], order[one]
        return tensor.index_select(point.head_axis, torch.tensor(order, device=tensor.device))
    chosen = []
    if edit.heads is not None and point.head_axis is not None:
        count = tensor.shape[point.head_axis]
        chosen.append((point.head_axis, torch.tensor([head % count for head in edit.heads], device=tensor.device)))
    if edit.neurons is not None:
        axis, count = tensor.dim() - 1, tensor.shape[-1]
        chosen.append((axis, torch.tensor([neuron % count for neuron in edit.neurons], device=tensor.device)))
    return _changed(edit, point, tensor, site, rows, chosen)


def _changed(
    edit: Edit, point: Point, tensor: Tensor, site: Site, rows: Tensor, chosen: list[tuple[int, Tensor]]
) -> Tensor:
    """Picks the chosen heads and neurons one axis after the other, then the rows, and puts them back changed.
    `index_copy` leaves the tensor alone and lets gradients through.
    """
    if chosen:
        (axis, index), *rest = chosen
        part = _changed(edit, point, tensor.index_select(axis, index), site, rows, rest)
        return tensor.index_copy(axis, index, part)
    axis, index = point.position_axis, rows.to(tensor.device)
    part = tensor.index_select(axis, index)
    new = _new(edit, point, tensor, part, site, rows).to(part.dtype)
    if point.name == "scores":
        new = torch.where(part == -torch.inf, part, new)  # what the mask forbids stays forbidden
    return tensor.index_copy(axis, index, new)


def _new(edit: Edit, point: Point, tensor: Tensor, part: Tensor, site: Site, rows: Tensor) -> Tensor:
    """What the chosen part becomes."""
    value = edit.value(site.layer)
    value = None if value is None else value.to(part.device)
    if edit.kind == "zero":
        return torch.zeros_like(part)
    if edit.kind == "scale":
        return part * edit.factor
    if edit.kind == "mean":
        return (_mean_of(edit, tensor, site) if value is None else value).expand_as(part)
    assert value is not None
    if edit.kind == "add":
        return part + (value * edit.factor).to(part.dtype)
    assert isinstance(edit.positions, tuple)
    of_position = {position: row for row, position in enumerate(edit.positions)}
    at = [of_position[position] for position in site.positions[rows].tolist()]
    value = value.index_select(point.position_axis, torch.tensor(at, device=value.device))
    if value.shape[0] not in (1, part.shape[0]) or value.shape[1:] != part.shape[1:]:
        raise EditError(
            f"{edit} has values of shape {tuple(value.shape)} for {site.name!r}, where this forward has "
            f"{tuple(part.shape)} ({', '.join(point.axes)}). Patch from a forward of the same batch, or of one row."
        )
    return value.expand_as(part)


def _mean_of(edit: Edit, tensor: Tensor, site: Site) -> Tensor:
    """(batch, 1, …): the mean over the positions of this forward that are tokens."""
    if len(site.positions) == 1 or int(site.positions[0]) > 0:
        why = (
            f"it would be over position {int(site.positions[0])} alone"
            if len(site.positions) == 1
            else f"it would be over positions {int(site.positions[0])} … {int(site.positions[-1])} only"
        )
        raise EditError(
            f"{edit} takes the mean over the positions of a forward, and at {site.name!r} {why}, so the text's split "
            "into forwards would decide what it is. Give the mean: a tensor, or a capture."
        )
    tokens = site.tokens.to(tensor.device)
    tokens = tokens.view(*tokens.shape, *[1] * (tensor.dim() - 2))
    count = tokens.sum(1, keepdim=True).clamp(min=1)
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return tensor.masked_fill(~tokens, 0.0).sum(1, keepdim=True, dtype=wide) / count


def check_goes_on(edit: Edit, site: Site) -> None:
    """Of a forward in which a mean changes nothing, after one in which it did.

    Raises:
        EditError: if it goes on with the text in another chunk. Single tokens are those of a generation: the mean was
            over the prompt.
    """
    if edit.kind == "mean" and edit.values is None and len(site.positions) > 1 and int(site.positions[0]) > 0:
        raise EditError(
            f"{edit} took the mean over the positions of one forward, and at {site.name!r} another one goes on with "
            f"positions {int(site.positions[0])} … {int(site.positions[-1])}, so the text's split into forwards would "
            "decide what it is. Give the mean: a tensor, or a capture."
        )


def rows_changed(before: Tensor, after: Tensor, axis: int, rows: Int[Tensor, " row"] | None = None) -> Int[Tensor, ""]:
    """How many rows (one position of one batch row) differ in any number.

    Args:
        axis: that of positions.
        rows: the positions that may differ; default all.
    """
    if rows is not None:
        before, after = (x.index_select(axis, rows.to(x.device)) for x in (before, after))
    others = [i for i in range(1, before.dim()) if i != axis]
    return (before != after).sum(others).count_nonzero()


# ------------------------------------------------------------------------------------------------------------- one mask


def knocked_out(edit: Edit, mask: Mask, heads: int) -> tuple[Mask, Bool[Tensor, "batch head q k"]]:
    """The mask without the edges of a `knock_out`, and which cells were allowed to its heads before.

    Args:
        heads: of queries, in the model.
    """
    cells = edges_of(edit, mask)
    chosen = list(range(heads)) if edit.heads is None else [head % heads for head in edit.heads]
    lost = (mask.allowed() & cells)[:, None].expand(-1, len(chosen), -1, -1)
    if mask.extra is not None:
        lost = lost & (mask.extra.expand(-1, heads, -1, -1)[:, chosen] != -torch.inf)
    if not bool(lost.any()):
        return mask, lost
    if edit.heads is None:
        return _with_rule(mask, custom(~cells)), lost
    extra = torch.zeros(1, 1, *cells.shape) if mask.extra is None else mask.extra
    extra = extra.expand(-1, heads, -1, -1).clone()
    extra[:, chosen] = extra[:, chosen].masked_fill(cells, -torch.inf)
    return Mask(mask.rules, mask.q_pos, mask.k_pos, extra), lost


def edges_of(edit: Edit, mask: Mask) -> Bool[Tensor, "q k"]:
    """The cells of a mask that are edges of a `knock_out`."""
    q, k = mask.q_pos[:, None], mask.k_pos[None]
    if edit.edges is None:
        return _among(edit.queries, q) & _among(edit.keys, k)
    codes = torch.tensor([query << 32 | key for query, key in edit.edges])
    return torch.isin((q << 32) + k, codes) & (k >= 0)


def _among(wanted: Positions | None, positions: Tensor) -> Tensor:
    if wanted is None:
        return positions >= 0
    return positions >= wanted.start if isinstance(wanted, slice) else torch.isin(positions, torch.tensor(wanted))


def _with_rule(mask: Mask, rule: Rule) -> Mask:
    """One rule for all edits together: a mask has room for a few rules only."""
    rules = [one for one in mask.rules if one.name != KNOCKED_OUT]
    for one in mask.rules:
        if one.name == KNOCKED_OUT:
            rule = custom(rule.parameters["allowed"] & one.parameters["allowed"])  # type: ignore[arg-type]
    named = dataclasses.replace(rule, name=KNOCKED_OUT, letter="K")
    return Mask([*rules, named], mask.q_pos, mask.k_pos, mask.extra)
