"""The rules a mask is made of: which (query position, key position, batch row) each one forbids, and why.

A rule is a name, a letter, a function and its parameters, which are plain numbers and tensors: a list of rules can be
shown, written as JSON and made again. Positions count from 0 and count padding. True means "may attend".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

MOST_RULES = 8  # a mask has one bit for each in a byte
Predicate = Callable[..., Tensor]
Parameter = int | Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Rule:
    """One named reason to forbid a cell.

    Attributes:
        name: what it is called; of several rules of a name, each has its own reason bit.
        letter: marks it on the page.
        allows: (query positions, key positions, **parameters) → which cells may attend, elementwise with broadcasting.
            Where a parameter is a tensor it is called as (query positions, key positions, batch rows, **parameters).
        parameters: by name; a tensor has the batch row first (one for all rows, or one a row), then, if it has
            two axes, the position.
        by_cell: `allows` gets the index of a query and of a key slot instead of their positions; `custom` only.
        excepts: if not `None`, this rule forbids nothing: what it allows stays visible in spite of rules of that name.
    """

    name: str
    letter: str
    allows: Predicate
    parameters: Mapping[str, Parameter] = dataclasses.field(default_factory=dict)
    by_cell: bool = False
    excepts: str | None = None

    @property
    def rows(self) -> int:
        """How many batch rows it tells apart; 1 if it is the same for all, 0 if it does not look at the row."""
        return max((len(value) for value in self.parameters.values() if isinstance(value, Tensor)), default=0)

    @property
    def reach(self) -> int | None:
        """How many positions it knows something about; `None` for any number."""
        tables = [v for v in self.parameters.values() if isinstance(v, Tensor) and v.dim() == 2]
        return min((table.shape[1] for table in tables), default=None)

    def __call__(self, q: Tensor, k: Tensor, row: Tensor) -> Tensor:
        """Which cells may attend; all arguments broadcast."""
        return self.allows(q, k, row, **self.parameters) if self.rows else self.allows(q, k, **self.parameters)

    def to(self, device: torch.device) -> Rule:
        """The same with its tensors on a device."""
        moved = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in self.parameters.items()}
        return dataclasses.replace(self, parameters=moved)

    def __repr__(self) -> str:
        shown = [
            f"{name}={tuple(value.shape) if isinstance(value, Tensor) else value}"
            for name, value in self.parameters.items()
        ]
        return f"{self.name}({', '.join(shown)})"


def causal() -> Rule:
    """A query sees no later position."""
    return Rule("causal", "C", _causal)


def empty_slot() -> Rule:
    """A query sees no cache slot without a token (position −1). Every other rule leaves such slots to this one."""
    return Rule("empty_slot", "E", _empty_slot)


def padding(keep: Int[Tensor, "row pos"] | Bool[Tensor, "row pos"]) -> Rule:
    """A query sees no padding.

    Args:
        keep: 1 or True at tokens, 0 or False at padding, on whichever side, as a tokenizer's `attention_mask`. It
            covers all positions up to the last query's, cached ones too; it may be longer.

    Raises:
        TypeError: if it is no tensor.
        ValueError: for another number of dimensions or other values.
    """
    keep = _table("padding", "keep", keep)
    if keep.dtype != torch.bool and bool(((keep != 0) & (keep != 1)).any()):
        raise ValueError("padding(keep): keep holds other values than 0 (padding) and 1 (token).")
    return Rule("padding", "P", _padding, {"keep": keep.bool()})


def window(n: int) -> Rule:
    """A query sees its own position and the n − 1 before it: keys with q − k < n.

    This is the convention of Mistral 7B (arXiv 2310.06825) as `transformers` computes it: `k > q - sliding_window`. It
    says nothing of later positions; those are `causal`'s. `sink` makes exceptions from it.

    Raises:
        ValueError: if n is no whole number of at least 1.
    """
    return Rule("window", "W", _window, {"n": _count("window", n)})


def sink(n: int, first: Int[Tensor, " row"] | None = None) -> Rule:
    """The first n positions stay visible in spite of `window` (attention sinks, StreamingLLM, arXiv 2309.17453).

    It is an exception, not a reason: its own bit is never set, it clears the one of `window`. All other rules hold for
    those positions too. A mask with a sink and no window is refused, because the sink would do nothing.

    Args:
        n: how many positions.
        first: position of the first token of each row, where that is not 0: with padding on the left,
            `attention_mask.argmax(1)`. Otherwise the first n positions of such a row are padding.

    Raises:
        TypeError, ValueError: if n is no whole number of at least 1, or `first` no whole number for each row.
    """
    parameters: dict[str, Parameter] = {"n": _count("sink", n)}
    if first is None:
        return Rule("sink", "S", _sink, parameters, excepts="window")
    first = _integers("sink", "first", first, 1, "(rows,)").long()
    return Rule("sink", "S", _sink_from, {**parameters, "first": first}, excepts="window")


def document(numbers: Int[Tensor, "row pos"]) -> Rule:
    """A query sees its own document only, of several packed in one row.

    Args:
        numbers: which document each position is in; it covers all positions up to the last query's, and may be longer.

    Raises:
        TypeError: if it is no tensor.
        ValueError: for another number of dimensions, or numbers that are not whole.
    """
    return Rule("document", "D", _document, {"numbers": _table("document", "numbers", numbers).long()})


def custom(allowed: Bool[Tensor, "row q k"] | Bool[Tensor, "q k"]) -> Rule:
    """The caller's own mask over the cells as they are: query i and key slot j, whatever their positions.

    Args:
        allowed: True = may attend; one for all batch rows, or one a row.

    Raises:
        TypeError: if it is no tensor of booleans.
        ValueError: for another number of dimensions.
    """
    if not isinstance(allowed, Tensor) or allowed.dtype != torch.bool:
        found = allowed.dtype if isinstance(allowed, Tensor) else type(allowed).__name__
        raise TypeError(f"custom(allowed): allowed is {found}; a tensor of booleans is needed, True = may attend.")
    if allowed.dim() not in (2, 3):
        raise ValueError(
            f"custom(allowed): allowed has shape {tuple(allowed.shape)}; (queries, keys) or (rows, queries, keys) is "
            "needed."
        )
    allowed = allowed.detach().to("cpu", copy=True)  # the caller may go on writing into theirs
    return Rule("custom", "X", _custom, {"allowed": allowed.reshape(-1, *allowed.shape[-2:])}, by_cell=True)


def kind_of(rule: Rule) -> str | None:
    """The function here that made a rule, whatever the rule is called; `None` for one of the caller's own."""
    return _MADE_BY.get(rule.allows)


