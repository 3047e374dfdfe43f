"""Tensors in, small frozen results out. Torch stops here: views and panels see numpy.

Names are imported when first used, so that whoever needs a mask does not load pandas.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "AttentionMap": "attention",
    "CacheComparison": "cache_compare",
    "ConsistencyReport": "consistency",
    "Lens": "lens",
    "MaskReport": "mask_checks",
    "Tile": "attention",
    "accumulated_attribution": "attribution",
    "check_consistency": "consistency",
    "check_mask": "mask_checks",
    "compare_caches": "cache_compare",
    "component_sizes": "hidden",
    "cosine_similarity": "hidden",
    "find_heads": "heads",
    "head_metrics": "heads",
    "lens_step": "lens",
    "log_probability": "patching",
    "logit_attribution": "attribution",
    "logit_difference": "patching",
    "logit_lens": "lens",
    "outlier_dimensions": "hidden",
    "patch_heads": "patching",
    "patch_mlp": "patching",
    "patch_residual": "patching",
    "pca_trajectories": "hidden",
    "residual_norms": "hidden",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'workbench.analysis' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"workbench.analysis.{_HOME[name]}"), name)
