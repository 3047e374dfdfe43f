"""What grows a tree: forwards become nodes, all of them or, after any exception, none."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.generation.timeline_logits import BUDGET, LogitsStore
from workbench.generation.timeline_reader import OnProgress, PathReader, Read, ShouldStop
from workbench.generation.timeline_scores import score_tokens
from workbench.generation.timeline_tree import Node, Source, Tree
from workbench.instrument import EditError


@dataclasses.dataclass
class _Growth:
    """What was computed of new nodes and is not in the tree yet.

    Attributes:
        known: how many positions the path has; those from there on are new.
        last: the logits after the newest position that was read, which predict the next one.
        parent: what was computed anew of the path's last node: its hidden state, its logits and whether they are fixed.
        rows: likewise of each new node; only the last one's logits are kept, unless they are fixed.
    """

    known: int
    last: Float[Tensor, " vocab"] | None
    parent: tuple[Tensor, Tensor, bool] | None = None
    nodes: list[Node] = dataclasses.field(default_factory=list)
    rows: list[tuple[Tensor, Tensor | None, bool]] = dataclasses.field(default_factory=list)
    ms: float = 0.0  # of forwards that no node has been charged with
    positions: int = 0
    computed: int = 0


class Engine:
    """A tree, what comes after its nodes, and what reads more.

    Attributes:
        current: the node that the next token comes after; `None` before the first.
        positions_computed: by all forwards whose results were kept.
        made_with: what the file said of the model, of a timeline that was opened without.
    """

    def __init__(self, reader: PathReader, tree: Tree | None = None, logits_budget: int = BUDGET) -> None:
        self.reader = reader
        self.tree = Tree() if tree is None else tree
        self.store = LogitsStore(logits_budget)
        self.current: Node | None = None
        self.positions_computed = 0
        self.made_with: dict[str, Any] = {}

    @property
    def path(self) -> list[Node]:
        """The current text."""
        return self.tree.path(self.current)

    @property
    def room(self) -> int:
        """How many tokens may follow the current one."""
        model, room = self.reader.model, self.reader.room
        limits = [0 if model is None else model.config.max_position_embeddings, *([] if room is None else [room])]
        return min(limits) - (0 if self.current is None else self.current.position + 1)

    def check(self, length: int, room: int | None = None) -> None:
        """Raises `ValueError` if no text of this length can be read; `room` is that of another cache."""
        model, room = self.reader.model, self.reader.room if room is None else room
        if model is None:
            raise ValueError(
                "this timeline was opened without its model: it shows what was computed, and computes nothing. Open it "
                "with Timeline.load(path, model=…, tokenizer=…)."
            )
        limit = model.config.max_position_embeddings
        if length > limit:
            raise ValueError(
                f"the text would have {length:,} tokens, but the model was trained for at most {limit:,} positions "
                "(max_position_embeddings). Rewind, or begin a shorter text."
            )
        if room is not None and length > room:
            raise ValueError(
                f"the text would have {length:,} tokens, but the static cache has room for max_cache_len={room:,}. "
                f'Use one that has: use(cache="static", cache_config={{"max_cache_len": {length}}}), or "dynamic".'
            )

    def logits(self, node: Node) -> Float[Tensor, " vocab"]:
        """What was computed to come after a node; not to be written into.

        Raises:
            ValueError: if that needs the model, and there is none.
        """
        found = self.store.get(node.index, None if self.reader.model is None else self.reader.head)
        if found is None:
            raise ValueError(
                f"the logits after node {node.index} are not in the file, only its hidden state. Open the timeline "
                "with its model: Timeline.load(path, model=…)."
            )
        return found

    def is_fresh(self, node: Node) -> bool:
        """Whether what is held of a node is what the present cache and edits would give."""
        return self.store.regimes.get(node.index) == self.reader.regime(node.position + 1)

    def make_fresh(self, node: Node, should_stop: ShouldStop = None) -> None:
        """Reads a node again if another cache or other edits gave what is held of it."""
        if not self.is_fresh(node):
            self.extend(node, [], "forced", should_stop)

    def extend(
        self,
        parent: Node | None,
        ids: Sequence[int],
        source: Source | Sequence[Source],
        should_stop: ShouldStop = None,
        on_progress: OnProgress = None,
        again_from: int | None = None,
    ) -> list[Node]:
        """Reads tokens behind a node: they become nodes, the last of which is the current one.

        Args:
            parent: `None` for the beginning of a text.
            ids: without any, the parent itself is read again.
            again_from: a position of the path from which on everything is read again.

        Raises:
            ValueError: if there is no model, or no room; nothing is computed then.
            EditError: if an edit had no effect at a position that was read.
            Cancelled: if stopped.
        """
        known = 0 if parent is None else parent.position + 1
        self.check(known + len(ids))
        count, current, computed = len(self.tree.nodes), self.current, self.positions_computed
        standing = self.reader.edits.standing
        reads = 0 if standing is None else len(standing.reads)
        try:
            stop = known if again_from is None else min(known, again_from)
            if parent is not None and (not ids or not self.is_fresh(parent)):
                stop = min(stop, parent.position)
            return self._grow(parent, ids, source, stop, should_stop, on_progress)
        except BaseException:
            self.current, self.positions_computed = current, computed
            for node in self.tree.nodes[count:]:
                self.store.forget(node.index)
            del self.tree.nodes[count:]
            if standing is not None:
                del standing.reads[reads:]
            self.reader.cached = [index for index in self.reader.cached if index < count]
            self.reader.cut(known)
            if self.reader.observer is not None:
                self.reader.observer.discard()
            raise

    def _grow(
        self,
        parent: Node | None,
        ids: Sequence[int],
        source: Source | Sequence[Source],
        stop: int,
        should_stop: ShouldStop,
        on_progress: OnProgress,
    ) -> list[Node]:
        known = 0 if parent is None else parent.position + 1
        start = self.reader.cut(min(stop, self.tree.common(parent, self.reader.cached)), known + len(ids))
        tail = self.tree.tail(parent, start)
        again = parent is not None and stop <= parent.position
        growth = _Growth(known, None if parent is None or again else self.logits(parent))
        sources: Any = [source] * len(ids) if isinstance(source, str) else source
        tokens = [*(node.token for node in tail), *ids]
        for read in self.reader.read(tokens, start, known - again, should_stop, on_progress):
            growth.ms, growth.positions = growth.ms + read.ms, growth.positions + read.count
            growth.computed += read.count
            self._take(growth, read, parent, ids, sources)
        standing = self.reader.edits.standing
        if standing is not None and (overdue := standing.overdue()):
            raise EditError(f"{' '.join(overdue)} Take it back with use(edits=()), or give another one.")
        self._commit(growth, parent, start, tail)
        return growth.nodes

    def _take(
        self, growth: _Growth, read: Read, parent: Node | None, ids: Sequence[int], sources: Sequence[Source]
    ) -> None:
        """Makes nodes of what a forward read behind the path."""
        rows = len(read.hidden)
        if not rows:
            return
        skip = max(0, growth.known - read.start)  # 1 if the path's last node is among them
        if skip:
            growth.parent = (read.hidden[0], _own(read.logits[0]), read.fixed)
        first = read.start + skip - growth.known  # which of the new tokens comes first
        new = ids[first : first + rows - skip]
        scores = _score(growth.last, read.logits, new)
        for i, (token, hidden) in enumerate(zip(new, read.hidden[skip:], strict=True)):
            before = growth.nodes[-1] if growth.nodes else parent
            node = Node(
                index=len(self.tree.nodes) + len(growth.nodes),
                parent=None if before is None else before.index,
                position=growth.known + first + i,
                token=token,
                source=sources[first + i],
                phase=read.phase,
                cache=self.reader.choice.name,
                **next(scores),
            )
            growth.nodes.append(node)
            growth.rows.append((hidden, _own(read.logits[skip + i]) if read.fixed else None, read.fixed))
        growth.last = _own(read.logits[-1])
        if not new:
            return
        growth.nodes[-1] = dataclasses.replace(
            growth.nodes[-1], ms=growth.ms, positions_computed=growth.positions, cache_bytes=read.cache_bytes
        )
        growth.ms, growth.positions = 0.0, 0

    def _commit(self, growth: _Growth, parent: Node | None, start: int, tail: list[Node]) -> None:
        end = growth.known + len(growth.nodes)
        if parent is not None and growth.parent is not None:
            state, row, fixed = growth.parent
            self.store.put(parent.index, state.clone(), row, self.reader.regime(growth.known, end), fixed)
        for node, (hidden, logits, fixed) in zip(growth.nodes, growth.rows, strict=True):
            last = growth.last if node is growth.nodes[-1] else logits
            self.store.put(node.index, hidden, last, self.reader.regime(node.position + 1, end), fixed)
        self.tree.nodes.extend(growth.nodes)
        read = [*tail, *growth.nodes]
        if self.reader.cache is not None:
            self.reader.cached.extend(node.index for node in read)
        self.positions_computed += growth.computed
        self.current = growth.nodes[-1] if growth.nodes else parent
        if self.reader.observer is not None:
            self.reader.observer.keep(start, read)


def _own(row: Float[Tensor, " vocab"]) -> Float[Tensor, " vocab"]:
    return row.to("cpu", torch.float32, copy=True)


def _score(
    last: Float[Tensor, " vocab"] | None, logits: Float[Tensor, "row vocab"], tokens: Sequence[int]
) -> Iterator[dict[str, Any]]:
    """Each token's numbers: the first was predicted by `last`, the others by the rows. Without `last`, either the first
    row predicts the first token, where there is one row more than tokens, or nothing does.
    """
    if not tokens:
        return
    targets = torch.tensor(tokens)
    if len(logits) > len(tokens):
        yield from score_tokens(logits[:-1], targets).rows()
        return
    if last is None:
        yield {}
    else:
        yield from score_tokens(last[None], targets[:1]).rows()
    if len(tokens) > 1:
        yield from score_tokens(logits[:-1], targets[1:]).rows()
