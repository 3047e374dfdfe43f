"""Choosing next tokens, and the record of having chosen them."""

from workbench.generation.config import GenerationConfig
from workbench.generation.generate import generate
from workbench.generation.outputs import (
    GenerateBeamDecoderOnlyOutput,
    GenerateDecoderOnlyOutput,
    compute_transition_scores,
)
from workbench.generation.processors import LogitsProcessor, LogitsProcessorList
from workbench.generation.sampling import Sampler
from workbench.generation.stopping import (
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)
from workbench.generation.streamers import Streamer, TextIteratorStreamer, TextStreamer
from workbench.generation.timeline import Candidate, Node, Stop, Timeline

__all__ = [
    "Candidate",
    "EosTokenCriteria",
    "GenerateBeamDecoderOnlyOutput",
    "GenerateDecoderOnlyOutput",
    "GenerationConfig",
    "LogitsProcessor",
    "LogitsProcessorList",
    "MaxLengthCriteria",
    "MaxTimeCriteria",
    "Node",
    "Sampler",
    "Stop",
    "StopStringCriteria",
    "StoppingCriteria",
    "StoppingCriteriaList",
    "Streamer",
    "TextIteratorStreamer",
    "TextStreamer",
    "Timeline",
    "compute_transition_scores",
    "generate",
]
