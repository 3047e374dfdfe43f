"""`edit`: change chosen tensors, or the mask, of every forward inside a `with` block."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from workbench.instrument.edit_apply import changed, check_edit, check_goes_on, knocked_out, rows_changed, rows_of
from workbench.instrument.edit_data import Edit
from workbench.instrument.edit_effect import Effect
from workbench.instrument.edit_forward import Forwards
from workbench.instrument.edit_site import EditError, Site
from workbench.instrument.names import resolve
from workbench.instrument.points import Located
from workbench.model import LlamaForCausalLM, LlamaModel
from workbench.model.mask import Mask, build_mask

Function = Callable[..., Any]  # f(tensor) or f(tensor, site)
What = Function | Edit | Sequence[Function | Edit]


class ActiveEdits:
    """The edits of a block, and what they have done so far.

    Attributes:
        effects: one for each edit or function, in order.
    """

    def __init__(self, effects: Sequence[Effect]) -> None:
        self.effects = list(effects)

    @property
    def hits(self) -> list[int]:
        """How much each has changed: rows (one position of one batch row), or for `knock_out` attention edges (one of
        one head and batch row), counted in each layer, point and forward. A row counts if one of its numbers is other
        than before; a query of a mask that a function was given, if its mask has other rules or another bias.
        """
        return [effect.hits for effect in self.effects]

    @property
    def unchanged(self) -> list[int]:
        """How many rows each was given that are what they were before: zero that was ablated, a patch with the same
        numbers, a function that only looked.
        """
        return [effect.unchanged for effect in self.effects]

    def __repr__(self) -> str:
        return f"ActiveEdits({'; '.join(map(repr, self.effects))})"


@contextmanager
def edit(
    model: LlamaForCausalLM | LlamaModel, edits: Mapping[str, What] | Edit | Iterable[Edit]
) -> Iterator[ActiveEdits]:
    """Applies edits to every forward of `model` inside the block, prefill, chunks and decode steps alike.

        with edit(model, {"layers.3.resid_post": lambda x: x * 2}):
            model(ids)
        with edit(model, [zero("z", heads=1, layers=4), knock_out(edges=[(9, 0)])]) as active:
            model.generate(ids)
        active.hits

    A function is called as f(tensor), or f(tensor, site) if it takes two arguments, with what the point computed, and
    returns what goes on from there, of the same shape and dtype and on the same device. It is given a copy, so it may
    change it in place. At `mask` it is given and returns a `Mask`. Gradients flow through an edit as through the
    function. What a key/value cache received in the block stays in it. A forward that a function runs is not edited by
    the block that the function is of.

    Hooks run in the order in which they were registered: an outer block's edits come first, and a `capture` sees what
    was edited outside of it, not what is edited inside. Forwards of other threads are not edited. `scores` and
    `pattern` make their layers compute attention explicitly. The hooks are removed when the block ends, however it
    ends; if it ends without an exception, every edit must have taken effect.

    Args:
        edits: point → function, ready-made edit or a list of them, applied in order; or ready-made edits alone. Points
            are named as for `capture`.

    Raises:
        TypeError, ValueError: for what the model has no place for; nothing is hooked then.
        EditError: (a `ValueError`) by a forward, if a function does not return what is needed; at the end of the block,
            if an edit did not take effect at all, or not at each of its positions and edges; it says why. What adds or
            scales takes effect where it changes a number. What sets numbers (`zero`, `mean`, `patch`, `swap_kv`, a
            function) may find them set, as a sweep over places does: `ActiveEdits.unchanged` counts that.
    """
    standing = StandingEdits(model, edits)
    with standing.applied():
        yield standing.active
    if missed := standing.missed():
        raise EditError(" ".join(missed))


class StandingEdits:
    """Edits that are switched on for some forwards and off again, with one ledger of what they did in all of them.

    For a text that is read by many forwards, each of which sees some of its positions: `edit` is one block of it.

    Args:
        model, edits: as of `edit`, with its errors.

    Attributes:
        active: what they have done so far.
        reads: (first position, number of positions) of each forward.
    """

    def __init__(self, model: LlamaForCausalLM | LlamaModel, edits: Mapping[str, What] | Edit | Iterable[Edit]) -> None:
        self.model = model
        self.reads = Forwards(model).reads  # refuses what is no model
        self._tasks = [_task(model, key, what) for key, what in _listed(edits)]
        self.active = ActiveEdits([task.effect for task in self._tasks])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Edits this thread's forwards inside the block. Says nothing of edits that have no effect there."""
        forwards = Forwards(self.model)
        forwards.reads = self.reads
        try:
            forwards.attach((item, task.hook(item)) for task in self._tasks for item in task.located)
            yield
        finally:
            forwards.detach()

    def missed(self) -> list[str]:
        """Each edit that has not taken effect everywhere, and why."""
        return [reason for task in self._tasks if (reason := task.effect.missed(self.reads))]

    def overdue(self) -> list[str]:
        """Each edit that had no effect at a position or edge although it was read, and why. What may still come, at
        positions that no forward has reached, does not count.
        """
        return [reason for task in self._tasks if (reason := task.effect.overdue(self.reads))]


