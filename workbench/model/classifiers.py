"""Llama with a head that classifies: a whole sequence, each token, or where an answer begins and ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from workbench.cache import KVCache
from workbench.config import LlamaConfig
from workbench.model.heads import IGNORED_LABEL
from workbench.model.llama import LlamaModel
from workbench.model.mask import Mask, Rule
from workbench.model.outputs import (
    BaseModelOutputWithPast,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from workbench.model.pretrained import LlamaPreTrainedModel, initialise

CLASSIFIER_DROPOUT = 0.1  # in training only; what transformers uses, whose Llama config has no field for it


class LlamaForSequenceClassification(LlamaPreTrainedModel):
    """Llama with a linear head on each row's last token that is not padding."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = LlamaModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        initialise(self.score, config.initializer_range)

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Tensor | Sequence[Rule] | Mask | None = None,
        position_ids: Int[Tensor, "row pos"] | None = None,
        past_key_values: KVCache | None = None,
        inputs_embeds: Float[Tensor, "batch pos d_model"] | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        *,
        return_dict: bool | None = None,
        **outputs: Any,
    ) -> SequenceClassifierOutputWithPast | tuple[Any, ...]:
        """As `LlamaModel.forward`, and (batch, num_labels) logits of each row.

        The row's last token is the rightmost one that is not `config.pad_token_id`; with `inputs_embeds` it is the last
        position.

        Args:
            labels: (batch,) classes for one label a row, (batch, num_labels) of 0.0 and 1.0 for several, (batch,) or
                (batch, num_labels) numbers for regression. `config.problem_type` says which; where it is `None`, one
                label means regression, whole numbers one label a row, others several labels.
            return_dict: False for a plain tuple.
            **outputs: `output_hidden_states`, `output_attentions`.

        Raises:
            ValueError: for several rows without a padding token, and for labels that do not fit.
        """
        out = _base(self.model, input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache,
                    outputs)  # fmt: skip
        logits = self.score(out.last_hidden_state)
        logits = logits[torch.arange(len(logits), device=logits.device), self._last(input_ids, logits)]
        result = SequenceClassifierOutputWithPast(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )
        return result.as_asked(self.config, return_dict)

    def _last(self, input_ids: Tensor | None, logits: Tensor) -> Tensor | int:
        pad = self.config.pad_token_id
        if pad is None and len(logits) > 1:
            raise ValueError(
                f"{len(logits)} rows were given, but config.pad_token_id is None, so where each row ends is unknown. "
                "Set model.config.pad_token_id, or give one row at a time."
            )
        if pad is None or input_ids is None:
            return -1
        positions = torch.arange(input_ids.shape[1], device=logits.device)
        return (positions * (input_ids.to(logits.device) != pad)).argmax(-1)

    def _loss(self, logits: Float[Tensor, "batch label"], labels: Tensor) -> Float[Tensor, ""]:
        labels = labels.to(logits.device)
        kind = self.config.problem_type or _problem_type(labels, self.num_labels)
        batch = len(logits)
        if kind == "single_label_classification":
            _check_labels(labels, kind, [(batch,), (batch, 1)], floating=False)
            _check_classes(labels, self.num_labels)
            return F.cross_entropy(logits.float(), labels.flatten().long(), ignore_index=IGNORED_LABEL)
        if kind == "multi_label_classification":
            _check_labels(labels, kind, [(batch, self.num_labels)], floating=True)
            return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        one = [(batch,), (batch, 1)] if self.num_labels == 1 else [(batch, self.num_labels)]
        _check_labels(labels, kind, one, floating=True)
        return F.mse_loss(logits.float(), labels.float().view(logits.shape))


