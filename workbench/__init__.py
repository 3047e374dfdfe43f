"""A JupyterLab workbench to look inside Llama-family language models while they run.

Names are imported when first used: `import workbench` itself loads neither torch nor widgets and opens no socket.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench import panels as panels
    from workbench.cache import DynamicCache as DynamicCache
    from workbench.checkpoints.load import load as load
    from workbench.config import LlamaConfig as LlamaConfig
    from workbench.generation import Sampler as Sampler
    from workbench.instrument import Activations as Activations
    from workbench.instrument import capture as capture
    from workbench.model import LlamaForCausalLM as LlamaForCausalLM
    from workbench.model import LlamaModel as LlamaModel
    from workbench.panels import Workbench as Workbench
    from workbench.session import Session as Session
    from workbench.tokenizer import LlamaTokenizer as LlamaTokenizer

__version__ = "0.1.0"

_HOME = {
    "Activations": "workbench.instrument",
    "DynamicCache": "workbench.cache",
    "LlamaConfig": "workbench.config",
    "LlamaForCausalLM": "workbench.model",
    "LlamaModel": "workbench.model",
    "LlamaTokenizer": "workbench.tokenizer",
    "Sampler": "workbench.generation",
    "Session": "workbench.session",
    "Workbench": "workbench.panels",
    "capture": "workbench.instrument",
    "load": "workbench.checkpoints.load",
}

__all__ = [*_HOME, "panels"]


def __getattr__(name: str) -> Any:
    if name == "panels":
        return import_module("workbench.panels")
    if name not in _HOME:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
