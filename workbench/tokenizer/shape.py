"""How long the rows of a tokenizer call become."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

from workbench.tokenizer.errors import TokenizerError, choice, whole_number

SIDES = ("left", "right")
PADDINGS = (False, True, "longest", "max_length", "do_not_pad")
TRUNCATIONS = (None, False, True, "longest_first", "only_first", "only_second", "do_not_truncate")
NO_LIMIT = int(1e30)  # model_max_length of a tokenizer that knows of none, as transformers writes it
LARGE = 1 << 24  # positions that a row may be padded to


@dataclasses.dataclass(frozen=True)
class Shape:
    """How long rows become: what `padding`, `truncation` and their companions mean together.

    Attributes:
        padding: `None`, `"longest"` or `"max_length"`.
        truncation: `None`, or which of two texts is cut.
        max_length, stride, pad_to_multiple_of: in tokens.
        padding_side, truncation_side: `"left"` or `"right"`.
    """

    padding: str | None
    truncation: str | None
    max_length: int | None
    stride: int
    pad_to_multiple_of: int | None
    padding_side: str
    truncation_side: str


def shape_of(
    padding: Any,
    truncation: Any,
    max_length: Any,
    stride: Any,
    pad_to_multiple_of: Any,
    padding_side: Any,
    truncation_side: str,
    model_max_length: int,
) -> Shape:
    """The shape that the arguments of a call ask for together; see `Encoder.__call__`.

    Raises:
        TokenizerError: naming the argument that is no such thing.
    """
    choice("padding", padding, PADDINGS)
    choice("truncation", truncation, TRUNCATIONS)
    choice("padding_side", padding_side, SIDES)
    choice("truncation_side", truncation_side, SIDES)
    whole_number("stride", stride, 0, LARGE)
    if pad_to_multiple_of is not None:
        whole_number("pad_to_multiple_of", pad_to_multiple_of, 1, LARGE)
    if max_length is not None:
        whole_number("max_length", max_length, 1, LARGE)
    pad = {False: None, "do_not_pad": None, True: "longest"}.get(padding, padding)
    if truncation is None and max_length is not None and pad is None:
        truncation = True
    cut = {None: None, False: None, "do_not_truncate": None, True: "longest_first"}.get(truncation, truncation)
    limit = model_max_length if max_length is None and model_max_length <= LARGE else max_length
    if limit is None and (cut or pad == "max_length"):
        _warn(
            f"{'truncation' if cut else 'padding'}={(truncation if cut else padding)!r} has no effect: max_length is "
            "None, and the tokenizer has no model_max_length. Give max_length."
        )
        cut, pad = None, None if pad == "max_length" else pad
    if pad == "longest" and cut is None and max_length is not None:
        _warn("max_length has no effect with padding=True and no truncation. For that length use padding='max_length'.")
    if pad and cut and pad_to_multiple_of is not None and limit is not None and limit % pad_to_multiple_of:
        raise TokenizerError(
            f"max_length is {limit}, which is no multiple of pad_to_multiple_of={pad_to_multiple_of}: rows cannot be "
            "both cut and padded so."
        )
    return Shape(pad, cut, limit, stride, pad_to_multiple_of, padding_side, truncation_side)


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=6)  # the line that calls the tokenizer
