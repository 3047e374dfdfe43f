"""Llama with its language-model head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.cache import KVCache
from workbench.config import LlamaConfig
from workbench.model.hook_point import HookPoint
from workbench.model.inputs import check_logits_to_keep
from workbench.model.linear import Linear
from workbench.model.llama import LlamaModel
from workbench.model.mask import Mask, Rule
from workbench.model.outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from workbench.model.pretrained import LlamaPreTrainedModel, initialise

IGNORED_LABEL = -100


class LlamaForCausalLM(LlamaPreTrainedModel):
    """Llama with its language-model head: token ids → logits of the next token."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.model = LlamaModel(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.hook_logits = HookPoint()
        initialise(self.lm_head, config.initializer_range)
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Module:
        """The module from vectors to logits of tokens."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replaces the module from vectors to logits of tokens."""
        self.lm_head = value  # type: ignore[assignment]

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Tensor | Sequence[Rule] | Mask | None = None,
        position_ids: Int[Tensor, "row pos"] | None = None,
        past_key_values: KVCache | None = None,
        inputs_embeds: Float[Tensor, "batch pos d_model"] | None = None,
        labels: Int[Tensor, "batch pos"] | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Int[Tensor, " kept"] = 0,
        *,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """As `LlamaModel.forward`, and the logits (unnormalised log-probabilities, in nats) of each next token.

        Args:
            labels: the tokens themselves; position t is scored on label t + 1, −100 is left out.
            logits_to_keep: the number of last positions to compute logits for (0: all), or their indices.
            num_items_in_batch: what the summed loss is divided by, instead of the number of labels that count: all
                labels of the batches whose gradients are accumulated.
        """
        check_logits_to_keep(logits_to_keep)
        out = self.model(
            input_ids,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        assert isinstance(out, BaseModelOutputWithPast)
        assert out.last_hidden_state is not None
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.hook_logits(self.lm_head(out.last_hidden_state[:, keep]))
        result = CausalLMOutputWithPast(
            loss=None if labels is None else _causal_loss(logits, labels, num_items_in_batch),
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
        return result.as_asked(self.config, return_dict)

    def generate(
        self, inputs: Int[Tensor, "batch pos"] | None = None, generation_config: Any = None, **options: Any
    ) -> Any:
        """The prompt continued; see `workbench.generation.generate.generate` for the options."""
        from workbench.generation import generate  # generation builds on the model, not the other way round

        return generate(self, inputs, generation_config, **options)

    def compute_transition_scores(self, *arguments: Any, **options: Any) -> Float[Tensor, "row new"]:
        """The score of each new token; see `workbench.generation.compute_transition_scores`."""
        from workbench.generation import compute_transition_scores

        return compute_transition_scores(*arguments, **options)


def _causal_loss(
    logits: Float[Tensor, "batch pos vocab"], labels: Int[Tensor, "batch pos"], count: int | Tensor | None
) -> Float[Tensor, ""]:
    """Mean cross-entropy, in nats, of each position's logits against the next label; or its sum divided by `count`."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels is a {type(labels).__name__}; a tensor of shape (batch, positions) is needed.")
    if logits.shape[:2] != labels.shape:
        raise ValueError(
            f"labels has shape {tuple(labels.shape)} but the logits cover {tuple(logits.shape[:2])} "
            "(batch, positions); give one label a token and leave logits_to_keep at 0."
        )
    if labels.is_floating_point():
        raise ValueError(
            f"labels holds {labels.dtype}; token ids (torch.long) are needed, {IGNORED_LABEL} to leave out."
        )
    targets = labels[:, 1:].to(logits.device).long()
    wrong = targets[(targets != IGNORED_LABEL) & ((targets < 0) | (targets >= logits.shape[-1]))]
    if len(wrong):
        raise ValueError(
            f"labels holds {int(wrong[0])}; token ids lie in 0 … {logits.shape[-1] - 1}, or are {IGNORED_LABEL} where "
            "no loss is wanted."
        )
    predictions = logits[:, :-1].flatten(0, 1).float()
    reduction = "mean" if count is None else "sum"
    loss = F.cross_entropy(predictions, targets.flatten(), ignore_index=IGNORED_LABEL, reduction=reduction)
    return loss if count is None else loss / count
