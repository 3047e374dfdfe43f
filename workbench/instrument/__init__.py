"""Looking into a running model. PyTorch forward hooks are registered in this package and nowhere else."""

from workbench.instrument.activations import Activations
from workbench.instrument.cancel import Cancelled, cancellable
from workbench.instrument.capture import capture
from workbench.instrument.points import POINTS, Point, resolve

__all__ = ["POINTS", "Activations", "Cancelled", "Point", "cancellable", "capture", "resolve"]
