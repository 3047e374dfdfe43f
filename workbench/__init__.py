"""A JupyterLab workbench to look inside Llama-family language models while they run.

Names are imported when first used: `import workbench` itself loads neither torch nor widgets and opens no socket.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench import analysis as analysis
    from workbench import panels as panels
    from workbench.analysis.attention import AttentionMap as AttentionMap
    from workbench.analysis.attribution import logit_attribution as logit_attribution
    from workbench.analysis.cache_compare import compare_caches as compare_caches
    from workbench.analysis.consistency import check_consistency as check_consistency
    from workbench.analysis.heads import find_heads as find_heads
    from workbench.analysis.heads import head_metrics as head_metrics
    from workbench.analysis.lens import logit_lens as logit_lens
    from workbench.analysis.mask_checks import check_mask as check_mask
    from workbench.cache import DynamicCache as DynamicCache
    from workbench.cache import OffloadedCache as OffloadedCache
    from workbench.cache import QuantizedCache as QuantizedCache
    from workbench.cache import SinkCache as SinkCache
    from workbench.cache import SlidingCache as SlidingCache
    from workbench.cache import StaticCache as StaticCache
    from workbench.cache import load_cache as load_cache
    from workbench.checkpoints.convert import convert_kv_heads as convert_kv_heads
    from workbench.checkpoints.load import load as load
    from workbench.checkpoints.quality import quantization_report as quantization_report
    from workbench.checkpoints.quantization import TorchAoConfig as TorchAoConfig
    from workbench.checkpoints.quantize import quantize as quantize
    from workbench.compat.auto import AutoConfig as AutoConfig
    from workbench.compat.auto import AutoModel as AutoModel
    from workbench.compat.auto import AutoModelForCausalLM as AutoModelForCausalLM
    from workbench.compat.auto import AutoModelForQuestionAnswering as AutoModelForQuestionAnswering
    from workbench.compat.auto import AutoModelForSequenceClassification as AutoModelForSequenceClassification
    from workbench.compat.auto import AutoModelForTokenClassification as AutoModelForTokenClassification
    from workbench.compat.auto import AutoTokenizer as AutoTokenizer
    from workbench.compat.mask_visualizer import AttentionMaskVisualizer as AttentionMaskVisualizer
    from workbench.compat.pipelines import FeatureExtractionPipeline as FeatureExtractionPipeline
    from workbench.compat.pipelines import Pipeline as Pipeline
    from workbench.compat.pipelines import QuestionAnsweringPipeline as QuestionAnsweringPipeline
    from workbench.compat.pipelines import TextClassificationPipeline as TextClassificationPipeline
    from workbench.compat.pipelines import TextGenerationPipeline as TextGenerationPipeline
    from workbench.compat.pipelines import TokenClassificationPipeline as TokenClassificationPipeline
    from workbench.compat.pipelines import pipeline as pipeline
    from workbench.compat.seed import set_seed as set_seed
    from workbench.config import LlamaConfig as LlamaConfig
    from workbench.generation import EosTokenCriteria as EosTokenCriteria
    from workbench.generation import GenerationConfig as GenerationConfig
    from workbench.generation import LogitsProcessor as LogitsProcessor
    from workbench.generation import LogitsProcessorList as LogitsProcessorList
    from workbench.generation import MaxLengthCriteria as MaxLengthCriteria
    from workbench.generation import Sampler as Sampler
    from workbench.generation import StoppingCriteria as StoppingCriteria
    from workbench.generation import StoppingCriteriaList as StoppingCriteriaList
    from workbench.generation import StopStringCriteria as StopStringCriteria
    from workbench.generation import TextIteratorStreamer as TextIteratorStreamer
    from workbench.generation import TextStreamer as TextStreamer
    from workbench.generation import Timeline as Timeline
    from workbench.instrument import Activations as Activations
    from workbench.instrument import capture as capture
    from workbench.instrument import edit as edit
    from workbench.instrument import edits as edits
    from workbench.instrument import plan as plan
    from workbench.instrument import selfcheck as selfcheck
    from workbench.interop import from_transformers as from_transformers
    from workbench.model import LlamaForCausalLM as LlamaForCausalLM
    from workbench.model import LlamaForQuestionAnswering as LlamaForQuestionAnswering
    from workbench.model import LlamaForSequenceClassification as LlamaForSequenceClassification
    from workbench.model import LlamaForTokenClassification as LlamaForTokenClassification
    from workbench.model import LlamaModel as LlamaModel
    from workbench.model import LlamaPreTrainedModel as LlamaPreTrainedModel
    from workbench.model import mask as masks  # noqa: F401
    from workbench.panels import Workbench as Workbench
    from workbench.session import Session as Session
    from workbench.tokenizer import AddedToken as AddedToken
    from workbench.tokenizer import BatchEncoding as BatchEncoding
    from workbench.tokenizer import LlamaTokenizer as LlamaTokenizer
    from workbench.tokenizer import LlamaTokenizerFast as LlamaTokenizerFast

__version__ = "0.1.0"

_HOME = {
    "Activations": "workbench.instrument",
    "AddedToken": "workbench.tokenizer",
    "AttentionMap": "workbench.analysis",
    "AttentionMaskVisualizer": "workbench.compat.mask_visualizer",
    "AutoConfig": "workbench.compat.auto",
    "AutoModel": "workbench.compat.auto",
    "AutoModelForCausalLM": "workbench.compat.auto",
    "AutoModelForQuestionAnswering": "workbench.compat.auto",
    "AutoModelForSequenceClassification": "workbench.compat.auto",
    "AutoModelForTokenClassification": "workbench.compat.auto",
    "AutoTokenizer": "workbench.compat.auto",
    "BatchEncoding": "workbench.tokenizer",
    "DynamicCache": "workbench.cache",
    "EosTokenCriteria": "workbench.generation",
    "FeatureExtractionPipeline": "workbench.compat.pipelines",
    "GenerationConfig": "workbench.generation",
    "LlamaConfig": "workbench.config",
    "LlamaForCausalLM": "workbench.model",
    "LlamaForQuestionAnswering": "workbench.model",
    "LlamaForSequenceClassification": "workbench.model",
    "LlamaForTokenClassification": "workbench.model",
    "LlamaModel": "workbench.model",
    "LlamaPreTrainedModel": "workbench.model",
    "LlamaTokenizer": "workbench.tokenizer",
    "LlamaTokenizerFast": "workbench.tokenizer",
    "LogitsProcessor": "workbench.generation",
    "LogitsProcessorList": "workbench.generation",
    "MaxLengthCriteria": "workbench.generation",
    "OffloadedCache": "workbench.cache",
    "Pipeline": "workbench.compat.pipelines",
    "QuantizedCache": "workbench.cache",
    "QuestionAnsweringPipeline": "workbench.compat.pipelines",
    "Sampler": "workbench.generation",
    "Session": "workbench.session",
    "SinkCache": "workbench.cache",
    "SlidingCache": "workbench.cache",
    "StaticCache": "workbench.cache",
    "StopStringCriteria": "workbench.generation",
    "StoppingCriteria": "workbench.generation",
    "StoppingCriteriaList": "workbench.generation",
    "TextClassificationPipeline": "workbench.compat.pipelines",
    "TextGenerationPipeline": "workbench.compat.pipelines",
    "TextIteratorStreamer": "workbench.generation",
    "TextStreamer": "workbench.generation",
    "Timeline": "workbench.generation",
    "TokenClassificationPipeline": "workbench.compat.pipelines",
    "TorchAoConfig": "workbench.checkpoints.quantization",
    "Workbench": "workbench.panels",
    "capture": "workbench.instrument",
    "check_consistency": "workbench.analysis",
    "check_mask": "workbench.analysis",
    "compare_caches": "workbench.analysis",
    "convert_kv_heads": "workbench.checkpoints.convert",
    "edit": "workbench.instrument",
    "find_heads": "workbench.analysis",
    "from_transformers": "workbench.interop",
    "head_metrics": "workbench.analysis",
    "load": "workbench.checkpoints.load",
    "load_cache": "workbench.cache",
    "logit_attribution": "workbench.analysis",
    "logit_lens": "workbench.analysis",
    "pipeline": "workbench.compat.pipelines",
    "plan": "workbench.instrument",
    "quantization_report": "workbench.checkpoints.quality",
    "quantize": "workbench.checkpoints.quantize",
    "selfcheck": "workbench.instrument",
    "set_seed": "workbench.compat.seed",
}

# Modules that are used by name: `wb.edits.zero(…)`, `wb.masks.window(64)`.
_MODULES = {
    "analysis": "workbench.analysis",
    "edits": "workbench.instrument.edits",
    "masks": "workbench.model.mask",
    "panels": "workbench.panels",
}

__all__ = [*_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name not in _HOME:
        raise AttributeError(f"module 'workbench' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
