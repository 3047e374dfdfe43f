"""What a capture will hold and take, from shapes alone, before anything runs."""

from __future__ import annotations

import bisect
import dataclasses
import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workbench.instrument.choice import Choice
from workbench.instrument.names import resolve
from workbench.instrument.points import POINTS, Located, Point, base_of, execution_order, point_of
from workbench.instrument.recipes import FROM_ATTENTION
from workbench.instrument.speed import forward_seconds
from workbench.instrument.watching import attention_is_fused, known_forward, only_watched
from workbench.model import LlamaForCausalLM, LlamaModel

if TYPE_CHECKING:
    from workbench.instrument.activations import Activations

NEED_ALL_KEYS = ("scores", "pattern", "k_cached", "v_cached")
_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class CaptureBudgetError(MemoryError):
    """A forward whose captures would not fit, refused before it ran."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one forward would add to a capture.

    Attributes:
        rows: (point, tensors stored, bytes of each, tensors in all) of each point; those that are not stored are
            computed when they are looked at.
        tokens, batch: of the forward.
        seconds: what the forward would take, and with capturing, as far as sizes tell; `nan` if not asked for.
        budget: bytes that are allowed.
        advice: choices that would fit, if this one does not.
    """

    rows: tuple[tuple[str, int, int, int], ...]
    tokens: int
    batch: int
    seconds: tuple[float, float]
    budget: int
    advice: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes that the capture would hold after the forward."""
        return sum(count * size for _, count, size, _ in self.rows)

    @property
    def fits(self) -> bool:
        """Whether that is within the budget."""
        return self.nbytes <= self.budget

    def __str__(self) -> str:
        lines = [f"{'point':<12} {'tensors':>7} {'stored':>7} {'bytes each':>12} {'bytes':>14}"]
        for name, count, size, of in self.rows:
            lines.append(f"{name:<12} {of:>7} {count:>7} {size:>12,} {count * size:>14,}")
        lines.append(f"{self.batch} × {self.tokens} tokens: {human(self.nbytes)} of a budget of {human(self.budget)}")
        if not math.isnan(self.seconds[0]):
            lines.append(f"forward about {self.seconds[0]:.2f} s, with capture about {self.seconds[1]:.2f} s")
        return "\n".join([*lines, *(["too much. " + _either(self.advice)] if not self.fits else [])])


def plan(
    model: LlamaForCausalLM | LlamaModel,
    points: str | Iterable[str],
    tokens: int,
    *,
    batch: int = 1,
    past: int = 0,
    layers: Iterable[int] | None = None,
    positions: slice | Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    gradients: bool = False,
    derive: bool = True,
    budget: int | str | None = None,
) -> Plan:
    """Bytes and time of capturing a forward, from shapes: nothing runs but one matrix product to learn the speed.

    Args:
        points, layers, positions, heads, dtype, device, gradients, derive, budget: as for `capture`.
        tokens, batch: positions and rows that the forward reads, under `no_grad` unless gradients are kept: one that
            records them for nobody stores every point. `past` positions are already in its cache.

    Raises:
        ValueError: as `capture`, and for sizes below 1.
    """
    shape = _shape(tokens, batch, past)
    located = resolve(model, [points] if isinstance(points, str) else points, layers)
    choice = Choice.of(model, located, positions, heads, dtype, device, gradients, derive)
    base = base_of(model)
    with torch.set_grad_enabled(gradients):
        mode = Mode.now(base, past == 0)
    storage = Storage.of(located, choice, len(base.layers), mode)
    itemsize, allowed = (choice.dtype or base.dtype).itemsize, to_bytes(budget)
    sizes, total = storage.sizes(choice, itemsize, shape), storage.total(choice, itemsize, shape)
    forward = forward_seconds(model, batch * tokens, past + tokens)
    return Plan(
        rows=tuple((short, n, sizes[short], n + _count(storage.derived, short)) for short, n in storage.stored.items()),
        tokens=tokens,
        batch=batch,
        seconds=(forward, forward + total / 5e9),
        budget=allowed,
        advice=() if total <= allowed else what_fits(model, located, choice, mode, [shape], allowed),
    )


@dataclasses.dataclass(frozen=True)
class Shape:
    """A forward: rows, positions before, new positions, slots of the cache; rows of logits if not all."""

    batch: int
    start: int
    count: int
    slots: int
    logits: int | None = None


@dataclasses.dataclass(frozen=True)
class Mode:
    """What decides whether points have to be stored.

    Attributes:
        watched: nobody changes a number between two points, and attention makes no pattern of its own.
        known: everything is computed by the known functions.
        from_start: all keys that the forward sees are captured.
    """

    watched: bool
    known: bool
    from_start: bool

    @classmethod
    def now(cls, base: LlamaModel, from_start: bool) -> Mode:
        """That of a forward which begins now."""
        watched = attention_is_fused(base) and only_watched(base)
        return cls(watched, watched and known_forward(base), from_start)


@dataclasses.dataclass(frozen=True)
class Storage:
    """What a kind of forward stores: how many tensors of each point, and what the other names are computed from.

    `after` says which of these can be added once a point is there: it is the last of their inputs to come.
    """

    stored: dict[str, int]
    derived: dict[str, tuple[str, ...]]
    after: dict[str, list[str]]

    @classmethod
    def of(cls, located: Sequence[Located], choice: Choice, layers: int, mode: Mode) -> Storage:
        """The storage of forwards of one mode."""
        names = {item.full_name for item in located}
        kept = names | choice.hidden(names)
        derived = choice.derived(kept, layers, mode.known) if mode.watched else {}
        if not mode.from_start:
            derived = {n: i for n, i in derived.items() if point_of(n).name not in NEED_ALL_KEYS}
        counts: dict[str, int] = {}
        for name in sorted(kept, key=execution_order):
            counts[point_of(name).name] = counts.get(point_of(name).name, 0) + (name not in derived)
        after: dict[str, list[str]] = {}
        for name, inputs in sorted(derived.items(), key=lambda item: execution_order(item[0])):
            after.setdefault(max(inputs, key=execution_order), []).append(name)
        return cls(counts, derived, after)

    def sizes(self, choice: Choice, itemsize: int, shape: Shape) -> dict[str, int]:
        """Bytes that one forward adds for each tensor of a point."""
        return {
            short: 0 if short == "mask" else itemsize * _numbers(POINTS[short], choice, shape) for short in self.stored
        }

    def total(self, choice: Choice, itemsize: int, shape: Shape) -> int:
        """Bytes that one forward adds."""
        sizes = self.sizes(choice, itemsize, shape)
        return sum(self.stored[short] * size for short, size in sizes.items())


def _shape(tokens: Any, batch: Any, past: Any) -> Shape:
    for name, value, least in (("tokens", tokens, 1), ("batch", batch, 1), ("past", past, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}.")
    return Shape(batch, past, tokens, past + tokens)


def _numbers(point: Point, choice: Choice, shape: Shape) -> int:
    config = choice.config
    rows = choice.rows(shape.start, shape.count)
    kept = shape.count if rows is None or not choice.filters(point) else len(rows)
    if point.name == "logits" and shape.logits is not None:
        kept = min(kept, shape.logits)
    heads = choice.heads_of(point)
    sizes = {
        "batch": shape.batch,
        "pos": kept,
        "q_pos": kept,
        "k_pos": shape.slots,
        "slot": shape.slots,
        "d_model": config.hidden_size,
        "d_mlp": config.intermediate_size,
        "d_head": config.d_head,
        "vocab": config.vocab_size,
        "q_head": config.num_attention_heads if heads is None else len(heads),
        "kv_head": config.kv_heads if heads is None else len(heads),
    }
    total = 1
    for axis in point.axes:
        total *= sizes[axis]
    return total


def check_budget(
    model: LlamaForCausalLM | LlamaModel,
    located: Sequence[Located],
    choice: Choice,
    mode: Mode,
    shape: Shape,
    needed: int,
    acts: Activations,
    budget: int,
) -> None:
    """Refuses a forward, which adds `needed` bytes to a capture, if it would not fit. What is spilled is no matter of
    the budget, which is memory's: the folder's disk has to have room for it.

    Raises:
        CaptureBudgetError: if memory or the disk is too small; it says what would fit.
    """
    folder = choice.spill
    held, allowed = (acts.nbytes, budget) if folder is None else (0, free_on_disk(folder))
    if held + needed <= allowed:
        return
    shapes = [shape]
    for span in acts.spans if folder is None else ():
        batch = shape.batch if span.tokens is None else len(span.tokens)
        shapes.append(Shape(batch, span.start, span.count, span.start + span.count))
    raise refuse(needed, held, allowed, shape, what_fits(model, located, choice, mode, shapes, allowed), folder)


def what_fits(
    model: LlamaForCausalLM | LlamaModel,
    located: Sequence[Located],
    choice: Choice,
    mode: Mode,
    shapes: Sequence[Shape],
    allowed: int,
) -> tuple[str, ...]:
    """Other choices with which forwards of these shapes would take at most so many bytes."""

    def fits(located: Sequence[Located] = located, **changes: Any) -> bool:
        names = {item.point.name for item in located}
        keys_of_all = choice.keys_of_all and ("q_rot" in names or bool(names & set(FROM_ATTENTION)))
        other = dataclasses.replace(choice, keys_of_all=keys_of_all, **changes)
        return _bytes_of(base_of(model), located, other, mode, shapes) <= allowed

    found = []
    layers = sorted({item.layer for item in located if item.layer is not None})

    def of_layers(n: int) -> list[Located]:
        return [item for item in located if item.layer is None or item.layer in layers[:n]]

    if n := _most(len(layers) - 1, lambda n: fits(of_layers(n))):
        these = f"range({layers[0]}, {layers[0] + n})" if layers[n - 1] == layers[0] + n - 1 else str(layers[:n])
        found.append(f"{n} layer{'s' if n > 1 else ''} instead of {len(layers)} (layers={these})")
    if not choice.gradients:
        if choice.dtype is None and base_of(model).dtype.itemsize > 2 and fits(dtype=torch.bfloat16):
            found.append("dtype=torch.bfloat16")
        longest = max(shape.count for shape in shapes)
        if choice.positions is None and (n := _most(longest - 1, lambda n: fits(positions=slice(-n, None)))):
            found.append(f"positions=slice(-{n}, None)")
    if without := _points_to_leave_out(located, fits):
        found.append(f"the points without {', '.join(map(repr, without))}")
    if choice.spill is None and not choice.gradients:
        found.append('spill="folder" to keep them on disk')
    return tuple(found)


def _most(most: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to `most` that fits, 0 if none does."""
    return bisect.bisect_left(range(1, most + 1), True, key=lambda n: not fits(n)) if most > 0 else 0


