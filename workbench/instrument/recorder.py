"""The hooks behind `capture`: what happens at each forward and at each point."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from workbench.instrument.activations import Activations
from workbench.instrument.choice import Choice
from workbench.instrument.mask_part import MaskPart
from workbench.instrument.names import resolve
from workbench.instrument.planner import NEED_ALL_KEYS, Mode, Shape, Storage, check_budget
from workbench.instrument.points import Located, layer_of, point_of
from workbench.instrument.recipes import FROM_ATTENTION, AttentionRecipe, Recipe, Rows, gated
from workbench.instrument.recording import Forward, Switched, Text, gives_what_it_takes
from workbench.instrument.series import Part
from workbench.instrument.storage import OnDisk, own
from workbench.instrument.watching import Watch, only_observed
from workbench.model import LlamaForCausalLM, LlamaModel
from workbench.model.mask import Mask
from workbench.model.norm import rms_norm
from workbench.model.rope import apply_rope, signed


class Recorder:
    """Fills `acts` with what the forwards of one thread compute, until it is detached.

    Attributes:
        begun: how many forwards it has seen begin.
    """

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
        self.begun = 0
        names = {item.full_name for item in located}
        self.hidden = choice.hidden(names)
        self.points = {item.full_name: item for item in (*located, *resolve_all(model, self.hidden))}
        acts.heads, acts.kv_heads, acts.model = choice.heads, choice.kv_heads, weakref.ref(model)
        acts.layer_count = len(self.base.layers)
        plain = self.base.config.d_head**-0.5
        scales = {i: float(layer.self_attn.scaling) for i, layer in enumerate(self.base.layers)}  # type: ignore[union-attr,arg-type]
        acts.scaling = {i: scale for i, scale in scales.items() if scale != plain}
        self._itemsize = (choice.dtype or self.base.dtype).itemsize
        self._signature = inspect.signature(self.base.forward)
        self._handles: list[Any] = []
        self._explicit: dict[str, Switched] = {}  # hooks whose presence alone makes a layer compute attention openly
        self._storages: dict[Mode, Storage] = {}
        derived = choice.derived(set(self.points), len(self.base.layers), True)
        self._may_derive = bool(derived)
        self._attending = [item.layer or 0 for item in self.points.values() if item.point.name == "q_rot"]
        self._follows_keys = bool(self._attending) or any(point_of(name).name in NEED_ALL_KEYS for name in derived)
        self._now: Forward | None = None
        self._outer: list[Forward] = []  # forwards inside which this one runs
        self._ended: Forward | None = None  # the last one, whose logits may still come
        self._text: Text | None = None  # what the last one read, if the next one may rely on its keys
        self._strayed = False  # whether the text goes on with keys that were not captured
        self._logits_to_keep: Any = 0
        self._gains: dict[int, Tensor] = {}
        self._masks: dict[str, Any] = {}  # hooks of masks that nobody asked for, see `_follow_masks`

    # --- hooks -------------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Registers the hooks."""
        hook_mask, rotary = self.base.hook_mask, self.base.rotary_emb
        self._handles.append(self.base.register_forward_pre_hook(Watch(self._begin), with_kwargs=True))
        self._handles.append(self.base.register_forward_hook(Watch(self._end), always_call=True))
        self._handles.append(hook_mask.register_forward_hook(Watch(self._see_mask)))
        if self._may_derive:
            self._handles.append(rotary.register_forward_hook(Watch(self._see_rope)))
        if "logits" in self.points:
            self._handles.append(self.model.register_forward_pre_hook(Watch(self._see_kept_logits), with_kwargs=True))
        for name, item in self.points.items():
            handle = item.module.register_forward_hook(Watch(self._keeper(name)))
            self._handles.append(handle)
            if item.point.name in FROM_ATTENTION:
                self._explicit[name] = Switched(item.module, handle.id)
        self._switch(dict.fromkeys(self._explicit, ()))  # out, until a forward needs them

    def detach(self) -> None:
        """Removes them, and what was kept of forwards that did not end."""
        self._switch({})
        for handle in (*self._handles, *self._masks.values()):
            handle.remove()
        for forward in (*self._outer, *([self._now] if self._now else [])):
            forward.drop()
        self._handles, self._explicit, self._masks = [], {}, {}
        self._now, self._outer = None, []

    def _switch(self, derived: dict[str, tuple[str, ...]]) -> None:
        for name, hook in self._explicit.items():
            hook.switch(name not in derived)

    def _other_keys(self, cache: Any, start: int, batch: int) -> tuple[int, ...]:
        """The layers whose attention will use other keys than those captured, as far as that is known."""
        last = self.acts.spans[-1] if self.acts.spans else None
        follows = start > 0 and last is not None and last.start + last.count == start
        self._strayed = follows and (
            self._strayed or (self._text is not None and not self._text.goes_on_in(cache, batch))
        )
        if self._strayed:
            return tuple(self._attending)
        layers: Any = self.base.layers
        return tuple(i for i in self._attending if not only_observed(layers[i].self_attn.hook_k_cached))

    def _follow_masks(self) -> None:
        """Where somebody may change a layer's mask, keeps the one that was applied: attention is computed from it."""
        for layer in self._attending:
            module: nn.Module = self.base.layers[layer].self_attn.hook_mask  # type: ignore[union-attr,assignment]
            name = f"layers.{layer}.mask"
            if name in self.points or only_observed(module):
                continue
            if name in self._masks:
                self._masks[name].remove()  # to be the last again
            self.hidden.add(name)
            self._masks[name] = module.register_forward_hook(Watch(self._keeper(name)))

    # --- a forward ---------------------------------------------------------------------------------------------------

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._now is not None:
            self._outer.append(self._now)
        self._now, self.begun = Forward(), self.begun + 1
        given = self._signature.bind_partial(*args, **kwargs).arguments
        tokens = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
        cache = given.get("past_key_values")
        if not isinstance(tokens, Tensor) or tokens.dim() < 2:
            return  # refused by the forward that begins here
        batch, count = tokens.shape[:2]
        start = getattr(cache, "length", 0)
        begins = self._text_begins(cache, start, batch) if self._follows_keys else None
        looked_at = self._may_derive or self._follows_keys
        mode = Mode.now(self.base, begins is not None) if looked_at else Mode(False, False, False)
        storage = self._storage(mode)
        kept = self._kept_logits(count)
        shape = Shape(batch, start, count, start + count, None if kept is None else len(kept))
        needed = storage.total(self.choice, self._itemsize, shape)
        check_budget(self.model, self.located, self.choice, mode, shape, needed, self.acts, self.budget)
        self._switch(storage.derived)
        self._follow_masks()
        self._now = Forward(
            start=start,
            count=count,
            batch=batch,
            cache=cache,
            tokens=own(tokens) if tokens.dim() == 2 else None,
            every=torch.arange(start, start + count),
            rows=self.choice.rows(start, count),
            logits=kept,
            begins=begins if start else None,
            before=len(self.acts.spans),
            whole=begins is not None and mode.watched,
            derived=storage.derived,
            after=storage.after,
            lossy=start > 0 and not getattr(cache, "exact", True),
            other_keys=self._other_keys(cache, start, batch),
        )

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        """Hands what was kept over to the capture, or forgets it if the forward failed."""
        now, self._ended = self._now, None
        if now is None:
            return
        self._now = self._outer.pop() if self._outer else None
        if output is None or not now.count:
            now.drop()
        else:
            with self.acts.lock:
                now.step = len(self.acts.spans)
                self.acts.spans.append(now.span())
                for name, part, rows in now.parts:
                    self._add(now, name, part, rows)
            self._text = Text.behind(now, output) if self._follows_keys else None
            now.parts, now.cache, self._ended = [], None, now
        if self._now is not None:
            self._switch(self._now.derived)

    def _see_mask(self, module: nn.Module, args: Any, mask: Mask) -> None:
        if self._now is not None:
            self._now.mask = mask.light()

    def _see_rope(self, module: nn.Module, args: Any, rope: tuple[Tensor, Tensor]) -> None:
        if self._now is not None:
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

    def _text_begins(self, cache: Any, start: int, batch: int) -> int | None:
        """The forward that began the text which this one continues, if all keys that it will see are those captured
        since; this one itself where it begins a text.
        """
        spans = self.acts.spans
        if start == 0:
            return len(spans) if gives_what_it_takes(cache, self.base.dtype) else None
        if self._text is None or not spans or not self._text.goes_on_in(cache, batch):
            return None
        first = len(spans) - 1
        while first > 0 and spans[first].start > 0:
            first -= 1
        ends = [span.start + span.count for span in spans[first:]]
        return None if spans[first].start or [span.start for span in spans[first + 1 :]] + [start] != ends else first

    # --- a point -----------------------------------------------------------------------------------------------------

    def _keeper(self, name: str) -> Callable[..., None]:
        point, choice = point_of(name), self.choice
        heads = choice.heads_of(point)

        def keep(module: nn.Module, args: Any, output: Any) -> None:
            now = self._now
            if now is None or name in now.derived:
                return
            if point.name == "mask":
                if now.rows != ():
                    now.parts.append((name, MaskPart(output.light(), now.rows), None))
                return
            if choice.gradients:
                _needs_gradient(name, output).retain_grad()
                now.parts.append((name, output, None))
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
            now.parts.append((name, stored, rows))

        return self._after_the_end(name, keep) if name == "logits" else keep

    def _after_the_end(self, name: str, keep: Callable[..., None]) -> Callable[..., None]:
        """The head comes after the model has ended."""

        def keep_last(module: nn.Module, args: Any, output: Any) -> None:
            running, now, self._ended = self._now, self._ended, None
            try:
                self._now = now
                keep(module, args, output)
            finally:
                self._now = running
            if now is not None:
                for _, part, rows in now.parts:
                    self._add(now, name, part, rows)

        return keep_last

    def _add(self, now: Forward, name: str, part: Part, rows: tuple[int, ...] | None = None) -> None:
        short = point_of(name).name
        self.acts.append(name, part, now.step, now.positions_of(short, rows), name in self.hidden)
        for derived in now.after.get(name, ()):
            if now.can_derive(point_of(derived).name):
                self._add(now, derived, self._recipe(now, derived))

    def _recipe(self, now: Forward, name: str) -> Part:
        """What a derived point is computed from: the parts just captured."""
        short = point_of(name).name
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
