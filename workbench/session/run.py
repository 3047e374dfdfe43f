"""Run: one prompt, the tree of what was generated after it, and what was captured along the current path."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from workbench.analysis.attention import AttentionMap
from workbench.analysis.lens import Lens
from workbench.cache import KVCache
from workbench.generation.sampling import Sampler
from workbench.generation.timeline import Node, Timeline
from workbench.generation.timeline_view import At
from workbench.instrument import Activations
from workbench.session.captures import Captures


class Run:
    """A timeline, and the activations of its current path.

    Other threads may look at it at any time: they see the text as it was after the last finished step.

    Args:
        timeline: which `captures` observes.
        captures: what is captured.
        prompt, chat: the text that was typed, and whether it went through the chat template.

    Attributes:
        read_length: number of tokens of the prompt as it was read.
    """

    def __init__(self, timeline: Timeline, captures: Captures, prompt: str, chat: bool) -> None:
        self.timeline = timeline
        self.captures = captures
        self.prompt = prompt
        self.chat = chat
        self.one_sampler = True  # whether all of its tokens were chosen by `sampler`
        self.read_length = 0
        timeline.observe(captures)

    # --- what there is -----------------------------------------------------------------------------------------------

    @property
    def length(self) -> int:
        """Number of tokens of the current text."""
        return self.captures.view.length

    @property
    def leaf(self) -> Node | None:
        """Its last token."""
        return self.captures.view.leaf

    @property
    def nodes(self) -> list[Node]:
        """The tokens of the current text, in order."""
        return self.timeline.path(leaf) if (leaf := self.leaf) is not None else []

    @property
    def token_ids(self) -> list[int]:
        """Their ids."""
        return [node.token for node in self.nodes]

    @property
    def prompt_length(self) -> int:
        """How many of them are the prompt's, or in its place."""
        return min(self.read_length, self.length)

    @property
    def sampler(self) -> Sampler:
        """How next tokens are chosen."""
        return self.timeline.sampler

    @property
    def cache(self) -> KVCache | None:
        """The cache; `None` with cache "none"."""
        return self.timeline.cache

    @property
    def acts(self) -> Activations:
        """What was captured along the current path; after a rewind, of the tokens behind it, too."""
        return self.captures.view.acts

    @property
    def attention(self) -> AttentionMap:
        """Exact attention of the current text, computed on demand; under a cache that rounds keys (`rounded`), that of
        the keys as they were computed.
        """
        view = self.captures.view
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return AttentionMap(view.acts, view.length)

    @property
    def lens(self) -> Lens | None:
        """The lens as far as it was computed."""
        return self.captures.lens

    @lens.setter
    def lens(self, lens: Lens | None) -> None:
        self.captures.lens = lens

    @property
    def next_logits(self) -> Float[Tensor, " vocab"]:
        """Logits of the token after the last."""
        return self.timeline.logits()

    # --- what changes it ---------------------------------------------------------------------------------------------

    def read_prompt(
        self, ids: list[int], should_stop: Callable[[], bool], on_progress: Callable[[int, int], None]
    ) -> None:
        """Reads the prompt; `on_progress(positions read, positions to read)` is told at every layer."""
        self.timeline.read(ids, should_stop=should_stop, on_progress=on_progress)
        self.read_length = len(ids)

    def use(self, sampler: Sampler | None, **changes: Any) -> None:
        """Another sampler, cache or edits from now on: see `Timeline.use`."""
        before = self.sampler
        self.timeline.use(sampler, **changes)
        if self.sampler != before:
            self.one_sampler = self.one_sampler and self.length == self.prompt_length

    def rewind(self, node: At, should_stop: Callable[[], bool]) -> None:
        """Moves to a node. What was captured of another branch than the last one is gone, and read again.

        Raises:
            Cancelled: if stopped; it is where it was, then.
        """
        before = self.timeline.current
        path = self.timeline.path(node)
        missing = self.captures.missing(path)
        self.timeline.rewind(path[-1])
        if missing is None:
            self.captures.move(path)
            return
        try:
            self.timeline.read_again(missing, should_stop=should_stop)
        except BaseException:
            if before is not None:
                self.timeline.rewind(before)
            raise

    def replay(
        self,
        cache: str | None,
        sampler: Sampler | None,
        edits: Mapping[str, Any],
        node: At | None,
        cache_config: Mapping[str, Any] | None,
        should_stop: Callable[[], bool],
    ) -> Run:
        """Another run along the same tokens: see `Timeline.replay`. `edits`: {"edits": …}, or nothing to keep them."""
        captures = Captures(self.captures.model)
        timeline = self.timeline.replay(
            cache, sampler, node=node, cache_config=cache_config, should_stop=should_stop, observer=captures, **edits
        )
        run = Run(timeline, captures, self.prompt, self.chat)
        run.read_length = self.read_length
        run.one_sampler = self.one_sampler if sampler is None else True
        return run

    def compute_lens(self, should_stop: Callable[[], bool]) -> Lens:
        """The lens of the current text: computes the columns that are missing; stopped, the rest is NaN."""
        return self.captures.compute_lens(lambda: self.token_ids, should_stop)
