"""What a forward returns: usable by attribute, by key and by position, like the outputs of `transformers`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from workbench.cache import KVCache


@dataclasses.dataclass
class ModelOutput:
    """Fields that are `None` were not asked for: they have no key and no position."""

    def keys(self) -> list[str]:
        """Names of the fields that are present, in order."""
        return [field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None]

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are present, in order."""
        return tuple(getattr(self, name) for name in self.keys())

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
