"""`rope_parameters`: how positions become angles. Reading every spelling of it, and checking every parameter.

The types and their formulas are in `workbench.model.rope`.
"""

from __future__ import annotations

import warnings
from typing import Any

from workbench.config.checks import (
    ConfigError,
    check_choice,
    check_dictionary,
    check_flag,
    check_positive,
    check_size,
    is_finite,
    refuse,
    shown,
)

_ORIGINAL = "original_max_position_embeddings"
# What each type needs, and what it may have besides; `rope_type` and `rope_theta` belong to all.
REQUIRED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
OPTIONAL: dict[str, tuple[str, ...]] = {
    "yarn": (_ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    "longrope": (_ORIGINAL, "attention_factor", "factor"),
    "llama3": (_ORIGINAL,),
}
ROPE_TYPES = tuple(REQUIRED)
_COMMON = ("rope_type", "rope_theta", "partial_rotary_factor")
_EXAMPLE = ', {"rope_type": "default", "rope_theta": 10000.0} for one'
# Outside of them no model is, and the formulas overflow.
_LEAST, _MOST = 1e-18, 1e18


def rope_of_any_age(values: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters` from the contents of a `config.json`, by the rules of `transformers`.

    `rope_scaling` goes before `rope_parameters`, a `rope_theta` inside before one outside, an
    `original_max_position_embeddings` outside before one inside. What the type does not know is left out, with a
    warning: many files have remarks in there.
    """
    for name in ("rope_scaling", "rope_parameters"):
        check_dictionary(name, values.get(name), _EXAMPLE)
    given = values.get("rope_scaling") or values.get("rope_parameters") or {}
    result = {"rope_theta": values.get("rope_theta", 10000.0), **given}
    kind = result.get("rope_type", result.get("type", "default"))
    if not isinstance(kind, str) or kind not in REQUIRED:
        return result  # refused by checked_rope
    if _ORIGINAL in OPTIONAL.get(kind, ()) and values.get(_ORIGINAL) is not None:
        result[_ORIGINAL] = values[_ORIGINAL]
    known = (*_COMMON, "type", *REQUIRED[kind], *OPTIONAL.get(kind, ()))
    unknown = [key for key in result if key not in known]
    if unknown:
        warnings.warn(
            f"rope_type {kind!r} has no parameter {', '.join(map(shown, unknown))}: it is left out.", stacklevel=2
        )
    return {key: value for key, value in result.items() if key in known}


def checked_rope(values: dict[str, Any] | None, d_head: int, max_positions: int) -> dict[str, Any]:
    """`rope_parameters` with what has a default filled in.

    Raises:
        ConfigError: naming the parameter that is missing, unknown or not allowed.
    """
    check_dictionary("rope_parameters", values, _EXAMPLE)
    result: dict[str, Any] = {"rope_theta": 10000.0, **(values or {})}
    older = result.pop("type", "default")  # how rope_type was spelled
    kind = result.setdefault("rope_type", older)
    check_choice("rope_type", kind, ROPE_TYPES)
    check_positive("rope_theta", result["rope_theta"])
    result["rope_theta"] = float(result["rope_theta"])
    if result.pop("partial_rotary_factor", None) not in (None, 1):
        raise ConfigError("partial_rotary_factor is not 1; a Llama rotates the whole head, and no part of it.")
    _check_keys(kind, result)
    if _ORIGINAL in OPTIONAL.get(kind, ()):
        if result.get(_ORIGINAL) is None:
            result[_ORIGINAL] = max_positions
        check_size(_ORIGINAL, result[_ORIGINAL], least=2)
    _check_values(kind, result)
    _check_together(kind, result, d_head, max_positions)
    return result


def _check_keys(kind: str, values: dict[str, Any]) -> None:
    allowed = (*REQUIRED[kind], *OPTIONAL.get(kind, ()))
    missing = [key for key in REQUIRED[kind] if key not in values]
    if missing:
        raise ConfigError(f"rope_parameters of rope_type {kind!r} lack {', '.join(missing)}, which it needs.")
    unknown = [key for key in values if key not in _COMMON and key not in allowed]
    if unknown:
        raise ConfigError(
            f"rope_parameters have {', '.join(map(shown, unknown))}, which rope_type {kind!r} does not know; it knows "
            f"{', '.join(('rope_theta', *allowed))}."
        )


def _check_values(kind: str, values: dict[str, Any]) -> None:
    """Each value by itself. None is "not given" where there is a default."""
    optional = (*OPTIONAL.get(kind, ()), *(("factor",) if kind == "yarn" else ()))
    for name, value in values.items():
        if name in (*_COMMON, _ORIGINAL) or (value is None and name in optional and name != "truncate"):
            continue
        if name == "truncate":
            check_flag(name, value)
        elif name in ("short_factor", "long_factor"):
            if not isinstance(value, list | tuple) or not all(_is_between(_LEAST, one) for one in value):
                refuse(name, value, f"it must be a list of numbers from {_LEAST} to {_MOST}.")
            values[name] = list(value)
        else:
            least = {"factor": 1, "mscale": 0, "mscale_all_dim": 0}.get(name, _LEAST)
            if not _is_between(least, value):
                refuse(name, value, f"for rope_type {kind!r} it must be a number from {least} to {_MOST}.")


def _is_between(least: float, value: Any) -> bool:
    return is_finite(value) and least <= value <= _MOST


def _check_together(kind: str, values: dict[str, Any], d_head: int, max_positions: int) -> None:
    """What one value demands of another."""
    if kind == "dynamic" and d_head == 2:
        raise ConfigError("head_dim is 2; rope_type 'dynamic' needs at least 4 (its exponent is d / (d − 2)).")
    if kind == "longrope":
        for name in ("short_factor", "long_factor"):
            if len(values[name]) != d_head // 2:
                raise ConfigError(
                    f"{name} has {len(values[name])} numbers; it needs {d_head // 2}, one for each pair of the "
                    f"head_dim {d_head}."
                )
    if kind == "llama3" and values["high_freq_factor"] <= values["low_freq_factor"]:
        raise ConfigError(
            f"high_freq_factor is {values['high_freq_factor']}, which must be greater than low_freq_factor, "
            f"{values['low_freq_factor']}."
        )
    if kind == "yarn":
        if values["rope_theta"] <= 1:
            refuse("rope_theta", values["rope_theta"], "for rope_type 'yarn' it must be greater than 1.")
        fast, slow = values.get("beta_fast") or 32, values.get("beta_slow") or 1
        if fast < slow:
            raise ConfigError(f"beta_fast is {fast}, which must not be less than beta_slow, {slow}.")
        if values["factor"] is None and max_positions < values[_ORIGINAL]:
            raise ConfigError(
                f"factor is None, so it is max_position_embeddings {max_positions} / {_ORIGINAL} {values[_ORIGINAL]}, "
                "which must be at least 1. Give factor, or correct one of the two."
            )
