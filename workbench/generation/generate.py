"""Batched generation without a record: the plain function behind `model.generate`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from workbench.cache import DynamicCache, KVCache
from workbench.generation.sampling import Sampler
from workbench.model import LlamaForCausalLM


@torch.no_grad()
def generate(
    model: LlamaForCausalLM,
    input_ids: Int[Tensor, "batch pos"],
    *,
    attention_mask: Int[Tensor, "batch pos"] | None = None,
    max_new_tokens: int = 20,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int = 50,
    top_p: float = 1.0,
    seed: int | None = None,
    eos_token_id: int | Sequence[int] | None = None,
    pad_token_id: int | None = None,
    past_key_values: KVCache | None = None,
) -> Int[Tensor, "batch longer"]:
    """Continues each row of a batch until every row has ended or `max_new_tokens` were added.

    Args:
        attention_mask: 0 at padding, which has to be on the left.
        do_sample: draw from the softmax instead of taking the most likely token; only then do `temperature`, `top_k`
            (0: all) and `top_p` count.
        seed: of the draw; `None` draws from PyTorch's global generator.
        eos_token_id: tokens that end a row; default the config's.
        pad_token_id: what fills an ended row; default the config's, else the first end token.
        past_key_values: an empty cache to use.

    Returns:
        The prompts with their continuations.

    Raises:
        ValueError: for an empty prompt, `max_new_tokens` below 1, padding on the right, a text that would pass the
            model's length, or a cache that is not empty.
    """
    sampler = Sampler(temperature if do_sample else 0.0, top_k, top_p, seed or 0)
    if do_sample and sampler.greedy:
        raise ValueError("temperature is 0 with do_sample=True; leave do_sample out for the most likely token.")
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    _check(model, input_ids, mask, max_new_tokens, past_key_values)
    generator = None if seed is None else sampler.generator(input_ids.device)
    ends = _end_tokens(model, eos_token_id)
    pad = next(i for i in (pad_token_id, model.config.pad_token_id, *ends, 0) if i is not None)
    cache: KVCache = DynamicCache() if past_key_values is None else past_key_values

    ids, new = input_ids, input_ids
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    for _ in range(max_new_tokens):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -new.shape[1] :]
        out = model(new, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1)
        token = sampler.pick(out.logits[:, -1], generator).masked_fill(ended, pad)
        new = token[:, None]
        ids = torch.cat((ids, new), dim=1)
        mask = torch.cat((mask, mask.new_ones(len(ids), 1)), dim=1)
        ended = ended | torch.isin(token, torch.tensor(ends, device=ids.device))
        if bool(ended.all()):
            break
    return ids


def _end_tokens(model: LlamaForCausalLM, eos_token_id: int | Sequence[int] | None) -> tuple[int, ...]:
    if eos_token_id is None:
        return model.config.eos_token_ids
    return (eos_token_id,) if isinstance(eos_token_id, int) else tuple(eos_token_id)


def _check(model: LlamaForCausalLM, ids: Tensor, mask: Tensor, new: int, cache: KVCache | None) -> None:
    if ids.dim() != 2 or ids.shape[1] == 0:
        raise ValueError(f"input_ids has shape {tuple(ids.shape)}; expected (batch, positions), one at least.")
    if new < 1:
        raise ValueError(f"max_new_tokens is {new}; it must be at least 1.")
    if mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask has shape {tuple(mask.shape)}, input_ids {tuple(ids.shape)}; they must agree."
        )
    if not bool(mask[:, -1].all()):
        raise ValueError("a row ends in padding: pad on the left, so that every row's last position is a real token.")
    limit = model.config.max_position_embeddings
    if ids.shape[1] + new > limit:
        raise ValueError(
            f"{ids.shape[1]} prompt tokens and {new} new ones make {ids.shape[1] + new}, but the model was trained for "
            f"{limit} positions (max_position_embeddings). Shorten the prompt or lower max_new_tokens."
        )
    if cache is not None and cache.length:
        raise ValueError(f"past_key_values already holds {cache.length} positions; give an empty cache.")