def _points_to_leave_out(located: Sequence[Located], fits: Callable[[Sequence[Located]], bool]) -> list[str]:
    """The fewest points, last ones first, without which the others fit; none if not one does alone."""
    names = list(dict.fromkeys(item.point.name for item in located))
    alone = [name for name in names if fits([item for item in located if item.point.name == name])]
    kept: list[str] = []
    for name in alone:
        if fits([item for item in located if item.point.name in (*kept, name)]):
            kept.append(name)
    return [name for name in names if name not in kept] if kept else []


def _bytes_of(base: LlamaModel, located: Sequence[Located], choice: Choice, mode: Mode, shapes: Sequence[Shape]) -> int:
    total = 0
    itemsize = (choice.dtype or base.dtype).itemsize
    for from_start in {shape.start == 0 or mode.from_start for shape in shapes}:
        storage = Storage.of(located, choice, len(base.layers), dataclasses.replace(mode, from_start=from_start))
        these = [shape for shape in shapes if (shape.start == 0 or mode.from_start) == from_start]
        total += sum(storage.total(choice, itemsize, shape) for shape in these)
    return total


def refuse(
    needed: int, held: int, allowed: int, shape: Shape, choices: tuple[str, ...], folder: Path | None = None
) -> CaptureBudgetError:
    """The error of a forward that would not fit in memory, or on the disk that a folder is on."""
    limit = f"the budget is {human(allowed)}" if folder is None else f"there are {human(allowed)} free for {folder}"
    return CaptureBudgetError(
        f"capturing this forward of {shape.batch} × {shape.count} tokens would take {human(needed)}"
        + (f" besides the {human(held)} held already" if held else "")
        + f", but {limit}. Nothing ran. {_either(choices)}"
    )