# ------------------------------------------------------------------------------------------------------- what is edited


def _listed(edits: Any) -> list[tuple[str | None, Function | Edit]]:
    """(point or `None`, function or edit) in order.

    Raises:
        TypeError, ValueError: for anything else.
    """
    if isinstance(edits, Edit):
        return [(None, edits)]
    if isinstance(edits, Mapping):
        pairs = [(key, what) for key, value in edits.items() for what in _several(value)]
    elif isinstance(edits, Iterable) and not isinstance(edits, (str, Tensor)):
        pairs = [(None, what) for what in edits]
    else:
        raise TypeError(f"edits is {edits!r}; give {{point: function}}, a ready-made edit or a list of them.")
    if not pairs:
        raise ValueError("no edit was given.")
    for key, what in pairs:
        if not (isinstance(what, Edit) or (callable(what) and key is not None)):
            where = "a list of edits" if key is None else f"the edits of {key!r}"
            needed = "ready-made ones, which know their point," if key is None else "functions and ready-made ones"
            raise TypeError(f"{where} holds {what!r}; only {needed} can be in it.")
    return pairs


def _several(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]


@dataclasses.dataclass
class _Task:
    """One edit or function, and where."""

    what: Function | Edit
    located: list[Located]
    effect: Effect
    heads: int  # of queries
    with_site: bool = False
    last: tuple[Mask, Mask, int] | None = None  # the mask a knock_out was given last, what it made of it, edges lost

    def hook(self, item: Located) -> Callable[[Any, Site], Any]:
        """What to do with the output of a point."""
        if isinstance(self.what, Edit):
            return self._knock_out if self.what.kind == "knock_out" else self._ready_made(self.what, item)
        if item.point.name == "mask":
            return self._mask_function
        return functools.partial(self._function, item.point.position_axis)

    def _ready_made(self, what: Edit, item: Located) -> Callable[[Tensor, Site], Tensor]:
        def apply(tensor: Tensor, site: Site) -> Tensor:
            rows = rows_of(what, site)
            if not len(rows):
                if self.effect.met:
                    check_goes_on(what, site)
                return tensor
            found = changed(what, item.point, tensor, site, rows)
            differ = rows_changed(tensor, found, item.point.position_axis, rows)
            self.effect.note_rows(site.positions[rows], tensor.shape[0], differ, tensor.dtype)
            return found

        return apply

    def _function(self, axis: int, tensor: Tensor, site: Site) -> Tensor:
        given = tensor.clone()  # the function may change it, and the model or a capture may hold the original
        found = self._call(given, site)
        properties = tensor.shape, tensor.dtype, tensor.device
        if not isinstance(found, Tensor) or (found.shape, found.dtype, found.device) != properties:
            raise EditError(
                f"{self.effect.what} returned {_named(found)} at {site.name!r}; needed is {_named(tensor)}."
                + (" A function that changes its tensor in place returns it, too." if found is None else "")
            )
        self.effect.note_rows(site.positions, tensor.shape[0], rows_changed(tensor, found, axis))
        # What the function may still hold is not what the model goes on with.
        return found if found is given else found.clone(memory_format=torch.contiguous_format)

    def _mask_function(self, mask: Mask, site: Site) -> Mask:
        found = self._call(_copied(mask), site)
        same = isinstance(found, Mask) and all(
            torch.equal(*pair) for pair in ((found.q_pos, mask.q_pos), (found.k_pos, mask.k_pos))
        )
        if not same:
            raise EditError(
                f"{self.effect.what} returned {_named(found)} at {site.name!r}; needed is a Mask of the same queries "
                "and keys, for example mask.with_rules(window(64))."
            )
        try:
            build_mask(found, mask.q_pos, mask.k_pos, len(site.tokens), self.heads)
        except ValueError as error:
            where = f"{self.effect.what} returned a Mask at {site.name!r}"
            raise EditError(f"{where} that this forward cannot use: {error}") from None
        self.effect.note_rows(mask.q_pos, 1, 0 if _same(found, mask) else len(mask.q_pos))
        return _copied(found)  # made anew, because a rule may have been put into its list

    def _call(self, given: Any, site: Site) -> Any:
        assert not isinstance(self.what, Edit)
        return self.what(given, site) if self.with_site else self.what(given)

    def _knock_out(self, mask: Mask, site: Site) -> Mask:
        assert isinstance(self.what, Edit)
        if self.last is None or self.last[0] is not mask:  # all layers of a forward are given the same one
            found, lost = knocked_out(self.what, mask, self.heads)
            self.effect.note_edges(self.what, mask, lost)
            self.last = mask, found, int(lost.expand(len(site.tokens), -1, -1, -1).sum())
        self.effect.note_changed(self.last[2])
        return self.last[1]