def batch_of(rules: Sequence[Rule]) -> int:
    """How many batch rows some rules tell apart; 1 where all rows agree."""
    return max((rule.rows for rule in rules if rule.parameters), default=1) or 1


def check_rules(rules: Sequence[Rule], q_pos: Int[Tensor, " q"], k_pos: Int[Tensor, " k"]) -> None:
    """Raises `ValueError` for rules that do not fit each other or the positions."""
    if len(rules) > MOST_RULES:
        raise ValueError(
            f"a mask has at most {MOST_RULES} rules, one reason bit each; these are {len(rules)}: {rules}."
        )
    names = [rule.name for rule in rules]
    batch = batch_of(rules)
    for rule in rules:
        if rule.excepts is not None and rule.excepts not in names:
            raise ValueError(
                f"{rule!r} makes exceptions from the rule {rule.excepts!r}, but there is none among {names}, so it "
                f"would do nothing. Add {rule.excepts}(n), or leave {rule.name} out."
            )
        if not rule.parameters:
            continue
        if rule.rows not in (0, 1, batch):
            raise ValueError(
                f"{rule!r} is for {rule.rows} batch rows, another rule for {batch}; each needs 1 row or the same."
            )
        if rule.reach is not None:
            needed = max((int(at.max()) for at in (q_pos, k_pos) if len(at)), default=-1) + 1
            if rule.reach < needed:
                raise ValueError(
                    f"{rule!r} knows positions 0 … {rule.reach - 1}, but the positions go to {needed - 1}. Cached "
                    f"positions count too: give {needed} or more."
                )
        if rule.by_cell:
            table: Any = rule.parameters["allowed"]
            found, cells = tuple(table.shape[1:]), (len(q_pos), len(k_pos))
            if found != cells:
                raise ValueError(
                    f"{rule!r} has {found[0]} queries × {found[1]} keys; there are {cells[0]} × {cells[1]} here."
                )


RULES: dict[str, Callable[..., Rule]] = {
    rule.__name__: rule for rule in (causal, padding, window, sink, document, empty_slot, custom)
}


