"""What a model is: `LlamaConfig`, its checks, and its `config.json`."""

from workbench.config.checks import ConfigError
from workbench.config.llama import (
    ACTIVATIONS,
    ATTENTIONS,
    DTYPES,
    PROBLEM_TYPES,
    LlamaConfig,
)
from workbench.config.rope import ROPE_TYPES

__all__ = ["ACTIVATIONS", "ATTENTIONS", "DTYPES", "PROBLEM_TYPES", "ROPE_TYPES", "ConfigError", "LlamaConfig"]
