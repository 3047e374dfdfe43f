"""What `generate` was given to continue: checked, with its padding found and its positions counted."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.cache import KVCache
from workbench.generation.config import GenerationConfig


@dataclasses.dataclass(frozen=True)
class Prompts:
    """`mask` and `positions` are `None` where nothing is padding; `hidden` counts positions that are not in `ids`."""

    ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch all"] | None = None
    positions: Int[Tensor, "batch all"] | None = None
    embeds: Float[Tensor, "batch pos d_model"] | None = None
    hidden: int = 0


def find_prompts(
    model: Any,
    options: GenerationConfig,
    inputs: Any = None,
    input_ids: Any = None,
    inputs_embeds: Any = None,
    attention_mask: Any = None,
    position_ids: Any = None,
    cache: KVCache | None = None,
) -> Prompts:
    """The prompts of a call; without any, one that is the bos token.

    Raises:
        TypeError: for what is no tensor.
        ValueError: for two of `inputs` and `input_ids`, for shapes, dtypes or masks that do not fit, padding on the
            right, and a cache that has read all of it.
    """
    if inputs is not None and input_ids is not None:
        raise ValueError("inputs and input_ids are the same thing and both are given; give one of them.")
    ids = inputs if input_ids is None else input_ids
    start = 0 if cache is None else cache.length
    if inputs_embeds is not None:
        embeds = _tensor("inputs_embeds", inputs_embeds, 3, "(batch, positions, hidden_size)")
        ids = _ids_beside(embeds, ids, getattr(model, "device", embeds.device))
        hidden, width = embeds.shape[1] - ids.shape[1], embeds.shape[1]
    else:
        embeds, ids = None, _ids(model, ids, options)
        hidden, width = 0, ids.shape[1]
    if attention_mask is None:
        attention_mask = None if embeds is not None else _inferred_mask(ids, options)
    else:
        _tensor("attention_mask", attention_mask, 2, "(batch, positions)")
        if start and embeds is None and attention_mask.shape[1] == start + width:
            hidden, width = start, start + width  # the ids are those that the cache has not read
    _check_not_read(start, hidden + ids.shape[1])
    mask = None if attention_mask is None else _mask(attention_mask, (len(ids), width), ids.shape)
    return Prompts(ids, mask, _positions(position_ids, mask, len(ids), width), embeds, hidden)


def _tensor(name: str, value: Any, dimensions: int, shape: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} is a {type(value).__name__}; a tensor of shape {shape} is needed.")
    if value.dim() != dimensions or value.shape[0] == 0 or (value.numel() == 0):
        raise ValueError(f"{name} has shape {tuple(value.shape)}; expected {shape}, one at least.")
    return value


def _ids(model: Any, ids: Any, options: GenerationConfig) -> Int[Tensor, "batch pos"]:
    if ids is None:
        if options.bos_token_id is None:
            raise ValueError("there is no prompt and no bos_token_id to begin with; give input_ids or bos_token_id.")
        return torch.tensor([[options.bos_token_id]], device=model.device)
    _tensor("input_ids", ids, 2, "(batch, positions)")
    if ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"input_ids holds {ids.dtype}; token ids are torch.int64 or torch.int32.")
    found: Tensor = ids.long()
    return found


def _ids_beside(embeds: Tensor, ids: Any, device: torch.device) -> Int[Tensor, "batch pos"]:
    if ids is None:
        return torch.zeros((len(embeds), 0), dtype=torch.long, device=device)
    if tuple(ids.shape) != tuple(embeds.shape[:2]):
        raise ValueError(
            f"input_ids has shape {tuple(ids.shape)} beside inputs_embeds of {tuple(embeds.shape)}; they must be of "
            "the same tokens. Leave input_ids out to get the new tokens only."
        )
    found: Tensor = ids.long()
    return found


def _inferred_mask(ids: Int[Tensor, "batch pos"], options: GenerationConfig) -> Int[Tensor, "batch pos"] | None:
    """Padding tokens are taken for padding, unless they end texts too."""
    pad = options.pad_token_id
    if pad is None or pad in options.eos_token_ids:
        return None
    keep = ids != pad
    return None if bool(keep.all()) else keep.long()


def _mask(mask: Tensor, size: tuple[int, int], shape: torch.Size) -> Int[Tensor, "batch all"] | None:
    if tuple(mask.shape) != size:
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}, input_ids {tuple(shape)}; they must agree.")
    mask = mask.detach().cpu()  # the model looks at it there
    if bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError("attention_mask holds other values than 0 (padding) and 1 (token).")
    if not bool(mask[:, -1].all()):
        raise ValueError(
            "a row ends in padding: pad on the left, so that every row's last position is a real token; with a "
            'tokenizer, padding_side="left". If the last token is meant, give attention_mask.'
        )
    return None if bool(mask.all()) else mask.long()


def _positions(given: Any, mask: Tensor | None, batch: int, width: int) -> Int[Tensor, "batch all"] | None:
    if given is not None:
        _tensor("position_ids", given, 2, "(batch, positions)")
        if tuple(given.shape) not in ((1, width), (batch, width)) or given.is_floating_point():
            raise ValueError(
                f"position_ids has shape {tuple(given.shape)} and {given.dtype}; expected whole numbers of shape "
                f"({batch}, {width}), one position a token."
            )
        found: Tensor = given.long().expand(batch, -1)
        return found
    return None if mask is None else (mask.cumsum(-1) - 1) * mask


def _check_not_read(start: int, total: int) -> None:
    if start >= total:
        raise ValueError(
            f"past_key_values already holds {start} positions, and the text has {total}: there is nothing to read. "
            "Give the whole text, of which the cache holds the beginning, or the new tokens with an attention_mask of "
            "all of them, or an empty cache."
        )
