"""One line of progress for work that turns out to take longer than a second."""

from __future__ import annotations

import sys
import time
from typing import TextIO

PATIENCE = 1.0  # seconds before anything is shown: the default model is loaded by then
INTERVAL = 0.1  # seconds between updates; a notebook keeps every one of them


class Progress:
    """Counts bytes of `total` and shows them, rewriting one line; what stays is how much took how long.

    The line goes to stderr, but in a notebook to stdout: there stderr has the colour of an error.

    Args:
        label: what is being done.
        total: in bytes.
        enabled: whether to show anything at all.
    """

    def __init__(self, label: str, total: int, enabled: bool = True) -> None:
        self._label, self._total, self._enabled = label, max(total, 1), enabled
        self._done = 0
        self._began = time.monotonic()
        self._next = self._began + PATIENCE
        self._shown = 0

    def add(self, nbytes: int) -> None:
        """Counts `nbytes` more."""
        self._done += nbytes
        now = time.monotonic()
        if self._enabled and now >= self._next:
            self._next = now + INTERVAL
            self._write(f"{self._label}: {self._done * 100 // self._total} % of {self._total / 1e6:,.0f} MB")

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Ends the line, also after an error."""
        if self._shown:
            seconds = time.monotonic() - self._began
            self._write(f"{self._label}: {self._done / 1e6:,.0f} MB in {seconds:.1f} s")
            _stream().write("\n")

    def _write(self, line: str) -> None:
        stream = _stream()
        stream.write("\r" + line.ljust(self._shown))
        stream.flush()
        self._shown = len(line)


def _stream() -> TextIO:
    return sys.stdout if type(sys.stderr).__module__.startswith("ipykernel") else sys.stderr
