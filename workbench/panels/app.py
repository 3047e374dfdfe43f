"""The whole workbench in one cell."""

from __future__ import annotations

import ipywidgets

from workbench.panels.attention import Attention
from workbench.panels.generation import Generation
from workbench.panels.lens import Lens
from workbench.panels.run_bar import RunBar
from workbench.panels.token_strip import TokenStrip
from workbench.session import Session


class Workbench(ipywidgets.VBox):
    """Run bar, token strip, generation, lens and attention of one session, linked.

    Args:
        session: what to show; default a new one on the default model.
        prompt, max_new_tokens: what the run bar holds at first.
    """

    def __init__(self, session: Session | None = None, prompt: str = "", max_new_tokens: int = 8) -> None:
        if session is None:
            from workbench.checkpoints.load import load  # seconds: only where it is wanted

            session = Session(load())
        self.session = session
        self.run_bar = RunBar(session, prompt, max_new_tokens)
        self.token_strip = TokenStrip(session)
        self.generation = Generation(session)
        self.lens = Lens(session)
        self.attention = Attention(session)
        # Side by side where there is room for both, else one below the other.
        self.lens.layout = ipywidgets.Layout(flex="3 1 760px", width="auto", min_width="0")
        self.attention.layout = ipywidgets.Layout(flex="2 1 460px", width="auto", min_width="0")
        self._row = ipywidgets.Box(
            [self.lens, self.attention],
            layout=ipywidgets.Layout(display="flex", flex_flow="row wrap", grid_gap="8px 24px"),
        )
        super().__init__([self.run_bar, self.token_strip, self.generation, self._row])

    def close(self) -> None:
        """Closes every panel."""
        for part in (self.run_bar, self.token_strip, self.generation, self.lens, self.attention, self._row):
            part.close()
        super().close()
