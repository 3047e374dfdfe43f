"""The ways of reading a text that have to give the same numbers, each as the forwards it is made of."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.analysis.cache_choice import ChosenCache
from workbench.analysis.consistency_points import Comparison, Reference, by_point
from workbench.cache import DynamicCache, KVCache
from workbench.instrument import POINTS, Cancelled, cancellable, capture
from workbench.instrument.points import base_of
from workbench.model import LlamaForCausalLM
from workbench.model.mask import Rule, causal, sink, window

WRONG = 3  # tokens that are read and taken back again
PADDING = 5  # positions
SINGLE = 2  # tokens read one by one at the end of a text, after a chunk


@dataclasses.dataclass(frozen=True)
class Run:
    """One way being tried: the model, the text, what it is compared with."""

    model: Any
    ids: Int[Tensor, "1 pos"]
    points: tuple[str, ...]
    comparison: Comparison
    stop: Callable[[], bool] | None = None

    def read(self, tokens: Tensor, cache: KVCache | None, shift: int = 0, compare: bool = True, **inputs: Any) -> None:
        """One forward, captured and compared."""
        with capture(self.model, *self.points, derive=False) as acts:
            forward(self.model, tokens, cache, self.stop, **inputs)
        if compare:
            self.comparison.forward(acts, shift)

    def read_on(self, cache: KVCache | None, sizes: Sequence[int]) -> None:
        """The text from where the cache is, in pieces."""
        start = 0 if cache is None else cache.length
        for size in sizes:
            self.read(self.ids[:, start : start + size], cache)
            start += size


@dataclasses.dataclass(frozen=True)
class Way:
    """A way of reading.

    Attributes:
        name: what it is called.
        run: reads.
        window, sinks: of the mask that the one pass it is compared with applies.
        exact: whether a comparison in float64 makes sense; False for a cache that has a data type of its own.
    """

    name: str
    run: Callable[[Run], None]
    window: int | None = None
    sinks: int = 0

    def rules(self) -> list[Rule] | None:
        """That mask; `None` for plain causality."""
        if self.window is None:
            return None
        return [causal(), window(self.window), *([sink(self.sinks)] if self.sinks else [])]


def forward(
    model: Any, tokens: Tensor, cache: KVCache | None, stop: Callable[[], bool] | None = None, **inputs: Any
) -> Any:
    """One forward, which can be stopped between layers."""
    with cancellable(model, stop) if stop is not None else contextlib.nullcontext():
        return model(tokens, past_key_values=cache, use_cache=cache is not None, return_dict=True, **inputs)


def one_pass(model: Any, ids: Tensor, points: tuple[str, ...], rules: list[Rule] | None, stop: Any = None) -> Reference:
    """What all ways are compared with: the whole text in one forward, without a cache."""
    with capture(model, *points, derive=False) as acts:
        forward(model, ids, None, stop, attention_mask=rules)
    return Reference.of(acts)


# ------------------------------------------------------------------------------------------------------------ the ways


def plain_ways(length: int, splits: Sequence[Sequence[int]], limit: int) -> list[Way]:
    """All but those of caches; `limit` is the largest position that may be read."""
    return [
        Way("hooks on every point", every_hook),
        *(Way(f"chunks of {_sizes(split)}", in_pieces(split)) for split in splits),
        Way("token by token", in_pieces([1] * length)),
        Way("left padding, in a batch", left_padded(limit)),
        Way("no cache, read again", again(splits)),
    ]


def cache_ways(chosen: ChosenCache, length: int, double: bool) -> list[Way]:
    """Of one cache: half of the text, a chunk, single tokens; and the same after wrong tokens were taken back."""
    probe = made(chosen)
    if probe is None:
        return []
    covers = probe.window is None or probe.window >= length
    seen = (None, 0) if covers else (probe.window, probe.sinks)
    changes = {"dtype": None} if double and chosen.options.get("dtype") is not None else {}
    half = length // 2

    def straight(run: Run) -> None:
        rest = length - half - min(SINGLE, length - half - 1)
        run.read_on(made(chosen, **changes), [half, rest, *[1] * (length - half - rest)])

    def cropped(run: Run) -> None:
        cache: Any = made(chosen, **changes)
        run.read_on(cache, [half])
        wrong = (run.ids[:, half : half + WRONG] + 1) % run.model.config.vocab_size
        run.read(wrong, cache, compare=False)
        cache.crop(half)
        run.read_on(cache, [length - half])

    name = f"{chosen.label} cache"
    return [Way(name, straight, *seen), Way(f"{name}, cropped", cropped, *seen)]


def made(chosen: ChosenCache, **changes: Any) -> KVCache | None:
    """The cache, without a word: an offloaded one warns where there is nothing to offload from, and is right there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return chosen.make(**changes)


