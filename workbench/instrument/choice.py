"""What of the named points is kept: positions, heads, precision, place; and which of them need not be stored."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from workbench.config import LlamaConfig
from workbench.instrument.names import whole_numbers
from workbench.instrument.points import Located, Point, base_of
from workbench.instrument.recipes import FROM_ATTENTION, INPUTS
from workbench.model import LlamaForCausalLM, LlamaModel


@dataclasses.dataclass(frozen=True)
class Choice:
    """The options of a capture, checked.

    Attributes:
        positions: a slice, or numbers in the order of the text; negative ones count from a forward's end.
        heads: query heads; `kv_heads` those that they read.
        keys_of_all: keys are kept of all positions, whatever `positions` says.
    """

    config: LlamaConfig
    positions: slice | tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    gradients: bool = False
    derive: bool = True
    spill: Path | None = None
    keys_of_all: bool = False

    @classmethod
    def of(
        cls,
        model: LlamaForCausalLM | LlamaModel,
        located: Sequence[Located],
        positions: slice | int | Iterable[int] | None = None,
        heads: int | Iterable[int] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        gradients: bool = False,
        derive: bool = True,
        spill: str | Path | None = None,
    ) -> Choice:
        """Checks them.

        Raises:
            TypeError, ValueError: for what cannot be.
        """
        config, names = model.config, {item.point.name for item in located}
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype is {dtype!r}; a floating-point torch dtype such as torch.bfloat16 is needed.")
        if gradients:
            _check_nothing_else(positions=positions, heads=heads, dtype=dtype, device=device, spill=spill)
        return cls(
            config,
            _positions(positions),
            _heads(heads, config.num_attention_heads),
            None if dtype == base_of(model).dtype else dtype,
            _device(device),
            gradients,
            derive and not gradients,
            _folder(spill),
            keys_of_all="q_rot" in names or bool(names & set(FROM_ATTENTION)),
        )

    @property
    def kv_heads(self) -> tuple[int, ...] | None:
        """The key/value heads that the kept query heads read."""
        return None if self.heads is None else tuple(sorted({head // self.config.n_rep for head in self.heads}))

    @property
    def heads_read(self) -> tuple[tuple[int, int], ...] | None:
        """Each kept query head, and which of the kept key/value heads it reads."""
        if self.heads is None or self.kv_heads is None:
            return None
        return tuple((head, self.kv_heads.index(head // self.config.n_rep)) for head in self.heads)

    def rows(self, start: int, count: int) -> tuple[int, ...] | None:
        """Which rows of a forward over `count` positions from `start` on are kept; `None` for all."""
        if self.positions is None:
            return None
        end = start + count
        if isinstance(self.positions, slice):
            wanted: Iterable[int] = range(end)[self.positions]
        else:
            wanted = {p + end if p < 0 else p for p in self.positions}
        rows = tuple(sorted(p - start for p in wanted if start <= p < end))
        return None if len(rows) == count else rows

    def filters(self, point: Point) -> bool:
        """Whether `positions` applies to a point."""
        if "slot" in point.axes:
            return False
        return self.positions is not None and not (self.keys_of_all and point.name == "k_rot")

    def heads_of(self, point: Point) -> tuple[int, ...] | None:
        """The heads of a point that are kept."""
        if self.heads is None or point.head_axis is None:
            return None
        return self.heads if point.axes[point.head_axis] == "q_head" else self.kv_heads

    def hidden(self, names: set[str]) -> set[str]:
        """Full names to keep besides those that were asked for, because attention patterns follow from them."""
        if not self.derive or self.dtype is not None:
            return set()
        wanted = {name.rpartition(".")[0] for name in names if name.rpartition(".")[2] in FROM_ATTENTION}
        return {f"{layer}.{short}" for layer in wanted for short in ("q_rot", "k_rot")} - names

    def derived(self, names: set[str], layers: int, rest: bool) -> dict[str, tuple[str, ...]]:
        """Full names that need not be stored, and what each is computed from.

        Args:
            names: the full names that are kept.
            layers: how many layers the model has.
            rest: whether the forward computes everything by the known functions; else only `scores` and `pattern`.
        """
        if not self.derive or self.dtype is not None:  # of rounded numbers others would follow
            return {}
        rest = rest and self.positions is None and self.device is None
        found: dict[str, tuple[str, ...]] = {}
        for name in names:
            inputs = _inputs(name, layers, rest)
            if inputs and all(i in names for i in inputs):
                found[name] = inputs
        return found


def _inputs(name: str, layers: int, rest: bool) -> tuple[str, ...]:
    head, _, short = name.rpartition(".")
    if short in FROM_ATTENTION:
        return f"{head}.q_rot", f"{head}.k_rot"
    if not rest or short not in INPUTS:
        return ()
    if short == "final_norm":
        return (f"layers.{layers - 1}.resid_post",)
    if short == "resid_pre":
        layer = int(head.split(".")[1])
        return ("embed",) if layer == 0 else (f"layers.{layer - 1}.resid_post",)
    return tuple(f"{head}.{i}" for i in INPUTS[short])


def _check_nothing_else(**choices: Any) -> None:
    """Raises `ValueError` for choices that exclude `gradients=True`."""
    if other := [name for name, value in choices.items() if value is not None]:
        raise ValueError(
            f"gradients=True keeps the forward's own tensors, so {', '.join(other)} cannot be applied. Leave "
            f"{'it' if len(other) == 1 else 'them'} out, and select from the captured tensors."
        )


def _positions(given: Any) -> slice | tuple[int, ...] | None:
    if given is None or isinstance(given, slice):
        if isinstance(given, slice) and not all(
            x is None or isinstance(x, int) for x in (given.start, given.stop, given.step)
        ):
            raise TypeError(f"positions is {given!r}; a slice of whole numbers is needed.")
        if isinstance(given, slice) and given.step is not None and given.step < 1:
            raise ValueError(
                f"positions is {given!r}; captured positions stay in the order of the text: give a step of 1 or more."
            )
        return given
    try:
        found = whole_numbers("positions", given)
    except TypeError:
        raise TypeError(f"positions is {given!r}; a slice or whole numbers are needed.") from None
    if not found:
        raise ValueError("positions is empty: nothing would be captured. Leave it out for all of them.")
    return found


def _heads(given: Any, count: int) -> tuple[int, ...] | None:
    if given is None:
        return None
    found = whole_numbers("heads", given)
    for head in found:
        if not -count <= head < count:
            raise ValueError(f"head {head} does not exist; this model has query heads 0 … {count - 1}.")
    if not found:
        raise ValueError("heads is empty: nothing would be captured. Leave it out for all of them.")
    return tuple(sorted({head % count for head in found}))


def _device(given: Any) -> torch.device | None:
    """Where to store.

    Raises:
        ValueError: if nothing can be stored there.
    """
    if given is None:
        return None
    try:
        device = torch.device(given)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device is {str(given)!r}, but nothing can be stored there: {str(error).splitlines()[0].rstrip('.')}."
        ) from None
    if device.type == "meta":
        raise ValueError("device is 'meta', which holds no numbers. To learn sizes only, use plan.")
    return device


def _folder(given: str | Path | None) -> Path | None:
    """Where to spill to.

    Raises:
        ValueError: if it is, or is in, something else than a folder.
    """
    if given is None:
        return None
    folder = Path(given)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"spill is {str(given)!r}, but {there} is a file; a folder is needed, which may be new.")
    return folder
