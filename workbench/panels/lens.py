"""Lens panel: layers × tokens, what each layer would predict."""

from __future__ import annotations

import pandas as pd

from workbench import widgets
from workbench.panels.panel import Panel
from workbench.session import Session
from workbench.views import matrix


class Lens(Panel):
    """The logit lens of the current text, computed while the model is free.

    A click moves the cursor's layer and query.
    """

    def __init__(self, session: Session) -> None:
        self._shown: object = ()
        super().__init__(session, widgets.Matrix())
        self.link.want_lens()

    def refresh(self) -> None:
        """Draws the columns that have been computed since."""
        run = self.session.current
        lens = run.lens if run else None
        stopped = self.link.lens_stopped
        version = (run, (id(lens), lens.length, lens.progress) if lens is not None else None, stopped)
        if version == self._shown or self._too_soon():
            return
        self._shown = version
        if run is None:
            self._draw(matrix.empty("lens", "Logit lens", "Run a prompt to see what each layer would predict."))
        elif lens is None:
            words = "Stopped. The next run or step takes it up again." if stopped else "Waiting for the model …"
            self._draw(matrix.empty("lens", "Logit lens", words, "empty" if stopped else "computing"))
        else:
            pieces = self.session.tokenizer.pieces(run.token_ids[: lens.length])
            self._draw(matrix.lens_matrix(lens, pieces, lambda i: self.session.tokenizer.pieces([i])[0], stopped))

    def code(self) -> str:
        """Python that gives the table behind the picture."""
        return "session.lens().to_pandas(session.tokenizer)"

    @property
    def data(self) -> pd.DataFrame:
        """One row a cell that has been computed."""
        run = self.session.current
        if run is None or run.lens is None:
            raise ValueError("The lens is not computed yet. Run a prompt first, or call session.lens().")
        return run.lens.to_pandas(self.session.tokenizer)
