"""Which positions are padding, and where the text of each one begins."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from workbench.analysis.attention_sources import Source
from workbench.model.mask_rules import kind_of

TABLES = {"padding": "keep", "document": "numbers"}  # the rules that say something of each position, and where


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
                if (kind := kind_of(rule)) not in TABLES or rule.excepts is not None:
                    continue
                table: Any = rule.parameters[TABLES[kind]]
                own = table[min(source.row, len(table) - 1), part]
                if kind == "padding":
                    real[part] &= own.bool()
                else:
                    numbers[part] = own.long()
        _, index = torch.unique(numbers, return_inverse=True)
        first = torch.full((source.length,), source.length)
        first.scatter_reduce_(0, index[real], torch.arange(source.length)[real], "amin")
        return cls(real, torch.minimum(first[index], torch.arange(source.length)))
