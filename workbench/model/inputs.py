"""What a forward accepts: each check says what was given, what is allowed and what to do."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.cache import KVCache


def check_token_ids(input_ids: Any, vocab_size: int) -> Int[Tensor, "batch pos"]:
    """`input_ids`, if it is a (batch, pos) tensor of tokens that the model knows.

    Raises:
        TypeError: if it is no tensor.
        ValueError: for another shape, dtype or range.
    """
    if not isinstance(input_ids, Tensor):
        raise TypeError(
            f"input_ids is a {type(input_ids).__name__}; a tensor of shape (batch, positions) is needed, for example "
            'tokenizer(text, return_tensors="pt").input_ids.'
        )
    if input_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"input_ids holds {input_ids.dtype}; token ids are torch.int64 or torch.int32.")
    if input_ids.dim() != 2 or input_ids.numel() == 0:
        raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; expected (batch, positions), one at least.")
    if input_ids.is_meta or (input_ids.is_cuda and input_ids.shape[1] == 1):
        return input_ids  # on a GPU, looking would wait for it at every new token
    low, high = (int(value) for value in torch.aminmax(input_ids))
    if low < 0 or high >= vocab_size:
        raise ValueError(
            f"input_ids holds {low if low < 0 else high}; token ids of this model lie in 0 … {vocab_size - 1}. "
            "Is this the tokenizer of another model?"
        )
    return input_ids


def check_embeddings(inputs_embeds: Any, width: int) -> Float[Tensor, "batch pos d_model"]:
    """`inputs_embeds`, if it is a (batch, pos, d_model) tensor.

    Raises:
        TypeError: if it is no tensor.
        ValueError: for another shape or dtype.
    """
    if not isinstance(inputs_embeds, Tensor):
        raise TypeError(f"inputs_embeds is a {type(inputs_embeds).__name__}; a tensor is needed.")
    if inputs_embeds.dim() != 3 or inputs_embeds.shape[2] != width or inputs_embeds.numel() == 0:
        raise ValueError(
            f"inputs_embeds has shape {tuple(inputs_embeds.shape)}; expected (batch, positions, {width}), one position "
            "at least."
        )
    if not inputs_embeds.is_floating_point():
        raise ValueError(f"inputs_embeds holds {inputs_embeds.dtype}; floating-point numbers are needed.")
    return inputs_embeds


def check_positions(position_ids: Any, q_pos: Int[Tensor, " pos"], batch: int) -> Int[Tensor, "row pos"]:
    """`position_ids`, or the positions themselves if it is `None`.

    Raises:
        TypeError: if it is no tensor.
        ValueError: for another shape or dtype.
    """
    if position_ids is None:
        return q_pos[None]
    if not isinstance(position_ids, Tensor):
        raise TypeError(f"position_ids is a {type(position_ids).__name__}; a tensor is needed.")
    if tuple(position_ids.shape) not in ((1, len(q_pos)), (batch, len(q_pos))):  # another one might broadcast silently
        raise ValueError(
            f"position_ids has shape {tuple(position_ids.shape)}; expected ({batch} or 1, {len(q_pos)}): one position "
            "a new token."
        )
    if position_ids.is_floating_point() or position_ids.dtype == torch.bool:
        raise ValueError(f"position_ids holds {position_ids.dtype}; positions are whole numbers.")
    return position_ids


def check_cache(past_key_values: Any) -> KVCache | None:
    """`past_key_values`, if it is a cache of this package or works like one (`workbench.cache.KVCache`).

    Raises:
        TypeError: for anything else; a cache of `transformers` keeps another order of arguments.
    """
    if past_key_values is not None and not hasattr(past_key_values, "positions"):
        kind = type(past_key_values)
        raise TypeError(
            f"past_key_values is a {kind.__module__}.{kind.__qualname__}; a workbench KV cache is needed, for example "
            "workbench.DynamicCache(), or None."
        )
    cache: KVCache | None = past_key_values
    return cache


def check_logits_to_keep(logits_to_keep: Any) -> None:
    """Raises `TypeError` or `ValueError` unless it is a count of last positions or a 1-D tensor of their indices."""
    if isinstance(logits_to_keep, Tensor):
        if logits_to_keep.dim() != 1 or logits_to_keep.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"logits_to_keep is a tensor of shape {tuple(logits_to_keep.shape)} and {logits_to_keep.dtype}; one "
                "dimension of position indices is needed."
            )
    elif not isinstance(logits_to_keep, int) or isinstance(logits_to_keep, bool):
        raise TypeError(
            f"logits_to_keep is {logits_to_keep!r}; give a whole number of last positions (0: all) or a tensor of "
            "position indices."
        )
    elif logits_to_keep < 0:
        raise ValueError(f"logits_to_keep is {logits_to_keep}; it must be 0 (all positions) or more.")
