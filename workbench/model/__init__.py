"""The Llama modules. Read in this order: outputs, rope, mask, attention, linear, llama, heads, classifiers."""

from workbench.model.classifiers import (
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
)
from workbench.model.heads import LlamaForCausalLM
from workbench.model.llama import LlamaModel
from workbench.model.pretrained import LlamaPreTrainedModel

__all__ = [
    "LlamaForCausalLM",
    "LlamaForQuestionAnswering",
    "LlamaForSequenceClassification",
    "LlamaForTokenClassification",
    "LlamaModel",
    "LlamaPreTrainedModel",
]
