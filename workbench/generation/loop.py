"""The loop without beams: one token a row and step, the most likely one or a drawn one."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.generation.processors import LogitsProcessorList
from workbench.generation.reader import Reader, Step
from workbench.generation.stopping import EosTokenCriteria, MaxLengthCriteria, StoppingCriteriaList
from workbench.generation.streamers import Streamer

SPARE = 256  # tokens the ids may grow by before they are copied


@dataclasses.dataclass
class Task:
    """What a loop needs besides the texts: how scores become tokens, when rows end, and what is kept of each step."""

    processors: LogitsProcessorList
    criteria: StoppingCriteriaList
    ends: tuple[int, ...]
    pad: int | None
    do_sample: bool = False
    generator: torch.Generator | None = None
    streamer: Streamer | None = None
    kept: Kept = dataclasses.field(default_factory=lambda: Kept())


class Kept:
    """What is kept of every step, by the names of the outputs; lists of one entry a step."""

    def __init__(self, *names: str) -> None:
        self.steps: dict[str, list[Any]] = {name: [] for name in names}

    def add(self, step: Step, scores: Float[Tensor, "row vocab"]) -> None:
        """Keeps what was asked for of one step."""
        found = {
            "scores": scores,
            "logits": step.logits,
            "attentions": step.attentions,
            "hidden_states": step.hidden_states,
        }
        for name, values in self.steps.items():
            values.append(found[name])

    @property
    def scores(self) -> tuple[Tensor, ...] | None:
        """The scores so far, if they are kept: what stopping criteria are given."""
        return tuple(self.steps["scores"]) if "scores" in self.steps else None

    def outputs(self, count: int) -> dict[str, tuple[Any, ...]]:
        """What was kept of the first `count` steps."""
        return {name: tuple(values[:count]) for name, values in self.steps.items()}


def choose_and_read(reader: Reader, prompts: Int[Tensor, "row pos"], first: Step, task: Task) -> Int[Tensor, "row pos"]:
    """The prompts with their continuations, until every row has ended.

    Args:
        reader: has read the prompts; it reads every new token but the last.
        first: what reading the prompts gave.
    """
    texts = _Texts(prompts)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=prompts.device)
    stop = _Stop(task, prompts.device)
    step = first
    while True:
        scores = task.processors(texts.ids, step.logits.clone())
        task.kept.add(step, scores)
        token = _pick(scores, task)
        if task.ends and task.pad is not None:
            token = token.masked_fill(ended, task.pad)
        texts.append(token)
        if task.streamer is not None:
            task.streamer.put(token.cpu())
        ended = ended | task.criteria(texts.ids, task.kept.scores)
        if stop.reached(ended, texts.ids.shape[1]):
            break
        step = reader.read(texts.ids)
    ids = texts.ids[:, : texts.ids.shape[1] - stop.too_many]
    if stop.too_many and reader.cache is not None:
        reader.cache.crop(reader.cache.length - stop.too_many)
    return ids.clone()


def _pick(scores: Float[Tensor, "row vocab"], task: Task) -> Int[Tensor, " row"]:
    if not task.do_sample:
        return scores.argmax(-1)
    return torch.multinomial(scores.softmax(-1), 1, generator=task.generator)[:, 0]


class _Texts:
    """Ids that grow by one position at a time, mostly in place."""

    def __init__(self, ids: Int[Tensor, "row pos"]) -> None:
        self._store, self._length = ids, ids.shape[1]

    @property
    def ids(self) -> Int[Tensor, "row pos"]:
        """The ids so far. A view: what is appended is written behind it."""
        return self._store[:, : self._length]

    def append(self, token: Int[Tensor, " row"]) -> None:
        """Adds one position."""
        if self._length == self._store.shape[1]:
            room = self._store.new_zeros((len(token), max(SPARE, self._length // 4)))
            self._store = torch.cat((self.ids, room), dim=1)
        self._store[:, self._length] = token
        self._length += 1


class _Stop:
    """Whether all rows have ended.

    On CUDA asking at once would make the host wait for the device at every step. Where only length and end tokens end
    rows and nobody listens, the answer is copied behind the step and looked at one step later; `too_many` is how many
    tokens were added after the end.
    """

    def __init__(self, task: Task, device: torch.device) -> None:
        self.too_many = 0
        self._last = task.criteria.max_length
        own = all(type(one) in (MaxLengthCriteria, EosTokenCriteria) for one in task.criteria)
        self._by_length = own and not task.ends
        self._late = device.type == "cuda" and own and task.streamer is None
        self._before: tuple[Tensor, torch.cuda.Event] | None = None

    def reached(self, ended: Bool[Tensor, " row"], length: int) -> bool:
        """Whether to stop, after the step that made the texts `length` long."""
        full = self._last is not None and length >= self._last
        if self._by_length:
            return full
        if not self._late:
            return bool(ended.all())
        before, self._before = self._before, None if full else self._ask(ended)
        if before is not None:
            before[1].synchronize()
            if bool(before[0]):
                self.too_many = 1
                return True
        return full

    @staticmethod
    def _ask(ended: Bool[Tensor, " row"]) -> tuple[Tensor, torch.cuda.Event]:
        answer = torch.empty((), dtype=torch.bool, pin_memory=True)
        answer.copy_(ended.all(), non_blocking=True)
        asked = torch.cuda.Event()  # type: ignore[no-untyped-call]
        asked.record()
        return answer, asked
