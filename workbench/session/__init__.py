"""All mutable state of a workbench, without widgets. Read in this order: run, cursor, session."""

from workbench.session.cursor import Cursor
from workbench.session.run import Run
from workbench.session.session import BusyError, Progress, Session

__all__ = ["BusyError", "Cursor", "Progress", "Run", "Session"]
