"""What one edit did in a block, and why it did nothing where it was meant to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor

from workbench.instrument.edit_apply import edges_of
from workbench.instrument.edit_data import Edit, Positions
from workbench.model.mask import Mask

Reads = list[tuple[int, int]]  # (first position, number of positions) of each forward
Problem = tuple[str, Any, str]  # "position", 3, the reason


class Effect:
    """The ledger of one edit or function.

    Attributes:
        what: the edit in words.
        met: rows that were given to it, changed or not.
    """

    def __init__(self, what: str, edit: Edit | None = None) -> None:
        self.what, self.edit, self.met = what, edit, 0
        self._changed: Tensor | int = 0  # left where it is computed: reading it would wait for a GPU
        self._dtype = ""
        self._rows: set[int] = set()  # positions changed; of a knock_out, queries that lost a key
        self._keys: set[int] = set()  # those keys
        self._edges: set[tuple[int, int]] = set()
        self._forbidden: dict[tuple[int, int], str] = {}

    def __repr__(self) -> str:
        return f"{self.what}: {self.hits} changed" + (f", {self.unchanged} so already" if self.unchanged else "")

    @property
    def hits(self) -> int:
        """See `ActiveEdits.hits`."""
        return int(self._changed)

    @property
    def unchanged(self) -> int:
        """See `ActiveEdits.unchanged`."""
        return max(self.met - self.hits, 0)

    @property
    def took_effect(self) -> bool:
        """Whether it did anything that it could be meant to do. What sets numbers may find them so; what adds or
        scales has to change one.
        """
        must_change = self.edit is not None and self.edit.kind in ("add", "scale")
        return self.hits > 0 or (self.met > 0 and not must_change)

    def note_rows(self, positions: Int[Tensor, " row"], batch: int, changed: Tensor | int, dtype: Any = "") -> None:
        """Rows at these positions were given to it, of which so many are other than before."""
        self.met += len(positions) * batch
        self._dtype = str(dtype).removeprefix("torch.")
        self.note_changed(changed)
        if self.edit is not None and isinstance(self.edit.positions, tuple):
            self._rows.update(positions.tolist())

    def note_changed(self, count: Tensor | int) -> None:
        """So many rows or edges were changed."""
        if isinstance(count, Tensor) and isinstance(self._changed, Tensor):
            count = count.to(self._changed.device)
        self._changed = self._changed + count

    def note_edges(self, edit: Edit, mask: Mask, lost: Bool[Tensor, "batch head q k"]) -> None:
        """These cells of a mask, allowed until now, were forbidden."""
        cells = lost.flatten(0, 1).any(0)
        if edit.edges is None:
            self._rows.update(mask.q_pos[cells.any(1)].tolist())
            self._keys.update(mask.k_pos[cells.any(0)].tolist())
            return
        self._edges.update(_edge(mask, *at) for at in cells.nonzero().tolist())
        for at in (edges_of(edit, mask) & ~cells).nonzero().tolist():
            bits = int(mask.reasons(*(slice(i, i + 1) for i in at))[0])
            rules = [rule.name for bit, rule in enumerate(mask.rules) if bits >> bit & 1]
            by = ", ".join(rules) or "what is added to the scores of these heads"
            self._forbidden[_edge(mask, *at)] = f"it is forbidden already, by {by}"

    def missed(self, reads: Reads) -> str | None:
        """Why it did not take effect where it was meant to, or `None` if it did everywhere."""
        if not reads:
            return f"{self.what} did not take effect: no forward of this model ran in the block, in its thread."
        if problems := list(self._problems(reads)):
            return self._told(problems)
        if self.took_effect:
            return None
        return f"{self.what} did not take effect: {self._nothing(f'this block, {_span(reads)}')}."

    def overdue(self, reads: Reads) -> str | None:
        """Why it did not take effect at positions that were read, or `None` if it did at all that were."""
        if not reads or not self._reached(reads):
            return None
        if problems := [one for one in self._problems(reads) if not self._may_come(one, reads)]:
            return self._told(problems)
        waits = self.edit is not None and any(self._problems(reads))
        if self.took_effect or waits:
            return None
        return f"{self.what} did not take effect: {self._nothing(f'the text so far, {_span(reads)}')}."

    def _nothing(self, where: str) -> str:
        """Why nothing was changed."""
        edit = self.edit
        if edit is None or not self.met:
            return f"it found nothing to change in {where}"
        if edit.kind == "scale":
            met = f"what it met is 0, or the difference is lost in rounding to {self._dtype}"
            why = "a factor of 1 leaves every number as it is" if edit.factor == 1 else met
        else:
            zero = not any(bool((value * edit.factor).any()) for value in (edit.values or {}).values())
            why = "what it adds is 0" if zero else f"what it adds is lost in rounding to {self._dtype}"
        return f"it changed no number, because {why}"

    def _reached(self, reads: Reads) -> bool:
        """Whether the text is as long as where it is to begin."""
        if self.edit is None:
            return True
        begins = [s.start for s in (self.edit.positions, self.edit.queries, self.edit.keys) if isinstance(s, slice)]
        return max(start + count for start, count in reads) > max(begins, default=-1)

    def _may_come(self, problem: Problem, reads: Reads) -> bool:
        """Whether what did not happen may still happen, when more of the text is read."""
        label, item, _ = problem
        if label == "edge":
            return _unread(item[0], reads) is not None
        if label != "key" or self.edit is None:
            return _unread(item, reads) is not None
        queries = self.edit.queries
        if isinstance(queries, tuple):
            return any(_unread(query, reads) for query in queries)
        return _unread(max(item, queries.start if queries is not None else 0), reads) is not None

    def _told(self, problems: list[Problem]) -> str:
        found: dict[tuple[str, str], list[Any]] = {}
        for label, item, reason in problems:
            found.setdefault((label, reason), []).append(item)
        parts = [f"{label} {_numbers(items)}: {reason}" for (label, reason), items in found.items()]
        return f"{self.what} did not take effect. {'; '.join(parts)}."

    def _problems(self, reads: Reads) -> Iterator[Problem]:
        edit = self.edit
        if edit is None:
            return
        for position in _missing(edit.positions, self._rows):
            yield "position", position, _unread(position, reads) or "no row of it was computed (see logits_to_keep)"
        for query in _missing(edit.queries, self._rows):
            yield "query", query, _unread(query, reads) or "it could not see any of the keys"
        for key in _missing(edit.keys, self._keys):
            yield "key", key, "none of the queries that were read could see it"
        for edge in edit.edges or ():
            if edge not in self._edges:
                unread, unseen = (
                    _unread(edge[0], reads),
                    self._forbidden.get(edge, "its key is in no slot of the cache"),
                )
                yield "edge", edge, f"its query was {unread}" if unread else unseen


def _missing(wanted: Positions | None, met: set[int]) -> list[int]:
    return [position for position in wanted if position not in met] if isinstance(wanted, tuple) else []


def _edge(mask: Mask, query: int, key: int) -> tuple[int, int]:
    return int(mask.q_pos[query]), int(mask.k_pos[key])


def _unread(position: int, reads: Reads) -> str | None:
    """Why no forward read a position."""
    if any(start <= position < start + count for start, count in reads):
        return None
    where = "in the cache before" if position < min(start for start, _ in reads) else "not read in"
    return f"{where} this block, {_span(reads)}"


def _span(reads: Reads) -> str:
    first, last = min(start for start, _ in reads), max(start + count for start, count in reads) - 1
    return f"whose forwards read positions {first} … {last}"


def _numbers(items: list[Any]) -> str:
    more = f", … {len(items) - 6} more" if len(items) > 8 else ""
    return ", ".join(map(str, items[:6] if more else items)) + more
