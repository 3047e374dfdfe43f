"""Session: a model, its tokenizer, the current text and the cursor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from workbench.analysis.attention import AttentionMap
from workbench.analysis.lens import Lens
from workbench.checkpoints.load import Loaded
from workbench.generation.sampling import Sampler
from workbench.generation.timeline import Node, Stop, Timeline
from workbench.instrument import Cancelled
from workbench.model import LlamaForCausalLM
from workbench.session.captures import Captures
from workbench.session.jobs import Jobs, never
from workbench.session.run import Run
from workbench.tokenizer import LlamaTokenizer

_AS_IT_IS: Any = object()


class Session(Jobs):
    """What all panels of one page share.

    Methods that compute may be called from any thread, one at a time; each takes `should_stop`, asked between layers
    and between tokens. A failed or stopped call leaves finished tokens in place and everything else as it was. They end
    with `follow()`, after an exception too, which sets traits; on a worker thread pass `follow=False` and call it where
    traits may be set.

    Args:
        model: a `LlamaForCausalLM`, or what `workbench.load()` returned.
        tokenizer: needed with a bare model.
        name: shown on the page; by default the loaded one's.
    """

    def __init__(
        self, model: LlamaForCausalLM | Loaded, tokenizer: LlamaTokenizer | None = None, name: str | None = None
    ) -> None:
        if isinstance(model, Loaded):
            tokenizer, name, model = tokenizer or model.tokenizer, name or model.name, model.model
        if not isinstance(model, LlamaForCausalLM):
            raise TypeError(
                f"Session needs a LlamaForCausalLM or what workbench.load() returned; got {type(model).__name__}."
            )
        if tokenizer is None:
            raise TypeError("Session(model) needs the tokenizer too: Session(model, tokenizer), or Session(load()).")
        super().__init__(model.eval(), tokenizer, name or "Llama")

    # --- computing -----------------------------------------------------------------------------------------------

    def run(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 0,
        chat: bool = False,
        sampler: Sampler | None = None,
        cache: str | None = None,
        cache_config: Mapping[str, Any] | None = None,
        should_stop: Callable[[], bool] = never,
        follow: bool = True,
    ) -> Run:
        """Reads a prompt and generates up to `max_new_tokens` tokens after it, as far as model and cache have room.

        The new text replaces the current one as soon as its prompt has been read; until then a failure or a stop leaves
        the current one.

        Args:
            chat: put the prompt into the model's chat template, as a user's message.
            sampler, cache, cache_config: as of `workbench.Timeline`; kept for later texts too.

        Raises:
            ValueError: for an empty prompt, one past the model's length, a negative `max_new_tokens`, and an unknown
                cache or option.
            TypeError: for a prompt that is no text, or a count that is no whole number.
            Cancelled: if stopped before the prompt was read.
            BusyError: if another job runs.
        """
        _check_count(max_new_tokens)
        ids = self._tokenize(prompt, chat)
        with self._job(follow):
            kept = self._cache_for(cache, cache_config)
            timeline = Timeline(
                self.model,
                self.tokenizer,
                cache=kept[0],
                cache_config=kept[1],
                sampler=sampler or self.sampler,
                edits=self.edits,
            )
            run = Run(timeline, Captures(self.model), prompt, chat)
            run.read_prompt(ids, should_stop, self._show_reading)
            self.sampler, self.current = run.sampler, run
            self.cache, self.cache_config = kept
            self._continue(run, min(max_new_tokens, run.timeline.room), should_stop)
        return run

    def generate(
        self,
        max_new_tokens: int,
        *,
        sampler: Sampler | None = None,
        should_stop: Callable[[], bool] = never,
        follow: bool = True,
    ) -> list[Node]:
        """Up to `max_new_tokens` more tokens; fewer after an end token, where the text fills the model or the cache, or
        when stopped.

        Raises:
            ValueError: if there is no text yet, no room for another token, or the count is negative.
            TypeError: for a count that is no whole number.
            BusyError: if another job runs.
        """
        _check_count(max_new_tokens)
        with self._changing(follow) as run:
            self._check_room(run)
            self._choose(run, sampler)
            return self._continue(run, max_new_tokens, should_stop)

    def step(
        self, *, sampler: Sampler | None = None, should_stop: Callable[[], bool] = never, follow: bool = True
    ) -> Node:
        """One more token, after an end token too.

        Raises:
            ValueError: if there is no text yet, or no room for another token.
            Cancelled: if stopped before the token was there.
            BusyError: if another job runs.
        """
        nodes = self.generate(1, sampler=sampler, should_stop=should_stop, follow=follow)
        if not nodes:
            raise Cancelled
        return nodes[0]

    def run_until(
        self,
        stop_string: str | Sequence[str] | None = None,
        eos: bool = True,
        entropy_above: float | None = None,
        probability_below: float | tuple[int, float] | None = None,
        max_new_tokens: int | None = None,
        *,
        sampler: Sampler | None = None,
        should_stop: Callable[[], bool] = never,
        follow: bool = True,
    ) -> Stop:
        """Steps until a breakpoint is reached, and says which: see `Timeline.run_until`.

        Raises:
            TypeError, ValueError: for values that are not allowed, and as `step`.
            BusyError: if another job runs.
        """
        breakpoints = (stop_string, eos, entropy_above, probability_below, max_new_tokens)
        with self._changing(follow) as run:
            self._check_room(run)
            self._choose(run, sampler)
            return self._run_until(run, breakpoints, should_stop)

    def rewind(self, node: Node | int, *, should_stop: Callable[[], bool] = never, follow: bool = True) -> Node:
        """Goes to a node of the current timeline (or the one of an index), forgetting none.

        Nothing is computed on the way back. On a branch whose activations others have replaced, they are read again.

        Raises:
            TypeError, ValueError: for a node that does not exist, or if there is no text yet.
            Cancelled: if stopped.
            BusyError: if another job runs.
        """
        with self._changing(follow) as run:
            run.rewind(node, should_stop)
            assert run.leaf is not None
            return run.leaf

    def branch(
        self, node: Node | int, token: int, *, should_stop: Callable[[], bool] = never, follow: bool = True
    ) -> Node:
        """Another token behind a node: see `Timeline.branch`.

        Raises:
            TypeError, ValueError: for a node or token that does not exist, no room, or if there is no text yet.
            Cancelled: if stopped.
            BusyError: if another job runs.
        """
        with self._changing(follow) as run:
            return run.timeline.branch(node, token, should_stop=should_stop)

    def force(
        self, tokens: str | Sequence[int], *, should_stop: Callable[[], bool] = never, follow: bool = True
    ) -> list[Node]:
        """Given tokens, or a text, behind the current one: see `Timeline.force`.

        Raises:
            TypeError, ValueError: for what is neither, tokens that do not exist, no room, or if there is no text yet.
            Cancelled: if stopped.
            BusyError: if another job runs.
        """
        with self._changing(follow) as run:
            return run.timeline.force(tokens, should_stop=should_stop, on_progress=self._show_reading)

    def edit_token(
        self, at: Node | int, token: int, *, should_stop: Callable[[], bool] = never, follow: bool = True
    ) -> list[Node]:
        """Another token at a position of the current text, and those behind it again: see `Timeline.edit_token`.

        Raises:
            TypeError, ValueError: for a position or token that does not exist, or if there is no text yet.
            Cancelled: if stopped.
            BusyError: if another job runs.
        """
        with self._changing(follow) as run:
            return run.timeline.edit_token(at, token, should_stop=should_stop, on_progress=self._show_reading)

    def replay(
        self,
        cache: str | None = None,
        sampler: Sampler | None = None,
        edits: Any = _AS_IT_IS,
        node: Node | int | None = None,
        *,
        cache_config: Mapping[str, Any] | None = None,
        should_stop: Callable[[], bool] = never,
    ) -> Run:
        """The current text once more, along the same tokens, with another cache, sampler or edits: see
        `Timeline.replay`. The current text stays; `session.show(run)` puts the new one in its place.

        Raises:
            TypeError, ValueError: for what is not allowed, or if there is no text yet.
            EditError: if an edit had no effect.
            Cancelled: if stopped.
            BusyError: if another job runs.
        """
        with self._job():
            given = {} if edits is _AS_IT_IS else {"edits": edits}
            return self._need_run().replay(cache, sampler, given, node, cache_config, should_stop)

    def use(
        self,
        sampler: Sampler | None = None,
        cache: str | None = None,
        edits: Any = _AS_IT_IS,
        *,
        cache_config: Mapping[str, Any] | None = None,
    ) -> None:
        """Another sampler, cache or edits for the current text, see `Timeline.use`, and for later ones.

        Raises:
            TypeError, ValueError: for what is not allowed; nothing is changed then.
            BusyError: if another job runs.
        """
        with self._job():
            name, options = self._cache_for(cache, cache_config)
            changes = {} if edits is _AS_IT_IS else {"edits": edits}
            if self.current is None:  # made only to be checked
                Timeline(self.model, cache=name, cache_config=options, sampler=sampler, edits=changes.get("edits", ()))
            else:
                changed = cache is not None or cache_config is not None
                self.current.use(
                    sampler, cache=name if changed else None, cache_config=options if changed else None, **changes
                )
            self.sampler = sampler or self.sampler
            self.cache, self.cache_config, self.edits = name, options, changes.get("edits", self.edits)
        self.choices += 1

    def show(self, run: Run, *, follow: bool = True) -> None:
        """Makes a run of this model, such as one that `replay` gave, the current one.

        Raises:
            TypeError: if it is none.
            ValueError: if it is one of another model.
            BusyError: if a job runs.
        """
        if not isinstance(run, Run):
            raise TypeError(f"run is a {type(run).__name__}; give a Run, as session.run() and session.replay() do.")
        if run.timeline.model is not self.model:
            raise ValueError("this run is one of another model; a session shows runs of its own model.")
        with self._job(follow):
            self.current = run

    # --- looking -------------------------------------------------------------------------------------------------

    @property
    def attention(self) -> AttentionMap:
        """Exact attention of the current text, computed on demand."""
        return self._need_run().attention

    def lens(self, *, should_stop: Callable[[], bool] = never) -> Lens:
        """The logit lens of the current text; columns are computed once and kept. Stopped, the rest is NaN.

        Not a job: it may run beside a generation, and stops when another text takes this one's place.
        """
        run = self._need_run()
        return run.compute_lens(lambda: should_stop() or self.current is not run)

    def to_pandas(self) -> pd.DataFrame:
        """The current text, one row a token; log-probabilities, surprisal and entropy in nats."""
        nodes = self._need_run().nodes
        frame = pd.DataFrame([dataclasses.asdict(node) for node in nodes]).drop(columns=["index", "parent", "position"])
        frame.insert(0, "text", self.tokenizer.pieces([node.token for node in nodes]))
        frame.insert(3, "surprisal", [None if node.logprob is None else -node.logprob for node in nodes])
        frame.index.name = "position"
        return frame

    # --- inside --------------------------------------------------------------------------------------------------

    def _tokenize(self, prompt: str, chat: bool) -> list[int]:
        if not isinstance(prompt, str):
            raise TypeError(f"prompt is a {type(prompt).__name__}; give the text itself, as a str.")
        if not prompt.strip():
            raise ValueError("The prompt is empty. Type some text, then run.")
        if chat:
            message = [{"role": "user", "content": prompt}]
            ids = self.tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False)
        else:
            ids = self.tokenizer.encode(prompt)
        limit = self.model.config.max_position_embeddings
        if len(ids) > limit:
            raise ValueError(
                f"The prompt has {len(ids):,} tokens, but the model was trained for at most {limit:,} positions "
                f"(max_position_embeddings). Shorten it by {len(ids) - limit:,} tokens."
            )
        return list(ids)


def _check_count(count: Any) -> None:
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"max_new_tokens is {count!r}; it must be a whole number, 0 or more.")
    if count < 0:
        raise ValueError(f"max_new_tokens is {count}; it must be 0 or more.")
