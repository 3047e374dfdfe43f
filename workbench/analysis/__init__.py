"""Tensors in, small frozen results out. Torch stops here: views and panels see numpy."""

from workbench.analysis.attention import AttentionMap, Tile
from workbench.analysis.attribution import accumulated_attribution, logit_attribution
from workbench.analysis.heads import find_heads, head_metrics
from workbench.analysis.hidden import (
    component_sizes,
    cosine_similarity,
    outlier_dimensions,
    pca_trajectories,
    residual_norms,
)
from workbench.analysis.lens import Lens, lens_step, logit_lens
from workbench.analysis.mask_checks import MaskReport, check_mask
from workbench.analysis.patching import log_probability, logit_difference, patch_heads, patch_mlp, patch_residual

__all__ = [
    "AttentionMap",
    "Lens",
    "MaskReport",
    "Tile",
    "accumulated_attribution",
    "check_mask",
    "component_sizes",
    "cosine_similarity",
    "find_heads",
    "head_metrics",
    "lens_step",
    "log_probability",
    "logit_attribution",
    "logit_difference",
    "logit_lens",
    "outlier_dimensions",
    "patch_heads",
    "patch_mlp",
    "patch_residual",
    "pca_trajectories",
    "residual_norms",
]
