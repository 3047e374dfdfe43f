"""The token strip: one chip a token, coloured by a number that each token has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import traitlets

from workbench.widgets.base import STATIC, WorkbenchWidget


class TokenStrip(WorkbenchWidget):
    """Tokens as chips.

    `show(content, arrays)` takes content ``{"tokens": [{"text", "id", "source", "bytes"?}], "metrics": [{"name",
    "label", "unit", "scale", "low", "high", "description"}], "metric", "empty", "note"}`` and one array a metric, as
    long as the tokens; NaN says that the token has no such number. `source` is "prompt", "sampled" or "forced".

    Action: ``cursor`` with ``{"query": i}`` (click) or ``{"key": i}`` (Alt-click). The page writes `view`: the metric
    that the user chose.
    """

    _esm = STATIC / "token_strip.js"

    view = traitlets.Dict().tag(sync=True)

    def show(self, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> int:
        """Check that each metric has one number a token, then show the tokens."""
        count = len(content.get("tokens", ()))
        for metric in content.get("metrics", ()):
            array = (arrays or {}).get(metric["name"])
            if array is None or np.shape(array) != (count,):
                found = "no array" if array is None else f"shape {np.shape(array)}"
                raise ValueError(f"metric '{metric['name']}' has {found}; wanted one number a token: shape ({count},).")
        return super().show(content, arrays)