def rules_as_data(rules: Iterable[Rule], lists: bool = True) -> list[dict[str, Any]]:
    """Rules as names, numbers and nested lists, which `json.dumps` takes: `[{"rule": "window", "n": 64}]`.

    Args:
        rules: made by the functions here; one that was renamed also has its "name" and "letter" in the data.
        lists: False leaves tensors as they are, for a file that stores them apart.

    Raises:
        ValueError: for a rule that was not made by one of the functions here: a function cannot be written down.
    """
    data = []
    for rule in rules:
        kind = kind_of(rule)
        if kind is None:
            raise ValueError(
                f"the rule {rule!r} is a function of its own and cannot be written as data; those that can are "
                f"{', '.join(RULES)}. Give its cells to custom()."
            )
        values = {n: v.tolist() if lists and isinstance(v, Tensor) else v for n, v in rule.parameters.items()}
        called = {} if rule.name == kind else {"name": rule.name, "letter": rule.letter}
        data.append({"rule": kind, **called, **values})
    return data


def rules_from_data(data: Sequence[Mapping[str, Any]]) -> list[Rule]:
    """The rules that `rules_as_data` wrote, with lists or with tensors.

    Raises:
        TypeError: for an entry that is no dictionary.
        ValueError: for a name that is none, or parameters that do not fit it.
    """
    rules = []
    for entry in data:
        if not isinstance(entry, Mapping):
            raise TypeError(f'the data hold {entry!r}; a dictionary for each rule is needed, {{"rule": "causal"}}.')
        kind = entry.get("rule")
        if kind not in RULES:
            raise ValueError(f"there is no rule {kind!r}; there are {', '.join(RULES)}.")
        called = {n: entry[n] for n in ("name", "letter") if n in entry}
        values = {n: v for n, v in entry.items() if n != "rule" and n not in called}
        try:
            made = RULES[kind](**{n: torch.tensor(v) if isinstance(v, list) else v for n, v in values.items()})
        except TypeError as error:
            raise ValueError(f"the data of rule {kind!r} do not fit it: {error}") from None
        rules.append(dataclasses.replace(made, **called))
    return rules


# --- the predicates: elementwise, so that a tile, a whole mask and a compiled kernel use the same -------------------


def _causal(q: Tensor, k: Tensor) -> Tensor:
    return k <= q


def _empty_slot(q: Tensor, k: Tensor) -> Tensor:
    return k >= 0


def _padding(q: Tensor, k: Tensor, row: Tensor, keep: Tensor) -> Tensor:
    return _look_up(keep, row, k) | (k < 0)


def _window(q: Tensor, k: Tensor, n: int) -> Tensor:
    return (k > q - n) | (k < 0)


def _sink(q: Tensor, k: Tensor, n: int) -> Tensor:
    return k < n


def _sink_from(q: Tensor, k: Tensor, row: Tensor, n: int, first: Tensor) -> Tensor:
    start = first[row.clamp(max=len(first) - 1)]
    return (k >= start) & (k < start + n)


def _document(q: Tensor, k: Tensor, row: Tensor, numbers: Tensor) -> Tensor:
    return (_look_up(numbers, row, q) == _look_up(numbers, row, k)) | (k < 0)


def _custom(query: Tensor, key: Tensor, row: Tensor, allowed: Tensor) -> Tensor:
    return allowed[row.clamp(max=len(allowed) - 1), query, key]


def _look_up(table: Tensor, row: Tensor, position: Tensor) -> Tensor:
    """What a (row, pos) table says; a table of one row speaks for all, and an empty slot gets anything."""
    return table[row.clamp(max=len(table) - 1), position.clamp(min=0)]


_MADE_BY = {
    _causal: "causal",
    _empty_slot: "empty_slot",
    _padding: "padding",
    _window: "window",
    _sink: "sink",
    _sink_from: "sink",
    _document: "document",
    _custom: "custom",
}


# --- checks of parameters -------------------------------------------------------------------------------------------


def _count(rule: str, n: Any) -> int:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise ValueError(f"{rule}(n): n is {n!r}; a whole number of at least 1 is needed.")
    return n


def _table(rule: str, name: str, table: Any) -> Tensor:
    return _integers(rule, name, table, 2, "(rows, positions)")


def _integers(rule: str, name: str, value: Any, axes: int, shape: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{rule}({name}): {name} is a {type(value).__name__}; a tensor {shape} is needed.")
    if value.dim() != axes or 0 in value.shape:
        raise ValueError(f"{rule}({name}): {name} has shape {tuple(value.shape)}; {shape} is needed.")
    if value.is_complex() or (value.is_floating_point() and bool((value != value.round()).any())):
        raise ValueError(f"{rule}({name}): {name} holds other values than whole numbers.")
    return value.detach().to("cpu", copy=True)  # the caller may go on writing into theirs
