"""Several KV caches read the same tokens in lock step: what each holds, costs, and changes in what the model computes.

The first cache is the reference: its greedy choices are the tokens that all of them read. A step is one forward of each
cache: step 0 reads the prompt, every later one the token before.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.analysis.cache_choice import CacheSpec, ChosenCache, choose_caches, one_text, with_tokenizer
from workbench.analysis.cache_report import report, summary
from workbench.cache import KVCache
from workbench.instrument import Activations, Cancelled, cancellable, capture, resolve
from workbench.model import LlamaForCausalLM
from workbench.model.rope import angles_change_after

SEEN = ("k_cached", "v_cached", "resid_post")
VARYING_LENGTH = "dynamic"  # the RoPE that is made to go past the length a model was trained for


@dataclasses.dataclass(frozen=True, eq=False)
class CacheComparison:
    """What `compare_caches` found; printed, it is `report()`.

    Attributes:
        steps: one row a step and cache, the reference's too: `step`, `phase` ("prefill" or "decode"), `cache`,
            `position` (of the last token read), `token` (id, what the reference chose), `choice` (id, what this cache
            would have chosen), `text` and `choice_text` (of them, with a tokenizer), `same_choice`, `max_logit`
            (largest |Δ logit| over the vocabulary), `kl` (KL(reference ‖ this) of the next token, in nats), `bytes`
            (held after the step), `held` (positions held in layer 0), `computed` (positions read), `ms` (of a plain
            forward).
        layers: one row a step, cache but the reference, and layer: `max_k`, `max_v` (largest |Δ| of the keys and values
            that attention used, over the `positions` that both caches gave it), `max_hidden` (largest |Δ| of
            `resid_post`, over the positions that were read).
        summary: one row a cache: `bytes` and `held` at the end, `bytes_ratio` (the reference's bytes over its own),
            `prefill_ms`, `decode_ms` (median of a step), the largest `max_k`, `max_v`, `max_hidden`, `max_logit` of
            all, `mean_kl` and `max_kl` (nats), `agreement` (share of steps with the reference's choice),
            `first_divergence` (the first step with another choice; `<NA>` for none), `window`, `sinks`, `exact`.
        caches: labels, the reference's first.
        tokens: ids that the reference chose, one a finished step.
        prompt_length: tokens of the prompt.
        angles_change: after how many positions all RoPE angles were others (dynamic, longrope); `None` if never.
        stopped: whether `should_stop` ended it early; the finished steps are here.
    """

    steps: pd.DataFrame
    layers: pd.DataFrame
    summary: pd.DataFrame
    caches: tuple[str, ...]
    tokens: tuple[int, ...]
    prompt_length: int
    stopped: bool
    angles_change: int | None = None

    def report(self) -> str:
        """The summary as an aligned text, with what has to be known to read it."""
        return report(self.summary, self.steps, self.prompt_length, self.stopped, self.angles_change)

    def __str__(self) -> str:
        return self.report()


@torch.no_grad()
def compare_caches(
    model: Any,
    prompt: str | Iterable[int] | Int[Tensor, "1 pos"],
    caches: Iterable[CacheSpec] = ("dynamic", "quantized"),
    new_tokens: int = 64,
    *,
    tokenizer: Any = None,
    layers: Iterable[int] | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> CacheComparison:
    """Runs one text through several caches, step by step, and measures how they differ from the first.

        print(compare_caches(load(), "The ferry left", ["dynamic", ("quantized", {"bits": 4}), "none"]))

    Every step is computed twice: once on a copy of each cache with keys, values and hidden states captured and
    compared, then plainly on the caches themselves, one right after the other. `ms` are of the second forward, logits
    too; so a time has no captures, copies or comparisons in it. Cost: 2 · new_tokens forwards a cache; memory: one copy
    of one cache, and what two forwards capture. An end-of-text token ends nothing.

    Args:
        model: a `LlamaForCausalLM`, or what `load()` returned.
        prompt: a text (which needs a tokenizer), or ids of one text.
        caches: two or more: names (`"none"` reads the whole text again at every step), (name, options), dicts with a
            "name", or caches of one's own, which are emptied and hold the text afterwards.
        new_tokens: how many tokens are chosen.
        layers: whose keys, values and hidden states are compared; default all.
        should_stop: asked between forwards, and between layers where they are captured.
        on_progress: told (finished steps, all steps).

    Raises:
        TypeError: for a model without a language-model head, or what is no cache or text.
        ValueError: for fewer than two caches, an unknown cache or option, a cache with too little room, a text without
            tokenizer, an empty prompt, `new_tokens` below 1, more positions than the model was made for, a layer that
            it does not have. Nothing has run then.
    """
    model, tokenizer = with_tokenizer(model, tokenizer)
    if not isinstance(model, LlamaForCausalLM):
        raise TypeError(f"model is a {type(model).__name__}; a LlamaForCausalLM is needed, or what load() returned.")
    if isinstance(new_tokens, bool) or not isinstance(new_tokens, int) or new_tokens < 1:
        raise ValueError(f"new_tokens is {new_tokens!r}; a whole number of at least 1 is needed.")
    ids = one_text(model, tokenizer, prompt)
    chosen = _choose(model, caches, ids.shape[1], new_tokens)
    seen = sorted({item.layer for item in resolve(model, ["resid_post"], layers) if item.layer is not None})
    run = _Run(model, tokenizer, ids, chosen, seen, should_stop or (lambda: False))
    was_training = model.training
    model.eval()
    try:
        stopped = run.all_steps(new_tokens, on_progress)
    finally:
        model.train(was_training)
    return run.result(stopped)


def _choose(model: LlamaForCausalLM, caches: Any, length: int, new_tokens: int) -> list[ChosenCache]:
    limit, total = model.config.max_position_embeddings, length + new_tokens
    if total > limit and model.config.rope["rope_type"] != VARYING_LENGTH:
        raise ValueError(
            f"a prompt of {length} tokens and {new_tokens} new ones make {total} positions; the model was made for "
            f"{limit} (max_position_embeddings). Shorten the prompt or lower new_tokens."
        )
    chosen = choose_caches(caches, model.config, total)
    if len(chosen) < 2:
        raise ValueError(
            f"caches names {len(chosen)} of them; two or more are needed, the first of which is the reference: "
            'caches=["dynamic", "quantized"].'
        )
    return chosen


@dataclasses.dataclass
class _Reader:
    """One cache, and what is known of it."""

    chosen: ChosenCache
    cache: KVCache | None

    def inputs(self, text: Tensor, new: int) -> Tensor:
        """What it has not read yet: without a cache everything."""
        return text if self.cache is None else text[:, -new:]


class _Run:
    """The lock step. `steps` and `layers` are the rows of finished steps."""

    def __init__(
        self,
        model: LlamaForCausalLM,
        tokenizer: Any,
        ids: Tensor,
        chosen: list[ChosenCache],
        layers: list[int],
        stop: Callable[[], bool],
    ) -> None:
        self.model, self.tokenizer, self.text, self.seen, self.stop = model, tokenizer, ids, layers, stop
        self.prompt_length = ids.shape[1]
        self.readers = [_Reader(one, one.make()) for one in chosen]
        self.steps: list[dict[str, Any]] = []
        self.layers: list[dict[str, Any]] = []

    def all_steps(self, count: int, on_progress: Callable[[int, int], None] | None) -> bool:
        """Whether it was stopped before the end."""
        for step in range(count):
            try:
                layers = self._captured(step)
                steps = self._timed(step)
            except Cancelled:
                return True
            self.steps += steps
            self.layers += layers
            if on_progress is not None:
                on_progress(step + 1, count)
        return False

    def _captured(self, step: int) -> list[dict[str, Any]]:
        """The step on copies of the caches: rows of the differences, layer by layer."""
        new = self.prompt_length if step == 0 else 1
        rows, reference = [], None
        for reader in self.readers:
            copy = None if reader.cache is None else reader.cache.clone()
            with cancellable(self.model, self.stop), capture(self.model, *SEEN, layers=self.seen) as acts:
                self._forward(reader.inputs(self.text, new), copy)
            del copy  # before the next one is made
            if reference is None:
                reference = acts
                continue
            for layer in self.seen:
                found = compare_layer(reference, acts, layer, new)
                rows.append({"step": step, "cache": reader.chosen.label, "layer": layer, **found})
        return rows

    def _timed(self, step: int) -> list[dict[str, Any]]:
        """The step itself, the text one token longer after it."""
        new = self.prompt_length if step == 0 else 1
        rows, reference = [], None
        for reader in self.readers:
            if self.stop():
                raise Cancelled
            inputs = reader.inputs(self.text, new)
            started = time.perf_counter()
            logits = self._forward(inputs, reader.cache).float().cpu()  # on a GPU, waits for it
            ms = (time.perf_counter() - started) * 1e3
            reference = logits if reference is None else reference
            rows.append(
                {
                    "step": step,
                    "phase": "decode" if step else "prefill",
                    "cache": reader.chosen.label,
                    "position": self.text.shape[1] - 1,
                    **compare_logits(reference, logits),
                    "bytes": 0 if reader.cache is None else reader.cache.nbytes,
                    "held": 0 if reader.cache is None else int((reader.cache.positions(0) >= 0).sum()),
                    "computed": inputs.shape[1],
                    "ms": ms,
                }
            )
        token = rows[0]["choice"]
        text = self._shown(token)
        self.text = torch.cat((self.text, self.text.new_tensor([[token]])), 1)
        for row in rows:
            choice = row["choice"]
            row |= {"token": token, "text": text, "same_choice": choice == token, "choice_text": self._shown(choice)}
        return rows

    def _shown(self, token: int) -> str | None:
        return None if self.tokenizer is None else self.tokenizer.decode([token])

    def _forward(self, inputs: Tensor, cache: KVCache | None) -> Float[Tensor, " vocab"]:
        out: Any = self.model(
            inputs, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1, return_dict=True
        )
        logits: Tensor = out.logits[0, -1]
        return logits

    def result(self, stopped: bool) -> CacheComparison:
        """The tables of the finished steps."""
        steps = pd.DataFrame(self.steps, columns=STEP_COLUMNS)
        layers = pd.DataFrame(self.layers, columns=LAYER_COLUMNS)
        kinds = [(reader.chosen.label, reader.cache) for reader in self.readers]
        tokens = tuple(self.text[0, self.prompt_length :].tolist())
        labels = tuple(label for label, _ in kinds)
        table = summary(steps, layers, kinds)
        limit = angles_change_after(self.model.config)
        passed = limit if limit is not None and self.text.shape[1] - 1 > limit else None
        return CacheComparison(steps, layers, table, labels, tokens, self.prompt_length, stopped, passed)


STEP_COLUMNS = [
    *("step", "phase", "cache", "position", "token", "text", "choice", "choice_text", "same_choice"),
    *("max_logit", "kl", "bytes", "held", "computed", "ms"),
]
LAYER_COLUMNS = ["step", "cache", "layer", "max_k", "max_v", "max_hidden", "positions"]


def compare_layer(reference: Activations, other: Activations, layer: int, new: int) -> dict[str, Any]:
    """The largest absolute differences of one layer in one forward: keys and values by the position of their token,
    over those that both have; hidden states over the last `new` positions.
    """
    found: dict[str, Any] = {}
    count = 0
    for column, point in (("max_k", "k_cached"), ("max_v", "v_cached")):
        ours, theirs = common_slots(reference.positions((point, layer)), other.positions((point, layer)))
        count = len(ours)
        a, b = reference[point, layer], other[point, layer]
        found[column] = _largest(a.index_select(1, ours.to(a.device)), b.index_select(1, theirs.to(b.device)))
    hidden = (reference["resid_post", layer][:, -new:], other["resid_post", layer][:, -new:])
    return {**found, "max_hidden": _largest(*hidden), "positions": count}


def common_slots(
    ours: Int[Tensor, " slot"], theirs: Int[Tensor, " slot"]
) -> tuple[Int[Tensor, " both"], Int[Tensor, " both"]]:
    """The slots of two caches that hold the same positions, in the order of `theirs`; −1 is an empty slot."""
    length = int(max(ours.max(), theirs.max())) + 1 if len(ours) and len(theirs) else 0
    where = torch.full((length,), -1)
    where[ours[ours >= 0]] = (ours >= 0).nonzero()[:, 0]
    held = (theirs >= 0).nonzero()[:, 0]
    slots = where[theirs[held]]
    return slots[slots >= 0], held[slots >= 0]


def _largest(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max()) if a.numel() else 0.0


def compare_logits(reference: Float[Tensor, " vocab"], logits: Float[Tensor, " vocab"]) -> dict[str, Any]:
    """The own greedy choice, the largest |Δ logit|, and KL(reference ‖ this) in nats, in float64."""
    expected, found = reference.double().log_softmax(-1), logits.double().log_softmax(-1)
    kl = (expected.exp() * (expected - found)).sum().clamp(min=0)
    return {"choice": int(logits.argmax()), "max_logit": _largest(reference, logits), "kl": float(kl)}
