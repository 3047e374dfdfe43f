"""Where the queries, keys, values and masks of a capture are, by position of the text."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.analysis.arguments import ranges, row_of, whole
from workbench.instrument import Activations
from workbench.model.mask import Mask
from workbench.model.mask_rules import kind_of

Slots = slice | Tensor
CELLS = 1 << 21  # of a mask, looked at at once


@dataclasses.dataclass(frozen=True)
class Forward:
    """One forward of the text: queries `start` to `stop` saw what `mask` allows. `step` is its number."""

    start: int
    stop: int
    mask: Mask | None
    step: int | None
    other_keys: tuple[int, ...] = ()  # layers that used other keys than those of `k_rot`

    @functools.cached_property
    def plain(self) -> bool:
        """Whether each query sees every position up to itself."""
        mask = self.mask
        if mask is None or mask.is_causal or (mask.allows_all and self.stop - self.start == 1):
            return True
        if mask.extra is not None or len(mask.rules) != 1 or not self.causal:
            return False
        return self.in_order and len(mask.k_pos) >= self.stop

    @functools.cached_property
    def in_order(self) -> bool:
        """Whether slot i holds position i."""
        return self.mask is None or torch.equal(self.mask.k_pos, torch.arange(len(self.mask.k_pos)))

    @functools.cached_property
    def causal(self) -> bool:
        """Whether a rule keeps every query from later positions."""
        if self.mask is None:
            return True
        excepted = {rule.excepts for rule in self.mask.rules}
        forbidding = [rule for rule in self.mask.rules if rule.excepts is None and rule.name not in excepted]
        return any(kind_of(rule) == "causal" for rule in forbidding)

    def reach(self, last: int) -> int:
        """How many positions, from 0, queries up to `last` can see at most."""
        if self.causal or self.mask is None:
            return min(last, self.stop)
        return int(self.mask.k_pos.max()) + 1

    def seen(self, first: int, last: int) -> int:
        """How many positions, from 0, queries `first` to `last` do see: every cell of theirs is looked at."""
        held, most = self.rules.k_pos, 0
        step = max(1, CELLS // max(1, len(held)))
        low, high = max(first, self.start) - self.start, min(last, self.stop) - self.start
        for start in range(low, high, step):
            some = self.rules.allowed(slice(start, min(start + step, high))).flatten(0, 1).any(0)
            most = max(most, int(held[some].max()) + 1) if bool(some.any()) else most
        return most

    def slots(self, count: int) -> tuple[Slots, Slots]:
        """The slots that hold positions below `count`, and these positions."""
        held = self.rules.k_pos
        if self.in_order:
            part = slice(0, min(count, len(held)))
            return part, part
        found = ((held >= 0) & (held < count)).nonzero()[:, 0]
        return found, held[found]

    @property
    def rules(self) -> Mask:
        """The mask, of a forward that has one."""
        assert self.mask is not None
        return self.mask


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Consecutive queries that read their keys from one place.

    Attributes:
        forwards: whose masks hold; none where each query sees every position up to itself.
        source: the forward whose cached keys or values were captured; `None` where those of `k_rot` and `v` count.
    """

    start: int
    stop: int
    forwards: tuple[Forward, ...]
    source: Forward | None


