"""The Auto classes: the model, config and tokenizer of a checkpoint, by the names that `transformers` documents."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from workbench.checkpoints.arguments import parse_dtype
from workbench.checkpoints.convert import class_of
from workbench.checkpoints.gguf_model import config_from_gguf
from workbench.checkpoints.hub import CONFIG
from workbench.checkpoints.locate import WHERE, default_model, locate, open_gguf_file
from workbench.checkpoints.pretrained import CONFIG as CONFIG_FIELDS
from workbench.checkpoints.pretrained import from_pretrained, overridden
from workbench.config import ConfigError, LlamaConfig
from workbench.model import (
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
    LlamaPreTrainedModel,
)
from workbench.tokenizer import LlamaTokenizer

Model = TypeVar("Model", bound=LlamaPreTrainedModel)
IGNORED = ("trust_remote_code",)  # no code of a checkpoint is ever run


class _AutoModel(Generic[Model]):
    model_class: type[Model]

    def __init__(self, *args: Any, **options: Any) -> None:
        _refuse_instance(self)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str] | None, **options: Any) -> Any:
        """The model of a checkpoint, in evaluation mode; see `workbench.checkpoints.pretrained.from_pretrained`."""
        return from_pretrained(cls.model_class, source, **options)

    @classmethod
    def from_config(cls, config: LlamaConfig, *, dtype: Any = None, **overrides: Any) -> Model:
        """A model with fresh weights.

        Args:
            config: is copied.
            dtype: of the weights; by default torch's, mostly float32.
            **overrides: arguments of `LlamaConfig` that go before the config's.

        Raises:
            TypeError: if `config` is no `LlamaConfig`.
            ConfigError, CheckpointError: (`ValueError`s) for a value that is not allowed.
        """
        if not isinstance(config, LlamaConfig):
            raise TypeError(
                f"config is a {type(config).__name__}; a LlamaConfig is needed: only Llama models are here."
            )
        _check_names(f"{cls.__name__}.from_config", overrides, CONFIG_FIELDS)
        model = cls.model_class(overridden(config, overrides))
        kind = parse_dtype(dtype)
        return model if kind is None else model.to(kind)


class AutoModel(_AutoModel[LlamaModel]):
    """Makes `LlamaModel`s: hidden states, no head."""

    model_class = LlamaModel


class AutoModelForCausalLM(_AutoModel[LlamaForCausalLM]):
    """Makes `LlamaForCausalLM`s: logits of the next token."""

    model_class = LlamaForCausalLM


class AutoModelForSequenceClassification(_AutoModel[LlamaForSequenceClassification]):
    """Makes `LlamaForSequenceClassification`s: one label, several, or numbers for a text."""

    model_class = LlamaForSequenceClassification


class AutoModelForTokenClassification(_AutoModel[LlamaForTokenClassification]):
    """Makes `LlamaForTokenClassification`s: a label for each token."""

    model_class = LlamaForTokenClassification


class AutoModelForQuestionAnswering(_AutoModel[LlamaForQuestionAnswering]):
    """Makes `LlamaForQuestionAnswering`s: where in a text the answer begins and ends."""

    model_class = LlamaForQuestionAnswering


class AutoConfig:
    """Reads the config of a checkpoint."""

    def __init__(self, *args: Any, **options: Any) -> None:
        _refuse_instance(self)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str] | None, **options: Any) -> LlamaConfig:
        """The config of a folder, a .gguf file or a model on the Hub; no weights are downloaded.

        Args:
            source: `None` for the default model, or as for `workbench.checkpoints.locate.locate`.
            **options: those of `locate` (`revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`,
                `gguf_file`), and arguments of `LlamaConfig`, which go before the checkpoint's. `trust_remote_code` is
                accepted and without influence: no code of a checkpoint is ever run.

        Raises:
            CheckpointNotFoundError: (a `FileNotFoundError`) if there is nothing at `source`.
            ConfigError: (a `ValueError`) for a model that is no Llama.
            TypeError: naming an argument that does not exist.
        """
        _check_names("AutoConfig.from_pretrained", options, (*WHERE, *CONFIG_FIELDS, "dtype", *IGNORED))
        at = locate(source, **{name: value for name, value in options.items() if name in WHERE}, files=CONFIG)
        overrides = {name: value for name, value in options.items() if name not in (*WHERE, *IGNORED)}
        if at.path.is_file() and at.path.suffix != ".json":
            return overridden(config_from_gguf(open_gguf_file(at.path)), overrides)
        return LlamaConfig.from_pretrained(at.path, **overrides)

    @classmethod
    def for_model(cls, model_type: str, **values: Any) -> LlamaConfig:
        """A config with the values given and defaults for the others.

        Raises:
            ConfigError: for another `model_type` than `"llama"`.
        """
        if model_type != "llama":
            raise ConfigError(f"model_type is {model_type!r:.80}; only 'llama' is here.")
        return LlamaConfig(**values)


class AutoTokenizer:
    """Reads the tokenizer of a checkpoint."""

    def __init__(self, *args: Any, **options: Any) -> None:
        _refuse_instance(self)

    @classmethod
    def from_pretrained(cls, source: str | os.PathLike[str] | None, **options: Any) -> LlamaTokenizer:
        """The tokenizer of a folder, a .gguf file or a model on the Hub; no weights are downloaded.

        Args:
            source: `None` for the default model, or as for `workbench.checkpoints.locate.locate`.
            **options: those of `locate`, and arguments of `LlamaTokenizer`, which go before the checkpoint's.
                `trust_remote_code` and `use_fast` are accepted and without influence.

        Raises:
            CheckpointNotFoundError: (a `FileNotFoundError`) if there is nothing at `source`.
            TokenizerError: (a `ValueError`) if there is no tokenizer, or it cannot be used.
        """
        if not isinstance(source, str | os.PathLike | None):
            raise TypeError(f"source is {source!r:.80}; it must be a path, a Hub id such as 'owner/name', or None.")
        found = default_model() if source is None else source
        return LlamaTokenizer.from_pretrained(found if isinstance(found, str) else Path(found), **options)


def model_of(source: str | os.PathLike[str] | None, **options: Any) -> Any:
    """The model that a checkpoint was saved with, whatever its head; the language model if it does not say."""
    config = AutoConfig.from_pretrained(source, **{name: options[name] for name in WHERE if name in options})
    return from_pretrained(class_of(config), source, **options)


def _refuse_instance(auto: Any) -> NoReturn:
    name = type(auto).__name__
    raise TypeError(f"{name} is not made directly; use {name}.from_pretrained(...).")


def _check_names(function: str, options: Any, allowed: tuple[str, ...]) -> None:
    for name in options:
        if name not in allowed:
            raise TypeError(f"{function} has no argument {name!r}; it has {', '.join(allowed)}.")
