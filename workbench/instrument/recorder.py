"""The hooks behind `capture`: what happens at each forward and at each point."""

from __future__ import annotations

import dataclasses
import inspect
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workbench.cache.base import CacheStore
from workbench.instrument.activations import Activations, Span
from workbench.instrument.choice import Choice
from workbench.instrument.names import resolve
from workbench.instrument.planner import Mode, Shape, Storage, advice, refuse
from workbench.instrument.points import Located, execution_order, layer_of, point_of
from workbench.instrument.recipes import FROM_ATTENTION, AttentionRecipe, MaskPart, Recipe, Rows, gated
from workbench.instrument.series import Part
from workbench.instrument.storage import OnDisk, own
from workbench.instrument.watching import observer, only_observed
from workbench.model import LlamaForCausalLM, LlamaModel
from workbench.model.mask import Mask, causal, empty_slot
from workbench.model.norm import rms_norm
from workbench.model.rope import Rope, apply_rope, signed

PLAIN = (causal().allows, empty_slot().allows)  # what a mask consists of if nobody asked for more


class Recorder:
    """Fills `acts` with what the forwards of one thread compute, until it is detached."""

    def __init__(
        self,
        model: LlamaForCausalLM | LlamaModel,
        located: Sequence[Located],
        choice: Choice,
        acts: Activations,
        budget: int,
    ) -> None:
        self.model, self.located, self.choice, self.acts, self.budget = model, located, choice, acts, budget
        self.base: LlamaModel = model.model if isinstance(model, LlamaForCausalLM) else model
        names = {item.full_name for item in located}
        self.hidden = choice.hidden(names)
        self.points = {item.full_name: item for item in (*located, *resolve_all(model, self.hidden))}
        acts.heads, acts.kv_heads, acts.model = choice.heads, choice.kv_heads, weakref.ref(model)
        self._itemsize = (choice.dtype or self.base.dtype).itemsize
        self._thread = threading.get_ident()
        self._signature = inspect.signature(self.base.forward)
        self._handles: list[Any] = []
        self._explicit: dict[str, _Switched] = {}  # hooks whose presence alone makes a layer compute attention openly
        self._storages: dict[Mode, Storage] = {}
        self._may_derive = bool(choice.derived(set(self.points), len(self.base.layers), True))
        self._now = _Forward()
        self._logits_to_keep: Any = 0
        self._gains: dict[int, Tensor] = {}
        self._attending = [item.layer for name, item in self.points.items() if item.point.name == "q_rot"]
        self._masks: dict[str, Any] = {}  # hooks of masks that nobody asked for, see `_follow_masks`

    # --- hooks -------------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Registers the hooks."""
        hook_mask, rotary = self.base.hook_mask, self.base.rotary_emb
        self._handles.append(self.base.register_forward_pre_hook(self._mine(self._begin), with_kwargs=True))
        self._handles.append(hook_mask.register_forward_hook(self._mine(self._see_mask)))
        if self._may_derive:
            self._handles.append(rotary.register_forward_hook(self._mine(self._see_rope)))
        if "logits" in self.points:
            self._handles.append(
                self.model.register_forward_pre_hook(self._mine(self._see_kept_logits), with_kwargs=True)
            )
        for name, item in self.points.items():
            handle = item.module.register_forward_hook(self._mine(self._keeper(name)))
            self._handles.append(handle)
            if item.point.name in FROM_ATTENTION:
                self._explicit[name] = _Switched(item.module, handle.id)
        self._switch(dict.fromkeys(self._explicit, ()))  # out, until a forward needs them

    def detach(self) -> None:
        """Removes them."""
        self._switch({})
        for handle in (*self._handles, *self._masks.values()):
            handle.remove()
        self._handles, self._explicit, self._masks = [], {}, {}

    def _switch(self, derived: dict[str, tuple[str, ...]]) -> None:
        for name, hook in self._explicit.items():
            hook.switch(name not in derived)

    def _follow_masks(self) -> None:
        """Where somebody may change a layer's mask, keeps the one that was applied: attention is computed from it."""
        for layer in self._attending:
            module: nn.Module = self.base.layers[layer].self_attn.hook_mask  # type: ignore[union-attr,index,assignment]
            name = f"layers.{layer}.mask"
            if name in self.points or only_observed(module):
                continue
            if name in self._masks:
                self._masks[name].remove()  # to be the last again
            self.hidden.add(name)
            self._masks[name] = module.register_forward_hook(self._mine(self._keeper(name)))

    def _mine(self, hook: Callable[..., None]) -> Callable[..., None]:
        """Heeds this thread's forwards only: the page may run the same model meanwhile."""

        def only_mine(*args: Any) -> None:
            if threading.get_ident() == self._thread:
                hook(*args)

        return observer(only_mine)

    # --- a forward ---------------------------------------------------------------------------------------------------

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = self._signature.bind_partial(*args, **kwargs).arguments
        tokens = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
        cache = given.get("past_key_values")
        self._now = _Forward()
        if not isinstance(tokens, Tensor) or tokens.dim() < 2:
            return  # refused by the forward that begins here
        batch, count = tokens.shape[:2]
        start = cache.length if cache is not None else 0
        begins = self._text_begins(cache, start)
        mode = Mode.now(self.base, begins is not None) if self._may_derive else Mode(False, False, False)
        storage = self._storage(mode)
        kept = self._kept_logits(count)
        shape = Shape(batch, start, count, start + count, None if kept is None else len(kept))
        needed, held = storage.total(self.choice, self._itemsize, shape), self.acts.nbytes
        if held + needed > self.budget:
            choices = advice(self.model, self.located, self.choice, held + needed, self.budget)
            raise refuse(needed, held, self.budget, shape, choices)
        self._switch(storage.derived)
        self._follow_masks()
        self._now = _Forward(
            index=len(self.acts.spans),
            start=start,
            count=count,
            every=torch.arange(start, start + count),
            rows=self.choice.rows(start, count),
            logits=kept,
            begins=begins or 0,
            derived=storage.derived,
            after=storage.after,
        )
        ids = own(tokens) if tokens.dim() == 2 else None
        self.acts.spans.append(Span(start, count, True, None, ids))

    def _see_mask(self, module: nn.Module, args: Any, mask: Mask) -> None:
        spans = self.acts.spans
        if spans and self._now.count:
            self._now.mask = mask.light()
            masked = mask.extra is not None or any(rule.allows not in PLAIN for rule in mask.rules)
            spans[-1] = dataclasses.replace(spans[-1], masked=masked, mask=self._now.mask)

    def _see_rope(self, module: nn.Module, args: Any, rope: tuple[Tensor, Tensor]) -> None:
        self._now.rope = signed(*rope)

    def _see_kept_logits(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        self._logits_to_keep = given.get("logits_to_keep", 0)

    def _kept_logits(self, count: int) -> Tensor | None:
        """Which rows of the forward have logits; `None` for all."""
        keep = self._logits_to_keep
        if isinstance(keep, int):
            return None if keep == 0 or keep >= count else torch.arange(count - keep, count)
        return torch.as_tensor(keep).cpu() % count

    def _storage(self, mode: Mode) -> Storage:
        if mode not in self._storages:
            self._storages[mode] = Storage.of(self.located, self.choice, len(self.base.layers), mode)
        return self._storages[mode]

    def _text_begins(self, cache: Any, start: int) -> int | None:
        """The forward that began the text which this one continues, if all of its keys were captured since; this one
        itself where it begins a text.
        """
        spans = self.acts.spans
        if start == 0:
            return len(spans)
        if not isinstance(cache, CacheStore) or not spans:
            return None
        first = len(spans) - 1
        while first > 0 and spans[first].start > 0:
            first -= 1
        ends = [span.start + span.count for span in spans[first:]]
        if spans[first].start or [span.start for span in spans[first + 1 :]] + [start] != ends:
            return None
        return first if self._same_keys(cache, start) else None

    def _same_keys(self, cache: CacheStore, start: int) -> bool:
        """Whether the cache's last keys are those that were captured: rows were not reordered, nothing was cut off and
        computed anew. The last layer's keys depend on everything before them.
        """
        names = [name for name in self.points if name.endswith(".k_rot")]
        if not names:
            return False
        name = max(names, key=execution_order)
        last = self.acts.series(name).window(self.acts.series(name).total - 1, self.acts.series(name).total)
        keys = cache.keys(layer_of(name) or 0)[:, :, start - 1 : start].transpose(1, 2)
        heads = self.choice.kv_heads
        return torch.equal(keys if heads is None else keys[:, :, list(heads)], last.to(keys.device))

    # --- a point -----------------------------------------------------------------------------------------------------

    def _keeper(self, name: str) -> Callable[..., None]:
        point, choice = point_of(name), self.choice
        heads = choice.heads_of(point)

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            now = self._now
            if not now.count or name in now.derived:
                return
            if point.name == "mask":
                if now.rows != ():
                    self._add(name, MaskPart(output.light(), now.rows), now.positions())
                return
            if choice.gradients:
                _needs_gradient(name, output).retain_grad()
                self._add(name, output, now.positions_of(point.name))
                return
            rows = now.kept(point.name, choice.filters(point))
            if rows is not None:
                if not rows:
                    return
                output = output.index_select(point.position_axis, torch.tensor(rows, device=output.device))
            if heads is not None and point.head_axis is not None:
                output = output.index_select(point.head_axis, torch.tensor(heads, device=output.device))
            part = own(output, choice.dtype, choice.device)
            stored = part if choice.spill is None else OnDisk.write(part, choice.spill, point.position_axis)
            self._add(name, stored, now.positions_of(point.name, rows))

        return keep

    def _add(self, name: str, part: Part, positions: Tensor) -> None:
        self.acts.append(name, part, self._now.index, positions, name in self.hidden)
        for derived in self._now.after.get(name, ()):
            self._add(derived, self._recipe(derived), self._now.positions_of(point_of(derived).name))

    def _recipe(self, name: str) -> Part:
        """What a derived point is computed from: the parts just captured."""
        now, short = self._now, point_of(name).name
        series = [self.acts.series(i) for i in now.derived[name]]
        inputs = tuple(Rows.last(s) for s in series)
        if short in ("scores", "pattern"):
            keys = Rows(series[1], *now.rows_since(series[1]))
            scale = self._layer(name).self_attn.scaling
            assert now.mask is not None
            return AttentionRecipe(
                inputs[0], keys, now.mask, scale, now.rows, self.choice.heads_read, short == "pattern"
            )
        if short in ("k_cached", "v_cached"):
            return Recipe((Rows(series[0], *now.rows_since(series[0])),), torch.clone)
        if short == "resid_pre":
            return Recipe(inputs, torch.clone)
        if short == "resid_mid":
            return Recipe(inputs, torch.add)
        if short == "act":
            activation = self._layer(name).mlp.act_fn
            return Recipe(inputs, lambda gate, up: gated(activation, gate, up))
        if short in ("q_rot", "k_rot"):
            rope = now.rope
            return Recipe(inputs, lambda x: apply_rope(x, *rope))
        norm: Any = self.points[name].module
        gain, eps = self._gain(norm.weight), norm.variance_epsilon
        return Recipe(inputs, lambda x: rms_norm(x, gain, eps))

    def _layer(self, name: str) -> Any:
        return self.base.layers[layer_of(name) or 0]

    def _gain(self, weight: Tensor) -> Tensor:
        """A copy of a norm's weight: captures do not change when weights are edited later."""
        kept = self._gains.get(id(weight))
        if kept is None or not torch.equal(kept, weight):
            kept = self._gains[id(weight)] = weight.detach().clone()
        return kept


class _Switched:
    """A registered hook that can be taken out and put back, in its place among the others."""

    def __init__(self, module: nn.Module, number: int) -> None:
        self.hooks: Any = module._forward_hooks
        self.number = number
        self.hook = self.hooks[number]

    def switch(self, on: bool) -> None:
        """Puts it back or takes it out."""
        if on and self.number not in self.hooks:
            self.hooks[self.number] = self.hook
            for later in sorted(number for number in self.hooks if number > self.number):
                self.hooks.move_to_end(later)
        elif not on:
            self.hooks.pop(self.number, None)


@dataclasses.dataclass
class _Forward:
    """What is known of the forward that runs now. `index` is its number among the captured ones, `begins` that of the
    first one of its text; `rows` are those that are kept, `None` for all.
    """

    index: int = 0
    start: int = 0
    count: int = 0
    every: Tensor = dataclasses.field(default_factory=lambda: torch.empty(0))  # all of its positions
    rows: tuple[int, ...] | None = None
    logits: Tensor | None = None
    begins: int = 0
    derived: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    after: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    mask: Mask | None = None
    rope: Rope = (torch.empty(0), torch.empty(0))

    def kept(self, short: str, filtered: bool) -> tuple[int, ...] | None:
        """Rows of a point's tensor that are kept; `None` for all."""
        if not filtered or self.rows is None:
            return None
        if short == "logits" and self.logits is not None:
            return tuple(i for i, row in enumerate(self.logits.tolist()) if row in self.rows)
        return self.rows

    def positions_of(self, name: str, rows: tuple[int, ...] | None = None) -> Tensor:
        """The position of each row of a kept tensor of a point."""
        if name in ("k_cached", "v_cached"):
            assert self.mask is not None
            return self.mask.k_pos
        if name == "logits" and self.logits is not None:
            return self.start + (self.logits if rows is None else self.logits[list(rows)])
        return self.every if rows is None and name not in FROM_ATTENTION else self.positions(rows)

    def positions(self, rows: tuple[int, ...] | None = None) -> Tensor:
        """The positions of the kept rows."""
        rows = self.rows if rows is None else rows
        return self.every if rows is None else self.every[list(rows)]

    def rows_since(self, series: Any) -> tuple[int, int]:
        """The rows of a series that this text's forwards gave."""
        first = next(i for i, step in enumerate(series.steps) if step >= self.begins)
        return sum(series.sizes[:first]), series.total


def _needs_gradient(name: str, output: Any) -> Tensor:
    if not isinstance(output, Tensor) or not output.requires_grad:
        raise RuntimeError(
            f"{name!r} has no gradient to flow through it: gradients are switched off (torch.no_grad), or nothing "
            "before it requires any. Run the forward outside no_grad, with model.requires_grad_(True)."
        )
    return output


def resolve_all(model: LlamaForCausalLM | LlamaModel, names: set[str]) -> list[Located]:
    """The modules behind full names; none for none."""
    return resolve(model, sorted(names)) if names else []