class Source:
    """A capture of one text, one row of its batch, read by position.

    Args and errors: see `AttentionMap`.

    Attributes:
        length: how many positions are looked at.
        end: how many there are. Where the mask lets queries see later positions, the first `length` may see them all.
    """

    def __init__(self, acts: Activations, length: int | None, mask: Mask | None, scale: float | None, row: int) -> None:
        self.acts = acts
        self.scale = scale
        batch = [acts.series(("q_rot", layer)).parts[0].shape[0] for layer in self.layers[:1]]
        self.row = row_of(row, batch[0]) if batch else whole(row, "row")
        self.forwards = _forwards(acts, mask)
        self.end = end = self.forwards[-1].stop if self.forwards else acts.length
        if length is not None and not 0 <= length <= end:
            raise ValueError(f"length is {length}, but this capture ends before position {end}: give 0 to {end}.")
        self.length = end if length is None else length
        self.given = mask is not None
        self._of_layer: dict[int, tuple[Forward, ...]] = {}

    @property
    def layers(self) -> list[int]:
        """The layers whose queries were captured."""
        names = [name.split(".") for name in self.acts]
        return sorted(int(parts[1]) for parts in names if len(parts) == 3 and parts[2] == "q_rot")

    def heads(self, layer: int) -> tuple[int, ...]:
        """The query heads that were captured."""
        if self.acts.heads is not None:
            return self.acts.heads
        return tuple(range(self.acts.series(("q_rot", layer)).parts[0].shape[2]))

    @property
    def has_all_heads(self) -> bool:
        """Whether every query head of the model was captured."""
        sizes = _sizes(self.acts)
        return self.acts.heads is None or (sizes is not None and len(self.acts.heads) == sizes[0])

    def read_by(self, layer: int) -> dict[int, int]:
        """The key/value head that each captured query head reads, by its number in the model."""
        heads = self.heads(layer)
        if self.acts.heads is None or self.acts.kv_heads is None:
            n_rep = len(heads) // self._kv_count(layer)
            return {head: head // n_rep for head in heads}
        return _read_by(heads, self.acts.kv_heads, self.acts)

    def groups(self, layer: int, heads: Sequence[int]) -> list[tuple[int, int, int]]:
        """Neighbours among `heads` that read one key/value head: (first, behind the last, its place in the capture)."""
        self.check_heads(layer, heads)
        read_by = self.read_by(layer)
        kept = self.acts.kv_heads
        found, low = [], 0
        for kv, members in groupby(read_by[head] for head in heads):
            high = low + len(list(members))
            found.append((low, high, kv if kept is None else kept.index(kv)))
            low = high
        return found

    @property
    def device(self) -> torch.device:
        """Where queries are, and what is computed from them."""
        return self.acts.window(("q_rot", self.layers[0]), 0, 1).device if self.layers else torch.device("cpu")

    def check_heads(self, layer: int, heads: Sequence[int]) -> None:
        """Raises `ValueError` for a query head that does not exist or was not captured."""
        known = self.heads(layer)
        for head in heads:
            if head not in known and self.acts.heads is not None:
                raise ValueError(f"head {head} was not captured; captured are query heads {ranges(known)}.")
            if head not in known:
                raise ValueError(f"head {head} does not exist; this layer has query heads {ranges(known)}.")

    def scale_of(self, layer: int, d_head: int) -> float:
        """What scores are multiplied by: what was given, or what the layer did."""
        return self.acts.scaling.get(layer, d_head**-0.5) if self.scale is None else self.scale

    # --- queries, keys, values -----------------------------------------------------------------------------------

    def positions(self, layer: int) -> Int[Tensor, " pos"]:
        """The positions whose queries were captured."""
        return self.acts.positions(("q_rot", layer))

    def queries(self, layer: int, heads: Sequence[int], start: int, stop: int) -> Float[Tensor, "q head d_head"]:
        """Rotated queries of consecutive positions.

        Raises:
            ValueError: if some of them were not captured.
        """
        self.check_heads(layer, heads)
        kept = self.positions(layer)
        wanted = torch.arange(start, stop)
        first = int(torch.searchsorted(kept, start))
        if not torch.equal(kept[first : first + len(wanted)], wanted):
            missing = wanted[~torch.isin(wanted, kept)].tolist()
            raise ValueError(
                f"the queries of positions {ranges(missing)} were not captured in layer {layer}; captured are "
                f"{ranges(kept.tolist())}. Look at these, or capture without positions=."
            )
        rows = self.acts.window(("q_rot", layer), first, first + len(wanted))
        known = self.heads(layer)
        return _pick(self._text(rows), [known.index(head) for head in heads]).float()

    def keys(self, layer: int, stretch: Stretch, places: Sequence[int]) -> Float[Tensor, "k kv_head d_head"]:
        """Rotated keys by position. Of a cache whose keys were captured, those that the forward really used; zeros
        where it held none.

        Args:
            places: which of the captured key/value heads.

        Raises:
            KeyError: if the layer's keys were not captured.
            ValueError: if some that are needed were not.
        """
        return self._by_position("k_rot", "k_cached", layer, stretch, places)

    def values(self, layer: int, stretch: Stretch, places: Sequence[int]) -> Float[Tensor, "k kv_head d_head"]:
        """Values by position, found as `keys` are."""
        return self._by_position("v", "v_cached", layer, stretch, places)

    def reach(self, forwards: Sequence[Forward], first: int, last: int) -> int:
        """How many positions, from 0, the keys of queries `first` to `last` are at.

        As many as they may see at most; as many as they do see where not all of those are there (any more).
        """
        own = [f for f in forwards if f.start < last and f.stop > first]
        most = max((f.reach(last) for f in own), default=last)
        return most if most <= self.end else max(last, *(f.seen(first, last) for f in own))

    def _by_position(self, short: str, cached: str, layer: int, stretch: Stretch, places: Sequence[int]) -> Tensor:
        forward, needed = stretch.source, self.reach(stretch.forwards, stretch.start, stretch.stop)
        if forward is not None and forward.step is not None and (cached, layer) in self.acts:
            held = _pick(self._text(self.acts.step((cached, layer), forward.step)), places)  # (slot, kv_head, d_head)
            if forward.mask is None:
                return held.float()
            slots, positions = forward.slots(needed)
            index = torch.arange(len(forward.rules.k_pos))[slots]
            if bool((lost := index >= len(held)).any()):
                self._refuse(cached, layer, stretch, forward.rules.k_pos[index[lost]].sort().values.tolist())
            if forward.in_order:
                return held.float()
            placed = held.new_zeros((needed, *held.shape[1:]), dtype=torch.float32)
            placed[positions] = held[slots].float()
            return placed
        kept = self.acts.positions((short, layer))[:needed]
        if not torch.equal(kept, torch.arange(needed)):
            missing = sorted(set(range(needed)) - set(kept.tolist()))
            if missing[0] >= self.end:
                self._refuse(short, layer, stretch, missing)
            raise ValueError(
                f"{short!r} of positions {ranges(missing)} was not captured in layer {layer}, and the queries up to "
                f"{stretch.stop - 1} need it. Capture {cached!r} too, or capture from position 0 on without positions=."
            )
        return _pick(self._text(self.acts.window((short, layer), 0, needed)), places).float()

    def _refuse(self, name: str, layer: int, stretch: Stretch, missing: list[int]) -> None:
        raise ValueError(
            f"{name!r} of positions {ranges(missing)} is not there in layer {layer}, and the queries up to "
            f"{stretch.stop - 1} may see them. Look at the capture as it was before it was cropped, or capture all of "
            "the text."
        )

    def _text(self, x: Tensor) -> Tensor:
        return x[self.row].detach()

    def _kv_count(self, layer: int) -> int:
        name = "k_rot" if ("k_rot", layer) in self.acts or ("k_cached", layer) not in self.acts else "k_cached"
        return int(self.acts.series((name, layer)).parts[0].shape[2])

    # --- masks ---------------------------------------------------------------------------------------------------

    def of_layer(self, layer: int) -> tuple[Forward, ...]:
        """The forwards with the masks that a layer applied: its own where they were captured."""
        if self.given:
            return self.forwards
        if layer not in self._of_layer:
            try:
                series = self.acts.series(("mask", layer))
            except KeyError:
                return self.forwards
            parts: dict[int, Any] = dict(zip(series.steps, series.parts, strict=True))
            self._of_layer[layer] = tuple(
                dataclasses.replace(forward, mask=parts[forward.step].mask) if forward.step in parts else forward
                for forward in self.forwards
            )
        return self._of_layer[layer]

    def is_causal(self, layer: int) -> bool:
        """Whether no query of a layer sees a later position."""
        return all(forward.causal for forward in self.of_layer(layer))

    def stretches(self, layer: int, start: int, stop: int) -> list[Stretch]:
        """Queries `start` to `stop`, cut where their keys are to be found elsewhere.

        Raises:
            ValueError: for queries that a given mask does not have, and where keys that were used were not captured.
        """
        forwards = self.of_layer(layer)
        if not forwards:
            return [Stretch(start, stop, (), None)]
        first, end = forwards[0].start, forwards[-1].stop
        if start < first or stop > end:
            raise ValueError(
                f"mask has queries {ranges(range(first, end))}, and {ranges(range(start, stop))} are asked for. Look "
                "at those it has, or give the mask of all of them."
            )
        by_step = not self.given and any((name, layer) in self.acts for name in ("k_cached", "v_cached"))
        if by_step:
            found = [Stretch(f.start, f.stop, () if f.plain else (f,), f) for f in forwards]
        else:
            if not self.given:
                _refuse_other_keys(forwards, layer, start, stop)
            found = []
            for plain, members in groupby(forwards, lambda forward: forward.plain):
                run = tuple(members)
                found.append(Stretch(run[0].start, run[-1].stop, () if plain else run, None))
        return [
            dataclasses.replace(s, start=max(s.start, start), stop=min(s.stop, stop))
            for s in found
            if s.start < stop and s.stop > start
        ]


def _forwards(acts: Activations, mask: Mask | None) -> tuple[Forward, ...]:
    if mask is not None:
        start = int(mask.q_pos[0]) if len(mask.q_pos) else 0
        if not torch.equal(mask.q_pos, torch.arange(start, start + len(mask.q_pos))):
            raise ValueError(f"mask has queries at {ranges(mask.q_pos.tolist())}; they must be consecutive positions.")
        return (Forward(start, start + len(mask.q_pos), mask, None),)
    spans = list(acts.spans)
    starts = ", ".join(str(span.start) for span in spans)
    if any(span.mask is None for span in spans) and not acts.is_one_text:
        masked = "with" if any(span.masked for span in spans) else "without"
        raise ValueError(
            f"this capture is not one unpadded text from position 0 (its forwards began at {starts}, {masked} "
            "an attention mask), so its mask is not simply causal. Capture one text, or give mask=."
        )
    if any(a.start + a.count != b.start for a, b in pairwise(spans)):
        raise ValueError(
            f"this capture is not one text: its forwards began at positions {starts}, and do not continue each other. "
            "Capture one text at a time."
        )
    return tuple(
        Forward(span.start, span.start + span.count, span.mask, i, span.other_keys) for i, span in enumerate(spans)
    )


def _refuse_other_keys(forwards: Sequence[Forward], layer: int, start: int, stop: int) -> None:
    for forward in forwards:
        if layer in forward.other_keys and forward.start < stop and forward.stop > start:
            raise ValueError(
                f"attention of layer {layer} at positions {ranges(range(forward.start, forward.stop))} did not use the "
                "keys that were captured: k_cached was edited, rows of the cache were reordered, or the text was read "
                "on in another cache. Capture 'k_cached' too."
            )


def _sizes(acts: Any) -> tuple[int, int] | None:
    """Query heads and key/value heads of the model that was captured, if it is there or a loaded file names them."""
    model = acts.model() if callable(acts.model) else None
    if model is not None:
        return model.config.num_attention_heads, model.config.kv_heads
    config = (acts.manifest or {}).get("config")
    if config is None:
        return None
    heads = config["num_attention_heads"]
    return heads, config.get("num_key_value_heads") or heads


def _read_by(heads: Sequence[int], kv_heads: Sequence[int], acts: Any) -> dict[int, int]:
    """Which key/value head each kept query head reads, where not all heads were kept."""
    sizes = _sizes(acts)
    counts = [sizes[0] // sizes[1]] if sizes is not None else range(1, max(heads) + 2)
    fitting = [n for n in counts if sorted({head // n for head in heads}) == list(kv_heads)]
    found = {tuple(head // n for head in heads) for n in fitting}
    if len(found) != 1:
        raise ValueError(
            f"which of the key/value heads {ranges(kv_heads)} each of the query heads {ranges(heads)} reads is not "
            "known any more: the model they were captured from is gone. Capture all heads."
        )
    return dict(zip(heads, found.pop(), strict=True))


def _pick(x: Float[Tensor, "pos head d_head"], places: Sequence[int]) -> Float[Tensor, "pos some d_head"]:
    """Some heads; neighbours as a view."""
    first, last = places[0], places[-1]
    return x[:, first : last + 1] if list(places) == list(range(first, last + 1)) else x[:, list(places)]
