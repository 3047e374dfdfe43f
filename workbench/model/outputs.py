"""What a forward returns: usable by attribute, by key and by position, like the outputs of `transformers`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, TypeVar

from torch import Tensor

from workbench.cache import KVCache
from workbench.config import LlamaConfig

Output = TypeVar("Output", bound="ModelOutput")


@dataclasses.dataclass
class ModelOutput:
    """Fields that are `None` were not asked for: they have no key and no position."""

    def keys(self) -> list[str]:
        """Names of the fields that are present, in order."""
        return [field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None]

    def values(self) -> tuple[Any, ...]:
        """The fields that are present, in order."""
        return self.to_tuple()

    def items(self) -> list[tuple[str, Any]]:
        """Name and value of the fields that are present, in order."""
        return list(zip(self.keys(), self.to_tuple(), strict=True))

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are present, in order."""
        return tuple(getattr(self, name) for name in self.keys())

    def as_asked(self: Output, config: LlamaConfig, return_dict: bool | None) -> Output | tuple[Any, ...]:
        """Itself, or the plain tuple for `return_dict=False`; `None` asks the config."""
        return self if (config.return_dict if return_dict is None else return_dict) else self.to_tuple()

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            if key not in self.keys():
                raise KeyError(f"{key!r} is not in this output; it has {', '.join(self.keys())}.")
            return getattr(self, key)
        return self.to_tuple()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()


@dataclasses.dataclass
class BaseModelOutputWithPast(ModelOutput):
    """Output of `LlamaModel`.

    `last_hidden_state` (batch, pos, d_model) is after the final norm. `hidden_states` has one entry more than there are
    layers: the embedding, then each layer's output, the last one **after the final norm** as in `transformers`.
    `attentions` has one (batch, q_head, q_pos, k_pos) per layer.
    """

    last_hidden_state: Tensor | None = None
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclasses.dataclass
class CausalLMOutputWithPast(ModelOutput):
    """Output of `LlamaForCausalLM`: `loss` in nats per predicted token, `logits` (batch, kept pos, vocab)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclasses.dataclass
class SequenceClassifierOutputWithPast(ModelOutput):
    """Output of `LlamaForSequenceClassification`: `logits` (batch, num_labels) at each row's last token."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: KVCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclasses.dataclass
class TokenClassifierOutput(ModelOutput):
    """Output of `LlamaForTokenClassification`: `logits` (batch, pos, num_labels)."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclasses.dataclass
class QuestionAnsweringModelOutput(ModelOutput):
    """Output of `LlamaForQuestionAnswering`: `start_logits` and `end_logits` (batch, pos)."""

    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
