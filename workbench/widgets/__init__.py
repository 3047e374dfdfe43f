"""The widgets: thin anywidget classes; what they draw is in ``src/`` and bundled into ``static/``."""

from workbench.widgets.base import WorkbenchWidget
from workbench.widgets.generation import Generation
from workbench.widgets.mask_matrix import MaskMatrix
from workbench.widgets.matrix import Matrix
from workbench.widgets.run_bar import RunBar
from workbench.widgets.token_strip import TokenStrip

__all__ = ["Generation", "MaskMatrix", "Matrix", "RunBar", "TokenStrip", "WorkbenchWidget"]
