"""`from_transformers`: a model that `transformers` has loaded, used here without a copy of its weights.

`transformers` is not imported: everything is asked of the objects themselves.
"""

from __future__ import annotations

from typing import Any, overload

import torch
from tokenizers import Tokenizer
from torch import nn

from workbench import model as models
from workbench.checkpoints.build import NoInitialisation, assign
from workbench.checkpoints.errors import CheckpointError
from workbench.checkpoints.load import Loaded
from workbench.config import LlamaConfig
from workbench.model import LlamaPreTrainedModel
from workbench.tokenizer import LlamaTokenizer, TokenizerError

NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")


@overload
def from_transformers(model: Any, tokenizer: None = None) -> LlamaPreTrainedModel: ...
@overload
def from_transformers(model: Any, tokenizer: Any) -> Loaded: ...
def from_transformers(model: Any, tokenizer: Any = None) -> LlamaPreTrainedModel | Loaded:
    """Wraps a Llama of `transformers`; the weights are shared, not copied.

        model = workbench.from_transformers(theirs)
        model, tokenizer = workbench.from_transformers(theirs, their_tokenizer)

    Changing a weight in place changes it in both; moving one of the two models, or casting it, leaves the other where
    it is. Projections of one input are not laid behind each other, which would copy them, so decoding is a little
    slower than after `load`: `model.base_model.pack()` makes up for it, with a copy.

    Args:
        model: a `LlamaForCausalLM`, `LlamaModel`, `LlamaForSequenceClassification`, `LlamaForTokenClassification` or
            `LlamaForQuestionAnswering` of `transformers`, with all weights in memory.
        tokenizer: its tokenizer, on the `tokenizers` package (a fast one); it is copied.

    Returns:
        The model, of the same class name, mode (training or evaluation) and attention implementation as far as there is
        one here; with a tokenizer, what `workbench.load` returns: model, tokenizer, name and source.

    Raises:
        TypeError: if `model` is no Llama of `transformers`, or `tokenizer` no fast tokenizer.
        CheckpointError: (a `ValueError`) for weights that are quantised, offloaded or on the meta device, and for
            modules that no Llama has (adapters).
    """
    ours = _empty(model)
    weights = dict(model.state_dict(keep_vars=True))
    _check_weights(ours, weights)
    for name, value in weights.items():
        assign(ours, name, value.detach())
        ours.get_parameter(name).requires_grad_(value.requires_grad)
    ours.tie_weights()
    ours.train(model.training)
    if tokenizer is None:
        return ours
    name = str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
    return Loaded(ours, _tokenizer(tokenizer), name.rstrip("/").split("/")[-1], name)  # type: ignore[arg-type]


def _empty(model: Any) -> LlamaPreTrainedModel:
    """Our model of the same config, without memory."""
    config: Any = getattr(model, "config", None)
    kind = type(model).__name__
    known = [name for name in models.__all__ if name != "LlamaPreTrainedModel"]
    if not isinstance(model, nn.Module) or not hasattr(config, "to_dict") or isinstance(model, LlamaPreTrainedModel):
        raise TypeError(
            f"model is a {kind}; a Llama that transformers has loaded is needed. Models of the workbench need no "
            "wrapping."
        )
    if getattr(config, "model_type", None) != "llama" or kind not in known:
        raise TypeError(
            f"model is a {kind} of the type {getattr(config, 'model_type', None)!r}; only Llamas can be wrapped: "
            f"{', '.join(known)}."
        )
    values = {**config.to_dict(), "attn_implementation": getattr(config, "_attn_implementation", None)}
    if values.get("quantization_config") or getattr(model, "hf_quantizer", None):
        raise CheckpointError(
            "The model is quantised by transformers, so its weights cannot be shared. Load it without "
            "quantization_config, or load the checkpoint with workbench.load and quantise it here."
        )
    with torch.device("meta"), NoInitialisation():
        ours: LlamaPreTrainedModel = getattr(models, kind)(LlamaConfig.from_dict(values))
    return ours


def _check_weights(ours: LlamaPreTrainedModel, weights: dict[str, Any]) -> None:
    expected = ours.state_dict()
    strange = sorted(weights.keys() ^ expected.keys())
    if strange:
        raise CheckpointError(
            f"{len(strange)} parameters differ from those of a Llama: {', '.join(strange[:3])}. Merge or remove "
            "adapters first (merge_and_unload())."
        )
    for name, value in weights.items():
        if value.is_meta:
            raise CheckpointError(
                f"{name} has no memory: it is offloaded or on the meta device. Load the model onto one device first."
            )
        if not value.is_floating_point() or value.shape != expected[name].shape:
            raise CheckpointError(
                f"{name} is a {value.dtype} tensor of shape {list(value.shape)}; the config asks for a floating-point "
                f"one of {list(expected[name].shape)}. Quantised weights cannot be shared."
            )


def _tokenizer(theirs: Any) -> LlamaTokenizer:
    backend = getattr(theirs, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise TypeError(
            f"tokenizer is a {type(theirs).__name__} without a backend of the tokenizers package; give a fast one "
            "(AutoTokenizer.from_pretrained(...))."
        )
    template = getattr(theirs, "chat_template", None)
    options: dict[str, Any] = {name: getattr(theirs, name, None) for name in NAMED}
    options["padding_side"] = theirs.padding_side
    options["chat_template"] = template.get("default") if isinstance(template, dict) else template
    try:
        return LlamaTokenizer.from_backend(Tokenizer.from_str(backend.to_str()), **options)
    except TokenizerError as error:
        raise TokenizerError(f"The tokenizer of transformers cannot be used: {error}") from error
