"""The mask that a model's own forward builds."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from workbench.model import LlamaModel
from workbench.model.mask import Mask, Rule


class _Seen(Exception):
    """No error: ends the forward once the mask is there."""

    def __init__(self, mask: Mask) -> None:
        self.mask = mask


@torch.no_grad()
def mask_of_forward(
    model: nn.Module,
    input_ids: Int[Tensor, "batch pos"],
    attention_mask: Tensor | Sequence[Rule] | Mask | None = None,
) -> Mask:
    """Runs a forward and gives the mask that it hands to its first layer. A forward builds one for all layers.

    It is ended there: no layer computes anything, no random number is drawn for dropout, no cache is touched. Forwards
    that other threads run meanwhile go on undisturbed.

    Args:
        model: a `LlamaModel`, or a model with a head that has one inside.
        input_ids, attention_mask: as for the forward.

    Raises:
        TypeError: if there is no `LlamaModel` in it.
        ValueError: for what the forward refuses.
    """
    base = base_model(model)
    thread = threading.get_ident()

    def look(module: nn.Module, args: Any, kwargs: Any) -> None:
        if threading.get_ident() == thread:
            found = [value for value in (*args, *kwargs.values()) if isinstance(value, Mask)]
            raise _Seen(found[0])

    handle = base.layers[0].register_forward_pre_hook(look, with_kwargs=True)
    try:
        base(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    except _Seen as seen:
        return seen.mask
    finally:
        handle.remove()
    raise RuntimeError("the forward ended without calling its first layer, so its mask was not seen.")


def base_model(model: Any) -> LlamaModel:
    """The `LlamaModel` inside a model with a head, or the model itself.

    Raises:
        TypeError: if there is none.
    """
    parts = model.modules() if isinstance(model, nn.Module) else ()
    for part in parts:
        if isinstance(part, LlamaModel):
            return part
    raise TypeError(f"a workbench Llama model is needed; got {type(model).__name__}, which has no LlamaModel inside.")