class LlamaForTokenClassification(LlamaPreTrainedModel):
    """Llama with a linear head on every token."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = LlamaModel(config)
        self.dropout = nn.Dropout(CLASSIFIER_DROPOUT)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        initialise(self.score, config.initializer_range)

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Tensor | Sequence[Rule] | Mask | None = None,
        position_ids: Int[Tensor, "row pos"] | None = None,
        past_key_values: KVCache | None = None,
        inputs_embeds: Float[Tensor, "batch pos d_model"] | None = None,
        labels: Int[Tensor, "batch pos"] | None = None,
        use_cache: bool | None = None,
        *,
        return_dict: bool | None = None,
        **outputs: Any,
    ) -> TokenClassifierOutput | tuple[Any, ...]:
        """As `LlamaModel.forward`, and (batch, pos, num_labels) logits.

        Args:
            labels: (batch, pos) classes; −100 is left out of the mean cross-entropy, in nats.
            return_dict: False for a plain tuple.
            **outputs: `output_hidden_states`, `output_attentions`.

        Raises:
            ValueError: for labels that do not fit.
        """
        out = _base(self.model, input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache,
                    outputs)  # fmt: skip
        logits = self.score(self.dropout(out.last_hidden_state))
        loss = None
        if labels is not None:
            labels = labels.to(logits.device)
            _check_labels(labels, "token classification", [tuple(logits.shape[:2])], floating=False)
            _check_classes(labels, self.num_labels)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten().long(), ignore_index=IGNORED_LABEL)
        result = TokenClassifierOutput(loss, logits, out.hidden_states, out.attentions)
        return result.as_asked(self.config, return_dict)


class LlamaForQuestionAnswering(LlamaPreTrainedModel):
    """Llama with two scores a token: that the answer begins there, and that it ends there."""

    base_model_prefix = "transformer"  # the name in published checkpoints

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.transformer = LlamaModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        initialise(self.qa_outputs, config.initializer_range)

    def forward(
        self,
        input_ids: Int[Tensor, "batch pos"] | None = None,
        attention_mask: Tensor | Sequence[Rule] | Mask | None = None,
        position_ids: Int[Tensor, "row pos"] | None = None,
        past_key_values: KVCache | None = None,
        inputs_embeds: Float[Tensor, "batch pos d_model"] | None = None,
        start_positions: Int[Tensor, " batch"] | None = None,
        end_positions: Int[Tensor, " batch"] | None = None,
        *,
        return_dict: bool | None = None,
        **outputs: Any,
    ) -> QuestionAnsweringModelOutput | tuple[Any, ...]:
        """As `LlamaModel.forward`, and (batch, pos) logits of the answer's first and last token.

        Args:
            start_positions, end_positions: where the answer is; the loss, in nats, is the mean of both
                cross-entropies. Positions are clamped to 0 … pos, and pos itself (past the text) is left out.
            return_dict: False for a plain tuple.
            **outputs: `output_hidden_states`, `output_attentions`, `use_cache`.

        Raises:
            ValueError: for one of the two positions without the other, or another number of rows.
        """
        use_cache = outputs.pop("use_cache", None)
        out = _base(self.transformer, input_ids, attention_mask, position_ids, past_key_values, inputs_embeds,
                    use_cache, outputs)  # fmt: skip
        start, end = self.qa_outputs(out.last_hidden_state).unbind(-1)
        if (start_positions is None) != (end_positions is None):
            missing = "start_positions" if start_positions is None else "end_positions"
            raise ValueError(f"{missing} is missing; the loss needs start_positions and end_positions.")
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = (_span_loss(start, start_positions) + _span_loss(end, end_positions)) / 2
        result = QuestionAnsweringModelOutput(
            loss, start.contiguous(), end.contiguous(), out.hidden_states, out.attentions
        )
        return result.as_asked(self.config, return_dict)


def _base(
    model: LlamaModel,
    input_ids: Tensor | None,
    attention_mask: Tensor | Sequence[Rule] | Mask | None,
    position_ids: Tensor | None,
    past_key_values: KVCache | None,
    inputs_embeds: Tensor | None,
    use_cache: bool | None,
    outputs: dict[str, Any],
) -> BaseModelOutputWithPast:
    given = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache)
    result = model(*given, return_dict=True, **outputs)
    assert isinstance(result, BaseModelOutputWithPast)
    return result


def _problem_type(labels: Tensor, num_labels: int) -> str:
    if num_labels == 1:
        return "regression"
    return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


def _check_labels(labels: Tensor, kind: str, shapes: Sequence[tuple[int, ...]], floating: bool) -> None:
    if tuple(labels.shape) not in shapes:
        allowed = " or ".join(str(shape) for shape in shapes)
        raise ValueError(f"labels has shape {tuple(labels.shape)}; {kind} needs {allowed}.")
    if labels.is_floating_point() and not floating:
        raise ValueError(f"labels holds {labels.dtype}; {kind} needs whole numbers (torch.long), one class each.")


def _check_classes(labels: Tensor, num_labels: int) -> None:
    real = labels[labels != IGNORED_LABEL]
    if len(real) and (int(real.min()) < 0 or int(real.max()) >= num_labels):
        wrong = int(real.min()) if int(real.min()) < 0 else int(real.max())
        raise ValueError(
            f"labels holds {wrong}; classes lie in 0 … {num_labels - 1} (config.num_labels), or are {IGNORED_LABEL} "
            "where no loss is wanted."
        )


def _span_loss(logits: Float[Tensor, "batch pos"], positions: Tensor) -> Float[Tensor, ""]:
    if positions.shape not in ((len(logits),), (len(logits), 1)) or positions.is_floating_point():
        raise ValueError(
            f"start_positions or end_positions has shape {tuple(positions.shape)} and {positions.dtype}; expected "
            f"({len(logits)},) whole numbers, one position a row."
        )
    length = logits.shape[1]
    targets = positions.reshape(-1).to(logits.device).long().clamp(0, length)
    return F.cross_entropy(logits.float(), targets, ignore_index=length)
