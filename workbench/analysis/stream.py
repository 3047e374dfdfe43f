"""The residual stream of one text, taken out of a capture: which states there are, of which positions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.analysis.arguments import row_of, whole, whole_numbers
from workbench.instrument import Activations

EMBED = -1  # the number of the state before the first layer
Layer = int | Literal["embed"]
Positions = slice | Iterable[int] | int | None


@dataclasses.dataclass(frozen=True)
class Stream:
    """The residual stream at some layers and positions of one text.

    Attributes:
        layers: of each state, the layer after which it is; −1 for the embedding.
        positions: of each column, its position in the text.
        names: the captured points that hold the states.
        rows: where on the captured position axis the columns are.
        row: of the batch.
    """

    acts: Activations
    layers: tuple[int, ...]
    positions: Int[Tensor, " pos"]
    names: tuple[str, ...]
    rows: Int[Tensor, " pos"]
    row: int

    def states(self, columns: slice = slice(None)) -> Float[Tensor, "state pos d_model"]:
        """The numbers, as captured, of some or all columns."""
        return torch.stack([take(self.acts, name, self.rows[columns], self.row) for name in self.names])


def residual_stream(
    acts: Activations,
    layers: Iterable[Layer] | None = None,
    positions: Positions = None,
    row: int = 0,
    keep: Any = None,
) -> Stream:
    """Looks up residual states of a capture.

    Args:
        acts: a capture of `embed` and `resid_post`, or of `resid_pre` (which lacks the state after the last layer).
        layers: numbers of layers, from 0, for the states after them, and `"embed"`; default all that were captured.
        positions: a slice or numbers of positions in the text, negative ones from the end; default all captured.
        row: of the batch, negative ones from the end.
        keep: for each position of the text whether it counts, such as a row of the attention mask; those with 0 are
            left out.

    Raises:
        KeyError: if no state was captured, or not that of a layer asked for.
        ValueError: for a position that was not captured, a capture of several texts, a row that does not exist.
        TypeError: for a position or row that is no whole number.
    """
    names = _state_names(acts)
    if not names:
        raise KeyError(
            "this capture has no residual states. Capture 'embed' and 'resid_post', or 'resid_pre'; captured are "
            f"{', '.join(acts) or 'no points'}."
        )
    chosen = sorted(names) if layers is None else [_layer(layer, names) for layer in layers]
    if not chosen:
        raise ValueError("layers is empty; name some, or leave it out for all that were captured.")
    rows, where = choose_positions(acts, names[chosen[0]], positions, keep)
    stream = Stream(acts, tuple(chosen), where, tuple(names[layer] for layer in chosen), rows, row)
    stream.states(slice(0, 1))  # a row that does not exist is refused here
    return stream


def choose_positions(
    acts: Activations, name: str, positions: Positions = None, keep: Any = None
) -> tuple[Int[Tensor, " pos"], Int[Tensor, " pos"]]:
    """Which rows of a captured point's position axis are wanted, and their positions in the text.

    Raises:
        ValueError: for a position that was not captured, several texts in one capture, `keep` of another length.
    """
    captured = acts.positions(name)
    if len(set(captured.tolist())) < len(captured):
        raise ValueError(
            f"this capture holds several texts: position {int(captured.mode().values)} was computed more than once. "
            "Capture one text at a time."
        )
    end = int(captured.max()) + 1
    rows = torch.arange(len(captured))
    if positions is not None:
        rows = _rows(captured, end, positions)
    if keep is not None:
        rows = rows[_kept(keep, end)[captured[rows]]]
    if not len(rows):
        raise ValueError(f"no captured position is left: positions is {positions!r}, captured are {_words(captured)}.")
    return rows, captured[rows]


def take(acts: Activations, name: str, rows: Int[Tensor, " pos"], row: int = 0) -> Tensor:
    """Some rows of a point's position axis, of one text of the batch: the axes behind batch, without gradients.

    Raises:
        ValueError: for a row of the batch that does not exist.
    """
    first, last = int(rows.min()), int(rows.max())
    part = acts.window(name, first, last + 1).detach()
    return part[row_of(row, len(part)), (rows - first).to(part.device)]


def followers(acts: Activations, positions: Int[Tensor, " pos"], row: int = 0) -> Int[Tensor, " pos"]:
    """The token after each position, as the capture's forwards read them; −1 where none is known."""
    known: dict[int, int] = {}
    for span in acts.spans:
        if span.tokens is not None:
            known.update(enumerate(span.tokens[row].tolist(), span.start))
    return torch.tensor([known.get(int(position) + 1, -1) for position in positions])


def _state_names(acts: Activations) -> dict[int, str]:
    """The point that holds the state after each layer."""
    found: dict[int, str] = {}
    for name in acts:
        head, _, short = name.rpartition(".")
        if short == "embed":
            found[EMBED] = name
        elif short in ("resid_post", "resid_pre"):
            layer = int(head.split(".")[1]) - (short == "resid_pre")
            if short == "resid_post" or layer not in found:
                found[layer] = name
    return found


def _layer(layer: Any, names: dict[int, str]) -> int:
    if isinstance(layer, str) and layer == "embed":
        number = EMBED
    else:
        try:
            number = whole(layer, "layer")
        except TypeError:
            number = EMBED
        if number < 0:
            raise ValueError(
                f"layers has {layer!r}; write numbers from 0, or 'embed' for the state before the first layer."
            )
    if number not in names:
        there = ", ".join("embed" if i == EMBED else str(i) for i in sorted(names))
        raise KeyError(f"the residual state after layer {layer} was not captured; there are those after {there}.")
    return number


def _rows(captured: Int[Tensor, " pos"], end: int, positions: Any) -> Int[Tensor, " pos"]:
    where = {int(position): row for row, position in enumerate(captured)}
    if isinstance(positions, slice):
        return torch.tensor([where[p] for p in range(end)[positions] if p in where], dtype=torch.long)
    given = whole_numbers(positions, "position")
    wanted = [p + end if p < 0 else p for p in given]
    missing = [p for p, q in zip(given, wanted, strict=True) if q not in where]
    if missing:
        raise ValueError(f"position {missing[0]} was not captured; captured are {_words(captured)}.")
    return torch.tensor([where[p] for p in wanted], dtype=torch.long)


def _kept(keep: Any, end: int) -> Bool[Tensor, " pos"]:
    flags = torch.as_tensor(keep).bool().cpu()
    if flags.shape != (end,):
        raise ValueError(
            f"keep has shape {tuple(flags.shape)}; one number for each of the text's {end} positions is needed, 0 "
            "where it is to be left out (a row of the attention mask)."
        )
    return flags


def _words(positions: Int[Tensor, " pos"]) -> str:
    numbers = positions.tolist()
    low, high = min(numbers), max(numbers)
    return f"{low} … {high}" if high - low + 1 == len(numbers) else ", ".join(map(str, numbers))
