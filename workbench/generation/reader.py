"""Reader: gives a growing batch of texts to the model, each position once where there is a cache."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from workbench.cache import KVCache


@dataclasses.dataclass
class Step:
    """What one forward gave: the logits of each row's next token, in float32, and what was asked for besides."""

    logits: Float[Tensor, "row vocab"]
    attentions: tuple[Tensor, ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None

    def repeated(self, times: int) -> Step:
        """Each row `times` times, side by side."""

        def rows(tensors: tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
            return None if tensors is None else tuple(t.repeat_interleave(times, 0) for t in tensors)

        return Step(self.logits.repeat_interleave(times, 0), rows(self.attentions), rows(self.hidden_states))


class Reader:
    """The forwards of one generation.

    Args:
        model: a `LlamaForCausalLM`.
        cache: `None` recomputes the whole text at every step.
        batch: number of prompts.
        hidden: positions that the cache or the mask counts and the ids do not: those of `inputs_embeds`, or what was
            read before.
        mask: (batch, pos) with 0 at padding, or `None` if there is none.
        positions: (batch, pos) rotary positions, or `None` if they count from 0.
        embeds: embeddings of the prompts, to be read instead of their ids; with a cache only.
        keep: which of `output_attentions` and `output_hidden_states` each forward is asked for.
        compiled: whether single tokens are read by a compiled forward.
    """

    def __init__(
        self,
        model: Any,
        cache: KVCache | None,
        batch: int,
        hidden: int = 0,
        mask: Int[Tensor, "batch pos"] | None = None,
        positions: Int[Tensor, "batch pos"] | None = None,
        embeds: Float[Tensor, "batch pos d_model"] | None = None,
        keep: dict[str, bool] | None = None,
        compiled: bool = False,
    ) -> None:
        self.model, self.cache, self.batch, self.hidden = model, cache, batch, hidden
        self.mask, self.positions, self.embeds = mask, positions, embeds
        self.keep = keep or {}
        self.copies = 1  # rows a prompt
        # Lengths are symbols, or every token would be compiled anew.
        self._read_one: Any = torch.compile(model, dynamic=True) if compiled else model
        self._start = 0 if cache is None else cache.length
        # One that overwrites positions, or makes codes of them, cannot be cropped to what it was.
        keeps_all = self._start == 0 or cache is None or getattr(cache, "crops_exactly", True)
        self._before = None if keeps_all or cache is None else cache.clone()
        limit = model.config.max_position_embeddings
        # Dynamic scaling of the rotary frequencies is made to go past the length that the model was trained for.
        self._limit = None if (model.config.rope_parameters or {}).get("rope_type") == "dynamic" else limit

    def read(self, ids: Int[Tensor, "row pos"]) -> Step:
        """One forward over what of the texts has not been read."""
        total = self.hidden + ids.shape[1]
        self._heed_limit(total)
        new = total - (0 if self.cache is None else self.cache.length)
        inputs = self._inputs(ids, new)
        if self.mask is not None:
            self.mask = F.pad(self.mask, (0, total - self.mask.shape[1]), value=1)
        if self.positions is not None:
            later = torch.arange(1, total - self.positions.shape[1] + 1, device=self.positions.device)
            self.positions = torch.cat((self.positions, self.positions[:, -1:] + later), dim=1)
        out = (self._read_one if new == 1 else self.model)(
            **inputs,
            attention_mask=self.mask,
            position_ids=None if self.positions is None else self.positions[:, -new:],
            past_key_values=self.cache,
            use_cache=self.cache is not None,
            logits_to_keep=1,
            return_dict=True,
            **self.keep,
        )
        logits = out.logits[:, -1].to(ids.device, torch.float32)
        return Step(
            logits,
            out.attentions if "output_attentions" in self.keep else None,
            out.hidden_states if "output_hidden_states" in self.keep else None,
        )

    def read_prompts(self, ids: Int[Tensor, "batch pos"], copies: int) -> Step:
        """Reads each prompt once and makes `copies` rows of it, side by side."""
        step = self.read(ids)
        if copies == 1:
            return step
        if self.cache is not None:
            self.cache.reorder(torch.arange(self.batch).repeat_interleave(copies))
        self.copies = copies
        self.mask, self.positions = (
            None if t is None else t.repeat_interleave(copies, 0) for t in (self.mask, self.positions)
        )
        return step.repeated(copies)

    def follow(self, rows: Int[Tensor, " row"]) -> None:
        """Makes row i what row `rows[i]` was; all rows of a prompt have its mask and positions."""
        if self.cache is not None and not (rows.device.type == "cpu" and bool((rows == torch.arange(len(rows))).all())):
            self.cache.reorder(rows)

    def restore(self) -> None:
        """Gives the cache back as it was before the first forward."""
        if self.cache is None:
            return
        if self._before is not None:
            self.cache.copy_from(self._before)
        elif not self._start:
            self.cache.reset()
        else:
            self.cache.crop(self._start)
            if self.copies > 1:  # the first rows of each prompt still begin with it
                self.cache.reorder(torch.arange(self.batch) * self.copies)

    def _inputs(self, ids: Tensor, new: int) -> dict[str, Tensor]:
        """What was not read: ids, or the first time the embeddings of the prompts."""
        device = getattr(self.model, "device", ids.device)
        device = ids.device if device.type == "meta" else device  # weights that are brought in when they are needed
        if self.embeds is None:
            return {"input_ids": ids[:, -new:].to(device)}
        embeds, self.embeds = self.embeds, None
        return {"inputs_embeds": embeds[:, -new:].to(device)}

    def _heed_limit(self, total: int) -> None:
        if self._limit is not None and total > self._limit:
            warnings.warn(
                f"the text has reached {total} tokens, but the model was trained for {self._limit} positions "
                "(max_position_embeddings); what follows may be nonsense. Shorten the prompt or lower max_new_tokens.",
                stacklevel=5,
            )
            self._limit = None
