"""Attention panel: the weights of one head."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd

from workbench import widgets
from workbench.panels.panel import Panel
from workbench.session import Session
from workbench.views import matrix

SIZE = 512  # cells a side that are sent at most
ROUNDED = "of the keys as they were computed; the cache rounds them"
PAUSE = 0.3  # seconds between two pictures while tokens stream in


class Attention(Panel):
    """The cursor's layer and head as a matrix. A click moves the cursor's query and key."""

    def __init__(self, session: Session) -> None:
        self._shown: tuple[Any, ...] = ()
        self._next = 0.0
        super().__init__(session, widgets.Matrix())

    def refresh(self) -> None:
        """Draws the head the cursor is on."""
        run, cursor = self.session.current, self.session.cursor
        version = (run, run.leaf if run else None, cursor.layer, cursor.head)
        if version == self._shown or self._too_soon():
            return
        same_head = self._shown and self._shown[2:] == version[2:]
        if self.link.job is not None and same_head and time.monotonic() < self._next:
            return
        self._shown, self._next = version, time.monotonic() + PAUSE
        if run is None:
            words = "Run a prompt to see which tokens each token attends to."
            self._draw(matrix.empty("attention", "Attention", words))
            return
        attention = self.session.attention
        tile = attention.tile(cursor.layer, cursor.head, slice(None), slice(None), SIZE)
        config = self.session.model.config
        pieces = self.session.tokenizer.pieces(run.token_ids)
        self._draw(
            matrix.attention_matrix(
                tile,
                pieces,
                cursor.layer,
                cursor.head,
                config.num_hidden_layers,
                config.num_attention_heads,
                config.n_rep,
                ROUNDED if attention.rounded else "",
            )
        )

    def act(self, name: str, params: dict[str, Any]) -> None:
        """`set` chooses the layer or the head."""
        if name == "set":
            self.session.cursor.move(**{params["name"]: int(params["value"])})
        else:
            super().act(name, params)

    def code(self) -> str:
        """Python that gives the weights."""
        cursor = self.session.cursor
        return f"session.attention.head({cursor.layer}, {cursor.head})"

    @property
    def data(self) -> pd.DataFrame:
        """Queries × keys of the cursor's head."""
        cursor = self.session.cursor
        run = self.session.current
        weights = self.session.attention.head(cursor.layer, cursor.head)
        labels = self.session.tokenizer.pieces(run.token_ids[: len(weights)]) if run else []
        return pd.DataFrame(weights, index=labels, columns=labels)

    def _cursor_moved(self, change: Any) -> None:
        super()._cursor_moved(change)
        if change["name"] in ("layer", "head"):
            self._refresh()