def _count(names: Iterable[str], short: str) -> int:
    return sum(point_of(name).name == short for name in names)


def _either(choices: Sequence[str]) -> str:
    return "What would fit: " + "; or ".join([*choices, "a larger budget="]) + "."


def to_bytes(budget: Any) -> int:
    """`"500 MB"`, `"2 GiB"` or a number of bytes; `None` is what is free in memory.

    Raises:
        ValueError: for anything else.
    """
    if budget is None:
        return free_memory()
    if isinstance(budget, int) and not isinstance(budget, bool) and budget >= 0:
        return budget
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgG]?i?[bB]?)\s*", budget) if isinstance(budget, str) else None
    unit = match[2].upper() if match else "?"
    if match is None or unit not in _UNITS:
        raise ValueError(f'budget is {budget!r}; give bytes as a whole number, or a text such as "500 MB" or "2 GiB".')
    return int(float(match[1]) * _UNITS[unit])


def free_memory() -> int:
    """Bytes that can be taken without swapping, as far as the system tells."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        if found:
            return int(found[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 1 << 62  # unknown: nothing is refused


def free_on_disk(folder: Path) -> int:
    """Bytes that can be written to a folder, which need not be there yet."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def human(size: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000 or unit == "GB":
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1000
    raise AssertionError
