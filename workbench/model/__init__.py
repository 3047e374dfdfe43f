"""The Llama modules. Read in this order: outputs, rope, mask, attention, llama, heads."""

from workbench.model.heads import LlamaForCausalLM
from workbench.model.llama import LlamaModel

__all__ = ["LlamaForCausalLM", "LlamaModel"]
