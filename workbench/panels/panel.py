"""What every panel is: a widget, the session it shows, and three ways to read it back."""

from __future__ import annotations

import time
from typing import Any

import ipywidgets

from workbench.panels.link import Link
from workbench.session import Session
from workbench.views import Payload
from workbench.widgets.base import WorkbenchWidget

BYTES_A_SECOND = 5e6  # while a job runs a panel sends no more than this, so that a long text does not choke the page


class Panel(ipywidgets.VBox):
    """A widget that follows a session. Subclasses draw in `refresh` and answer the page in `act`."""

    def __init__(self, session: Session, widget: WorkbenchWidget) -> None:
        self.session = session
        self.link = Link.of(session)
        self.widget = widget
        self._quiet_until = 0.0
        self._open = True
        super().__init__(children=[widget], layout=ipywidgets.Layout(width="100%"))
        widget.on_action(self.act)
        session.cursor.observe(self._cursor_moved)
        self._send_cursor()
        self.link.subscribe(self._refresh)
        self._refresh()

    def close(self) -> None:
        """Takes the panel off the page and out of the session, which is free to go then."""
        if self._open:  # ipywidgets closes once more when the object goes
            self._open = False
            self.link.unsubscribe(self._refresh)
            self.session.cursor.unobserve(self._cursor_moved)
            self.widget.close()
        super().close()

    def _refresh(self) -> None:
        """A panel that fails says so in its own status line; the others go on."""
        try:
            self.refresh()
        except Exception as error:
            self.widget.report("refresh", {}, error)

    def refresh(self) -> None:
        """Brings the widget up to date; called at every tick of a job, so cheap when nothing has changed."""
        raise NotImplementedError

    def act(self, name: str, params: dict[str, Any]) -> None:
        """Does what the user asked for. An error's words appear in the widget."""
        if name == "cursor":
            self.session.cursor.move(**params)
        else:
            raise ValueError(f"{type(self).__name__} has no action {name!r}.")

    def state(self) -> dict[str, Any]:
        """What is shown, as plain values."""
        cursor = self.session.cursor
        return {name: getattr(cursor, name) for name in ("run", "step", "query", "key", "layer", "head")}

    def code(self) -> str:
        """Python that computes what is shown, given `session`."""
        raise NotImplementedError

    @property
    def data(self) -> Any:
        """The numbers that are shown, as pandas."""
        raise NotImplementedError

    def _draw(self, payload: Payload) -> None:
        self.widget.show(*payload)
        self._quiet_until = time.monotonic() + payload.nbytes / BYTES_A_SECOND

    def _too_soon(self) -> bool:
        """Whether to leave the picture for now: something runs, and the last one was large."""
        return bool(self.link.job or self.link.background) and time.monotonic() < self._quiet_until

    def _cursor_moved(self, change: Any) -> None:
        self._send_cursor()

    def _send_cursor(self) -> None:
        cursor = self.session.cursor
        self.widget.cursor = {name: getattr(cursor, name) for name in ("query", "key", "layer", "head")}
