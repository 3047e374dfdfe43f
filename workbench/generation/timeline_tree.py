"""The record of a generation: a tree of nodes, one token each, with what the model thought before taking it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

Source = Literal["prompt", "sampled", "forced"]
Phase = Literal["prefill", "decode"]
SOURCES: tuple[Source, ...] = get_args(Source)


@dataclasses.dataclass(frozen=True)
class Node:
    """One token on the timeline.

    `logprob`, `surprisal` (its negative) and `entropy` are in nats, `rank` counts from 1; they are of the prediction
    this token came from, the plain softmax before temperature and cuts, and `None` for a first token, which nothing
    predicts. `top_ids`, `top_logprobs` and `top_logits` are the most likely tokens of that same prediction.

    `ms` and `positions_computed` are the cost of the forwards that read this token, `cache_bytes` what the cache held
    after them; where one forward read several tokens they are at its last one, and 0 at the others. `phase` says
    whether that forward read one token behind a cached text ("decode") or more ("prefill"), `cache` with which cache.
    `position` counts from 0 along the path.
    """

    index: int
    parent: int | None
    position: int
    token: int
    source: Source
    logprob: float | None = None
    entropy: float | None = None
    rank: int | None = None
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()
    top_logits: tuple[float, ...] = ()
    ms: float = 0.0
    positions_computed: int = 0
    cache_bytes: int = 0
    phase: Phase = "prefill"
    cache: str = "none"

    @property
    def surprisal(self) -> float | None:
        """−log p of this token, in nats."""
        return None if self.logprob is None else -self.logprob


class Tree:
    """Nodes in the order in which they were added; a path from a root is one text."""

    def __init__(self, nodes: Sequence[Node] = ()) -> None:
        self.nodes: list[Node] = list(nodes)

    def node(self, at: Node | int) -> Node:
        """A node by its index, or itself.

        Raises:
            TypeError: for anything else.
            ValueError: if this tree has no such node.
        """
        index = at.index if isinstance(at, Node) else at
        if not isinstance(index, int) or isinstance(index, bool):
            raise TypeError(f"node is {at!r}; give a Node of this timeline or its index, a whole number.")
        known = f"there are nodes 0 … {len(self.nodes) - 1}" if self.nodes else "there are no nodes yet"
        if not 0 <= index < len(self.nodes):
            raise ValueError(f"node {index} does not exist; {known}.")
        found = self.nodes[index]
        if isinstance(at, Node) and (at.parent, at.token) != (found.parent, found.token):
            raise ValueError(f"node {index} is one of another timeline; give one of this timeline's nodes.")
        return found

    def path(self, node: Node | None) -> list[Node]:
        """The nodes from the root to `node`; none for `None`."""
        return self.tail(node, 0)

    def children(self, node: Node | None) -> list[Node]:
        """The tokens that were taken after a node; for `None`, the first tokens."""
        parent = None if node is None else node.index
        return [other for other in self.nodes if other.parent == parent]

    def common(self, node: Node | None, line: Sequence[int]) -> int:
        """How many positions the path to `node` has in common with another, given by the indices of its nodes."""
        while node is not None:
            if node.position < len(line) and line[node.position] == node.index:
                return node.position + 1
            node = None if node.parent is None else self.nodes[node.parent]
        return 0

    def tail(self, node: Node | None, start: int) -> list[Node]:
        """The nodes of the path to `node`, from a position on."""
        found = []
        while node is not None and node.position >= start:
            found.append(node)
            node = None if node.parent is None else self.nodes[node.parent]
        return found[::-1]
