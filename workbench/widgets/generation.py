"""Generation: what may come next, with what probability, and where the text went from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from workbench.widgets.base import STATIC, WorkbenchWidget

STATES = ("ok", "empty", "running", "stale", "error")
ARRAYS = ("p", "share", "logit", "logprob")


class Generation(WorkbenchWidget):
    """Candidates for the next token.

    `show(content, arrays)` takes content ``state``, ``state_text``; ``run`` and ``node``, the numbers that actions
    carry back; ``after`` (``text``, ``id``, ``position``); ``tokens`` (``text``, ``id``, ``bytes``, ``taken``: "path",
    "branch" or None); ``rest`` (``count``, ``p``, ``share`` of all other tokens; or None); ``sampler``
    (``temperature``, ``top_k``, ``top_p``) and ``in_use``; ``cost`` (``label``, ``value``); ``branches`` (``node``,
    ``text``, ``id``, ``source``, ``on_path``, ``more``, ``logprob``). Arrays, one number a token: ``p``, the
    model's probability, ``share``, the sampler's, ``logit``, ``logprob``.

    Actions: ``take`` with ``{"run", "node", "token"}``, ``go`` with ``{"run", "node"}`` of a branch, ``sampler`` and
    ``use`` with ``{"temperature", "top_k", "top_p"}``, ``stop`` with ``{}``.
    """

    _esm = STATIC / "generation.js"

    def show(self, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> int:
        """Check the state and that there is one number a token, then show the candidates."""
        if content.get("state") not in STATES:
            raise ValueError(f"state is {content.get('state')!r}; allowed are {', '.join(STATES)}.")
        count = len(content.get("tokens", ()))
        for name in ARRAYS if count else ():
            array = (arrays or {}).get(name)
            if array is None or np.shape(array) != (count,):
                found = "missing" if array is None else f"of shape {np.shape(array)}"
                raise ValueError(f"array '{name}' is {found}; wanted one number a token: shape ({count},).")
        return super().show(content, arrays)
