"""An optional Jupyter server extension: small replies reach the page at once.

The kernel's websocket sends three small frames a reply; with Nagle's algorithm the last one waits for the browser's
acknowledgement of the first. Setting no-delay on the socket takes that wait away.
Everything works without it. It wraps a handler of jupyter_server, so a version that has changed there is left alone.
"""

from __future__ import annotations

from typing import Any


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "workbench.server"}]


def _load_jupyter_server_extension(app: Any) -> None:
    try:
        from jupyter_server.services.kernels.websocket import KernelWebsocketHandler as Handler

        original = Handler.open
    except (ImportError, AttributeError):
        app.log.info("llama-workbench: this jupyter_server has no kernel websocket handler known here; nothing changed")
        return

    async def open_without_delay(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            self.set_nodelay(True)
        except Exception:
            app.log.debug("llama-workbench: no-delay could not be set", exc_info=True)
        return await original(self, *args, **kwargs)  # type: ignore[no-untyped-call]

    Handler.open = open_without_delay  # type: ignore[method-assign]
    app.log.info("llama-workbench: kernel websockets answer without delay")
