"""Captured tensors addressed as [step, layer, position]."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench.instrument.points import POINTS, point_of

if TYPE_CHECKING:
    from workbench.instrument.activations import Activations

Index = int | slice


class Grid:
    """`acts.grid("resid_post")[step, layer, position]`: one point of every layer, over all forwards of a generation.

    Steps are the captured forwards (0 is the prompt's, or its first chunk), layers and positions have their own
    numbers; each may be an int or a slice. The result has one axis for each slice, in this order, then the batch and
    the point's other axes. With a KV cache each position was computed in one step only; a cell that a step did not
    compute is NaN in a slice and an error alone, and so are layers that were not captured. `[-1, …]` is the last step.

    Raises:
        ValueError: for a point that is not per layer, has no axis of single positions, or was not captured.
    """

    def __init__(self, acts: Activations, short: str) -> None:
        self.acts, self.short = acts, short
        layers = [int(name.split(".")[1]) for name in acts if point_of(name).name == short and "." in name]
        if not layers:
            raise ValueError(f"{short!r} was not captured in any layer; captured are {', '.join(acts) or 'no points'}.")
        if "pos" not in POINTS[short].axes:
            raise ValueError(f"{short!r} has axes {POINTS[short].axes}: no single positions to address. Use acts.step.")
        self.layers = layers
        last = max(int(acts.positions((short, layer)).max()) for layer in layers)
        self.shape = (len(acts.spans), max(layers) + 1, last + 1)

    def __getitem__(self, key: tuple[Index, Index, Index]) -> Tensor:
        if not isinstance(key, tuple) or len(key) != 3:
            raise IndexError("a grid is addressed by three numbers or slices: [step, layer, position].")
        ranges = [
            _range(i, size, name) for i, size, name in zip(key, self.shape, ("step", "layer", "position"), strict=True)
        ]
        if isinstance(key[1], int) and ranges[1][0] not in self.layers:
            raise IndexError(f"{self.short!r} was not captured in layer {ranges[1][0]}; captured are {self.layers}.")
        alone = all(isinstance(i, int) for i in key)
        sample = self.acts[self.short, self.layers[0]].select(1, 0)
        out = sample.new_full((*map(len, ranges), *sample.shape), torch.nan)
        for (a, step), (b, layer) in itertools.product(enumerate(ranges[0]), enumerate(ranges[1])):
            if layer in self.layers:
                self._fill(out[a, b], step, layer, ranges[2], alone)
        for axis in (2, 1, 0):
            if isinstance(key[axis], int):
                out = out.select(axis, 0)
        return out

    def _fill(self, out: Tensor, step: int, layer: int, wanted: range, alone: bool) -> None:
        name = f"layers.{layer}.{self.short}"
        places = {}
        if step in self.acts.series(name).steps:
            at = self.acts.series(name).steps.index(step)
            places = {int(p): i for i, p in enumerate(self.acts.series(name).positions[at])}
        found = [(i, places[p]) for i, p in enumerate(wanted) if p in places]
        if found:
            values = self.acts.step(name, step)
            rows, columns = (torch.tensor(part) for part in zip(*found, strict=True))
            out[rows] = values.index_select(1, columns).transpose(0, 1)
        elif alone:
            steps = [
                s
                for s, p in zip(self.acts.series(name).steps, self.acts.series(name).positions, strict=True)
                if wanted[0] in p
            ]
            where = (
                f"it was computed in step {', '.join(map(str, steps))}" if steps else "no step that was captured did"
            )
            raise IndexError(f"step {step} did not compute position {wanted[0]}; {where}.")


def _range(index: Index, size: int, what: str) -> range:
    if isinstance(index, slice):
        return range(size)[index]
    if not -size <= index < size:
        raise IndexError(f"{what} {index} does not exist; there are 0 … {size - 1}.")
    return range(index % size, index % size + 1)
