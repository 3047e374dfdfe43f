"""Who listens to a model: hooks that only look, and hooks that may change what goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from workbench.model.fast_path import fast_layers, hook_tables
from workbench.model.llama import STRUCTURE, LlamaModel
from workbench.model.norm import LlamaRMSNorm
from workbench.model.rope import LlamaRotaryEmbedding


class Watch:
    """A hook that only looks, at what the thread that makes it computes: the page may run the same model meanwhile.

    A copy of a model, made while it is watched, is not: it gets hooks that take themselves away when it runs.

    Attributes:
        observes: says so to `only_watched`.
    """

    observes = True

    def __init__(self, look: Callable[..., None]) -> None:
        self.look, self.thread = look, threading.get_ident()

    def __call__(self, *args: Any) -> None:
        """As PyTorch calls it."""
        if threading.get_ident() == self.thread:
            self.look(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Stray:
        return Stray()

    def __reduce__(self) -> tuple[type[Stray], tuple[()]]:
        return Stray, ()


class Stray:
    """What a hook becomes in a copy of a model. It does nothing, once."""

    observes = True

    def __call__(self, module: nn.Module, *args: Any) -> None:
        """Takes itself and its like away."""
        after: Any = (module._forward_hooks_with_kwargs, module._forward_hooks_always_called)
        before: Any = (module._forward_pre_hooks_with_kwargs,)
        for hooks, flags in ((module._forward_hooks, after), (module._forward_pre_hooks, before)):
            for number in [number for number, hook in hooks.items() if isinstance(hook, Stray)]:
                for table in (hooks, *flags):
                    table.pop(number, None)


def only_watched(base: LlamaModel) -> bool:
    """Whether every hook on the model is an observer, so that nobody changes a number between two points."""
    return _observers([*hook_tables(base), *_outside(base)])


def only_observed(module: nn.Module) -> bool:
    """Whether every hook on one module is an observer."""
    return _observers((module._forward_hooks, module._forward_pre_hooks))


def known_forward(base: LlamaModel) -> bool:
    """Whether a forward beginning now computes all points by the known functions: no part replaced or patched, no
    gradients, no training, no autocast.
    """
    if type(base.norm) is not LlamaRMSNorm or type(base.rotary_emb) is not LlamaRotaryEmbedding:
        return False
    if "forward" in vars(base.norm) or "forward" in vars(base.rotary_emb):
        return False
    device = base.device
    return fast_layers(base, STRUCTURE, device) is not None


def attention_is_fused(base: LlamaModel) -> bool:
    """Whether layers make no pattern unless somebody asks."""
    device = base.device
    return base.config.attn_implementation != "eager" and not torch.is_autocast_enabled(device.type)


def _observers(tables: Iterable[dict[int, Any]]) -> bool:
    return all(getattr(hook, "observes", False) for table in tables if table for hook in table.values())


def _outside(base: LlamaModel) -> Iterable[dict[int, Any]]:
    """The hooks of what is not in a layer."""
    parts: list[nn.Module] = [base, base.embed_tokens, base.norm, base.rotary_emb, base.hook_embed, base.hook_mask]
    return [table for part in parts for table in (part._forward_hooks, part._forward_pre_hooks)]
