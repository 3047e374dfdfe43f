"""Where two ways of reading a text first differ: point, layer and position."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.instrument import POINTS, Activations
from workbench.instrument.points import execution_order, layer_of, point_of
from workbench.model import LlamaForCausalLM
from workbench.model.mask import Mask

Names = tuple[str, ...]  # full names of one point, in the order of layers

# Enough to see that something differs: whatever attention computes is read from the first two, whatever a layer
# computes is in the third.
FEW = ("k_cached", "v_cached", "resid_post")
# To see where. Looking at scores and pattern would make attention compute otherwise; all they depend on is here.
ALL = tuple(name for name in POINTS if name not in ("scores", "pattern"))


@dataclasses.dataclass(frozen=True)
class Finding:
    """A difference beyond the tolerance.

    Attributes:
        name: full name of the point.
        position: of the token, in the text; of keys and values, of the token they belong to; of a mask, of the query.
        first, last: the positions that the forward in which it was seen had read.
        difference: largest |Δ| at the position, divided by the largest magnitude there; 1 for a mask, infinite for a
            key that is missing.
    """

    name: str
    position: int
    first: int
    last: int
    difference: float

    @property
    def point(self) -> str:
        """Its name without the layer."""
        return point_of(self.name).name

    @property
    def layer(self) -> int | None:
        """The layer, of points that have one."""
        return layer_of(self.name)


def points_of(model: Any, every: bool) -> tuple[str, ...]:
    """The points that are compared: few, or every one."""
    if every:
        return tuple(name for name in ALL if name != "logits" or isinstance(model, LlamaForCausalLM))
    return (*FEW, "logits" if isinstance(model, LlamaForCausalLM) else "final_norm")


class Reference:
    """What one pass over the text computed.

    Args:
        tensors: full name → numbers, the position first.
        allowed: which positions each query may attend to.
    """

    def __init__(self, tensors: Mapping[str, Tensor], allowed: Bool[Tensor, "pos pos"]) -> None:
        self.allowed = allowed
        self._stacks = {names: torch.stack([tensors[name] for name in names]) for names in by_point(tensors)}
        self._sizes: dict[Names, Tensor] = {}

    @classmethod
    def of(cls, acts: Activations) -> Reference:
        """Of a captured forward of one row, without a cache."""
        tensors = {name: acts[name][0] for name in acts if point_of(name).name != "mask"}
        return cls(tensors, acts.mask().allowed()[0])

    def __getitem__(self, names: Names) -> Float[Tensor, "layer pos ..."]:
        """One point of all layers."""
        return self._stacks[names]

    def sizes(self, names: Names) -> Float[Tensor, "layer pos"]:
        """The largest magnitude at each position, but no less than half of the layer's positions have.

        The residual stream of single tokens can be a hundred times as large as that of all others, so that a share of
        the largest magnitude anywhere would hide differences at the others.
        """
        if names not in self._sizes:
            sizes = self[names].abs().flatten(2).amax(2).to(torch.float64)
            floor = sizes.median(1, keepdim=True).values
            self._sizes[names] = torch.maximum(sizes, torch.where(floor > 0, floor, 1.0))
        return self._sizes[names]


def by_point(names: Iterable[str]) -> list[Names]:
    """Full names, those of a point together: one comparison for all layers is much cheaper than one for each."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names, key=execution_order):
        groups.setdefault(point_of(name).name, []).append(name)
    return [tuple(group) for group in groups.values()]


class Comparison:
    """Compares forwards with a reference, one after the other, holding none of them.

    Attributes:
        largest: the largest relative difference of all.
    """

    def __init__(self, reference: Reference, tolerance: float) -> None:
        self.reference, self.tolerance = reference, tolerance
        self.largest = 0.0
        self._found: dict[str, Finding] = {}

    @property
    def first(self) -> Finding | None:
        """The first difference: in the order in which a forward computes, then of the earliest forward, then of the
        earliest position.
        """
        return min(self._found.values(), key=lambda found: execution_order(found.name), default=None)

    def forward(self, acts: Activations, shift: int = 0) -> None:
        """One captured forward; only its first row counts, whose text begins behind `shift` positions of padding."""
        read = (acts.mask().q_pos - shift).tolist()
        for names in by_point(acts):
            if point_of(names[0]).name == "mask":
                self._mask(names, [acts.mask(layer_of(name)) for name in names], shift, read)
            else:
                tensors = [acts[name][0] for name in names]
                self.tensors(names, tensors, acts.positions(names[0]) - shift, read)

    def tensors(self, names: Names, found: Sequence[Tensor], positions: Int[Tensor, " pos"], read: list[int]) -> None:
        """One point of all layers: numbers, the position first, and the position of each row; rows that are not the
        text's do not count.
        """
        expected = self.reference[names]
        rows = ((positions >= 0) & (positions < expected.shape[1])).nonzero()[:, 0]
        at = positions[rows]
        if point_of(names[0]).name in ("k_cached", "v_cached"):
            self._missing(names, at, read)
        if not len(rows):
            return
        b = torch.stack([tensor.index_select(0, rows.to(tensor.device)) for tensor in found])
        a = expected.index_select(1, at.to(expected.device))
        gap = torch.where(a == b, 0.0, (a - b).abs()).flatten(2).amax(2)
        differences = gap.double() / self.reference.sizes(names)[:, at.to(expected.device)]
        self._note(names, at, differences.cpu().nan_to_num(torch.inf), read)

    def _missing(self, names: Names, held: Tensor, read: list[int]) -> None:
        """Keys that the forward's queries may attend to, and that attention was not given."""
        queries = [position for position in read if 0 <= position < len(self.reference.allowed)]
        missing = self.reference.allowed[queries].any(0)
        missing[held] = False
        at = missing.nonzero()[:, 0]
        self._note(names, at, torch.full((len(names), len(at)), torch.inf), read)

    def _mask(self, names: Names, masks: list[Mask], shift: int, read: list[int]) -> None:
        """Which keys each query may attend to, among those that there are: as in the reference, and no padding."""
        length = len(self.reference.allowed)
        rows = [i for i, position in enumerate(read) if 0 <= position < length]
        queries = torch.tensor([read[i] for i in rows], dtype=torch.long)
        wrong = torch.zeros(len(names), len(rows))
        for layer, mask in enumerate(masks):
            allowed, keys = mask.allowed()[0][rows], mask.k_pos - shift
            inside = (keys >= 0) & (keys < length)
            differ = (allowed[:, inside] != self.reference.allowed[queries][:, keys[inside]]).any(1)
            wrong[layer] = differ | allowed[:, ~inside].any(1)
        self._note(names, queries, wrong, read)

    def _note(self, names: Names, at: Int[Tensor, " pos"], differences: Float[Tensor, "layer pos"], read: Any) -> None:
        if not len(at):
            return
        self.largest = max(self.largest, float(differences.max()))
        for layer in (differences > self.tolerance).any(1).nonzero()[:, 0].tolist():
            if names[layer] not in self._found:
                beyond = (differences[layer] > self.tolerance).nonzero()[:, 0]
                i = int(beyond[at[beyond].argmin()])
                found = Finding(names[layer], int(at[i]), read[0], read[-1], float(differences[layer, i]))
                self._found[names[layer]] = found
