"""The mask: which query may attend to which key, and the rules that forbid the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import traitlets

from workbench.widgets.base import STATIC, WorkbenchWidget


class MaskMatrix(WorkbenchWidget):
    """Queries × keys, each masked cell in the colour and with the letters of the rules that forbid it.

    `show(content, arrays)`. Content: ``title``, ``subtitle``, ``state``, ``state_text``; ``rules`` (``name``,
    ``letter``, ``label``, in the order of the bits); ``texts``, one a row of the batch (``name``, the labels
    ``queries`` and ``keys``, and ``notes``); ``query_index`` and ``key_index``, the position of each (None: no token is
    there); ``notes``, lines of words below. One array, ``reasons``, uint8 of shape (texts or 1, queries, keys): bit i
    is set where ``rules[i]`` forbids the cell; 0 may attend.

    Action: ``cursor`` with ``{"query", "key"}``, which the widget follows itself (`cursor`). The page writes `view`:
    the text and the cell size that the user chose.

    Args:
        text: what stands for the widget where none can be drawn: its `repr`, which saved notebooks keep too.
    """

    _esm = STATIC / "mask_matrix.js"

    view = traitlets.Dict().tag(sync=True)

    def __init__(self, text: str = "", **traits: Any) -> None:
        self.text = text
        super().__init__(**traits)
        self.on_action(self._move)

    def __repr__(self) -> str:
        return self.text or super().__repr__()

    def show(self, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> int:
        """Check names and shapes, then show the mask."""
        reasons = np.asarray((arrays or {}).get("reasons", np.zeros((1, 0, 0), np.uint8)))
        texts, rules = content.get("texts", ()), content.get("rules", ())
        size = (len(content.get("query_index", ())), len(content.get("key_index", ())))
        if reasons.dtype != np.uint8 or reasons.ndim != 3 or reasons.shape[1:] != size:
            raise ValueError(
                f"reasons is {reasons.dtype} of shape {reasons.shape}; wanted uint8 of shape (texts or 1, {size[0]}, "
                f"{size[1]}), as query_index and key_index say."
            )
        if reasons.shape[0] not in (1, len(texts)):
            raise ValueError(
                f"reasons has {reasons.shape[0]} rows, but there are {len(texts)} texts; give 1 or as many."
            )
        for i, text in enumerate(texts):
            if (found := (len(text["queries"]), len(text["keys"]))) != size:
                raise ValueError(f"text {i} has labels for {found} queries and keys; the index says {size}.")
        if (largest := int(np.max(reasons, initial=0))) >> len(rules):
            raise ValueError(f"reasons holds {largest}, but {len(rules)} rules make at most {2 ** len(rules) - 1}.")
        return super().show(content, arrays)

    def _move(self, name: str, params: dict[str, Any]) -> None:
        if name != "cursor":
            raise ValueError(f"a mask has no action {name!r}.")
        self.cursor = {**self.cursor, **params}
