"""`AttentionMaskVisualizer` where the documentation imports it from."""

from workbench.compat.mask_visualizer import AttentionMaskVisualizer

__all__ = ["AttentionMaskVisualizer"]
