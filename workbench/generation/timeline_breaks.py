"""When `run_until` stops."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from workbench.generation.config import GenerationConfig
from workbench.generation.stopping import StopStringCriteria
from workbench.generation.timeline_engine import Engine
from workbench.generation.timeline_input import token_id
from workbench.generation.timeline_tree import Node

SPARE = 8  # tokens of the text that a stop string is looked for in, besides as many as it has bytes


class Stop(NamedTuple):
    """Why a run ended, and the tokens it took.

    `reason` is "eos", "stop_string", "entropy", "probability", "max_new_tokens", "length" (the model's, or the
    cache's) or "stopped".
    """

    reason: str
    nodes: list[Node]


@dataclasses.dataclass(frozen=True)
class Breakpoints:
    """What ends a run, looked at after every token.

    Attributes:
        ends: tokens that do.
        strings: texts that do when the newest token completes one of them.
        entropy: nats; a token that was taken from a prediction with more does.
        token, probability: a prediction that gives a token less than this does; `None` is the token taken.
    """

    ends: tuple[int, ...] = ()
    strings: StopStringCriteria | None = None
    entropy: float | None = None
    token: int | None = None
    probability: float | None = None

    @classmethod
    def of(
        cls,
        engine: Engine,
        tokenizer: Any,
        stop_string: str | Sequence[str] | None,
        eos: bool,
        entropy_above: float | None,
        probability_below: float | tuple[int, float] | None,
    ) -> Breakpoints:
        """Checked.

        Raises:
            TypeError, ValueError: for values that are not allowed.
        """
        if not isinstance(eos, bool):
            raise TypeError(f"eos is {eos!r}; it must be True or False.")
        model = engine.reader.model
        assert model is not None
        token, below = None, probability_below
        if isinstance(below, tuple):
            if len(below) != 2:
                raise ValueError(f"probability_below is {below!r}; give a probability, or (token id, probability).")
            token, below = token_id(below[0], model.config.vocab_size), below[1]
        return cls(
            GenerationConfig.of_model(model).eos_token_ids if eos else (),
            _strings(tokenizer, stop_string),
            _number("entropy_above", entropy_above, 0.0, math.inf),
            token,
            _number("probability_below", below, 0.0, 1.0),
        )

    def reached(self, engine: Engine, node: Node) -> str | None:
        """Which of them a new token reaches, if any."""
        if node.token in self.ends:
            return "eos"
        if self.strings is not None:
            longest = max(len(text.encode()) for text in self.strings.stop_strings)  # no token is less than a byte
            ids = [one.token for one in engine.tree.tail(node, node.position - longest - SPARE)]
            if bool(self.strings(torch.tensor([ids]))[0]):
                return "stop_string"
        if self.entropy is not None and node.entropy is not None and node.entropy > self.entropy:
            return "entropy"
        if self.probability is not None and self._probability(engine, node) < self.probability:
            return "probability"
        return None

    def _probability(self, engine: Engine, node: Node) -> float:
        if self.token is None or self.token == node.token:
            return 1.0 if node.logprob is None else math.exp(node.logprob)
        if self.token in node.top_ids:
            return math.exp(node.top_logprobs[node.top_ids.index(self.token)])
        assert node.parent is not None
        logits = engine.logits(engine.tree.nodes[node.parent])
        return math.exp(float(logits[self.token]) - node.top_logits[0] + node.top_logprobs[0])


def _strings(tokenizer: Any, stop_string: Any) -> StopStringCriteria | None:
    if stop_string is None:
        return None
    if tokenizer is None:
        raise ValueError(
            "stop_string needs the tokenizer, and this timeline has none. Make it with Timeline(model, tokenizer)."
        )
    if not isinstance(stop_string, str | list | tuple):
        raise TypeError(f"stop_string is {stop_string!r}; give a text, or several in a list.")
    return StopStringCriteria(tokenizer, stop_string)


def _number(name: str, value: Any, low: float, high: float) -> float | None:
    if value is None:
        return None
    wanted = "a number of nats, 0 or more" if high == math.inf else f"a probability between {low:g} and {high:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}; it must be {wanted}.")
    if not low <= value <= high:  # nan, too
        raise ValueError(f"{name} is {value!r}; it must be {wanted}.")
    return float(value)
