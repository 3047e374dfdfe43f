"""Who listens to a model: hooks that only look, and hooks that may change what goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import nn

from workbench.model.fast_path import fast_layers, hook_tables
from workbench.model.llama import STRUCTURE, LlamaModel
from workbench.model.norm import LlamaRMSNorm
from workbench.model.rope import LlamaRotaryEmbedding

Hook = TypeVar("Hook", bound=Callable[..., Any])


def observer(hook: Hook) -> Hook:
    """Marks a hook that returns nothing and changes nothing."""
    hook.observes = True  # type: ignore[attr-defined]
    return hook


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
