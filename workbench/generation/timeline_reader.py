"""One cache that holds the beginning of a path, and the forwards that read what is behind it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.cache import CACHES, KVCache, cache_options, make_cache
from workbench.config import LlamaConfig
from workbench.generation.timeline_tree import Node, Phase
from workbench.instrument import Edit, cancellable
from workbench.instrument.edit import StandingEdits
from workbench.instrument.edits import edits_to_json
from workbench.instrument.watching import only_observed
from workbench.model import LlamaForCausalLM

CHUNK = 512  # positions read by one forward: bounds the logits held and the wait for a stop
ROOM = 2048  # positions of a static cache whose size nobody has given

ShouldStop = Callable[[], bool] | None
OnProgress = Callable[[int, int], None] | None  # (positions read, positions to read)


class Observer(Protocol):
    """Who wants to see what a timeline's forwards compute."""

    def watch(self, start: int) -> contextlib.AbstractContextManager[Any]:
        """Is put around each forward; `start` is its first position."""
        ...

    def keep(self, start: int, nodes: Sequence[Node]) -> None:
        """What was watched counts: position `start` and the following ones are now those of `nodes`, and there are no
        others behind them.
        """
        ...

    def discard(self) -> None:
        """What was watched since does not count: it failed or was stopped."""
        ...


@dataclasses.dataclass(frozen=True)
class CacheChoice:
    """Which cache, by name, with its options.

    Raises:
        TypeError, ValueError: for a name, an option or a value that does not exist.
    """

    name: str = "dynamic"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, name: Any, options: Mapping[str, Any] | None, config: LlamaConfig) -> CacheChoice:
        """A choice that `make` can make."""
        if not isinstance(name, str) or name not in CACHES:
            raise ValueError(f"cache is {name!r}; allowed are {', '.join(CACHES)}.")
        if options is not None and not isinstance(options, Mapping):
            raise TypeError(f"cache_config is a {type(options).__name__}; give a dictionary of the cache's options.")
        given = {key: value for key, value in (options or {}).items() if value is not None}
        room = given.pop("max_cache_len", None) if name == "static" else None
        kind, known = cache_options(name, given)
        if kind == "static":
            known["max_cache_len"] = min(ROOM, config.max_position_embeddings) if room is None else room
        choice = cls(kind, known)
        choice.make(config)  # refuses values that are not allowed
        return choice

    def make(self, config: LlamaConfig) -> KVCache | None:
        """A new, empty one; `None` for "none"."""
        return make_cache(self.name, config, **self.options)

    @property
    def room(self) -> int | None:
        """How many positions it has room for; `None`: as many as come."""
        found: int | None = self.options.get("max_cache_len") if self.name == "static" else None
        return found

    @property
    def text(self) -> str:
        """The options as JSON."""
        return json.dumps(self.options, default=lambda value: str(value).removeprefix("torch."), sort_keys=True)


@dataclasses.dataclass(frozen=True)
class EditChoice:
    """Edits of all forwards.

    Attributes:
        given: as they were given.
        standing: what switches them on; `None` without edits, or without a model.
        text: their JSON; `None` where one of them is a function.
    """

    given: Any = ()
    standing: StandingEdits | None = None
    text: str | None = "[]"

    @classmethod
    def of(cls, edits: Any, model: LlamaForCausalLM | None) -> EditChoice:
        """Checked against the model.

        Raises:
            TypeError, ValueError: as `workbench.edit`.
        """
        if edits is None or (not isinstance(edits, Edit) and isinstance(edits, Sequence | Mapping) and not edits):
            return cls()
        given: Any = [edits] if isinstance(edits, Edit) else edits
        if isinstance(given, Iterable) and not isinstance(given, Mapping | str | Tensor):
            given = list(given)
        standing = None if model is None else StandingEdits(model, given)
        ready_made = isinstance(given, list) and all(isinstance(one, Edit) for one in given)
        return cls(given, standing, edits_to_json(given) if ready_made else None)


