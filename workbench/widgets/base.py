"""What every widget shares: payloads sent as message buffers, actions from the page, errors that are shown and kept.

Messages (the JavaScript side is ``src/protocol.js``):

=============== ============================================ =====================================================
from → to        message                                      meaning
=============== ============================================ =====================================================
page → kernel   ``{kind: "get"}``                            a view appeared: send the payload
kernel → page   ``{kind: "state", rev, content, arrays}``    the payload; the arrays travel as buffers, in order
page → kernel   ``{kind: "action", id, name, params}``       the user did something; it carries all it needs
kernel → page   ``{kind: "ack", id, ok}``                    that action was handled (``ok``: without an exception)
=============== ============================================ =====================================================

A payload is not a trait: a trait of 10 MB is compared, copied, and saved into the notebook.
"""

from __future__ import annotations

import asyncio
import pathlib
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import anywidget
import numpy as np
import traitlets

STATIC = pathlib.Path(__file__).parent / "static"
KEPT_ERRORS = 50

Action = Callable[[str, dict[str, Any]], Any]

_SENT_AS = {"float64": "float32", "float16": "float32", "bool": "uint8", "int64": "int32", "uint64": "int32"}
_SENDABLE = ("float32", "int32", "uint32", "int16", "uint16", "int8", "uint8")


def wire_array(name: str, array: np.ndarray) -> np.ndarray:
    """A C-contiguous copy in a dtype that the page reads: float64 → float32, int64 → int32, bool → uint8."""
    array = np.asarray(array)
    wanted = _SENT_AS.get(array.dtype.name, array.dtype.name)
    if wanted not in _SENDABLE:
        raise TypeError(f"array '{name}' has dtype {array.dtype}; a widget can send {', '.join(_SENDABLE)}.")
    if wanted == "int32" and array.dtype.name != "int32" and array.size:
        limits = np.iinfo(np.int32)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise ValueError(f"array '{name}' is {array.dtype} and holds numbers that do not fit in int32.")
    with np.errstate(over="ignore"):
        return np.array(array, dtype=np.dtype(wanted).newbyteorder("<"), order="C")


def plain(value: Any) -> Any:
    """Return `value` as JSON can carry it: numpy scalars and tuples become Python's, NaN and ±inf become None."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")  # a lone surrogate would stop the message
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(item) for item in value]
    raise TypeError(
        f"a widget's content holds a {type(value).__name__}; allowed are text, numbers, None, lists, dicts."
    )


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop this thread runs, as a notebook's kernel does; None in a plain script."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def error_text(error: BaseException) -> str:
    """What is shown of an exception: its words alone where they are written to be read, else its class before them."""
    ours = isinstance(error, RuntimeError) and type(error).__module__.partition(".")[0] == "workbench"
    if str(error) and (ours or isinstance(error, (ValueError, traitlets.TraitError))):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class WorkbenchWidget(anywidget.AnyWidget):
    """A widget that draws one payload (`show`) and reports what the user did (`on_action`).

    Traits: `cursor` is written by the kernel and followed by the page (keys ``query``, ``key``, ``layer``, ``head``;
    each may be None); `error` is ``{"text", "count"}`` of the last action that failed, ``{}`` after one that did not.
    """

    cursor = traitlets.Dict().tag(sync=True)
    error = traitlets.Dict().tag(sync=True)

    def __init__(self, **traits: Any) -> None:
        self._rev = 0
        self._payload: tuple[dict[str, Any], list[memoryview]] | None = None
        self._payload_lock = threading.Lock()
        self._handlers: list[Action] = []
        self._loop, self._thread = running_loop(), threading.get_ident()
        self._error_count = 0
        self.errors: list[dict[str, Any]] = []
        super().__init__(**traits)
        self.on_msg(self._receive)

    def show(self, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> int:
        """Keep this payload as what the widget shows, send it to every view, and return its revision."""
        sent = {name: wire_array(name, array) for name, array in (arrays or {}).items()}
        about = [{"name": name, "dtype": a.dtype.name, "shape": list(a.shape)} for name, a in sent.items()]
        message = {"kind": "state", "content": plain(content), "arrays": about}
        buffers = [a.reshape(-1).view(np.uint8).data for a in sent.values()]
        with self._payload_lock:
            self._rev += 1
            self._payload = ({**message, "rev": self._rev}, buffers)
            rev = self._rev
        self._send_payload()
        return rev

    def on_action(self, handler: Action) -> Action:
        """Call ``handler(name, params)`` for each action of the page; returns the handler, so it can decorate one."""
        self._handlers.append(handler)
        return handler

    def close(self) -> None:
        """Take the widget off the page; forget the handlers, and with them what they belong to."""
        self._handlers.clear()
        super().close()

    def _send_payload(self) -> None:
        payload = self._payload
        if payload is not None:
            self.send(payload[0], buffers=payload[1])

    def _receive(self, _widget: Any, content: Any, _buffers: Any) -> None:
        kind = content.get("kind") if isinstance(content, dict) else None
        if kind == "get":
            self._send_payload()
        elif kind == "action" and isinstance(content.get("name"), str):
            # ipykernel may deliver a message on a subshell's thread; handlers set traits and start timers, so all of
            # them run on the event loop that the widget was made on.
            if self._loop is not None and threading.get_ident() != self._thread:
                self._loop.call_soon_threadsafe(self._answer, content)
            else:
                self._answer(content)

    def _answer(self, content: dict[str, Any]) -> None:
        params = content.get("params")
        ok = self._act(content["name"], dict(params) if isinstance(params, dict) else {})
        self.send({"kind": "ack", "id": content.get("id"), "ok": ok})

    def _act(self, name: str, params: dict[str, Any]) -> bool:
        try:
            for handler in self._handlers:
                handler(name, params)
        except Exception as error:
            self.report(name, params, error)
            return False
        if self.error:
            self.error = {}
        return True

    def report(self, name: str, params: dict[str, Any], error: Exception) -> None:
        """Show an exception in the widget's status line and keep it in `errors`."""
        text = error_text(error)
        where = "".join(traceback.format_exception(error))  # as text: the exception would keep its tensors alive
        self.errors.append({"action": name, "params": params, "text": text, "traceback": where})
        del self.errors[:-KEPT_ERRORS]
        self._error_count += 1
        self.error = {"text": plain(text), "count": self._error_count}
