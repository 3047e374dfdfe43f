"""What a timeline shows: it needs no model, and computes no forward."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from workbench.cache import KVCache
from workbench.generation.sampling import Sampler
from workbench.generation.timeline_engine import Engine
from workbench.generation.timeline_input import count_of
from workbench.generation.timeline_scores import TOP, Candidate, entropy_of, rank_candidates
from workbench.generation.timeline_tree import Node
from workbench.instrument import ActiveEdits
from workbench.model import LlamaForCausalLM

if TYPE_CHECKING:
    import pandas as pd

    from workbench.generation.timeline_file import Texts

At = Node | int


class TimelineView:
    """The tree, its numbers and what came after each node.

    Attributes:
        tokenizer: names tokens; may be missing.
        sampler: how tokens are taken.
    """

    def __init__(self, engine: Engine, tokenizer: Any, sampler: Sampler, texts: Texts | None = None) -> None:
        self._engine = engine
        self._texts = texts  # the file's, if it comes from one
        self.tokenizer = tokenizer
        self.sampler = sampler

    @property
    def current(self) -> Node | None:
        """The node that the next token comes after; `None` before the first."""
        return self._engine.current

    @property
    def nodes(self) -> list[Node]:
        """All nodes, by index."""
        return self._engine.tree.nodes

    @property
    def model(self) -> LlamaForCausalLM | None:
        """What it is grown with; `None` if it was opened without."""
        return self._engine.reader.model

    @property
    def cache(self) -> KVCache | None:
        """The cache that holds the beginning of a path; `None` with cache "none"."""
        return self._engine.reader.cache

    @property
    def cache_choice(self) -> tuple[str, dict[str, Any]]:
        """The cache's name and options."""
        choice = self._engine.reader.choice
        return choice.name, dict(choice.options)

    @property
    def edits(self) -> Any:
        """The edits of all forwards, as they were given."""
        return self._engine.reader.edits.given

    @property
    def active_edits(self) -> ActiveEdits | None:
        """What the edits have done so far."""
        standing = self._engine.reader.edits.standing
        return None if standing is None else standing.active

    @property
    def room(self) -> int:
        """How many tokens may follow the current one, in the model and in the cache."""
        return max(0, self._engine.room)

    @property
    def positions_computed(self) -> int:
        """By all forwards so far."""
        return self._engine.positions_computed

    @property
    def nbytes(self) -> int:
        """Bytes of the cache, of logits and hidden states."""
        return self._engine.store.nbytes + (0 if self.cache is None else self.cache.nbytes)

    def path(self, node: At | None = None) -> list[Node]:
        """The nodes from the root to a node; default the current one."""
        return self._engine.path if node is None else self._engine.tree.path(self._engine.tree.node(node))

    def children(self, node: At | None = None) -> list[Node]:
        """The tokens that were taken after a node; default the first tokens."""
        tree = self._engine.tree
        return tree.children(None if node is None else tree.node(node))

    def logits(self, node: At | None = None) -> Float[Tensor, " vocab"]:
        """What came after a node (default the current one) when it was read, in float32; no forward runs.

        Raises:
            ValueError: if it does not exist, or only its hidden state is held and there is no model.
        """
        return self._engine.logits(self._need_text() if node is None else self._engine.tree.node(node)).clone()

    def candidates(self, node: At | None = None, sampler: Sampler | None = None, top: int = TOP) -> list[Candidate]:
        """The tokens that may come after a node (default the current one), most likely first, and how likely a sampler
        is to take each. No forward runs.
        """
        found = self._need_text() if node is None else self._engine.tree.node(node)
        return rank_candidates(
            self._engine.logits(found), checked_sampler(sampler) or self.sampler, count_of("top", top)
        )

    def entropy(self, node: At | None = None) -> float:
        """How undecided the prediction of the token after a node (default the current one) is, in nats; no forward
        runs.
        """
        return entropy_of(self._engine.logits(self._need_text() if node is None else self._engine.tree.node(node)))

    def is_fresh(self, node: At) -> bool:
        """Whether what came after a node is what the present cache and edits would give."""
        return self._engine.is_fresh(self._engine.tree.node(node))

    def to_pandas(self) -> pd.DataFrame:
        """One row a node; surprisal and entropy in nats. `current` says which are the current text."""
        from workbench.generation.timeline_file import table

        names = self._texts if self.tokenizer is None else self.tokenizer
        return table(self.nodes, names, {node.index for node in self._engine.path})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes all of it but the cache into one safetensors file, which is there whole or not at all.

        Raises:
            FileNotFoundError: if there is no such folder.
            ValueError: if there are no nodes, or the edits are functions, which no file holds.
        """
        from workbench.generation.timeline_file import save

        save(self._engine, self.sampler, self._texts if self.tokenizer is None else self.tokenizer, path)

    @property
    def _model(self) -> LlamaForCausalLM:
        self._engine.check(0)
        assert self.model is not None
        return self.model

    @property
    def _vocab_size(self) -> int:
        return self._model.config.vocab_size

    def _need_text(self) -> Node:
        if self.current is None:
            raise ValueError("there is no text yet. Read a prompt first: timeline.read('…').")
        return self.current


def checked_sampler(sampler: Any) -> Sampler | None:
    """`sampler`, if it is one or `None`."""
    if sampler is not None and not isinstance(sampler, Sampler):
        raise TypeError(f"sampler is a {type(sampler).__name__}; give a workbench.Sampler.")
    return sampler
