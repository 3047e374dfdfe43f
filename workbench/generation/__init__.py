"""Choosing next tokens, and the record of having chosen them."""

from workbench.generation.generate import generate
from workbench.generation.sampling import Sampler
from workbench.generation.timeline import Node, Timeline

__all__ = ["Node", "Sampler", "Timeline", "generate"]
