"""The panels of the workbench page: ipywidgets wiring of session, analysis, views and widgets. No tensor maths."""

from workbench.panels.app import Workbench
from workbench.panels.attention import Attention
from workbench.panels.generation import Generation
from workbench.panels.lens import Lens
from workbench.panels.run_bar import RunBar
from workbench.panels.token_strip import TokenStrip

__all__ = ["Attention", "Generation", "Lens", "RunBar", "TokenStrip", "Workbench"]
