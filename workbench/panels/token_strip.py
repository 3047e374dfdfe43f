"""Token strip: the text as tokens, coloured by how the model took each."""

from __future__ import annotations

import pandas as pd

from workbench import widgets
from workbench.panels.panel import Panel
from workbench.session import Session
from workbench.views.tokens import token_strip


class TokenStrip(Panel):
    """The current text as chips; a click puts the cursor's query there, an Alt-click its key."""

    def __init__(self, session: Session) -> None:
        self._shown: object = ()
        super().__init__(session, widgets.TokenStrip())

    def refresh(self) -> None:
        """Draws new tokens."""
        run = self.session.current
        version = (run, run.leaf if run else None)
        if version == self._shown or self._too_soon():
            return
        self._shown = version
        tokenizer = self.session.tokenizer
        nodes = run.nodes if run else []
        ids = [node.token for node in nodes]
        known = len(tokenizer)  # a model may have more outputs than its tokenizer has tokens
        raw = [tokenizer.token_bytes(i) if i < known else b"" for i in ids]
        self._draw(token_strip(nodes, tokenizer.pieces(ids), raw))

    def code(self) -> str:
        """Python that gives the table behind the chips."""
        return "session.to_pandas()[['text', 'surprisal', 'entropy', 'rank']]"

    @property
    def data(self) -> pd.DataFrame:
        """One row a token; surprisal and entropy in nats."""
        return self.session.to_pandas()[["text", "surprisal", "entropy", "rank"]]
