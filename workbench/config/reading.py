"""A `config.json` of any age, or by any writer, as arguments of `LlamaConfig`; by the rules of `transformers`."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from workbench.config.checks import ConfigError, refuse, shown
from workbench.config.rope import rope_of_any_age

OUTPUTS = ("output_hidden_states", "output_attentions", "return_dict")
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


def arguments(values: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """The arguments of `LlamaConfig` that the contents of a `config.json` stand for.

    Args:
        values: the contents.
        names: the arguments there are; other keys say nothing about a Llama.

    Raises:
        ConfigError: if `model_type` says that this is not a Llama.
    """
    model_type = values.get("model_type", "llama")
    if model_type != "llama":
        raise ConfigError(
            f"model_type is {shown(model_type)}, but only 'llama' checkpoints can be loaded. "
            "Models with the same architecture have to be converted to it first."
        )
    # null means the default where None is no value of its own
    known = {k: v for k, v in values.items() if k in names and not (k in OUTPUTS and v is None)}
    known.setdefault("dtype", values.get("torch_dtype"))
    known["rope_parameters"] = rope_of_any_age(values)
    for name in TOKENS:
        if name in known:
            known[name] = _without_negatives(known[name])
    implementation = known.get("attn_implementation", values.get("_attn_implementation"))
    if isinstance(implementation, str) and implementation.startswith("flash_attention"):
        implementation = None  # the same numbers by a kernel that is not here
    known["attn_implementation"] = implementation
    return {**known, **labels_of_any_age(known)}


def labels_of_any_age(known: dict[str, Any]) -> dict[str, Any]:
    """The three label fields as `transformers` reads them: `num_labels` goes first, `label2id` alone means nothing."""
    count, labels = known.get("num_labels"), known.get("id2label")
    if count is not None and isinstance(labels, dict) and len(labels) != count:
        warnings.warn(
            f"num_labels is {shown(count)}, but id2label names {len(labels)} labels: their names are dropped.",
            stacklevel=2,
        )
        labels = None
    return {"num_labels": count, "id2label": labels, "label2id": known.get("label2id") if labels is not None else None}


def with_older_spellings(init: Callable[..., None]) -> Callable[..., None]:
    """`rope_theta`, `rope_scaling` and `torch_dtype` as arguments; a config has `rope_parameters` and `dtype`."""

    @functools.wraps(init)
    def accept(self: Any, *arguments: Any, **values: Any) -> None:
        values.pop("transformers_version", None)
        kind = values.pop("model_type", "llama")
        if kind != "llama":
            refuse("model_type", kind, "only 'llama' models can be computed here.")
        older = {name: values.pop(name, None) for name in ("rope_theta", "rope_scaling", "torch_dtype")}
        if older["rope_theta"] is not None or older["rope_scaling"] is not None:
            given = {name: value for name, value in {**values, **older}.items() if value is not None}
            values["rope_parameters"] = rope_of_any_age(given)
        if values.get("dtype") is None:
            values["dtype"] = older["torch_dtype"]
        init(self, *arguments, **values)

    return accept


def _without_negatives(value: Any) -> Any:
    """A token id as an older `config.json` has it, with the negative ones, which mean "none", left out."""
    if isinstance(value, list):
        return [one for one in value if not _is_negative(one)]
    return None if _is_negative(value) else value


def _is_negative(value: Any) -> bool:
    return isinstance(value, int) and value < 0
