"""Looking into a running model. PyTorch forward hooks are registered in this package and nowhere else."""

from workbench.instrument.activations import Activations, Span
from workbench.instrument.cancel import Cancelled, cancellable
from workbench.instrument.capture import capture
from workbench.instrument.edit import ActiveEdits, edit
from workbench.instrument.edit_data import Edit
from workbench.instrument.edit_site import EditError, Site
from workbench.instrument.names import resolve
from workbench.instrument.planner import CaptureBudgetError, Plan, plan
from workbench.instrument.points import POINTS, Located, Point
from workbench.instrument.selfcheck import SelfCheck, selfcheck

__all__ = [
    "POINTS",
    "Activations",
    "ActiveEdits",
    "Cancelled",
    "CaptureBudgetError",
    "Edit",
    "EditError",
    "Located",
    "Plan",
    "Point",
    "SelfCheck",
    "Site",
    "Span",
    "cancellable",
    "capture",
    "edit",
    "plan",
    "resolve",
    "selfcheck",
]
