"""`capture`: keep chosen tensors of every forward inside a `with` block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workbench.instrument.activations import Activations
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

    Capturing does not change the model's numbers, except that `scores` or `pattern` make those layers compute attention
    explicitly, which rounds differently from the fused kernel. The hooks are removed when the block ends, however it
    ends.

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
        yield acts
    finally:
        for handle in handles:
            handle.remove()


def _keeper(
    acts: Activations, name: str, dtype: torch.dtype | None, device: torch.device | str | None
) -> Callable[[nn.Module, Any, Tensor], None]:
    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        # copy=True: a view of the model's own memory would change with a later in-place edit. Contiguous, so that a
        # slice of a larger tensor does not keep the rest of it alive.
        acts.append(name, output.detach().to(device, dtype, copy=True).contiguous())

    return keep
