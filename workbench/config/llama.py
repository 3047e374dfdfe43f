"""LlamaConfig: the shape of a model, read from and written to Hugging Face's `config.json`.

Field names and defaults are those of the Llama documentation of `transformers`.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from workbench.config.checks import (
    ConfigError,
    check_choice,
    check_dictionary,
    check_flag,
    check_positive,
    check_size,
    check_token,
    is_finite,
    is_token,
    is_whole,
    refuse,
    shown,
)
from workbench.config.files import json_text, locate, read_json, read_values
from workbench.config.labels import checked_labels, inverse_labels, numbered
from workbench.config.reading import OUTPUTS, arguments, labels_of_any_age, with_older_spellings
from workbench.config.rope import checked_rope

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")
ATTENTIONS = ("eager", "sdpa", "flex_attention")
DTYPES = ("float32", "float16", "bfloat16")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)
FLAGS = ("use_cache", "tie_word_embeddings", "attention_bias", "mlp_bias", *OUTPUTS)
# Written only when they are not the defaults: they say nothing about the shape of a model.
OPTIONAL = ("architectures", "dtype", "id2label", "label2id", "problem_type", "quantization_config", *OUTPUTS)
_NOT_GIVEN: Any = None  # typed so that a field which is never None once the config is made may start as None


@dataclasses.dataclass(kw_only=True)
class LlamaConfig:
    """Sizes and options of a Llama model.

    Args:
        vocab_size: number of tokens the embedding and the output know.
        hidden_size: width of the residual stream (`d_model`).
        intermediate_size: width inside the MLP (`d_mlp`).
        num_hidden_layers: number of decoder layers.
        num_attention_heads: query heads per layer.
        num_key_value_heads: key/value heads per layer; equal to `num_attention_heads` is MHA, 1 is MQA, between is GQA.
            `None` means `num_attention_heads`.
        hidden_act: the MLP's activation, one of `ACTIVATIONS`, or a function of a tensor (which `config.json` cannot
            hold: `to_dict` and all that write refuse).
        max_position_embeddings: longest context the model was trained for, in tokens.
        initializer_range: standard deviation of freshly initialised weights, 0 to 1.
        rms_norm_eps: added to the mean square inside each RMSNorm.
        use_cache: whether a forward returns a KV cache by default.
        pad_token_id, bos_token_id, eos_token_id: ids with a meaning, `None` where there is none; several end tokens
            are a list. An older `config.json` writes -1 for none, and is read so.
        pretraining_tp: how many parts the weights were split into in training; kept, and without influence.
        tie_word_embeddings: whether the output uses the embedding's weights.
        rope_parameters: `{"rope_type": "default", "rope_theta": 10000.0}`; the older `rope_theta` and `rope_scaling`
            keys of a `config.json` are read into it.
        attention_bias, mlp_bias: whether the projections have a bias.
        attention_dropout: probability, used in training mode only.
        head_dim: width of a head (`d_head`); `None` means `hidden_size // num_attention_heads`.
        dtype: the data type the checkpoint's weights are stored in, as text (`"float32"`), or `None` if unknown.
        rope_theta, rope_scaling, torch_dtype: older spellings of `rope_parameters` and `dtype`, as arguments only.
        attn_implementation: one of `ATTENTIONS`; `None` means `"sdpa"`. Belongs to a run, not to a checkpoint: it is
            read (also as `_attn_implementation`), not written.
        num_labels: outputs of a classifier; `None` means as many as `id2label` has, or 2.
        id2label: their names, `{0: "LABEL_0", …}` unless given. Assigning one of the three changes the others.
        label2id: the inverse of `id2label`.
        problem_type: the loss of a sequence classifier, one of `PROBLEM_TYPES`; `None` lets it follow from the labels.
        output_hidden_states, output_attentions, return_dict: what a forward returns unless its call says otherwise.
        architectures: names of the classes that the weights are for.
        quantization_config: how the weights are quantized; kept and written as it is.

    Raises:
        ConfigError: for sizes that do not fit together and options that are not known.
        TypeError: for an argument that does not exist.
    """

    model_type: ClassVar[str] = "llama"
    _made: ClassVar[bool] = False

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    hidden_act: str | Callable[[Any], Any] = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pretraining_tp: int | None = 1
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    head_dim: int | None = None
    dtype: str | None = None
    attn_implementation: str = _NOT_GIVEN
    num_labels: int = _NOT_GIVEN
    id2label: dict[int, str] = _NOT_GIVEN
    label2id: dict[str, int] = _NOT_GIVEN
    problem_type: str | None = None
    output_hidden_states: bool = False
    output_attentions: bool = False
    return_dict: bool = True
    architectures: list[str] | None = None
    quantization_config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        self._check_sizes()
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        self._check_options()
        self._check_numbers()
        self._check_tokens()
        self._check_labels()
        self.rope_parameters = checked_rope(self.rope_parameters, self.d_head, self.max_position_embeddings)
        object.__setattr__(self, "_made", True)

    def __setattr__(self, name: str, value: Any) -> None:
        """Assigning `num_labels` renames the labels; assigning `id2label` counts them (as `transformers` does)."""
        if not self._made or name not in ("num_labels", "id2label"):
            object.__setattr__(self, name, value)
            return
        if name == "num_labels" and value == self.num_labels:
            return  # the labels keep their names
        labels = numbered(value) if name == "num_labels" else checked_labels(value)
        for field, new in (("num_labels", len(labels)), ("id2label", labels), ("label2id", inverse_labels(labels))):
            object.__setattr__(self, field, new)

    @property
    def n_rep(self) -> int:
        """Query heads that share one key/value head."""
        return self.num_attention_heads // self.kv_heads

    @property
    def kv_heads(self) -> int:
        """`num_key_value_heads`, never `None`."""
        assert self.num_key_value_heads is not None
        return self.num_key_value_heads

    @property
    def d_head(self) -> int:
        """`head_dim`, never `None`."""
        assert self.head_dim is not None
        return self.head_dim

    @property
    def rope(self) -> dict[str, Any]:
        """`rope_parameters`, never `None`."""
        assert self.rope_parameters is not None
        return self.rope_parameters

    @property
    def attention_kind(self) -> str:
        """`"MHA"`, `"GQA"` or `"MQA"`, by the number of key/value heads."""
        if self.kv_heads == self.num_attention_heads:
            return "MHA"
        return "MQA" if self.kv_heads == 1 else "GQA"

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Every token that ends a generation; empty if none does."""
        if self.eos_token_id is None:
            return ()
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)

    @property
    def _attn_implementation(self) -> str:
        """How `transformers` spells `attn_implementation`."""
        return self.attn_implementation

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> LlamaConfig:
        """The config of a checkpoint.

        Args:
            source: a folder with a `config.json`, the path of one, a .gguf file, or a model on the Hub, `"owner/name"`.
            revision, token, cache_dir, local_files_only: for the Hub: branch, tag or commit; access token; where
                downloads are kept; whether only they may be used.
            overrides: arguments of `LlamaConfig` that go before those of the checkpoint.

        Raises:
            CheckpointNotFoundError: (a `FileNotFoundError`) if there is nothing at `source`.
            ConfigError, CheckpointError: (`ValueError`s) if it describes no Llama, or cannot be read.
            TypeError: for an override that is no argument of `LlamaConfig`.
        """
        options = {"revision": revision, "token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        path = locate(source, **{key: value for key, value in options.items() if value})
        values = read_values(path)
        try:
            known = arguments(values, cls._names())
            if "id2label" in overrides:
                known.update(num_labels=None, label2id=None)
            elif "num_labels" in overrides:
                known.update(labels_of_any_age({**known, **overrides}))
            return cls(**{**known, **overrides})
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LlamaConfig:
        """A config from the contents of a `config.json`; keys that are no field of it are ignored.

        Raises:
            ConfigError: if `model_type` says that this is not a Llama, or a value is not allowed.
        """
        if not isinstance(values, dict):
            raise ConfigError(f"values is {shown(values)}; it must be a dictionary, the contents of a config.json.")
        return cls(**arguments(values, cls._names()))

    @classmethod
    def from_json_file(cls, path: str | os.PathLike[str]) -> LlamaConfig:
        """Reads a `config.json`.

        Raises:
            FileNotFoundError: if it is not there.
            ConfigError: naming the file, if it is not JSON, not an object, or describes no Llama.
        """
        values = read_json(Path(path))
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The contents of a `config.json` that `from_dict` reads back to an equal config.

        Raises:
            ConfigError: if `hidden_act` is a function, which no file can hold.
        """
        if not isinstance(self.hidden_act, str):
            name = getattr(self.hidden_act, "__name__", type(self.hidden_act).__name__)
            raise ConfigError(
                f"hidden_act is the function {name!r}, which config.json cannot hold. Set it to one of "
                f"{', '.join(ACTIVATIONS)} first, or keep the config in Python."
            )
        values = {field.name: copy.deepcopy(getattr(self, field.name)) for field in dataclasses.fields(self)}
        del values["attn_implementation"], values["num_labels"]  # of this run; said by id2label
        return {"model_type": self.model_type, **values}

    def to_diff_dict(self) -> dict[str, Any]:
        """`to_dict` without the `OPTIONAL` fields that have their default value: what `save_pretrained` writes."""
        default = LlamaConfig().to_dict()
        return {k: v for k, v in self.to_dict().items() if k not in OPTIONAL or v != default[k]}

    def to_json_string(self, use_diff: bool = True) -> str:
        """The text of a `config.json`, of `to_diff_dict` or of `to_dict`.

        Raises:
            ConfigError: if JSON cannot hold a value.
        """
        return json_text(self.to_diff_dict() if use_diff else self.to_dict())

    def to_json_file(self, path: str | os.PathLike[str], use_diff: bool = True) -> None:
        """Writes `to_json_string`; nothing is written if it fails."""
        text = self.to_json_string(use_diff)
        Path(path).write_text(text, encoding="utf-8")

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes `config.json` into a folder, which is made if it is not there."""
        text = self.to_json_string()
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "config.json").write_text(text, encoding="utf-8")

    @classmethod
    def _names(cls) -> set[str]:
        return {field.name for field in dataclasses.fields(cls)}

    def _check_sizes(self) -> None:
        for name in SIZES:
            check_size(name, getattr(self, name))
        if self.head_dim is not None and (not is_whole(self.head_dim) or not 1 <= self.head_dim < 2**63):
            refuse("head_dim", self.head_dim, "it must be a whole number of at least 1, or None.")
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size {self.hidden_size} cannot be divided into num_attention_heads {self.num_attention_heads} "
                "equal heads. Change one of them, or give head_dim."
            )
        if self.num_attention_heads % self.kv_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.kv_heads}: each key/value head must serve the same number of query heads."
            )

    def _check_options(self) -> None:
        if self.d_head % 2:
            refuse("head_dim", self.head_dim, "rotary embeddings need an even one.")
        if not callable(self.hidden_act):
            check_choice("hidden_act", self.hidden_act, ACTIVATIONS)
        for name in FLAGS:
            check_flag(name, getattr(self, name))
        if self.dtype is not None:
            self.dtype = str(self.dtype).removeprefix("torch.")
            check_choice("dtype", self.dtype, DTYPES)
        implementation: Any = self.attn_implementation
        self.attn_implementation = "sdpa" if implementation is None else implementation
        check_choice("attn_implementation", self.attn_implementation, ATTENTIONS)
        names = self.architectures
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            refuse("architectures", names, 'it must be None or a list of names, ["LlamaForCausalLM"] for one.')
        check_dictionary("quantization_config", self.quantization_config)

    def _check_numbers(self) -> None:
        check_positive("rms_norm_eps", self.rms_norm_eps)
        for name, allowed in (
            ("attention_dropout", "it must lie in [0, 1)."),
            ("initializer_range", "it must lie in [0, 1]."),
        ):
            value = getattr(self, name)
            if not is_finite(value) or not 0 <= value <= 1 or (value == 1 and name == "attention_dropout"):
                refuse(name, value, allowed)
        if self.pretraining_tp is not None:
            check_size("pretraining_tp", self.pretraining_tp)

    def _check_tokens(self) -> None:
        check_token("pad_token_id", self.pad_token_id)
        check_token("bos_token_id", self.bos_token_id)
        ends = self.eos_token_id
        if ends is not None and not all(map(is_token, ends if isinstance(ends, list | tuple) else [ends])):
            refuse("eos_token_id", ends, "it must be a whole number of at least 0, a list of them, or None.")
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ConfigError(
                f"pad_token_id is {self.pad_token_id}, but vocab_size is {self.vocab_size}: it must be below that, "
                "because the embedding has a row for it."
            )

    def _check_labels(self) -> None:
        count: Any = self.num_labels
        labels: Any = self.id2label
        ids: Any = self.label2id
        if labels is None:
            if ids is not None:
                raise ConfigError("label2id is given without id2label. Give id2label; label2id is then made from it.")
            labels = numbered(2 if count is None else count)
        labels = checked_labels(labels)
        if count is not None and count != len(labels):
            refuse("num_labels", count, f"id2label names {len(labels)} labels. Give one of the two.")
        self.id2label, self.num_labels, self.label2id = labels, len(labels), inverse_labels(labels, ids)
        if self.problem_type is not None:
            check_choice("problem_type", self.problem_type, PROBLEM_TYPES)
        if self.problem_type == "single_label_classification" and self.num_labels == 1:
            raise ConfigError(
                "problem_type is 'single_label_classification', which needs num_labels of at least 2. For two classes "
                "set num_labels=2; for one number per text set problem_type='regression'."
            )


LlamaConfig.__init__ = with_older_spellings(LlamaConfig.__init__)  # type: ignore[method-assign]