def _task(model: LlamaForCausalLM | LlamaModel, key: str | None, what: Function | Edit) -> _Task:
    heads = model.config.num_attention_heads
    if not isinstance(what, Edit):
        assert key is not None
        effect = Effect(f"the edit of {key!r} by {getattr(what, '__name__', type(what).__name__)}")
        return _Task(what, resolve(model, [key]), effect, heads, _takes_site(key, what))
    located = resolve(model, what.points, what.layers)
    if what.layers is not None:
        wanted = {layer % model.config.num_hidden_layers for layer in what.layers}
        if any(item.point.per_layer and item.layer not in wanted for item in located):
            raise ValueError(f"{what} names layers in its point and others in layers. Leave one of them out.")
    if key is not None:
        located = _within(model, key, what, located)
    check_edit(what, located, model.config)
    return _Task(what, located, Effect(repr(what), what), heads)


def _within(model: LlamaForCausalLM | LlamaModel, key: str, what: Edit, located: list[Located]) -> list[Located]:
    """Where both the key of the dictionary and the edit say."""
    if len(what.points) > 1:
        raise ValueError(f"{what} changes {' and '.join(what.points)}; give it in a list instead of under {key!r}.")
    keyed = {item.full_name for item in resolve(model, [key])}
    found = [item for item in located if item.full_name in keyed]
    if not found:
        raise ValueError(f"{what} is given under {key!r}, but it changes {located[0].full_name!r}.")
    return found


def _takes_site(key: str, function: Function) -> bool:
    """Whether a function is to be called as f(tensor, site)."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # functions written in C need not have a signature
        return False
    placed = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p for p in placed if p.default is p.empty]
    variable = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if len(needed) > 2 or named or not (placed or variable):
        raise TypeError(
            f"the edit of {key!r} by {getattr(function, '__name__', type(function).__name__)} takes "
            f"({', '.join(map(str, parameters))}); it is called as f(tensor) or f(tensor, site)."
        )
    return len(needed) == 2


def _copied(mask: Mask) -> Mask:
    extra = None if mask.extra is None else mask.extra.clone()
    return Mask(mask.rules, mask.q_pos.clone(), mask.k_pos.clone(), extra)


def _same(one: Mask, other: Mask) -> bool:
    """Whether they are made of the same rules and bias."""
    if one.extra is None or other.extra is None:
        same_bias = one.extra is other.extra
    else:
        same_bias = torch.equal(one.extra, other.extra)
    return same_bias and len(one.rules) == len(other.rules) and all(map(operator.is_, one.rules, other.rules))


def _named(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}, {value.dtype} on {value.device}"
    return repr(value) if value is None or isinstance(value, Mask) else f"a {type(value).__name__}"
