"""What `generate` returns with `return_dict_in_generate=True`: usable by attribute, by key and by position."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor

from workbench.cache import KVCache
from workbench.model.outputs import ModelOutput


@dataclasses.dataclass
class GenerateDecoderOnlyOutput(ModelOutput):
    """A generation without beams.

    `sequences` (batch, pos) are the texts, prompts included. The others have one entry a new token: `scores` and
    `logits` (batch, vocab) after and before the processors, in float32; `attentions` and `hidden_states` what that
    step's forward gave, a tuple of tensors. `past_key_values` holds all tokens but the last.
    """

    sequences: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    attentions: tuple[tuple[Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[Tensor, ...], ...] | None = None
    past_key_values: KVCache | None = None


@dataclasses.dataclass
class GenerateBeamDecoderOnlyOutput(ModelOutput):
    """A beam search: as above, with rows (batch · beam) in what is kept of every step.

    `sequences_scores` (row) are log-probabilities, in nats, after the length penalty. `beam_indices` (row, new pos) is
    the row of each step's `scores` that a token was taken from, −1 behind a text's end.
    """

    sequences: Tensor | None = None
    sequences_scores: Tensor | None = None
    scores: tuple[Tensor, ...] | None = None
    logits: tuple[Tensor, ...] | None = None
    beam_indices: Tensor | None = None
    attentions: tuple[tuple[Tensor, ...], ...] | None = None
    hidden_states: tuple[tuple[Tensor, ...], ...] | None = None
    past_key_values: KVCache | None = None


def compute_transition_scores(
    sequences: Int[Tensor, "row pos"],
    scores: tuple[Float[Tensor, "batch vocab"], ...],
    beam_indices: Int[Tensor, "row new"] | None = None,
    normalize_logits: bool = False,
) -> Float[Tensor, "row new"]:
    """The score of each new token, from what `generate` returned; 0 behind a text's end.

    Args:
        sequences, scores, beam_indices: of the result; `beam_indices` if it came from a beam search.
        normalize_logits: make log-probabilities, in nats, of the scores first.

    Raises:
        ValueError: if there are no scores, or fewer than new tokens.
    """
    if not scores:
        raise ValueError("scores is empty; generate with return_dict_in_generate=True and output_scores=True.")
    table = torch.stack(list(scores))  # (step, row, vocab)
    if normalize_logits:
        table = table.log_softmax(-1)
    if beam_indices is None:
        beam_indices = torch.arange(len(sequences), device=sequences.device)[:, None].expand(-1, len(scores))
    steps = int((beam_indices >= 0).sum(-1).max())
    if steps > len(scores) or steps > sequences.shape[1]:
        raise ValueError(f"{steps} tokens were taken, but there are {len(scores)} scores; give those of the same call.")
    rows = beam_indices[:, :steps].long()
    tokens = sequences[:, sequences.shape[1] - steps :]
    found = table[torch.arange(steps, device=table.device), rows.clamp(min=0), tokens]
    return found.masked_fill(rows < 0, 0.0)
