"""Run: one text, and everything that was kept of computing it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.analysis.lens import Lens, lens_columns
from workbench.cache import DynamicCache
from workbench.generation.sampling import Sampler
from workbench.generation.timeline import Node, Source, Timeline, TokenScores, score_tokens
from workbench.instrument import Activations, cancellable, capture
from workbench.model import LlamaForCausalLM

CAPTURED = ("embed", "resid_post", "q_rot", "k_rot")
LENS_BLOCK = 256  # positions whose residual states are gathered at once: 18 MB for the default model


class Run:
    """A prompt and what was generated after it: timeline, KV cache, captures and the logits of the next token.

    `length` says how many tokens are complete in all of these; other threads look at nothing past it. `read` extends
    them by the same tokens, or leaves them as they were.

    Args:
        model: what computes it.
        prompt, chat: the text that was typed, and whether it went through the chat template.
        sampler: how next tokens are chosen.
    """

    def __init__(self, model: LlamaForCausalLM, prompt: str, chat: bool, sampler: Sampler) -> None:
        self.model = model
        self.prompt = prompt
        self.chat = chat
        self.sampler = sampler
        self.one_sampler = True  # whether all of its tokens were chosen by `sampler`
        self.prompt_length = 0
        self.length = 0
        self.timeline = Timeline()
        self.cache = DynamicCache()
        self.acts = Activations()
        self.lens: Lens | None = None
        self._logits = torch.empty(0)
        self._leaf: int | None = None
        self._generator = sampler.generator(model.device)
        self._lens_lock = threading.Lock()

    @property
    def nodes(self) -> list[Node]:
        """The tokens of the text, in order."""
        leaf = self._leaf
        return [] if leaf is None else self.timeline.path(leaf)[: self.length]

    @property
    def token_ids(self) -> list[int]:
        """Their ids."""
        return [node.token for node in self.nodes]

    @property
    def next_logits(self) -> Float[Tensor, " vocab"]:
        """Logits of the token after the last."""
        return self._logits

    def use(self, sampler: Sampler) -> None:
        """Chooses tokens with another sampler from now on; its random numbers begin anew."""
        if sampler != self.sampler:
            self.one_sampler = self.one_sampler and self.length == self.prompt_length
            self.sampler, self._generator = sampler, sampler.generator(self.model.device)

    def read_prompt(
        self, ids: list[int], should_stop: Callable[[], bool], on_layer: Callable[[int], None] | None = None
    ) -> None:
        """Reads the next tokens of the prompt; `on_layer(i)` is told of every layer that begins."""
        self.read(ids, "prompt", should_stop, on_layer)
        self.prompt_length = self.length

    def sample(self, should_stop: Callable[[], bool]) -> Node:
        """Chooses one token and reads it. Stopped or failed, the random numbers are as before, too.

        Raises:
            Cancelled: if stopped before the token was complete.
        """
        state = self._generator.get_state()
        try:
            token = int(self.sampler.pick(self._logits[None], self._generator)[0])
            self.read([token], "sampled", should_stop)
        except BaseException:
            self._generator.set_state(state)
            raise
        return self.nodes[-1]

    @torch.no_grad()
    def read(
        self,
        ids: list[int],
        source: Source,
        should_stop: Callable[[], bool],
        on_layer: Callable[[int], None] | None = None,
    ) -> None:
        """One forward over new tokens: all parts grow by all of them, or, on any exception, none does."""
        start, leaf, logits, count = self.length, self._leaf, self._logits, len(self.timeline.nodes)
        began = time.perf_counter()
        try:
            with cancellable(self.model, should_stop, on_layer), capture(self.model, *CAPTURED) as acts:
                out = self.model(torch.tensor([ids], device=self.model.device), past_key_values=self.cache)
            ms = (time.perf_counter() - began) * 1e3
            scores = self._scores(out.logits[0], ids)
            self.acts.extend(acts)
            for token, row in zip(ids, range(len(ids)) if start else range(-1, len(ids)), strict=False):
                self._leaf = self.timeline.add(token, source, self._leaf, scores if row >= 0 else None, row).index
            assert self._leaf is not None
            self.timeline.record_cost(self._leaf, ms, len(ids), self.cache.nbytes)
            self._logits = out.logits[0, -1].clone()
            self.length = start + len(ids)
        except BaseException:
            self.length, self._leaf, self._logits = start, leaf, logits
            self.timeline.truncate(count)
            self.cache.crop(start)
            if self.acts.length > start:
                self.acts.crop(start)
            raise

    def _scores(self, logits: Float[Tensor, "new vocab"], ids: list[int]) -> TokenScores | None:
        """Each token was predicted by the logits before it: a chunk's first by the last of the chunk before."""
        targets = torch.tensor(ids, device=logits.device)
        parts = [score_tokens(self._logits[None], targets[:1])] if self.length else []
        if len(ids) > 1:
            parts.append(score_tokens(logits[:-1], targets[1:]))
        return TokenScores.join(parts) if parts else None

    def residual_states(self, start: int, stop: int) -> Float[Tensor, "state pos d_model"]:
        """The embedding and each layer's `resid_post` of some positions."""
        names = ["embed", *(f"layers.{i}.resid_post" for i in range(self.model.config.num_hidden_layers))]
        return torch.stack([self.acts.window(name, start, stop)[0] for name in names])

    def compute_lens(self, should_stop: Callable[[], bool]) -> Lens:
        """The lens of all tokens there are now: computes the columns that are missing; stopped, the rest is NaN."""
        with self._lens_lock:
            length = self.length
            tokens = [*self.token_ids[:length], -1]
            if self.lens is None:
                self.lens = Lens.empty(self.model.config.num_hidden_layers + 1, length)
            elif self.lens.length != length:
                self.lens = self.lens.resized(length)
            lens, missing = self.lens, self.lens.missing()
            for start in range(missing.start, missing.stop, LENS_BLOCK):
                if should_stop():
                    break
                stop = min(start + LENS_BLOCK, missing.stop)
                lens_columns(
                    self.model,
                    self.residual_states(start, stop),
                    torch.tensor(tokens[start + 1 : stop + 1]),
                    should_stop=should_stop,
                    on_columns=partial(lens.write, start),
                )
            return lens
