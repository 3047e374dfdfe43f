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
        hits: see `ActiveEdits.hits`.
    """

    def __init__(self, what: str, edit: Edit | None = None) -> None:
        self.what, self.edit, self.hits = what, edit, 0
        self._rows: set[int] = set()  # positions changed; of a knock_out, queries that lost a key
        self._keys: set[int] = set()  # those keys
        self._edges: set[tuple[int, int]] = set()
        self._forbidden: dict[tuple[int, int], str] = {}

    def __repr__(self) -> str:
        return f"{self.what}: {self.hits} changed"

    def note_rows(self, positions: Int[Tensor, " row"], batch: int) -> None:
        """Rows at these positions were changed."""
        self.hits += len(positions) * batch
        if self.edit is not None and isinstance(self.edit.positions, tuple):
            self._rows.update(positions.tolist())

    def note_edges(self, edit: Edit, mask: Mask, lost: Bool[Tensor, "batch q k"]) -> None:
        """These cells of a mask, allowed until now, were forbidden."""
        cells = lost.any(0)
        if edit.edges is None:
            self._rows.update(mask.q_pos[cells.any(1)].tolist())
            self._keys.update(mask.k_pos[cells.any(0)].tolist())
            return
        self._edges.update(_edge(mask, *at) for at in cells.nonzero().tolist())
        for at in (edges_of(edit, mask) & ~cells).nonzero().tolist():
            bits = int(mask.reasons(*(slice(i, i + 1) for i in at))[0])
            rules = [rule.name for bit, rule in enumerate(mask.rules) if bits >> bit & 1]
            self._forbidden[_edge(mask, *at)] = f"it is forbidden already, by {', '.join(rules)}"

    def missed(self, reads: Reads) -> str | None:
        """Why it did not take effect where it was meant to, or `None` if it did everywhere."""
        if not reads:
            return f"{self.what} did not take effect: no forward of this model ran in the block, in its thread."
        found: dict[tuple[str, str], list[Any]] = {}
        for label, item, reason in self._problems(reads):
            found.setdefault((label, reason), []).append(item)
        if found:
            parts = [f"{label} {_numbers(items)}: {reason}" for (label, reason), items in found.items()]
            return f"{self.what} did not take effect. {'; '.join(parts)}."
        if self.hits:
            return None
        return f"{self.what} did not take effect: it found nothing to change in this block, {_span(reads)}."

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
