"""Captures as tables, and the differences between two of them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor

from workbench.instrument.points import execution_order, layer_of, point_of

if TYPE_CHECKING:
    from workbench.instrument.activations import Activations


@dataclasses.dataclass(frozen=True)
class Difference:
    """Two captures compared in the order of execution.

    Attributes:
        table: one row a point that both have: `max` (largest |a − b|), `relative` (that, divided by the largest |a|),
            `position` (the first one where it exceeds the tolerance, −1 for none), `same_bits`. A number that is not
            finite on one side only differs by infinity.
        only_a, only_b: points that one of them has alone.
        tolerance: of `relative`.
    """

    table: pd.DataFrame
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    tolerance: float

    @property
    def first(self) -> str | None:
        """The first point, in the order of execution, that differs by more than the tolerance."""
        wrong = self.table[self.table["relative"] > self.tolerance]
        return None if wrong.empty else str(wrong["name"].iloc[0])

    def __bool__(self) -> bool:
        """Whether something differs by more than the tolerance."""
        return self.first is not None

    def __str__(self) -> str:
        worst = self.table["relative"].max() if len(self.table) else 0.0
        text = f"{len(self.table)} points compared; the largest relative difference is {worst:.2e}."
        if self.first is not None:
            row = self.table.set_index("name").loc[self.first]
            text += f" The first beyond {self.tolerance:g} is {self.first}, at position {row['position']}."
        for label, names in (("first", self.only_a), ("second", self.only_b)):
            if names:
                text += f" Only the {label} has {', '.join(names[:5])}{' …' if len(names) > 5 else ''}."
        return text


def difference(a: Activations, b: Activations, tolerance: float) -> Difference:
    """Compares the points that both have.

    Raises:
        ValueError: if they have none in common, or tensors of different shapes.
    """
    names = sorted(set(a) & set(b), key=execution_order)
    if not names:
        raise ValueError(
            f"the captures have no point in common: one has {', '.join(a) or 'none'}, the other "
            f"{', '.join(b) or 'none'}."
        )
    rows = [_compare(name, a[name], b[name], a.positions(name), tolerance) for name in names]
    only_a, only_b = (tuple(name for name in x if name not in y) for x, y in ((a, b), (b, a)))
    return Difference(pd.DataFrame(rows), only_a, only_b, tolerance)


def _compare(name: str, a: Tensor, b: Tensor, positions: Tensor, tolerance: float) -> dict[str, object]:
    if a.shape != b.shape:
        raise ValueError(
            f"{name!r} has shape {tuple(a.shape)} in one capture and {tuple(b.shape)} in the other. Compare captures "
            "of the same texts, positions and heads."
        )
    a, b = a.detach(), b.detach()
    x, y = a.double(), b.to(a.device).double()
    gap = torch.where((x == y) | (x.isnan() & y.isnan()), 0.0, (x - y).abs())  # −inf and −inf are equal
    gap = gap.nan_to_num(torch.inf, torch.inf)  # a NaN on one side only
    size = float(x[x.isfinite()].abs().max()) if x.isfinite().any() else 0.0
    axis = point_of(name).position_axis
    by_position = gap.movedim(axis, 0).flatten(1).amax(1) if gap.numel() else gap.new_zeros(0)
    beyond = (by_position > tolerance * (size or 1.0)).nonzero()
    largest = float(by_position.max()) if len(by_position) else 0.0
    return {
        "name": name,
        "layer": layer_of(name),
        "point": point_of(name).name,
        "max": largest,
        "relative": largest / size if size else largest,
        "position": int(positions[beyond[0, 0]]) if len(beyond) else -1,
        "same_bits": bool(torch.equal(a, b.to(a.device)) or largest == 0),
    }


def summary(acts: Activations) -> pd.DataFrame:
    """One row a captured tensor, in the order of execution; magnitudes of the finite numbers."""
    rows = []
    for name in acts:
        tensor, series = acts[name].detach(), acts.series(name)
        finite = tensor[tensor.isfinite()].double()
        rows.append(
            {
                "name": name,
                "layer": layer_of(name),
                "point": point_of(name).name,
                "shape": tuple(tensor.shape),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "bytes": series.nbytes,
                "stored": series.nbytes > 0,
                "mean": float(finite.mean()) if len(finite) else float("nan"),
                "rms": float(finite.square().mean().sqrt()) if len(finite) else float("nan"),
                "max": float(finite.abs().max()) if len(finite) else float("nan"),
            }
        )
    columns = ["name", "layer", "point", "shape", "dtype", "bytes", "stored", "mean", "rms", "max"]
    return pd.DataFrame(rows, columns=columns)


def table(acts: Activations, name: str) -> pd.DataFrame:
    """The numbers of one point: its last axis as columns, the others as index, positions by number in the text."""
    tensor, axes = acts[name].detach().float(), point_of(name).axes
    labels = []
    for axis, size in zip(axes, tensor.shape, strict=True):
        own = axis == axes[point_of(name).position_axis]
        heads = acts.heads if axis == "q_head" else acts.kv_heads if axis == "kv_head" else None
        labels.append(acts.positions(name).tolist() if own else list(heads) if heads is not None else list(range(size)))
    index = pd.MultiIndex.from_product(labels[:-1], names=axes[:-1])
    columns = pd.Index(labels[-1], name=axes[-1])
    return pd.DataFrame(tensor.reshape(-1, tensor.shape[-1]).cpu().numpy(), index=index, columns=columns)
