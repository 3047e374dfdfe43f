"""Which positions are padding, and where the text of each one begins."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.analysis.attention_sources import Source


@dataclasses.dataclass(frozen=True)
class TextRows:
    """What the rules of a layer's masks say of each position.

    Attributes:
        real: whether it is no padding.
        begins: the first position that is no padding; where several documents are packed, of its document.
    """

    real: Bool[Tensor, " pos"]
    begins: Int[Tensor, " pos"]

    @classmethod
    def of(cls, source: Source, layer: int) -> TextRows:
        """Reads the rules `padding` and `document`. What a custom mask means is not known."""
        real, numbers = torch.ones(source.length, dtype=torch.bool), torch.zeros(source.length, dtype=torch.long)
        for forward in source.of_layer(layer):
            part = slice(forward.start, min(forward.stop, source.length))
            for rule in forward.mask.rules if forward.mask is not None else ():
                for name, table in rule.parameters.items():
                    if isinstance(table, Tensor) and (rule.name, name) == ("padding", "keep"):
                        real[part] &= table[min(source.row, len(table) - 1), part].bool()
                    elif isinstance(table, Tensor) and (rule.name, name) == ("document", "numbers"):
                        numbers[part] = table[min(source.row, len(table) - 1), part].long()
        _, index = torch.unique(numbers, return_inverse=True)
        first = torch.full((source.length,), source.length)
        first.scatter_reduce_(0, index[real], torch.arange(source.length)[real], "amin")
        return cls(real, torch.minimum(first[index], torch.arange(source.length)))
