"""The matrix: one heatmap on a canvas, for the logit lens (layers × tokens) and for one head's attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import traitlets

from workbench.widgets.base import STATIC, WorkbenchWidget

STATES = ("ok", "computing", "not captured", "empty", "error", "stale")
KINDS = ("lens", "attention")


class Matrix(WorkbenchWidget):
    """A heatmap of `rows` × `cols` cells.

    `show(content, arrays)`. Content: ``kind`` ("lens", "attention"), ``title``, ``subtitle``, ``state``,
    ``state_text``; ``rows`` and ``cols`` (labels, drawn in the order given) with ``row_title`` and ``col_title``;
    ``row_axis_cursor`` and ``col_axis_cursor`` ("layer", "query", "key") with ``row_index`` and ``col_index``, the
    cursor's value of each row and column (None: it has none; default: its number); ``metric`` (the one first shown) and
    ``metrics`` (``name``, ``label``, ``unit``, ``scale``, ``low``, ``high``, ``diverging``, ``direction``: "down" where
    low values are the ones to see); ``controls``; ``texts`` (``{"vocab": [...]}``); ``mask_reasons``; ``sink_apart``;
    ``pooled``.

    Arrays: one of shape (rows, cols) a metric; optionally ``text`` (index into the vocabulary, −1: none), ``top_ids``
    and ``top_p`` (rows, cols, k), ``mask`` (0: allowed; m: forbidden for the reason ``mask_reasons[m - 1]``).

    Actions: ``cursor`` with the clicked row's and column's values in one message, ``set`` with ``{"name", "value"}`` of
    a control. The page writes `view`: the metric, scale and cell size that the user chose.
    """

    _esm = STATIC / "matrix.js"

    view = traitlets.Dict().tag(sync=True)

    def show(self, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> int:
        """Check names and shapes, then show the matrix."""
        _one_of("kind", content.get("kind"), KINDS)
        _one_of("state", content.get("state", "ok"), STATES)
        shape = (len(content.get("rows", ())), len(content.get("cols", ())))
        arrays = arrays or {}
        if content.get("state", "ok") in ("ok", "computing", "stale"):
            missing = [m["name"] for m in content.get("metrics", ()) if m["name"] not in arrays]
            if missing:
                raise ValueError(
                    f"no array for metric {', '.join(missing)}; arrays given: {', '.join(arrays) or 'none'}."
                )
        for name, array in arrays.items():
            if np.shape(array)[:2] != shape:
                raise ValueError(f"array '{name}' has shape {np.shape(array)}; the labels say {shape}.")
        reasons = len(content.get("mask_reasons", ()))
        largest = int(np.max(arrays["mask"], initial=0)) if "mask" in arrays else 0
        if largest > reasons:
            raise ValueError(f"mask holds {largest}, but mask_reasons has {reasons}: 0 is allowed, m is reason m - 1.")
        return super().show(content, arrays)


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(allowed)}.")
