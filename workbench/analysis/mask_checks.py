"""Is this mask what it was meant to be? Checks of any `Mask`, in blocks of queries: no (q, k) tensor is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.model.mask import Mask, Rule, check_rules, document
from workbench.model.mask import documents as documents_of
from workbench.model.mask import padding as padding_rule
from workbench.model.mask_rules import kind_of

CELLS = 2**21  # cells looked at at once: some tensors of 2 MB
RUNS = 6  # runs of positions that a line names
SIGNS = {True: "ok", False: "FAIL", None: "–"}


@dataclasses.dataclass(frozen=True)
class Check:
    """One question: `passed` is `None` where there is nothing to answer it by; `detail` says what was found and where.

    Positions are those of the text, counting from 0 and counting padding.
    """

    name: str
    passed: bool | None
    detail: str


@dataclasses.dataclass(frozen=True)
class MaskReport:
    """What `check_mask` found; printed, it is a table.

    Attributes:
        checks: "fully masked rows", "polarity", "documents", "padding" and "empty slots", in this order.
        counts: (row, q), how many keys each query may attend to; in one head at least, where the heads differ.
        real: (row, q), which of the queries are tokens and no padding, as far as is known.
        title: the rules and sizes in words.
    """

    checks: tuple[Check, ...]
    counts: npt.NDArray[np.int64]
    real: npt.NDArray[np.bool_]
    title: str

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)

    @property
    def keys_per_query(self) -> tuple[int, float, int]:
        """Minimum, median and maximum of `counts`, without padding queries (unless there are no others)."""
        counts = self.counts[self.real] if self.real.any() else self.counts
        return int(counts.min()), float(np.median(counts)), int(counts.max())

    def __getitem__(self, name: str) -> Check:
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"there is no check {name!r}; there are {', '.join(check.name for check in self.checks)}.")

    def __str__(self) -> str:
        wide = max(len(check.name) for check in self.checks)
        lines = [f"{SIGNS[check.passed]:<4}  {check.name:<{wide}}  {check.detail}" for check in self.checks]
        least, median, most = self.keys_per_query
        return "\n".join([self.title, *lines, f"keys per query: least {least:,}, median {median:,g}, most {most:,}"])

    def to_pandas(self) -> pd.DataFrame:
        """One row a check: name, passed, detail."""
        return pd.DataFrame([dataclasses.asdict(check) for check in self.checks])


def check_mask(
    mask: Mask,
    *,
    documents: Int[Tensor, "row pos"] | None = None,
    position_ids: Int[Tensor, "row pos"] | None = None,
    padding: Int[Tensor, "row pos"] | None = None,
) -> MaskReport:
    """Looks for what goes wrong with masks without an error message.

    - **fully masked rows**: queries that may attend to nothing, whose attention output is zero. Fails unless they are
      known to be padding.
    - **polarity**: fails if, in a text, most queries may attend to later positions but not to their own, and all of
      them to fewer earlier positions than later ones (a mask in which True means masked), or some to later and none to
      earlier ones (also if its axes are exchanged), and for an additive mask of zeros and ones: it forbids nothing.
    - **documents**: fails if a token may attend to another document's.
    - **padding**: fails if a token may attend to padding.
    - **empty slots**: fails if a query may attend to a cache slot without a token.

    Time is O(q · k), memory O(k) and blocks of some MB.

    Args:
        mask: any mask, such as `acts.spans[0].mask` of a capture.
        documents: which document each position is in; by default what the mask's own `document` rule says.
        position_ids: instead of it, positions that begin anew with each document.
        padding: 0 at padding; by default what the mask's own `padding` rule says.

    Raises:
        TypeError, ValueError: for tensors that do not fit the positions or each other.
        ValueError: for a mask without a query or a key.
    """
    queries, keys = len(mask.q_pos), len(mask.k_pos)
    if not queries or not keys:
        raise ValueError(f"this mask has {queries} queries and {keys} keys; at least one of each is needed.")
    known = _Known.read(mask, documents, position_ids, padding)
    tally = _count(mask, known)
    rules = " + ".join(map(repr, mask.rules)) or "no rules"
    return MaskReport(
        checks=(
            _fully_masked(mask, known, tally),
            _polarity(mask, known, tally),
            _documents(mask, known, tally),
            _padding(mask, known, tally),
            _empty_slots(mask, known, tally),
        ),
        counts=tally["allowed"].numpy(),
        real=known.real.numpy(),
        title=f"{rules}: {known.rows} row{'s' * (known.rows > 1)}, {queries:,} queries, {keys:,} keys",
    )


@dataclasses.dataclass(frozen=True)
class _Known:
    """What is known of the texts, by query and by key slot; one row for all or one a row."""

    rows: int
    real: Bool[Tensor, "row q"]  # no padding
    token: Bool[Tensor, "row k"]  # neither padding nor empty
    has_padding: bool  # whether anything says which positions are padding
    numbers: Int[Tensor, "row pos"] | None

    @classmethod
    def read(cls, mask: Mask, documents: Tensor | None, position_ids: Tensor | None, padding: Tensor | None) -> _Known:
        if documents is not None and position_ids is not None:
            raise ValueError("both documents and position_ids are given; one of them says where the documents are.")
        if position_ids is not None:
            document(position_ids)  # raises for what is no table of whole numbers
            documents = documents_of(position_ids)
        pads = [padding_rule(padding)] if padding is not None else _of_kind(mask, "padding")
        parts = [document(documents)] if documents is not None else []
        if documents is None and position_ids is None:
            parts = _of_kind(mask, "document")
        check_rules([*pads, *parts], mask.q_pos, mask.k_pos)
        sizes = {mask.batch, *(rule.rows for rule in (*pads, *parts)), 1 if mask.extra is None else len(mask.extra)}
        if len(sizes - {0, 1}) > 1:
            raise ValueError(f"the mask and what is given with it are for {sorted(sizes)} rows; they must agree.")
        rows = max(sizes)
        real, token = _by_padding(pads, mask, rows)
        numbers = _rows(parts[0].parameters["numbers"], rows) if parts else None
        return cls(rows, real, token, bool(pads), numbers)


def _of_kind(mask: Mask, kind: str) -> list[Rule]:
    """The rules of a kind that forbid, whatever they are called."""
    return [rule for rule in mask.rules if kind_of(rule) == kind and rule.excepts is None]


def _by_padding(pads: list[Rule], mask: Mask, rows: int) -> tuple[Tensor, Tensor]:
    """Which queries and which key slots are tokens, (row, q) and (row, k)."""
    real = torch.ones((rows, len(mask.q_pos)), dtype=torch.bool)
    token = _rows(mask.k_pos[None] >= 0, rows)
    for rule in pads:
        keep = _rows(rule.parameters["keep"], rows)
        real, token = real & keep[:, mask.q_pos], token & keep[:, mask.k_pos.clamp(min=0)]
    return real, token


def _rows(table: object, rows: int) -> Tensor:
    assert isinstance(table, Tensor)
    return table.expand(rows, -1)


# --- counting ---------------------------------------------------------------------------------------------------------


def _count(mask: Mask, known: _Known) -> dict[str, Int[Tensor, "row q"]]:
    """For each query and kind of cell (see `_kinds`), how many keys are of that kind."""
    step = max(1, CELLS // (known.rows * _heads(mask) * max(1, len(mask.k_pos))))
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, len(mask.q_pos), step):
        block = slice(start, start + step)
        for name, cells in _kinds(mask, known, block).items():
            parts.setdefault(name, []).append(cells().sum(-1))
    return {name: torch.cat(sums, 1) for name, sums in parts.items()}


def _kinds(mask: Mask, known: _Known, q: slice) -> dict[str, Callable[[], Tensor]]:
    """Kinds of cells of some queries, (row, q, k), each made when it is asked for."""
    allowed = mask.allowed(q).expand(known.rows, -1, -1)
    q_pos, k_pos = mask.q_pos[q, None], mask.k_pos[None]
    token, real, numbers = known.token[:, None], known.real[:, q, None], known.numbers
    kinds = {
        "allowed": lambda: allowed,
        "later": lambda: allowed & token & (k_pos > q_pos),
        "earlier": lambda: allowed & token & (k_pos < q_pos),
        "itself": lambda: allowed & (k_pos == q_pos),
        "padding": lambda: allowed & ~token & (k_pos >= 0),
        "empty": lambda: allowed & (k_pos < 0),
    }
    if numbers is not None:
        mine, theirs = numbers[:, mask.q_pos[q]][:, :, None], numbers[:, mask.k_pos.clamp(min=0)][:, None]
        kinds["leak"] = lambda: allowed & token & real & (mine != theirs)
    if mask.extra is not None:
        open_to = mask.extra[:, :, q] > -torch.inf  # (row, head, q, k)
        kinds["open heads"] = lambda: (open_to & allowed[:, None]).any(-1).transpose(1, 2)  # (row, q, head)
    return kinds


# --- judging ----------------------------------------------------------------------------------------------------------


def _fully_masked(mask: Mask, known: _Known, tally: dict[str, Tensor]) -> Check:
    name = "fully masked rows"
    idle = tally["allowed"] == 0
    wrong, padded = idle & known.real, idle & ~known.real
    notes = []
    if wrong.any():
        notes.append(f"{_queries(mask, wrong)} may attend to nothing: zeros come out of attention")
        if not known.has_padding:
            notes.append("if these are padding, give padding=")
    if "open heads" in tally:
        some = (tally["open heads"] < _heads(mask)) & ~idle & known.real
        if some.any():
            wrong = wrong | some
            notes.append(f"{_queries(mask, some)} may attend to nothing in some of the heads")
    if padded.any():
        also = "also " if notes else ""
        notes.append(
            f"{also}{_queries(mask, padded)} may attend to nothing, {'but' if also else 'all of them'} padding"
        )
    return Check(name, not bool(wrong.any()), "; ".join(notes) or "every query may attend to a key")


def _polarity(mask: Mask, known: _Known, tally: dict[str, Tensor]) -> Check:
    name = "polarity"
    if mask.extra is not None and _zeros_and_ones(mask.extra):
        return Check(
            name,
            False,
            "the additive mask holds 0 and 1 only: it adds 1 to some scores and forbids nothing. Give booleans (True = "
            "may attend), or −inf where masked",
        )
    # Whether there is an earlier and a later token at all, (row, q).
    far = torch.iinfo(torch.long).max
    first = mask.k_pos.expand(known.rows, -1).masked_fill(~known.token, far).amin(1, keepdim=True)
    last = mask.k_pos.expand(known.rows, -1).masked_fill(~known.token, -1).amax(1, keepdim=True)
    judged = known.real & (first < mask.q_pos) & (mask.q_pos < last)
    forward = judged & (tally["later"] > 0)
    if not judged.any():
        return Check(name, None, "not checked: no query has a token before it and one after it")
    if (words := _upside_down(mask, known, tally, judged, forward)) is not None:
        return Check(name, False, words)
    if forward.any():
        cells = _cells(tally["later"][known.real])
        return Check(name, True, f"bidirectional: {cells} later than the query may be attended to")
    return Check(name, True, "no query may attend to a later position")


def _upside_down(
    mask: Mask, known: _Known, tally: dict[str, Tensor], judged: Bool[Tensor, "row q"], forward: Bool[Tensor, "row q"]
) -> str | None:
    """What is said of texts whose mask looks inverted, or transposed; `None` if there are none.

    `judged` are queries with tokens before and after them, `forward` those of them that may attend to later ones.
    """
    earlier, later = (tally[kind].masked_fill(~known.real, 0).sum(1, keepdim=True) for kind in ("earlier", "later"))
    selfless = forward & torch.isin(mask.q_pos, mask.k_pos) & (tally["itself"] == 0)
    inverted = selfless & (selfless.sum(1, keepdim=True) * 2 > judged.sum(1, keepdim=True)) & (earlier < later)
    if inverted.any():
        some = bool((earlier[inverted.any(1)] > 0).any())
        which = "to their own, and to fewer earlier ones" if some else "to earlier ones or their own"
        return (
            f"{_queries(mask, inverted)} may attend to later positions but not {which}: the mask looks inverted. True "
            "means may attend; try ~mask"
        )
    transposed = forward & (earlier == 0)
    if transposed.any():
        return (
            f"{_queries(mask, transposed)} may attend to later positions and their own but to none earlier: the mask "
            "looks transposed or inverted. Queries come first, and True means may attend; try mask.mT or ~mask"
        )
    return None


def _documents(mask: Mask, known: _Known, tally: dict[str, Tensor]) -> Check:
    name = "documents"
    if known.numbers is None:
        return Check(name, None, "not checked: nothing says that there are several; give documents= or position_ids=")
    leaks = tally["leak"]
    if not leaks.any():
        return Check(name, True, "no token may attend to another document")
    row, q, k = _first(mask, known, "leak", leaks)
    mine, theirs = (int(known.numbers[row, position]) for position in (q, k))
    return Check(
        name,
        False,
        f"{_queries(mask, leaks > 0)} may attend to another document, {_cells(leaks)}; first "
        f"{_row(known.rows, row)}query {q} (document {mine}) to key {k} (document {theirs})",
    )


def _padding(mask: Mask, known: _Known, tally: dict[str, Tensor]) -> Check:
    name, cells = "padding", tally["padding"]
    if not known.has_padding:
        return Check(name, None, "not checked: nothing says which positions are padding; give padding=")
    wrong = cells.masked_fill(~known.real, 0)
    if wrong.any():
        row, q, k = _first(mask, known, "padding", wrong)
        return Check(
            name,
            False,
            f"{_queries(mask, wrong > 0)} may attend to padding, {_cells(wrong)}; first "
            f"{_row(known.rows, row)}query {q} to key {k}",
        )
    only = "; padding itself does, which nothing reads" if cells.any() else ""
    return Check(name, True, f"no token may attend to padding{only}")


def _empty_slots(mask: Mask, known: _Known, tally: dict[str, Tensor]) -> Check:
    name, count = "empty slots", int((mask.k_pos < 0).sum())
    if not count:
        return Check(name, True, "no slot is empty")
    if not tally["empty"].any():
        return Check(name, True, f"{count:,} empty, none may be attended to")
    return Check(name, False, f"{_queries(mask, tally['empty'] > 0)} may attend to slots without a token")


def _heads(mask: Mask) -> int:
    return 1 if mask.extra is None else mask.extra.shape[1]


def _zeros_and_ones(extra: Tensor) -> bool:
    """Whether there is a 1 and nothing but 0 and 1; by blocks of queries."""
    found_one = False
    step = max(1, CELLS // max(1, extra[:, :, :1].numel()))
    for start in range(0, extra.shape[2], step):
        block = extra[:, :, start : start + step]
        ones = block == 1
        if bool((~ones & (block != 0)).any()):
            return False
        found_one = found_one or bool(ones.any())
    return found_one


# --- words ------------------------------------------------------------------------------------------------------------


def _first(mask: Mask, known: _Known, kind: str, counts: Tensor) -> tuple[int, int, int]:
    """Row, query position and key position of the first cell of a kind."""
    row, q = (int(i) for i in (counts > 0).nonzero()[0])
    keys = _kinds(mask, known, slice(q, q + 1))[kind]()[row, 0]
    return row, int(mask.q_pos[q]), int(mask.k_pos[keys][0])


def _cells(counts: Tensor) -> str:
    count = int(counts.sum())
    return f"{count:,} cell{'s' * (count != 1)}"


def _row(rows: int, row: int) -> str:
    return f"row {row}, " if rows > 1 else ""


def _queries(mask: Mask, which: Bool[Tensor, "row q"]) -> str:
    """ "row 0: queries 0–3, 7; row 2: query 1": the positions of these queries in runs, cut where there are many."""
    parts: list[str] = []
    left = RUNS
    for row in which.any(1).nonzero()[:, 0].tolist():
        runs = _runs(mask.q_pos[which[row]].tolist())
        if not left:
            break
        shown = [str(a) if a == b else f"{a}–{b}" for a, b in runs[:left]]
        one = len(runs) == 1 and runs[0][0] == runs[0][1]
        label = f"row {row}: " if len(which) > 1 else ""
        parts.append(f"{label}{'query' if one else 'queries'} {', '.join(shown)}{' …' * (len(runs) > left)}")
        left -= len(shown)
    hidden = int(which.any(1).sum()) - len(parts)
    return "; ".join(parts) + (f"; and {hidden:,} more rows" if hidden else "")


def _runs(positions: list[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for position in positions:
        if runs and position == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], position)
        else:
            runs.append((position, position))
    return runs
