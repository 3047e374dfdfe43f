"""The attention mask as a list of named rules.

Everything that is given to an attention kernel, and every explanation of why a cell is masked, comes from the same
list. True means "may attend". The rules themselves are in `mask_rules`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from workbench.model.cache_rules import cache_rules, with_cache_rules
from workbench.model.mask_rules import (
    Predicate,
    Rule,
    batch_of,
    causal,
    check_rules,
    custom,
    document,
    empty_slot,
    padding,
    rules_as_data,
    rules_from_data,
    sink,
    window,
)

__all__ = [
    "Mask",
    "Predicate",
    "Rule",
    "build_mask",
    "cache_rules",
    "causal",
    "check_rules",
    "custom",
    "document",
    "documents",
    "empty_slot",
    "padding",
    "rules_as_data",
    "rules_from_data",
    "sink",
    "window",
]

ALL = slice(None)
CAUSAL, WINDOW = causal().allows, window(1).allows
Index = slice | Tensor  # a slice, or the indices themselves


class Mask:
    """The rules of one forward and the positions they are applied to.

    A cell is forbidden if at least one rule forbids it, and bit i of its reasons says whether rule i does. Rules with
    `excepts` (`sink`) forbid nothing: they lift what rules of that name forbid, and their bit is never set.

    Args:
        rules: at most 8; all of them must allow a cell. `[]` allows every cell.
        q_pos: position of each query.
        k_pos: position of the token in each cache slot, in any order, −1 for an empty one.
        bias: what a caller's 4-D additive mask adds to the scores besides forbidding cells.

    Attributes:
        rules, q_pos, k_pos: as given. `extra` is the bias.
        batch: how many batch rows the rules tell apart; 1 where all agree.
        is_causal: it is what SDPA's own flag means, the lower triangle from the top left.
        allows_all: nothing is forbidden, so a kernel needs no mask.

    Raises:
        ValueError: for more than 8 rules, rules for different numbers of rows, a rule that knows fewer positions than
            there are, a `custom` rule for another number of cells, or an exception without what it is excepted from.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        q_pos: Int[Tensor, " q"],
        k_pos: Int[Tensor, " k"],
        bias: Float[Tensor, "batch head q k"] | None = None,
    ) -> None:
        self.rules = list(rules)
        self.q_pos = q_pos
        self.k_pos = k_pos
        self.extra = bias
        self.batch = batch_of(self.rules)
        check_rules(self.rules, q_pos, k_pos)
        only_causal = bias is None and _felt(self.rules, q_pos, k_pos) == [CAUSAL]
        start = len(k_pos) - len(q_pos)
        # The queries are the last positions of an unbroken run: what a kernel's own causal flag means.
        run = torch.arange(len(k_pos))
        in_order = only_causal and start >= 0 and torch.equal(k_pos, run) and torch.equal(q_pos, run[start:])
        self.is_causal = in_order and start == 0 and len(q_pos) > 1
        self.allows_all = in_order and len(q_pos) == 1
        self._dense: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def __repr__(self) -> str:
        rules = " + ".join(map(repr, self.rules)) or "no rules"
        bias = ", with an additive bias" if self.extra is not None else ""
        return f"Mask({rules}: {len(self.q_pos)} queries × {len(self.k_pos)} keys{bias})"

    def allowed(self, q: Index = ALL, k: Index = ALL, device: torch.device | None = None) -> Bool[Tensor, "batch q k"]:
        """Which cells may attend, for any tile; the batch axis is 1 where all rows agree.

        Args:
            q, k: which queries and key slots: slices, or tensors of indices.
            device: where to put it; it is computed on the CPU.
        """
        result = torch.ones((1, len(self.q_pos[q]), len(self.k_pos[k])), dtype=torch.bool)
        for _, allows in self._verdicts(q, k):
            result = result & allows  # a rule that is the same for all batch rows has one row
        return result.to(device) if device is not None else result

    def reasons(self, q: Index = ALL, k: Index = ALL) -> UInt8[Tensor, "batch q k"]:
        """Bit i is set where rule i forbids the cell; 0 means that the cell may attend. Arguments as of `allowed`.

        What an additive mask forbids to some heads only is not in it: it says what all heads are forbidden.
        """
        result = torch.zeros((1, len(self.q_pos[q]), len(self.k_pos[k])), dtype=torch.uint8)
        for bit, allows in self._verdicts(q, k):
            result = result | ((~allows).to(torch.uint8) << bit)
        return result

    def dense(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """What is given to a kernel: (batch, 1, q, k) booleans, or the additive bias where there is one.

        Kept for the other layers of the forward; `light()` is the mask without it.
        """
        if (dtype, device) not in self._dense:
            plain = self.extra is None
            self._dense[dtype, device] = self.allowed(device=device)[:, None] if plain else self.bias(dtype, device)
        return self._dense[dtype, device]

    def bias(self, dtype: torch.dtype, device: torch.device | None = None) -> Float[Tensor, "batch head q k"]:
        """The additive form: what is added to the scores, −∞ where forbidden. `head` is 1 unless the heads differ."""
        allowed = self.allowed(device=device)[:, None]
        extra = torch.zeros((), dtype=dtype) if self.extra is None else self.extra.to(dtype)
        return extra.to(allowed.device).masked_fill(~allowed, -torch.inf)

    def mask_mod(self, device: torch.device) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """The same for FlexAttention: (row, head, query, key) indices → whether that cell may attend.

        The rules themselves, on the positions: no (q, k) tensor is made, and where only causality forbids it is an
        expression without tables.
        """
        if self.is_causal or self.allows_all:
            offset = len(self.k_pos) - len(self.q_pos)
            return lambda row, head, query, key: key <= query + offset
        at = self.q_pos.to(device), self.k_pos.to(device)
        # Plain functions of indices, made here, because torch.compile does not follow everything that a Rule can do.
        groups = [[_on_indices(rule.to(device), *at) for rule in group] for _, group in _with_exceptions(self.rules)]

        def may_attend(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            result = key >= 0
            for group in groups:
                allows = group[0](row, query, key)
                for exception in group[1:]:
                    allows = allows | exception(row, query, key)
                result = result & allows
            return result

        return may_attend

    def light(self) -> Mask:
        """The same mask without the dense tensors that attention made of it: O(q + k) memory, unless it is custom."""
        light = copy.copy(self)
        light._dense = {}
        return light

    def of_queries(self, q: Index) -> Mask:
        """The mask of some of its queries, over the same keys.

        Args:
            q: a slice, or a tensor of indices.
        """
        rules = []
        for rule in self.rules:
            if rule.by_cell:
                table: Any = rule.parameters["allowed"]
                rule = dataclasses.replace(rule, parameters={"allowed": table[:, q]})
            rules.append(rule)
        return Mask(rules, self.q_pos[q], self.k_pos, None if self.extra is None else self.extra[:, :, q])

    def with_rules(self, *more: Rule) -> Mask:
        """The mask with more rules behind its own."""
        return Mask([*self.rules, *more], self.q_pos, self.k_pos, self.extra)

    def _verdicts(self, q: Index, k: Index) -> Iterator[tuple[int, Tensor]]:
        """(number, what it allows) of every rule that may forbid, exceptions made."""
        for bit, group in _with_exceptions(self.rules):
            allows = self._tile(group[0], q, k)
            for exception in group[1:]:
                allows = allows | self._tile(exception, q, k)
            yield bit, allows

    def _tile(self, rule: Rule, q: Index, k: Index) -> Tensor:
        if rule.by_cell:  # a slice of the table is a view; asking for it cell by cell would copy it
            table: Any = rule.parameters["allowed"]
            cells: Tensor = table[:, q][:, :, k]
            return cells
        return rule(self.q_pos[q][:, None], self.k_pos[k][None], torch.arange(self.batch)[:, None, None])


def _felt(rules: list[Rule], q_pos: Tensor, k_pos: Tensor) -> list[Predicate]:
    """The rules that matter here: not windows wider than the text so far, nor exceptions from these alone."""
    span = int(q_pos.max()) - int(k_pos.min()) if len(q_pos) and len(k_pos) else 0
    names = {
        rule.name
        for rule in rules
        if rule.excepts is None and not (rule.allows is WINDOW and span < cast(int, rule.parameters["n"]))
    }
    return [rule.allows for rule in rules if (rule.excepts or rule.name) in names]


def _with_exceptions(rules: list[Rule]) -> Iterator[tuple[int, list[Rule]]]:
    """Number of every rule that may forbid, and it with the rules that make exceptions from it."""
    for bit, rule in enumerate(rules):
        if rule.excepts is None:
            yield bit, [rule, *(other for other in rules if other.excepts == rule.name)]


def _on_indices(rule: Rule, q_pos: Tensor, k_pos: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(row, query, key) indices → whether the rule allows the cell.

    Every function has tensor objects of its own: where one object is met at two places and earlier masks had two,
    torch.compile (2.13) fails with a `KeyError` while it words why it compiles again.
    """
    allows = rule.allows
    parameters = {
        name: value.detach() if isinstance(value, Tensor) else value for name, value in rule.parameters.items()
    }
    q_pos, k_pos = q_pos.detach(), k_pos.detach()
    if rule.by_cell:
        return lambda row, query, key: allows(query, key, row, **parameters)
    if rule.rows:
        return lambda row, query, key: allows(q_pos[query], k_pos[key], row, **parameters)
    return lambda row, query, key: allows(q_pos[query], k_pos[key], **parameters)


def documents(position_ids: Int[Tensor, "batch pos"] | None) -> Int[Tensor, "batch pos"] | None:
    """Number of the document that each position is in, where positions that do not count on begin another one.

    `None` if there is one document only.
    """
    if position_ids is None or not isinstance(position_ids, Tensor) or position_ids.dim() != 2:
        return None
    numbers = (position_ids.diff(dim=1) != 1).cumsum(1).cpu()
    return F.pad(numbers, (1, 0)) if bool((numbers > 0).any()) else None


def build_mask(
    attention_mask: Tensor | Sequence[Rule] | Mask | None,
    q_pos: Int[Tensor, " q"],
    k_pos: Int[Tensor, " k"],
    batch: int,
    heads: int,
    in_documents: Int[Tensor, "batch pos"] | None = None,
    of_cache: Sequence[Rule] = (),
) -> Mask:
    """The mask of one forward.

    Cache slots without a token are forbidden whatever is given, unless it is a whole `Mask`.

    Args:
        attention_mask: one of

            - `None`: causal;
            - (batch, pos) with 0 at padding, over the cached positions and the new ones: causal and padding;
            - a 4-D (batch or 1, 1, q, k) mask, boolean (True = may attend) or additive, used as it is. An additive one
              may have all heads instead of the 1;
            - a list of rules, `[causal(), window(64), sink(4), padding(keep)]`, complete as it stands: nothing is added
              but `empty_slot`, so **a list without `causal()` lets a query see later positions** (bidirectional
              attention). Rules go by positions: one list serves a prompt, its chunks and the tokens after it, as long
              as its tensors reach far enough;
            - a `Mask` for the same positions, used as it is.
        q_pos, k_pos: as in `Mask`.
        batch: number of rows.
        heads: number of query heads.
        in_documents: the document each position is in, if there are several; for `None` and (batch, pos) only.
        of_cache: rules that the cache needs, as from `cache_rules`; not for a 4-D mask or a whole `Mask`.

    Raises:
        TypeError: if it is none of these.
        ValueError: for another rank, size, number of heads or dtype, an empty list, and rules that do not fit (`Mask`).
    """
    if attention_mask is not None and not isinstance(attention_mask, Tensor):
        return _from_rules(attention_mask, q_pos, k_pos, batch, heads, of_cache)
    empty = _empty(k_pos)
    rules = [causal(), *of_cache, *empty]
    if attention_mask is not None and attention_mask.dim() == 4:
        return _custom_mask(attention_mask.detach().cpu(), q_pos, k_pos, batch, heads, empty)
    if in_documents is not None:
        rules.append(document(in_documents))
    if attention_mask is None:
        return Mask(rules, q_pos, k_pos)
    attention_mask = attention_mask.detach().cpu()
    total = int(q_pos[-1]) + 1
    if tuple(attention_mask.shape) != (batch, total):
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; expected (batch, positions) ({batch}, {total}), "
            "counting cached positions, or a 4-D mask (batch, 1, new positions, all positions)."
        )
    if ((attention_mask != 0) & (attention_mask != 1)).any():
        raise ValueError("attention_mask of 2 dimensions holds other values than 0 (padding) and 1 (token).")
    keep = attention_mask.bool()
    return Mask(rules if bool(keep.all()) else [*rules, padding(keep)], q_pos, k_pos)


def _empty(k_pos: Tensor) -> list[Rule]:
    return [] if bool((k_pos >= 0).all()) else [empty_slot()]


def _from_rules(given: Any, q_pos: Tensor, k_pos: Tensor, batch: int, heads: int, of_cache: Sequence[Rule]) -> Mask:
    """The mask of a list of rules, or a mask that was made for the same positions."""
    if isinstance(given, Mask):
        if not (torch.equal(given.q_pos, q_pos) and torch.equal(given.k_pos, k_pos)):
            raise ValueError(
                f"attention_mask is a {given!r} for other positions than this forward's {len(q_pos)} queries from "
                f"{int(q_pos[0])} and {len(k_pos)} keys. Give its rules: attention_mask=mask.rules."
            )
        if given.extra is not None and (
            given.extra.shape[0] not in (1, batch) or given.extra.shape[1] not in (1, heads)
        ):
            rows, found = given.extra.shape[:2]
            raise ValueError(
                f"attention_mask is a {given!r} for {rows} batch rows and {found} heads; this forward has {batch} and "
                f"{heads}."
            )
        return _checked_rows(given, batch)
    needed = f"attention_mask is a {type(given).__name__}; a tensor, a list of rules, a Mask or None is needed"
    if isinstance(given, Rule):
        raise TypeError(f"{needed}. Put the rule into a list: attention_mask=[{given!r}].")
    if not isinstance(given, list | tuple):
        raise TypeError(f"{needed}.")
    if not given:
        raise ValueError(
            "attention_mask is an empty list of rules: every query would see every position, later ones too. Give None "
            "for causal attention; if all are meant, [custom(torch.ones(queries, keys, dtype=torch.bool))]."
        )
    strange = [(i, item) for i, item in enumerate(given) if not isinstance(item, Rule)]
    if strange:
        i, item = strange[0]
        raise TypeError(f"{needed}; item {i} of the list is a {type(item).__name__}, no rule such as causal().")
    has_empty = any(rule.name == "empty_slot" for rule in given)
    rules = with_cache_rules(given, of_cache) if of_cache else given
    return _checked_rows(Mask([*rules, *([] if has_empty else _empty(k_pos))], q_pos, k_pos), batch)


def _checked_rows(mask: Mask, batch: int) -> Mask:
    if mask.batch not in (1, batch):
        wrong = next(rule for rule in mask.rules if rule.rows == mask.batch)
        raise ValueError(
            f"{wrong!r} is for {mask.batch} batch rows; this forward has {batch}. Give it 1 row or {batch}."
        )
    return mask


def _custom_mask(mask: Tensor, q_pos: Tensor, k_pos: Tensor, batch: int, heads: int, more: list[Rule]) -> Mask:
    size = (len(q_pos), len(k_pos))
    if tuple(mask.shape[2:]) != size or mask.shape[0] not in (1, batch):
        raise ValueError(
            f"a 4-D attention_mask has shape {tuple(mask.shape)}; expected ({batch} or 1, 1 or {heads}, "
            f"{size[0]}, {size[1]})."
        )
    if mask.dtype == torch.bool:
        if mask.shape[1] != 1:
            raise ValueError(
                f"a boolean 4-D attention_mask has {mask.shape[1]} heads; give one for all heads, or an additive mask."
            )
        return Mask([custom(mask[:, 0]), *more], q_pos, k_pos)
    if not mask.is_floating_point():
        raise ValueError(f"a 4-D attention_mask of {mask.dtype} is ambiguous: give booleans or an additive float mask.")
    if mask.shape[1] not in (1, heads):
        raise ValueError(
            f"an additive 4-D attention_mask has {mask.shape[1]} heads; give one for all heads, or one for each of the "
            f"model's {heads}."
        )
    # "minus infinity" is written as the dtype's lowest number by transformers.
    forbidden = mask <= torch.finfo(mask.dtype).min / 2
    return Mask([custom(~forbidden.all(1)), *more], q_pos, k_pos, bias=mask.masked_fill(forbidden, -torch.inf))
