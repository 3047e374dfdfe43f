"""LlamaConfig: the shape of a model, read from and written to Hugging Face's `config.json`.

Field names and defaults are those of the Llama documentation of `transformers`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu")
ROPE_TYPES = ("default",)
DTYPES = ("float32", "float16", "bfloat16")
FLAGS = ("use_cache", "tie_word_embeddings", "attention_bias", "mlp_bias")
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


class ConfigError(ValueError):
    """A configuration that no Llama can have: says the field, what was found, what is allowed."""


@dataclasses.dataclass
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
        hidden_act: the MLP's activation, one of `ACTIVATIONS`.
        max_position_embeddings: longest context the model was trained for, in tokens.
        initializer_range: standard deviation of freshly initialised weights.
        rms_norm_eps: added to the mean square inside each RMSNorm.
        use_cache: whether a forward returns a KV cache by default.
        pad_token_id, bos_token_id, eos_token_id: ids with a meaning, `None` where there is none; several end tokens
            are a list. An older `config.json` writes -1 for none, and is read so.
        rope_parameters: `{"rope_type": "default", "rope_theta": 10000.0}`; the older `rope_theta` and `rope_scaling`
            keys of a `config.json` are read into it.
        attention_bias, mlp_bias: whether the projections have a bias.
        attention_dropout: probability, used in training mode only.
        head_dim: width of a head (`d_head`); `None` means `hidden_size // num_attention_heads`.
        dtype: the data type the checkpoint's weights are stored in, as text (`"float32"`), or `None` if unknown.

    Raises:
        ConfigError: for sizes that do not fit together and options that are not known.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    pretraining_tp: int = 1
    tie_word_embeddings: bool = False
    rope_parameters: dict[str, Any] | None = None
    attention_bias: bool = False
    attention_dropout: float = 0.0
    mlp_bias: bool = False
    head_dim: int | None = None
    dtype: str | None = None
    attn_implementation: str = "sdpa"

    def __post_init__(self) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        self._check_sizes()
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        self._check_options()
        self._check_tokens()
        self.rope_parameters = _rope_parameters(self.rope_parameters)

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

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LlamaConfig:
        """A config from the contents of a `config.json`; keys that are no field of it are ignored.

        Raises:
            ConfigError: if `model_type` says that this is not a Llama, or a value is not allowed.
        """
        model_type = values.get("model_type", "llama")
        if model_type != "llama":
            raise ConfigError(
                f"model_type is {model_type!r}, but only 'llama' checkpoints can be loaded. "
                "Models with the same architecture have to be converted to it first."
            )
        names = {field.name for field in dataclasses.fields(cls)}
        known = {key: value for key, value in values.items() if key in names}
        known.setdefault("dtype", values.get("torch_dtype"))
        known["rope_parameters"] = _rope_of_any_age(values)
        for name in TOKENS:
            if name in known:
                known[name] = _without_negatives(known[name])
        return cls(**known)

    @classmethod
    def from_file(cls, path: str | Path) -> LlamaConfig:
        """Reads a `config.json`.

        Raises:
            ConfigError: naming the file, if it is not JSON, not an object, or describes no Llama.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(f"{path} is not valid JSON ({error}). Download the file again.") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path} holds a {type(values).__name__}, but a JSON object is expected.")
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The contents of a `config.json` that `from_dict` reads back to an equal config."""
        values = dataclasses.asdict(self)
        values.pop("attn_implementation")
        return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **values}

    def _check_sizes(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1.")
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
        if self.head_dim is not None and (not isinstance(self.head_dim, int) or self.head_dim < 1):
            raise ConfigError(f"head_dim is {self.head_dim!r}; it must be a whole number of at least 1, or None.")

    def _check_options(self) -> None:
        if self.d_head % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; rotary embeddings need an even one.")
        if self.hidden_act not in ACTIVATIONS:
            raise ConfigError(f"hidden_act is {self.hidden_act!r}; allowed are {', '.join(ACTIVATIONS)}.")
        for name in FLAGS:
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise ConfigError(f"{name} is {value!r}; it must be true or false, not text or a number.")
        if self.dtype is not None:
            self.dtype = str(self.dtype).removeprefix("torch.")
            if self.dtype not in DTYPES:
                raise ConfigError(f"dtype is {self.dtype!r}; allowed are {', '.join(DTYPES)}.")
        if not isinstance(self.rms_norm_eps, int | float) or not self.rms_norm_eps > 0:
            raise ConfigError(f"rms_norm_eps is {self.rms_norm_eps!r}; it must be a positive number.")
        if not isinstance(self.attention_dropout, int | float) or not 0 <= self.attention_dropout < 1:
            raise ConfigError(f"attention_dropout is {self.attention_dropout!r}; it must lie in [0, 1).")

    def _check_tokens(self) -> None:
        for name in ("pad_token_id", "bos_token_id"):
            value = getattr(self, name)
            if value is not None and not _is_id(value):
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 0, or None.")
        ends = self.eos_token_id
        if ends is not None and not all(map(_is_id, ends if isinstance(ends, list | tuple) else [ends])):
            raise ConfigError(
                f"eos_token_id is {ends!r}; it must be a whole number of at least 0, a list of them, or None."
            )


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _without_negatives(value: Any) -> Any:
    """A token id as an older `config.json` has it, with the negative ones, which mean "none", left out."""
    if isinstance(value, list):
        return [one for one in value if not _is_negative(one)]
    return None if _is_negative(value) else value


def _is_negative(value: Any) -> bool:
    return isinstance(value, int) and value < 0


def _rope_of_any_age(values: dict[str, Any]) -> dict[str, Any]:
    """`rope_parameters` as `transformers` reads them: `rope_scaling` goes first, a `rope_theta` inside goes first."""
    for name in ("rope_scaling", "rope_parameters"):
        _check_dictionary(name, values.get(name))
    given = values.get("rope_scaling") or values.get("rope_parameters") or {}
    return {"rope_theta": values.get("rope_theta", 10000.0), **given}


def _check_dictionary(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, dict):
        raise ConfigError(
            f"{name} is {value!r}; it must be None or a dictionary, "
            '{"rope_type": "default", "rope_theta": 10000.0} for one.'
        )


def _rope_parameters(values: dict[str, Any] | None) -> dict[str, Any]:
    _check_dictionary("rope_parameters", values)
    result: dict[str, Any] = {"rope_theta": 10000.0, **(values or {})}
    older = result.pop("type", "default")  # how rope_type was spelled
    result.setdefault("rope_type", older)
    if result["rope_type"] not in ROPE_TYPES:
        raise ConfigError(
            f"rope_type is {result['rope_type']!r}; this version computes {', '.join(ROPE_TYPES)} only. "
            "A model with another type would give wrong numbers, so it is not loaded."
        )
    theta = result["rope_theta"]
    if not isinstance(theta, int | float) or isinstance(theta, bool) or not 0 < theta <= sys.float_info.max:
        raise ConfigError(f"rope_theta is {theta!r}; it must be a positive, finite number.")
    result["rope_theta"] = float(theta)
    return result
