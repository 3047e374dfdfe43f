"""The rotary embedding of a GGUF file: metadata under `llama.rope.`, and the tensor `rope_freqs.weight`.

What the keys mean: llama.cpp's `llama-model.cpp` (`load_hparams`) and `ggml_rope_ext`; what writes them: its
`convert_hf_to_gguf.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

from workbench.checkpoints.dequantize import dequantize
from workbench.checkpoints.errors import CheckpointError
from workbench.checkpoints.gguf import GGUFFile
from workbench.config import LlamaConfig
from workbench.config.checks import is_finite
from workbench.model.rope import inverse_frequencies

ROPE_FREQS = "rope_freqs.weight"
_SCALING = "llama.rope.scaling."
# `finetuned` is a remark. What else there may be changes the numbers in a way that is not computed here.
_KNOWN = ("type", "factor", "original_context_length", "finetuned", "attn_factor", "yarn_beta_fast", "yarn_beta_slow")


def rope_from_metadata(where: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The `rope_parameters` that a file's metadata describe; `with_rope_freqs` adds what a tensor says.

    Raises:
        CheckpointError: if they describe a scaling that is not computed here.
    """
    values = {key.removeprefix(_SCALING): value for key, value in metadata.items() if key.startswith(_SCALING)}
    kind = values.get("type", "linear")  # as llama.cpp has it: a factor alone is linear
    extra = values.get("attn_factor", 1)  # llama.cpp multiplies cosines and sines by it, whatever the type
    unknown = sorted(values.keys() - set(_KNOWN)) or (["attn_factor"] if extra != 1 and kind != "yarn" else [])
    if unknown or kind not in ("none", "linear", "yarn"):
        what = _SCALING + (unknown[0] if unknown else f"type {kind!r}")
        raise CheckpointError(
            f"{where} scales its rotary frequencies by {what}, which is not computed here and would give wrong "
            f"numbers. Types that are: none, linear, yarn; keys: {', '.join(_KNOWN)}."
        )
    theta = {"rope_theta": metadata.get("llama.rope.freq_base", 10000.0)}
    factor = values.get("factor", metadata.get("llama.rope.scale_linear"))  # the key of older files
    if kind == "none" or (kind == "linear" and factor in (None, 0, 1)):
        return {"rope_type": "default", **theta}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor, **theta}
    return {"rope_type": "yarn", **_yarn(factor, values), **theta}


def _yarn(factor: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    found = {
        "factor": factor,
        "original_max_position_embeddings": values.get("original_context_length"),
        "beta_fast": values.get("yarn_beta_fast"),
        "beta_slow": values.get("yarn_beta_slow"),
    }
    extra = values.get("attn_factor", 1)
    if extra != 1:
        numbers = is_finite(factor) and factor >= 1 and is_finite(extra)  # others are refused by the config
        found["attention_factor"] = extra * (0.1 * math.log(factor) + 1) if numbers else extra
    return {key: value for key, value in found.items() if value is not None}


def with_rope_freqs(file: GGUFFile, config: LlamaConfig) -> LlamaConfig:
    """The config with the divisors of the frequencies that `rope_freqs.weight` holds (Llama 3.1 and later).

    If they are those of Llama 3.1 (original length 8,192, factors 1 and 4) it becomes "llama3". Other divisors are
    given as they are: "longrope" with the same list for short and long texts is a division by a list.

    Raises:
        CheckpointError: if the tensor is not one positive number a plane, or the metadata ask for a scaling too.
    """
    if ROPE_FREQS not in file.tensors:
        return config
    info, half = file.tensors[ROPE_FREQS], config.d_head // 2
    if tuple(info.shape) != (half,):
        raise CheckpointError(f"{file.path}: {ROPE_FREQS} has the shape {list(info.shape)} instead of [{half}].")
    divisors = dequantize(file.blocks(info.name), info.type, info.shape).float()
    if not bool((divisors > 0).all() and divisors.isfinite().all()):
        raise CheckpointError(f"{file.path}: {ROPE_FREQS} must hold positive, finite numbers only.")
    if config.rope["rope_type"] != "default":
        raise CheckpointError(
            f"{file.path} scales its rotary frequencies twice, by {ROPE_FREQS} and by rope_type "
            f"{config.rope['rope_type']!r}. Which of them counts is not known; convert the model again."
        )
    theta = config.rope["rope_theta"]
    plain = inverse_frequencies(config)
    llama3 = {"rope_type": "llama3", "rope_theta": theta, "factor": max(1.0, divisors.max().item())}
    llama3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    known = dataclasses.replace(config, rope_parameters=llama3)
    if torch.allclose(plain / inverse_frequencies(known), divisors, rtol=1e-5, atol=0):
        return known
    both = {"short_factor": divisors.tolist(), "long_factor": divisors.tolist()}
    listed = {"rope_type": "longrope", "rope_theta": theta, "attention_factor": 1.0, **both}
    return dataclasses.replace(config, rope_parameters=listed)
