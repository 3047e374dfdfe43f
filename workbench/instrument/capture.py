"""`capture`: keep chosen tensors of every forward inside a `with` block."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workbench.instrument.activations import Activations, Span
from workbench.instrument.points import resolve
from workbench.model import LlamaForCausalLM, LlamaModel


@contextmanager
def capture(
    model: LlamaForCausalLM | LlamaModel,
    *points: str,
    layers: Iterable[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Iterator[Activations]:
    """Captures hook points of every forward of `model` inside the block.

        with capture(model, "resid_post", "q_rot", "k_rot", layers=range(8)) as acts:
            model(ids)
        acts["resid_post", 3]  # (batch, pos, d_model)

    Forwards that other threads run meanwhile are not captured. Capturing does not change the model's numbers, except
    that `scores` or `pattern` make those layers compute attention explicitly, which rounds differently from the fused
    kernel. The hooks are removed when the block ends, however it ends.

    Args:
        points: names from `POINTS`, for all layers (`"q"`) or one (`"layers.3.q"`).
        layers: restricts names without a layer.
        dtype, device: what to store as and where; default as computed.

    Raises:
        ValueError: for an unknown point or layer; nothing is hooked then.
    """
    located = resolve(model, points, layers)
    acts = Activations()
    handles = []
    try:
        for item in located:
            keep = _keeper(acts, item.full_name, dtype, device)
            handles.append(item.module.register_forward_hook(keep))
        base = model.model if isinstance(model, LlamaForCausalLM) else model
        handles.append(base.register_forward_pre_hook(_span_keeper(acts, base), with_kwargs=True))
        yield acts
    finally:
        for handle in handles:
            handle.remove()


def _span_keeper(acts: Activations, base: LlamaModel) -> Callable[[nn.Module, Any, Any], None]:
    thread, signature = threading.get_ident(), inspect.signature(base.forward)

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        if threading.get_ident() != thread:
            return
        given = signature.bind_partial(*args, **kwargs).arguments
        tokens = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
        cache, mask = given.get("past_key_values"), given.get("attention_mask")
        if tokens is not None and tokens.dim() >= 2:  # anything else is refused by the forward that begins here
            masked = mask is not None and not (mask.dim() == 2 and bool(mask.all()))
            acts.spans.append(Span(cache.length if cache is not None else 0, tokens.shape[1], masked))

    return note


def _keeper(
    acts: Activations, name: str, dtype: torch.dtype | None, device: torch.device | str | None
) -> Callable[[nn.Module, Any, Tensor], None]:
    thread = threading.get_ident()

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        if threading.get_ident() != thread:
            return  # another thread's forward, such as the page's while a cell captures
        # copy=True: a view of the model's own memory would change with a later in-place edit. Contiguous, so that a
        # slice of a larger tensor does not keep the rest of it alive.
        acts.append(name, output.detach().to(device, dtype, copy=True).contiguous())

    return keep
