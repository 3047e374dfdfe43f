"""Stopping a forward between two layers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from workbench.instrument.points import POINTS
from workbench.model import LlamaForCausalLM, LlamaModel


class Cancelled(Exception):
    """Raised inside a forward that was asked to stop."""


@contextmanager
def cancellable(
    model: LlamaForCausalLM | LlamaModel, should_stop: Callable[[], bool], on_layer: Callable[[int], None] | None = None
) -> Iterator[None]:
    """Makes this thread's forwards in the block raise `Cancelled` before the next layer once `should_stop()` is true.

    `on_layer(i)` is told of every layer that begins. The model crops the cache of a cancelled forward to its length
    before.
    """
    base = model.model if isinstance(model, LlamaForCausalLM) else model
    thread = threading.get_ident()

    def check(index: int) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, args: Any) -> None:
            if threading.get_ident() != thread:
                return
            if should_stop():
                raise Cancelled
            if on_layer is not None:
                on_layer(index)

        return hook

    # On a hook point, so that layers stay on their fast path.
    starts = [layer.get_submodule(POINTS["resid_pre"].path) for layer in base.layers]
    handles = [start.register_forward_pre_hook(check(i)) for i, start in enumerate(starts)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
