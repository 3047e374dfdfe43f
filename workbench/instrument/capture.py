"""`capture`: keep chosen tensors of every forward inside a `with` block."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from workbench.instrument.activations import Activations
from workbench.instrument.choice import Choice
from workbench.instrument.names import resolve
from workbench.instrument.planner import to_bytes
from workbench.instrument.recorder import Recorder
from workbench.model import LlamaForCausalLM, LlamaModel


@contextmanager
def capture(
    model: LlamaForCausalLM | LlamaModel,
    *points: str,
    layers: int | Iterable[int] | None = None,
    positions: slice | int | Iterable[int] | None = None,
    heads: int | Iterable[int] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    gradients: bool = False,
    derive: bool = True,
    budget: int | str | None = None,
    spill: str | Path | None = None,
) -> Iterator[Activations]:
    """Captures hook points of every forward of `model` inside the block.

        with capture(model, "resid_post", "q_rot", "k_rot", layers=range(8), positions=slice(-64, None)) as acts:
            model(ids)
        acts["resid_post", 3]  # (batch, 64, d_model)

    Forwards that other threads run meanwhile are not captured. A forward is captured when it has ended: one that is
    refused or fails leaves nothing, and one that an edit runs inside another comes before that one.

    Points that follow from others that are captured too are not stored but computed when they are looked at, bit for
    bit (see `recipes`); `scores` and `pattern` follow from queries, keys and mask. They are stored as they were used
    where attention is eager, somebody edits the text, or the cache may give attention other keys than were captured.
    An edit whose block encloses this one is seen, one inside it is not. The hooks are removed when the block ends,
    however it ends; copies of the model that are made in it are not captured.

    Capturing does not change the model's numbers, with one exception: layers whose `scores` or `pattern` are stored
    compute attention explicitly, which rounds differently from the fused kernels (about 1e-5). They are always stored
    with `dtype`, `gradients=True` or `derive=False`.

    Args:
        points: names from `POINTS`, for all layers (`"q"`), one (`"layers.3.q"`) or some (`"layers.2:6.q"`); patterns
            (`"resid_*"`), and names of TransformerLens and transformers where they mean one of them.
        layers: restricts names without a layer.
        positions: which positions of the text to keep; negative ones count from the end of each forward. Keys, though,
            are kept of all positions where `q_rot` is captured with `k_rot`, because a query's softmax needs every key.
        heads: which query heads to keep; of keys and values, the heads that these read.
        dtype, device: what to store as and where; default as computed.
        gradients: keep the very tensors of the forward, so that gradients flow through them: `acts.grad(name)`. They
            then are not detached and share the model's memory.
        derive: False to store every point as it was computed, also those that follow from others.
        budget: refuse forwards after which more than so many bytes would be held (`"500 MB"`, `"2 GiB"` or a number);
            default, what is free in memory. See `plan`.
        spill: a folder to put tensors into, instead of memory.

    Warns:
        UserWarning: if the block ends and no forward of the model was seen.

    Raises:
        TypeError, ValueError: for an unknown point, layer, head or place, or choices that exclude each other; nothing
            is hooked then.
        CaptureBudgetError: by a forward, before it runs, if it would not fit.
    """
    model = getattr(model, "_orig_mod", model)  # of what torch.compile made
    located = resolve(model, points, layers)
    choice = Choice.of(model, located, positions, heads, dtype, device, gradients, derive, spill)
    recorder = Recorder(model, located, choice, Activations(), to_bytes(budget))
    try:
        recorder.attach()
        yield recorder.acts
    finally:
        recorder.detach()
    if not recorder.begun:
        warnings.warn(
            "nothing was captured: no forward of this model ran in the block, in its own thread. What torch.compile "
            "compiled before the block began does not see its hooks: call the model that was compiled instead.",
            stacklevel=3,
        )
