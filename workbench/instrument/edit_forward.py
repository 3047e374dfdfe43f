"""The hooks of an `edit` block, and what is known of the forward that runs."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from workbench.instrument.edit_site import EditError, Site, is_token
from workbench.instrument.names import resolve
from workbench.instrument.points import Located, base_of
from workbench.model import LlamaForCausalLM, LlamaModel
from workbench.model.mask import Mask, build_mask

Change = Callable[[Any, Site], Any]  # what a point computed → what goes on from there


@dataclasses.dataclass
class _Forward:
    """What is known of a forward. `built` is the mask before any edit; `masks` are those that are applied, by layer,
    under `None` the one that all layers are given.
    """

    step: int = 0
    start: int = 0
    count: int = 0
    batch: int = 1
    keep: Any = 0  # logits_to_keep
    build: Callable[[], Mask] | None = None
    built: Mask | None = None
    masks: dict[int | None, Mask] = dataclasses.field(default_factory=dict)

    def tokens(self, positions: Int[Tensor, " pos"]) -> Bool[Tensor, "batch pos"]:
        """Which of some positions are tokens."""
        if self.built is None and self.build is not None:  # at `embed`
            self.built = self.build()
        return is_token(self.built, positions).expand(self.batch, -1)


class Forwards:
    """Hooks for the forwards of the thread that makes it, until `detach`.

    A forward that a change runs, as a function of the caller may, is left alone. Any other that begins while one runs
    is changed too, and that one goes on as it was.

    Attributes:
        reads: (first position, number of positions) of each forward that has begun.
    """

    def __init__(self, model: LlamaForCausalLM | LlamaModel) -> None:
        self.model, self.base = model, base_of(model)
        self.reads: list[tuple[int, int]] = []
        self._thread = threading.get_ident()
        self._signature = inspect.signature(self.base.forward)
        self._handles: list[Any] = []
        self._running: list[_Forward] = []  # the innermost one last
        self._ended: _Forward | None = None  # the one that ended last: its head comes after it
        self._keep: Any = 0
        self._changes = False  # whether a change is being made now

    def attach(self, changes: Iterable[tuple[Located, Change]]) -> None:
        """Registers the hooks. Those that watch masks come last: they see the edited ones."""
        layers = set()
        for item, change in changes:
            self._hook(item.module, "register_forward_hook", self._changing(item, change))
            layers.add(item.layer)
            if item.point.name == "logits":
                self._hook(self.model, "register_forward_pre_hook", self._see_logits_to_keep, with_kwargs=True)
        masks: list[tuple[nn.Module, int | None]] = [(self.base.hook_mask, None)]
        if inside := [layer for layer in layers if layer is not None]:
            masks += [(item.module, item.layer) for item in resolve(self.model, ["mask"], inside)]
        self._hook(self.base, "register_forward_pre_hook", self._begin, with_kwargs=True)
        self._hook(self.base, "register_forward_hook", self._end, always_call=True)
        for module, layer in masks:
            self._hook(module, "register_forward_hook", self._see_mask(layer))

    def detach(self) -> None:
        """Removes them."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, module: nn.Module, register: str, hook: Callable[..., Any], **options: bool) -> None:
        """Registers a hook that heeds only the block's own thread, as the page may run the same model, and only this
        very module: a copy of the model that is made in the block has the hook too, and drops it when it first runs.
        """

        def heed(called: nn.Module, *given: Any) -> Any:
            if called is not module:
                _drop(called, handle.id)
                return None
            return hook(called, *given) if threading.get_ident() == self._thread and not self._changes else None

        handle = getattr(module, register)(heed, **options)
        self._handles.append(handle)

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = self._signature.bind_partial(*args, **kwargs).arguments
        tokens = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
        cache, mask = given.get("past_key_values"), given.get("attention_mask")
        self._running.append(_Forward(step=len(self.reads), keep=self._keep))
        if not isinstance(tokens, Tensor) or tokens.dim() < 2:
            return  # refused by the forward that begins here
        if self.base.training and self.base.gradient_checkpointing:
            raise EditError(
                "edits are refused under gradient checkpointing: backward() computes layers again, when the block may "
                "have ended, so their gradients would be those of other numbers. Call gradient_checkpointing_disable()."
            )
        now = self._running[-1]
        now.batch, now.count = tokens.shape[:2]
        now.start = getattr(cache, "length", 0)
        now.build = functools.partial(_mask_of, mask, cache, now, self.base.config.num_attention_heads)
        self.reads.append((now.start, now.count))

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._running:
            self._ended = self._running.pop()

    def _see_logits_to_keep(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = inspect.signature(self.model.forward).bind_partial(*args, **kwargs).arguments
        self._keep = given.get("logits_to_keep", 0)

    def _see_mask(self, layer: int | None) -> Callable[..., None]:
        def see(module: nn.Module, args: Any, mask: Mask) -> None:
            if self._running:
                now = self._running[-1]
                now.masks[layer] = mask
                if layer is None:
                    now.built = args[0]

        return see

    def _changing(self, item: Located, change: Change) -> Callable[..., Any]:
        after = item.point.name == "logits"  # the head comes after the model; a norm may be called by anybody

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            now = self._ended if after else self._running[-1] if self._running else None
            if now is None:
                return None
            self._changes = True
            try:
                return change(output, self._site(item, now))
            finally:
                self._changes = False

        return hook

    def _site(self, item: Located, now: _Forward) -> Site:
        mask = now.masks.get(item.layer, now.masks.get(None))
        positions = torch.arange(now.start, now.start + now.count)
        if "slot" in item.point.axes and mask is not None:
            positions = mask.k_pos
        if item.point.name == "logits":
            positions = positions[_index(now.keep)]
        return Site(item.full_name, item.layer, positions, now.tokens(positions), mask, now.step)


def _mask_of(given: Any, cache: Any, forward: _Forward, heads: int) -> Mask:
    """The mask that a forward which begins now will build of what it is given."""
    q_pos = torch.arange(forward.start, forward.start + forward.count)
    k_pos = q_pos if cache is None else cache.positions(0, forward.count)
    return build_mask(given, q_pos, k_pos, forward.batch, heads)


def _drop(module: nn.Module, number: int) -> None:
    """Removes the hooks of this number from a module that is no more than a copy of the one they were made for."""
    for kind in ("_forward_hooks", "_forward_pre_hooks"):
        for table in (kind, f"{kind}_with_kwargs", f"{kind}_always_called"):
            getattr(module, table, {}).pop(number, None)


def _index(keep: Any) -> Any:
    """What `logits_to_keep` means as an index."""
    return slice(-keep, None) if isinstance(keep, int) else torch.as_tensor(keep).cpu()
