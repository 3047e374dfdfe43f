"""The hooks of an `edit` block, and what is known of the forward that runs."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from workbench.instrument.edit_site import EditError, Site
from workbench.instrument.names import resolve
from workbench.instrument.points import Located, base_of
from workbench.model import LlamaForCausalLM, LlamaModel
from workbench.model.mask import Mask

Change = Callable[[Any, Site], Any]  # what a point computed → what goes on from there


class Forwards:
    """Hooks for the forwards of the thread that makes it, until `detach`.

    Attributes:
        reads: (first position, number of positions) of each forward that has begun.
    """

    def __init__(self, model: LlamaForCausalLM | LlamaModel) -> None:
        self.model, self.base = model, base_of(model)
        self.reads: list[tuple[int, int]] = []
        self._thread = threading.get_ident()
        self._signature = inspect.signature(self.base.forward)
        self._handles: list[Any] = []
        self._inside = False
        self._batch = 1
        self._keep: Any = 0  # logits_to_keep
        self._padding: Tensor | None = None  # (batch, positions so far), 0 at padding
        self._masks: dict[int | None, Mask] = {}  # by layer; under None the one that all layers are given

    def attach(self, changes: Iterable[tuple[Located, Change]]) -> None:
        """Registers the hooks. Those that watch masks come last: they see the edited ones."""
        layers = set()
        for item, change in changes:
            self._handles.append(item.module.register_forward_hook(self._changing(item, change)))
            layers.add(item.layer)
            if item.point.name == "logits":
                keep = self._looking(self._see_logits_to_keep)
                self._handles.append(self.model.register_forward_pre_hook(keep, with_kwargs=True))
        masks: list[tuple[nn.Module, int | None]] = [(self.base.hook_mask, None)]
        if inside := [layer for layer in layers if layer is not None]:
            masks += [(item.module, item.layer) for item in resolve(self.model, ["mask"], inside)]
        self._handles += [
            self.base.register_forward_pre_hook(self._looking(self._begin), with_kwargs=True),
            self.base.register_forward_hook(self._looking(self._end), always_call=True),
            *(module.register_forward_hook(self._looking(self._see_mask(layer))) for module, layer in masks),
        ]

    def detach(self) -> None:
        """Removes them."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _looking(self, hook: Callable[..., None]) -> Callable[..., None]:
        """A hook that changes nothing, and heeds only the block's own thread: the page may run the same model."""

        def look(*args: Any) -> None:
            if threading.get_ident() == self._thread:
                hook(*args)

        return look

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = self._signature.bind_partial(*args, **kwargs).arguments
        tokens = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
        cache, mask = given.get("past_key_values"), given.get("attention_mask")
        if not isinstance(tokens, Tensor) or tokens.dim() < 2:
            return  # refused by the forward that begins here
        if self.base.training and self.base.gradient_checkpointing:
            raise EditError(
                "edits are refused under gradient checkpointing: backward() computes layers again, when the block may "
                "have ended, so their gradients would be those of other numbers. Call gradient_checkpointing_disable()."
            )
        self._batch, count = tokens.shape[:2]
        start = cache.length if cache is not None else 0
        declared = isinstance(mask, Tensor) and tuple(mask.shape) == (self._batch, start + count)
        self._padding = mask.cpu() if declared and mask is not None else None
        self._masks, self._inside = {}, True
        self.reads.append((start, count))

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        self._inside = False

    def _see_logits_to_keep(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = inspect.signature(self.model.forward).bind_partial(*args, **kwargs).arguments
        self._keep = given.get("logits_to_keep", 0)

    def _see_mask(self, layer: int | None) -> Callable[..., None]:
        def see(module: nn.Module, args: Any, mask: Mask) -> None:
            if self._inside:
                self._masks[layer] = mask

        return see

    def _changing(self, item: Located, change: Change) -> Callable[..., Any]:
        after = item.point.name == "logits"  # the head comes after the model; a norm may be called by anybody

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            heeded = threading.get_ident() == self._thread and (self._inside or (after and self.reads))
            return change(output, self._site(item)) if heeded else None

        return hook

    def _site(self, item: Located) -> Site:
        start, count = self.reads[-1]
        mask = self._masks.get(item.layer, self._masks.get(None))
        positions = torch.arange(start, start + count)
        if "slot" in item.point.axes and mask is not None:
            positions = mask.k_pos
        if item.point.name == "logits":
            positions = positions[_index(self._keep)]
        return Site(item.full_name, item.layer, positions, self._tokens(positions), mask, len(self.reads) - 1)

    def _tokens(self, positions: Int[Tensor, " pos"]) -> Bool[Tensor, "batch pos"]:
        found = (positions >= 0)[None].expand(self._batch, -1)
        return found if self._padding is None else found & self._padding[:, positions.clamp(min=0)].bool()


def _index(keep: Any) -> Any:
    """What `logits_to_keep` means as an index."""
    return slice(-keep, None) if isinstance(keep, int) else torch.as_tensor(keep).cpu()
