"""What a capture will hold and take, from shapes alone, before anything runs."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from workbench.instrument.choice import Choice
from workbench.instrument.names import resolve
from workbench.instrument.points import POINTS, Located, Point, base_of, execution_order, point_of
from workbench.instrument.watching import attention_is_fused, known_forward, only_watched
from workbench.model import LlamaForCausalLM, LlamaModel

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
        tokens, batch: positions and rows that the forward reads. `past` are already in its cache.

    Raises:
        ValueError: as `capture`, and for sizes below 1.
    """
    for name, value, least in (("tokens", tokens, 1), ("batch", batch, 1), ("past", past, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}.")
    located = resolve(model, [points] if isinstance(points, str) else points, layers)
    choice = Choice.of(model, located, positions, heads, dtype, device, gradients, derive)
    base, shape = base_of(model), Shape(batch, past, tokens, past + tokens)
    storage = Storage.of(located, choice, len(base.layers), Mode.now(base, past == 0))
    itemsize, allowed = (choice.dtype or base.dtype).itemsize, to_bytes(budget)
    sizes, total = storage.sizes(choice, itemsize, shape), storage.total(choice, itemsize, shape)
    forward = _forward_seconds(model, batch * tokens, past + tokens)
    return Plan(
        rows=tuple((short, n, sizes[short], n + _count(storage.derived, short)) for short, n in storage.stored.items()),
        tokens=tokens,
        batch=batch,
        seconds=(forward, forward + total / 5e9),
        budget=allowed,
        advice=() if total <= allowed else advice(model, located, choice, total, allowed),
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


def advice(
    model: LlamaForCausalLM | LlamaModel, located: Sequence[Located], choice: Choice, needed: int, allowed: int
) -> tuple[str, ...]:
    """Choices with which `needed` bytes would become at most `allowed`."""
    found = []
    layers = sorted({item.layer for item in located if item.layer is not None})
    share = max(allowed, 0) / needed
    if len(layers) > 1 and int(len(layers) * share) >= 1:
        found.append(f"{int(len(layers) * share)} layers instead of {len(layers)} (layers=…)")
    if choice.dtype is None and base_of(model).dtype.itemsize == 4 and share >= 0.5:
        found.append("dtype=torch.bfloat16")
    if choice.positions is None and share > 0:
        found.append(f"positions=slice(-n, None) with n at most {share:.0%} of the text")
    if len({item.point.name for item in located}) > 1:
        found.append("fewer points")
    return (*found, 'spill="folder" to keep them on disk')


def refuse(needed: int, held: int, allowed: int, shape: Shape, choices: tuple[str, ...]) -> CaptureBudgetError:
    """The error of a forward that would not fit."""
    return CaptureBudgetError(
        f"capturing this forward of {shape.batch} × {shape.count} tokens would take {human(needed)}"
        + (f" besides the {human(held)} held already" if held else "")
        + f", but the budget is {human(allowed)}. Nothing ran. {_either(choices)}"
    )


def _count(names: Iterable[str], short: str) -> int:
    return sum(point_of(name).name == short for name in names)


def _either(choices: Sequence[str]) -> str:
    return "What would fit: " + "; or ".join(choices) + "; or a larger budget=."


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


def human(size: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000 or unit == "GB":
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1000
    raise AssertionError


def _forward_seconds(model: LlamaForCausalLM | LlamaModel, rows: int, keys: int) -> float:
    """From the number of multiplications and the speed of one product, or of reading the weights once."""
    config = model.config
    weights = sum(p.numel() for p in base_of(model).layers.parameters())
    attention = 2 * rows * keys * config.num_attention_heads * config.d_head * config.num_hidden_layers
    flops_a_second, bytes_a_second = _speed(base_of(model).dtype, str(base_of(model).device))
    compute = (2 * rows * weights + 2 * attention) / flops_a_second
    return max(compute, weights * base_of(model).dtype.itemsize / bytes_a_second)


@functools.cache
def _speed(dtype: torch.dtype, device: str) -> tuple[float, float]:
    """Operations and bytes a second, of one small product and one sum."""
    if device == "meta":
        return math.nan, math.nan
    a, big = torch.ones(512, 512, dtype=dtype, device=device), torch.ones(1 << 22, device=device)
    return 2 * 512**3 / _seconds(lambda: a @ a), big.nbytes / _seconds(big.sum)


def _seconds(work: Callable[[], torch.Tensor]) -> float:
    work()
    began = time.perf_counter()
    for _ in range(3):
        work().view(-1)[0].item()  # waits for a GPU
    return (time.perf_counter() - began) / 3
