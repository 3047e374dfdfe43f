"""Timeline: a generation that can be stepped, rewound, branched, replayed and kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor

from workbench.generation.sampling import Sampler
from workbench.generation.timeline_breaks import Breakpoints, Stop
from workbench.generation.timeline_engine import Engine
from workbench.generation.timeline_input import count_of, place_of, token_id, token_ids
from workbench.generation.timeline_logits import BUDGET
from workbench.generation.timeline_reader import CacheChoice, EditChoice, Observer, OnProgress, PathReader, ShouldStop
from workbench.generation.timeline_scores import TOP, Candidate, draw, score_tokens
from workbench.generation.timeline_tree import SOURCES, Node, Source
from workbench.generation.timeline_view import At, TimelineView, checked_sampler
from workbench.instrument import Cancelled, EditError
from workbench.model import LlamaForCausalLM

__all__ = ["TOP", "Candidate", "Node", "Source", "Stop", "Timeline", "score_tokens"]

Ids = str | Sequence[int] | Int[Tensor, " pos"]
_AS_IT_IS: Any = object()


class Timeline(TimelineView):
    """A tree of tokens, grown with one model and one cache. A path from a root is a text; `current` is where it is.

        timeline = Timeline(model, tokenizer, cache="dynamic")
        timeline.read("The capital of France is")
        timeline.run(8)
        timeline.branch(timeline.path()[4], 1234)   # another token behind the fifth
        timeline.run_until(stop_string=".", entropy_above=3.0)

    Every node has been read: what comes after it is known, so moving to it and looking at other candidates compute
    nothing. A forward begins where the cache's text and the wanted one part; where the cache cannot be cropped so far,
    or there is none, the whole text is read again (`positions_computed` of the node says so). So it is with rotary
    embeddings of type "longrope" where a text grows past their `original_max_position_embeddings`, or is shorter again:
    they rotate all of a longer one differently. One forward reads a prompt that is longer.

    Methods that compute take `should_stop`, asked between layers. After a stop, an interrupt or any exception all
    finished steps are there, and nothing of the unfinished one. One thread at a time.

    Args:
        model: a `LlamaForCausalLM`; it is put into evaluation mode.
        tokenizer: for texts and stop strings; token ids need none.
        cache, cache_config: as `cache_implementation` and `cache_config` of `generate`: a name of
            `workbench.cache.CACHES` and its options. "none" keeps nothing: every step reads the whole text.
        sampler: how tokens are taken; default greedy. Its draws depend on its seed and the token's position only.
        edits: what `workbench.edit` takes, applied to every forward. One that has no effect at positions that were
            read is an error (`EditError`) of the step that read them, which is then taken back.
        logits_budget: bytes of full logits that are held. Of nodes past it only the final hidden state is, from which
            one product with the head gives them again.

    Raises:
        TypeError, ValueError: for arguments that are not allowed.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        tokenizer: Any = None,
        *,
        cache: str = "dynamic",
        cache_config: Mapping[str, Any] | None = None,
        sampler: Sampler | None = None,
        edits: Any = (),
        logits_budget: int = BUDGET,
    ) -> None:
        if not isinstance(model, LlamaForCausalLM):
            raise TypeError(f"Timeline needs a LlamaForCausalLM; got {type(model).__name__}. See workbench.load().")
        choice = CacheChoice.of(cache, cache_config, model.config)
        reader = PathReader(model.eval(), choice, EditChoice.of(edits, model))
        engine = Engine(reader, logits_budget=count_of("logits_budget", logits_budget))
        super().__init__(engine, tokenizer, checked_sampler(sampler) or Sampler())

    # --- growing -----------------------------------------------------------------------------------------------------

    def read(
        self,
        text: Ids,
        source: Source = "prompt",
        *,
        should_stop: ShouldStop = None,
        on_progress: OnProgress = None,
    ) -> list[Node]:
        """Reads a text, or token ids, behind the current node: all of it or, stopped or failed, nothing.

        Args:
            text: a first text gets the tokenizer's special tokens, one behind others gets none.
            source: what the nodes say of where they come from.
            on_progress: called with (positions read, positions to read) at every layer.

        Raises:
            TypeError, ValueError: for what is no text and no ids, an empty one, tokens outside the vocabulary, a text
                without a tokenizer, and one that is longer than the model or the cache allows.
            Cancelled: if stopped.
        """
        if source not in SOURCES:
            raise ValueError(f"source is {source!r}; allowed are {', '.join(SOURCES)}.")
        ids = token_ids(text, self.tokenizer, self._vocab_size, begins=self.current is None)
        return self._engine.extend(self.current, ids, source, should_stop, on_progress)

    def step(self, sampler: Sampler | None = None, *, should_stop: ShouldStop = None) -> Node:
        """Takes one token and reads it, after an end token too.

        Args:
            sampler: of this step only.

        Raises:
            ValueError: if there is no text yet, or no room for another token.
            Cancelled: if stopped.
        """
        parent, sampler = self._need_text(), checked_sampler(sampler) or self.sampler
        self._engine.check(parent.position + 2)
        self._engine.make_fresh(parent, should_stop)
        token = draw(self._engine.logits(parent), sampler, parent.position + 1)
        return self._engine.extend(parent, [token], "sampled", should_stop)[0]

    def run(self, n: int, sampler: Sampler | None = None, *, should_stop: ShouldStop = None) -> list[Node]:
        """Up to `n` steps: fewer after an end token, where the text fills the model or the cache, or when stopped."""
        return self.run_until(max_new_tokens=count_of("n", n), sampler=sampler, should_stop=should_stop).nodes

    def run_until(
        self,
        stop_string: str | Sequence[str] | None = None,
        eos: bool = True,
        entropy_above: float | None = None,
        probability_below: float | tuple[int, float] | None = None,
        max_new_tokens: int | None = None,
        sampler: Sampler | None = None,
        *,
        should_stop: ShouldStop = None,
        on_node: Callable[[Node], None] | None = None,
    ) -> Stop:
        """Steps until a breakpoint is reached. The token that reaches it is the last one.

        Args:
            stop_string: a text, or several, that the newest token completes; it may begin in an earlier token, also in
                the prompt.
            eos: whether an end token of the model is one: those that `generate` ends at.
            entropy_above: nats; a token was taken from a prediction that was less decided than that.
            probability_below: a token was taken that had less than this probability; or, with (token id, probability),
                one from a prediction that gave that token less. Before temperature and cuts.
            max_new_tokens: no more steps than that; default as many as there is room for.
            on_node: told of every token.

        Raises:
            TypeError, ValueError: for values that are not allowed, and as `step`; no step is taken then.
        """
        parent, sampler = self._need_text(), checked_sampler(sampler) or self.sampler
        self._engine.check(parent.position + 1)
        breakpoints = Breakpoints.of(self._engine, self.tokenizer, stop_string, eos, entropy_above, probability_below)
        most = self._engine.room if max_new_tokens is None else count_of("max_new_tokens", max_new_tokens)
        if most or max_new_tokens is None:
            self._engine.check(parent.position + 2)  # no room at all is an error; none later is a reason
        nodes: list[Node] = []
        while len(nodes) < most:
            if not self._engine.room:
                return Stop("length", nodes)
            try:
                if should_stop is not None and should_stop():
                    raise Cancelled
                nodes.append(self.step(sampler, should_stop=should_stop))
            except Cancelled:
                return Stop("stopped", nodes)
            if on_node is not None:
                on_node(nodes[-1])
            if reason := breakpoints.reached(self._engine, nodes[-1]):
                return Stop(reason, nodes)
        return Stop("length" if max_new_tokens is None else "max_new_tokens", nodes)

    def branch(self, node: At, token: int, *, should_stop: ShouldStop = None) -> Node:
        """Moves to a node (or the one of an index) and reads a token behind it: only that one, where the cache can be
        cropped to there.

        Raises:
            TypeError, ValueError: for a node or a token that does not exist, and as `step`.
            Cancelled: if stopped.
        """
        parent, token = self._engine.tree.node(node), token_id(token, self._vocab_size)
        return self._engine.extend(parent, [token], "forced", should_stop)[0]

    def force(self, tokens: Ids, *, should_stop: ShouldStop = None, on_progress: OnProgress = None) -> list[Node]:
        """Reads given tokens, or a text, behind the current node.

        Raises:
            ValueError: if there is no text yet, and as `read`.
        """
        self._need_text()
        return self.read(tokens, "forced", should_stop=should_stop, on_progress=on_progress)

    def edit_token(
        self, at: At, token: int, *, should_stop: ShouldStop = None, on_progress: OnProgress = None
    ) -> list[Node]:
        """A new branch where one token of the current text is another, and those behind it follow again, as forced
        ones. Reads from there on.

        Args:
            at: a position of the current text, or one of its nodes.

        Raises:
            TypeError, ValueError: for a position or a token that does not exist, or a node of another branch.
            Cancelled: if stopped.
        """
        path = self._engine.path
        place, token = place_of(at, path), token_id(token, self._vocab_size)
        ids = [token, *(node.token for node in path[place + 1 :])]
        parent = path[place - 1] if place else None
        return self._engine.extend(parent, ids, "forced", should_stop, on_progress)

    def read_again(self, start: int = 0, *, should_stop: ShouldStop = None, on_progress: OnProgress = None) -> None:
        """Reads the current text again from a position on, for whoever observes its forwards. No node changes.

        Raises:
            TypeError, ValueError: if there is no such position.
            Cancelled: if stopped.
        """
        place_of(start, self._engine.path)
        self._engine.extend(self.current, [], "forced", should_stop, on_progress, again_from=start)

    # --- moving and choosing -----------------------------------------------------------------------------------------

    def rewind(self, node: At) -> Node:
        """Makes a node (or the one of an index) the current one, on whatever branch. Computes and forgets nothing.

        Raises:
            TypeError, ValueError: for one that does not exist.
        """
        self._engine.current = self._engine.tree.node(node)
        return self._engine.current

    def use(
        self,
        sampler: Sampler | None = None,
        cache: str | None = None,
        edits: Any = _AS_IT_IS,
        *,
        cache_config: Mapping[str, Any] | None = None,
    ) -> None:
        """Another sampler, cache or edits from now on; what is not given stays. Computes nothing.

        Another cache takes over what the one before holds where its own would be the same; otherwise, and with other
        edits, the next step reads the text again. Nodes keep their numbers, and `logits` what was computed then; a step
        goes on from what the new cache and edits give.

        Args:
            edits: `()` for none.
            cache_config: options of the cache; without `cache`, of the one there is.

        Raises:
            TypeError, ValueError: for what is not allowed; nothing is changed then.
        """
        reader, model = self._engine.reader, self._model
        sampler = checked_sampler(sampler) or self.sampler
        chosen = None if edits is _AS_IT_IS else EditChoice.of(edits, model)
        choice = None
        if cache is not None or cache_config is not None:
            choice = CacheChoice.of(reader.choice.name if cache is None else cache, cache_config, model.config)
            self._engine.check(len(self._engine.path), choice.room)
        if choice is not None:
            reader.use_cache(choice, choice.make(model.config))
        if chosen is not None:
            reader.use_edits(chosen)
        self.sampler = sampler

    def replay(
        self,
        cache: str | None = None,
        sampler: Sampler | None = None,
        edits: Any = _AS_IT_IS,
        node: At | None = None,
        *,
        cache_config: Mapping[str, Any] | None = None,
        should_stop: ShouldStop = None,
        observer: Observer | None = None,
    ) -> Timeline:
        """A new timeline along the same tokens: prompt and forced ones by as few forwards as possible, sampled ones
        step by step, as they came. What is not given is as here.

        Args:
            sampler: takes the sampled tokens anew.
            node: the last one; default the current one.
            observer: sees the forwards.

        Raises:
            TypeError, ValueError: for what is not allowed, and if there is no text yet.
            EditError: if an edit had no effect.
            Cancelled: if stopped.
        """
        last = self._need_text() if node is None else self._engine.tree.node(node)
        reader, model = self._engine.reader, self._model
        options = reader.choice.options if cache is None and cache_config is None else cache_config
        new = Timeline(
            model,
            self.tokenizer,
            cache=reader.choice.name if cache is None else cache,
            cache_config=options,
            sampler=checked_sampler(sampler) or self.sampler,
            edits=reader.edits.given if edits is _AS_IT_IS else edits,
            logits_budget=self._engine.store.budget,
        )
        new._texts = self._texts
        new._engine.reader.observer = observer
        path = self._engine.tree.path(last)
        new._engine.check(len(path))
        new._follow(path, sampler is not None, should_stop)
        standing = new._engine.reader.edits.standing
        if standing is not None and (missed := standing.missed()):
            raise EditError(" ".join(missed))
        return new

    def observe(self, observer: Observer | None) -> None:
        """Has an observer see all forwards from now on; `None` for nobody."""
        self._engine.reader.observer = observer

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: LlamaForCausalLM | None = None, tokenizer: Any = None
    ) -> Timeline:
        """Opens what `save` wrote. With its model it goes on where it was, after reading the text again; without, it
        shows what was computed.

        Args:
            tokenizer: for texts and stop strings; without it, tables name tokens as the file does.

        Raises:
            FileNotFoundError: if there is no file.
            ValueError: if it is damaged or something else, or was made with another model.
        """
        from workbench.generation.timeline_file import load

        timeline = cls.__new__(cls)
        engine, sampler, texts = load(path, model)
        TimelineView.__init__(timeline, engine, tokenizer, sampler, texts)
        return timeline

    # --- inside ------------------------------------------------------------------------------------------------------

    def _follow(self, path: Iterable[Node], resample: bool, should_stop: ShouldStop) -> None:
        """Grows an empty timeline along a path."""
        given: list[Node] = []
        for node in path:
            if node.source != "sampled":
                given.append(node)
                continue
            self._follow_given(given, should_stop)
            if resample:
                self.step(should_stop=should_stop)
            else:
                self._engine.extend(self.current, [node.token], "sampled", should_stop)
        self._follow_given(given, should_stop)

    def _follow_given(self, given: list[Node], should_stop: ShouldStop) -> None:
        if given:
            ids, sources = [node.token for node in given], [node.source for node in given]
            self._engine.extend(self.current, ids, sources, should_stop)
            given.clear()
