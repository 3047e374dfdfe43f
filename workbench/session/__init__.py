"""All mutable state of a workbench, without widgets. Read in this order: captures, run, cursor, jobs, session."""

from workbench.session.captures import Captures
from workbench.session.cursor import Cursor
from workbench.session.jobs import BusyError, Progress
from workbench.session.run import Run
from workbench.session.session import Session

__all__ = ["BusyError", "Captures", "Cursor", "Progress", "Run", "Session"]
