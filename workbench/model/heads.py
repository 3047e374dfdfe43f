"""Models with a head on top of `LlamaModel`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.cache import KVCache
from workbench.config import LlamaConfig
from workbench.model.attention import IMPLEMENTATIONS
from workbench.model.hook_point import HookPoint
from workbench.model.llama import LlamaModel, initialise
from workbench.model.outputs import CausalLMOutputWithPast

IGNORED_LABEL = -100


class LlamaForCausalLM(nn.Module):
    """Llama with its language-model head: token ids → logits of the next token."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.model = LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.hook_logits = HookPoint()
        initialise(self.lm_head, config.initializer_range)
        self.tie_weights()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.lm_head.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The data type of the weights."""
        return self.lm_head.weight.dtype

    def tie_weights(self) -> None:
        """Makes the head share the embedding's weight, if the config says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def set_attn_implementation(self, name: str) -> None:
        """Switches between `"sdpa"` and `"eager"`.

        Raises:
            ValueError: for another name.
        """
        if name not in IMPLEMENTATIONS:
            raise ValueError(f"attn_implementation is {name!r}; allowed are {', '.join(IMPLEMENTATIONS)}.")
        self.config.attn_implementation = name

    def num_parameters(self) -> int:
        """Number of weights; a tied head counts once."""
        return sum(p.numel() for p in self.parameters())

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Int[Tensor, "row pos"] | None = None,
        past_key_values: KVCache | None = None,
        inputs_embeds: Float[Tensor, "batch pos d_model"] | None = None,
        labels: Int[Tensor, "batch pos"] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        logits_to_keep: int | Tensor = 0,
    ) -> CausalLMOutputWithPast:
        """As `LlamaModel.forward`, and the logits (unnormalised log-probabilities, in nats) of each next token.

        Args:
            labels: the tokens themselves; position t is scored on label t + 1, −100 is left out.
            logits_to_keep: the number of last positions to compute logits for (0: all), or their indices.
        """
        out = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_hidden_states,
            output_attentions,
        )
        hidden = out.last_hidden_state
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.hook_logits(self.lm_head(hidden[:, keep]))
        return CausalLMOutputWithPast(
            loss=None if labels is None else _causal_loss(logits, labels),
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )

    def generate(self, input_ids: Int[Tensor, "batch pos"], **options: Any) -> Int[Tensor, "batch longer"]:
        """The prompt continued; see `workbench.generation.generate.generate` for the options."""
        from workbench.generation.generate import generate  # generation builds on the model, not the other way round

        return generate(self, input_ids, **options)


def _causal_loss(logits: Float[Tensor, "batch pos vocab"], labels: Int[Tensor, "batch pos"]) -> Float[Tensor, ""]:
    """Mean cross-entropy, in nats, of each position's logits against the next label."""
    if logits.shape[:2] != labels.shape:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)} but the logits cover {tuple(logits.shape[:2])} "
            "(batch, positions); give one label a token and leave logits_to_keep at 0."
        )
    targets = labels[:, 1:].to(logits.device)
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED_LABEL)
