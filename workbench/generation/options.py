"""What each option of `generate` may be: name → (what is allowed, in words; whether a value is)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from workbench.cache import CACHES

Check = tuple[str, Callable[[Any], bool]]


def _whole(least: int) -> Check:
    return f"a whole number of at least {least}", lambda v: _is_whole(v) and v >= least


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_ids(value: Any, least: int = 0) -> bool:
    return isinstance(value, list | tuple) and all(_is_whole(one) and one >= least for one in value)


def _is_words(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(_is_ids(word) and word for word in value)


def _is_bias(value: Any) -> bool:
    if not isinstance(value, dict | list | tuple) or not value:
        return False
    pairs = value.items() if isinstance(value, dict) else value
    return all(
        isinstance(pair, list | tuple)
        and len(pair) == 2
        and _is_ids(pair[0])
        and bool(pair[0])
        and isinstance(pair[1], int | float)
        and not math.isnan(pair[1])
        for pair in pairs
    )


def _is_texts(value: Any) -> bool:
    several = [value] if isinstance(value, str) else value
    return isinstance(several, list | tuple) and bool(several) and all(isinstance(s, str) and s for s in several)


def _is_decay(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and _is_whole(value[0]) and _is_number(value[1])


FLAG: Check = "True or False", lambda v: isinstance(v, bool)
POSITIVE: Check = "a positive number", lambda v: _is_number(v) and v > 0
NUMBER: Check = "a finite number", _is_number
SHARE: Check = "a number in [0, 1]", lambda v: _is_number(v) and 0 <= v <= 1
MASS: Check = "a number in (0, 1], where 1 keeps all tokens", lambda v: _is_number(v) and 0 < v <= 1
CUTOFF: Check = "a number in [0, 1), where 0 keeps all tokens", lambda v: _is_number(v) and 0 <= v < 1
TOKEN: Check = _whole(0)
TOKENS: Check = "a list of whole numbers of at least 0", _is_ids
CACHE_CONFIG: Check = (
    "a dict of the cache's options by name",
    lambda v: isinstance(v, dict) and all(isinstance(name, str) for name in v),
)
# -1 is how older files spell "none".
ENDS: Check = (
    "a whole number, or a list of them",
    lambda v: _is_whole(v) or (_is_ids(v, least=-1) and bool(v)),
)

CHECKS: dict[str, Check] = {
    "max_length": _whole(1),
    "max_new_tokens": _whole(1),
    "min_length": _whole(0),
    "min_new_tokens": _whole(0),
    "early_stopping": ('True, False or "never"', lambda v: isinstance(v, bool) or v == "never"),
    "max_time": POSITIVE,
    "stop_strings": ("a text that is not empty, or a list of them", _is_texts),
    "do_sample": FLAG,
    "num_beams": _whole(1),
    "use_cache": FLAG,
    "cache_implementation": (f"one of {', '.join(CACHES)}, or None for dynamic", lambda v: v in CACHES),
    "cache_config": CACHE_CONFIG,
    "compile": FLAG,
    "max_cache_len": _whole(1),
    "temperature": ("0 (greedy) or a positive number", lambda v: _is_number(v) and v >= 0),
    "top_k": ("0 (all tokens) or a positive whole number", lambda v: _is_whole(v) and v >= 0),
    "top_p": SHARE,
    "min_p": SHARE,
    "top_h": MASS,
    "typical_p": MASS,
    "epsilon_cutoff": CUTOFF,
    "eta_cutoff": CUTOFF,
    "repetition_penalty": POSITIVE,
    "length_penalty": NUMBER,
    "no_repeat_ngram_size": _whole(0),
    "bad_words_ids": ("a list of lists of token ids, none of them empty", _is_words),
    "sequence_bias": ("{(token ids, …): bias} or [[token ids, bias], …], none of them empty", _is_bias),
    "renormalize_logits": FLAG,
    "forced_bos_token_id": TOKEN,
    "forced_eos_token_id": ENDS,
    "remove_invalid_values": FLAG,
    "exponential_decay_length_penalty": ("a pair of a whole number and a number", _is_decay),
    "suppress_tokens": TOKENS,
    "begin_suppress_tokens": TOKENS,
    "num_return_sequences": _whole(1),
    "output_attentions": FLAG,
    "output_hidden_states": FLAG,
    "output_scores": FLAG,
    "output_logits": FLAG,
    "return_dict_in_generate": FLAG,
    "pad_token_id": TOKEN,
    "bos_token_id": TOKEN,
    "eos_token_id": ENDS,
}


def check(name: str, value: Any) -> None:
    """Raises `ValueError` for a value that an option may not have."""
    allowed, is_allowed = CHECKS[name]
    if not is_allowed(value):
        raise ValueError(f"{name} is {value!r}; it must be {allowed}.")