@dataclasses.dataclass(frozen=True)
class Read:
    """What one forward gave.

    Attributes:
        start, hidden, logits: final hidden states (after the norm, on the CPU, its own) and logits of the positions
            from `start` on that were asked for.
        count: how many positions it computed.
        ms, cache_bytes, phase: see `Node`.
        fixed: whether something else than the head had a say in the logits.
    """

    start: int
    hidden: Float[Tensor, "row d_model"]
    logits: Float[Tensor, "row vocab"]
    count: int
    ms: float
    cache_bytes: int
    phase: Phase
    fixed: bool


class PathReader:
    """Reads texts with a model; what they begin with and the cache already holds is not computed again.

    Attributes:
        cached: the node at each position that the cache holds.
        rope_limit: the longest text that rotary embeddings of type "longrope" rotate with the short factors; 0 with
            others. (Those of "dynamic" change only past the model's length, where no text is read.)
        observer: who sees the forwards.
    """

    def __init__(self, model: LlamaForCausalLM | None, choice: CacheChoice, edits: EditChoice) -> None:
        self.model = model
        self.choice = choice
        self.cache = None if model is None else choice.make(model.config)
        self.cached: list[int] = []
        self.edit_sets = [EditChoice()]
        self.edit_set = 0
        rope = {} if model is None else model.config.rope
        self.rope_limit = int(rope["original_max_position_embeddings"]) if rope.get("rope_type") == "longrope" else 0
        self._long = False  # whether what the cache holds is rotated as a long text
        self.observer: Observer | None = None
        self.use_edits(edits)

    # --- what it reads with ------------------------------------------------------------------------------------------

    @property
    def edits(self) -> EditChoice:
        """Those of all forwards from now on."""
        return self.edit_sets[self.edit_set]

    def use_edits(self, edits: EditChoice) -> None:
        """Other edits from now on. What was computed without them is not taken for what they give."""
        same = [i for i, known in enumerate(self.edit_sets) if edits.text is not None and known.text == edits.text]
        before, self.edit_set = self.edit_set, same[0] if same else len(self.edit_sets)
        if not same:
            self.edit_sets.append(edits)
        if self.edit_set != before:
            self.edit_sets[before] = EditChoice(text=self.edit_sets[before].text)  # holds no tensors
            self.edit_sets[self.edit_set] = edits  # with a ledger that begins anew
            self.cut(0)

    def use_cache(self, choice: CacheChoice, cache: KVCache | None) -> None:
        """Another, empty cache from now on; it takes over what the one before holds if its own would be the same."""
        old, length = self.cache, len(self.cached)
        kept = False
        if (
            cache is not None
            and old is not None
            and length
            and old.exact
            and _seen(old, length) == _seen(cache, length)
        ):
            with contextlib.suppress(ValueError):  # the old one has forgotten some, or there are too many
                self.cut(length)
                cache.copy_from(old)
                kept = True
        self.choice, self.cache = choice, cache
        self.cached = self.cached if kept else []

    def regime(self, length: int, end: int | None = None) -> str:
        """What the last of `length` positions is computed under: equal texts give equal numbers where this is equal.

        Args:
            end: length of the text that was read with it, if it was longer.
        """
        parts = [f"edits {self.edit_set}"]
        if self.rope_limit:
            parts.append("long" if self._is_long(length if end is None else end) else "short")
        if self.cache is not None and (seen := _seen(self.cache, length)):
            parts.append(f"window {seen}")
        if self.cache is not None and not self.cache.exact:
            parts.append(f"{self.choice.name} {self.choice.text}")
        return ", ".join(parts)

    @property
    def room(self) -> int | None:
        """How many positions the cache has room for; `None`: as many as come."""
        return self.choice.room

    def head(self, hidden: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        """Logits of final hidden states."""
        assert self.model is not None
        found: Tensor = self.model.lm_head(hidden.to(self.model.device))
        return found

    # --- reading -----------------------------------------------------------------------------------------------------

    def cut(self, length: int, end: int | None = None) -> int:
        """Makes the cache hold the first `length` positions at most; returns how many it does hold.

        Where it cannot be cropped so far it holds none. An interrupt between two statements is healed, too.

        Args:
            end: length of the text that is about to be read; what is rotated otherwise than that is not held.
        """
        cache = self.cache
        if cache is None:
            self.cached = []
            return 0
        wanted = self._long if end is None else self._is_long(end)
        length = min(length, len(self.cached), cache.length) if wanted == self._long else 0
        if length < cache.length:
            if length and cache.can_crop(length):
                cache.crop(length)
            else:
                cache.reset()
                length = 0
        del self.cached[length:]
        self._long = wanted
        return length

    def _is_long(self, length: int) -> bool:
        return 0 < self.rope_limit < length

    def read(
        self,
        tokens: Sequence[int],
        start: int,
        needed: int,
        should_stop: ShouldStop = None,
        on_progress: OnProgress = None,
    ) -> Iterator[Read]:
        """Forwards over tokens whose first one is at position `start`, the cache's length.

        Args:
            needed: the first position whose hidden state and logits are wanted.
            should_stop: asked before every layer.
            on_progress: told how far it is, at every layer.

        Raises:
            Cancelled: if stopped.
        """
        total = len(tokens)
        at_once = self.cache is None or start < self.rope_limit < start + total  # no going on, or not alike
        step = total if at_once else CHUNK
        layers = self.model.config.num_hidden_layers if self.model is not None else 1
        for done in range(0, total, step):
            part = tokens[done : done + step]

            def on_layer(index: int, done: int = done, count: int = len(part)) -> None:
                if on_progress is not None:
                    on_progress(done + count * index // layers, total)

            with contextlib.ExitStack() as stack:
                if self.edits.standing is not None:
                    stack.enter_context(self.edits.standing.applied())
                if should_stop is not None or on_progress is not None:
                    stack.enter_context(cancellable(self.model, should_stop or _never, on_layer))  # type: ignore[arg-type]
                found = self._forward(part, start + done, needed, stack)
            yield found

    @torch.no_grad()
    def _forward(self, tokens: Sequence[int], start: int, needed: int, stack: contextlib.ExitStack) -> Read:
        model, cache = self.model, self.cache
        assert model is not None
        rows = max(0, start + len(tokens) - max(start, needed))
        # An edit of logits is to have its effect at all positions, whoever looks at them.
        keep = 0 if self.edits.standing is not None else max(rows, 1)
        if self.observer is not None:
            stack.enter_context(self.observer.watch(start))
        fixed = not (only_observed(model.hook_logits) and only_observed(model.lm_head))
        began = time.perf_counter()
        out = model(
            torch.tensor([tokens], device=model.device),
            past_key_values=cache,
            use_cache=cache is not None,
            logits_to_keep=keep,
            output_hidden_states=True,
            return_dict=True,
        )
        hidden = out.hidden_states[-1][0, len(tokens) - rows :].to("cpu", copy=True)  # waits for a GPU
        ms = (time.perf_counter() - began) * 1e3
        logits = out.logits[0]
        return Read(
            start=start + len(tokens) - rows,
            hidden=hidden,
            logits=logits[len(logits) - rows :],
            count=len(tokens),
            ms=ms,
            cache_bytes=0 if cache is None else cache.nbytes,
            phase="decode" if len(tokens) == 1 and start else "prefill",
            fixed=fixed,
        )


def _seen(cache: KVCache, length: int) -> str:
    """What a text's last position sees of it: nothing to say if that is all."""
    if cache.window is None or length <= cache.window + cache.sinks:
        return ""
    return f"{cache.window}+{cache.sinks}"


def _never() -> bool:
    return False