def in_pieces(sizes: Sequence[int]) -> Callable[[Run], None]:
    """The text in pieces of these sizes, with a dynamic cache."""
    return lambda run: run.read_on(DynamicCache(), sizes)


def again(splits: Sequence[Sequence[int]]) -> Callable[[Run], None]:
    """Longer and longer beginnings of the text, each read from the start, at the borders of the splits."""

    def read(run: Run) -> None:
        ends = sorted({sum(split[: i + 1]) for split in splits for i in range(len(split))})
        for end in ends[-4:]:
            run.read(run.ids[:, :end], None)

    return read


def left_padded(limit: int) -> Callable[[Run], None]:
    """A row of a batch, padded on the left beside a longer one, with the positions that `generate` counts; the last
    tokens one by one.
    """

    def read(run: Run) -> None:
        pad = min(PADDING, max(1, limit - run.ids.shape[1]))
        text = run.ids[:, : limit - pad]
        shown = text.shape[1]
        config = run.model.config
        filler = text.new_full((1, pad), config.pad_token_id if config.pad_token_id is not None else 0)
        beside = text.flip(1).repeat(1, 1 + pad)[:, : pad + shown]
        batch = torch.cat((torch.cat((filler, text), 1), beside))
        keep = torch.ones(2, pad + shown, dtype=torch.long)
        keep[0, :pad] = 0
        positions = (keep.cumsum(-1) - 1) * keep
        cache, start = DynamicCache(), 0
        single = min(SINGLE, shown - 1)
        for size in [pad + shown - single, *[1] * single]:
            end = start + size
            at = positions[:, start:end].to(text.device)
            run.read(batch[:, start:end], cache, pad, attention_mask=keep[:, :end], position_ids=at)
            start = end

    return read


def every_hook(run: Run) -> None:
    """One pass with every point captured, against one pass without any hook: both by what they return and cache.

    What is compared is the residual stream between layers, the keys and values, and the logits.
    """
    plain = _without_looking(run.model, run.ids)
    points = [name for name in POINTS if name != "logits" or isinstance(run.model, LlamaForCausalLM)]
    with capture(run.model, *points, derive=False) as acts:
        hooked = _without_looking(run.model, run.ids, run.stop)
    run.comparison.reference = Reference(plain, run.comparison.reference.allowed)
    positions = torch.arange(run.ids.shape[1])
    for names in by_point(plain):
        for seen in ([acts[name][0] for name in names], [hooked[name] for name in names]):
            run.comparison.tensors(names, seen, positions, positions.tolist())


def _without_looking(model: Any, ids: Tensor, stop: Callable[[], bool] | None = None) -> dict[str, Tensor]:
    """Points that can be had without a hook, by full name, the position first."""
    if stop is not None and stop():
        raise Cancelled
    cache = DynamicCache()
    out = forward(model, ids, cache, stop, output_hidden_states=True)
    found: dict[str, Tensor] = {"final_norm": out.hidden_states[-1][0]}
    for layer in range(len(base_of(model).layers)):
        found[f"layers.{layer}.k_cached"] = cache.keys(layer)[0].transpose(0, 1)
        found[f"layers.{layer}.v_cached"] = cache.values(layer)[0].transpose(0, 1)
    for layer, state in enumerate(out.hidden_states[1:-1]):
        found[f"layers.{layer}.resid_post"] = state[0]
    if isinstance(model, LlamaForCausalLM):
        found["logits"] = out.logits[0]
    return found


def _sizes(split: Sequence[int]) -> str:
    """`32 + 32`, or `7` where all but the last are equal and many."""
    if len(split) > 3 and len(set(split[:-1])) == 1:
        return str(split[0])
    return " + ".join(map(str, split))
