"""Beam search: several continuations of each prompt at once, of which the best are kept (greedy or drawn).

Sequences, scores and the order of ties are those of `transformers`: where it adds −10⁹ to what may not be chosen, so
does this, in the same order, because float32 rounds what is added to it.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workbench.generation.loop import Task
from workbench.generation.reader import Reader, Step

NEVER = -1.0e9  # a score that nothing which may be chosen has


@dataclasses.dataclass(frozen=True)
class BeamOptions:
    """`count` beams a prompt; `max_length` of the texts; the others as in `GenerationConfig`."""

    count: int
    max_length: int
    early_stopping: bool | str = False
    length_penalty: float = 1.0


@dataclasses.dataclass(frozen=True)
class Beams:
    """Texts of each prompt, best first.

    `scores` are summed log-probabilities in nats, divided by the length penalty where a text has ended; `origins` is
    the row each new token was taken from, −1 behind a text's end.
    """

    ids: Int[Tensor, "batch beam pos"]
    scores: Float[Tensor, "batch beam"]
    origins: Int[Tensor, "batch beam new"]
    ended: Bool[Tensor, "batch beam"]

    def best(self, count: int) -> Beams:
        """The `count` best of each prompt, in order."""
        return self.pick(self.scores.topk(count).indices)

    def pick(self, index: Int[Tensor, "batch picked"]) -> Beams:
        """Some of each prompt's texts."""
        wide = index[..., None]
        return Beams(
            self.ids.take_along_dim(wide, 1),
            self.scores.take_along_dim(index, 1),
            self.origins.take_along_dim(wide, 1),
            self.ended.take_along_dim(index, 1),
        )

    def joined(self, more: Beams) -> Beams:
        """These texts and others of the same length."""
        pairs = ((getattr(self, f.name), getattr(more, f.name)) for f in dataclasses.fields(self))
        return Beams(*(torch.cat(pair, dim=1) for pair in pairs))

    def padded(self, fill: int) -> Beams:
        """The same texts, one position longer."""
        ids, origins = F.pad(self.ids, (0, 1), value=fill), F.pad(self.origins, (0, 1), value=-1)
        return dataclasses.replace(self, ids=ids, origins=origins)


def beam_search(
    reader: Reader, prompts: Int[Tensor, "row pos"], first: Step, task: Task, options: BeamOptions, returned: int
) -> tuple[Int[Tensor, "text pos"], Float[Tensor, " text"], Int[Tensor, "text new"], int]:
    """The best texts of each prompt, best first, their scores, where their tokens came from, and the number of steps.

    Args:
        reader: has read the prompts, and has `options.count` rows of each.
        prompts: those rows.
        first: what reading them gave.
        returned: how many texts of each prompt to return.
    """
    count, length = options.count, prompts.shape[1]
    running = _begin(prompts, count)
    # As many candidates that, should the best of them all end, as many others are left to go on with.
    spare = max(2, 1 + len(task.ends)) * count
    fill = _fill(task)
    done = dataclasses.replace(running, scores=torch.full_like(running.scores, NEVER))
    hopeful = torch.ones((len(running.ids), 1), dtype=torch.bool, device=prompts.device)  # may a better one come?
    step = first
    while True:
        candidates = _candidates(running, step, task, spare)
        going_on = candidates.scores + candidates.ended.float() * NEVER
        running = dataclasses.replace(candidates, scores=going_on).best(count)
        done = _take_ended(done.padded(fill), candidates, hopeful, options, length)
        reader.follow(running.origins[..., -1].flatten())
        hopeful = hopeful & _hope(running, done, options, length)
        finished = bool(done.ended.all()) and options.early_stopping is True
        if finished or bool(candidates.ended.all()) or not bool(hopeful.any()):
            break
        step = reader.read(running.ids.flatten(0, 1))
    chosen = done.pick(torch.arange(returned, device=prompts.device).expand(len(done.ids), -1))
    origins = chosen.origins.flatten(0, 1)
    new = int((origins >= 0).sum(1).max())
    steps = running.origins.shape[2]
    return chosen.ids.flatten(0, 1)[:, : length + new], chosen.scores.flatten(), origins[:, :new], steps


def _begin(prompts: Int[Tensor, "row pos"], count: int) -> Beams:
    """All beams begin alike; only the first counts, or they would stay alike."""
    ids = prompts.view(len(prompts) // count, count, prompts.shape[1])
    scores = torch.zeros(ids.shape[:2], device=ids.device)
    scores[:, 1:] = NEVER
    nothing = ids.new_empty((*ids.shape[:2], 0), dtype=torch.int32)
    return Beams(ids, scores, nothing, torch.zeros_like(scores, dtype=torch.bool))


def _fill(task: Task) -> int:
    # As transformers has it: a padding token 0 counts as none where there is an end token.
    if task.ends:
        return task.pad or task.ends[0]
    return -1 if task.pad is None else task.pad


def _candidates(running: Beams, step: Step, task: Task, spare: int) -> Beams:
    """The `spare` best, or drawn, continuations of each prompt's beams by one token."""
    batch, count = running.scores.shape
    logprobs = task.processors(running.ids.flatten(0, 1), step.logits.log_softmax(-1))
    task.kept.add(step, logprobs)
    vocab = logprobs.shape[-1]
    totals = (logprobs.view(batch, count, vocab) + running.scores[:, :, None]).flatten(1)
    if task.do_sample:
        index = torch.multinomial(totals.softmax(-1), spare, generator=task.generator)
        scores = totals.gather(1, index)
    else:
        scores, index = totals.topk(spare)
    beam = index // vocab
    rows = beam + torch.arange(batch, device=beam.device)[:, None] * count
    before = running.pick(beam)
    ids = torch.cat((before.ids, (index % vocab)[..., None]), dim=2)
    origins = torch.cat((before.origins, rows[..., None].int()), dim=2)
    ended = task.criteria(ids.flatten(0, 1), task.kept.scores).view(batch, spare)
    return Beams(ids, scores, origins, ended)


def _take_ended(done: Beams, candidates: Beams, hopeful: Tensor, options: BeamOptions, prompt: int) -> Beams:
    """The best ended texts, with those that have ended among the best candidates."""
    rank = torch.arange(candidates.scores.shape[1], device=candidates.scores.device)
    takes_part = candidates.ended & (rank < options.count)
    full = done.ended.all(1, keepdim=True) & (options.early_stopping is True)
    scores = candidates.scores / ((candidates.ids.shape[2] - prompt) ** options.length_penalty)
    for hindered in (full, ~hopeful, ~takes_part):
        scores = scores + hindered.float() * NEVER
    return done.joined(dataclasses.replace(candidates, scores=scores, ended=takes_part)).best(options.count)


def _hope(running: Beams, done: Beams, options: BeamOptions, prompt: int) -> Bool[Tensor, "batch 1"]:
    """Whether a running text may still become better than the worst ended one."""
    longest = options.early_stopping == "never" and options.length_penalty > 0.0
    new = (options.max_length if longest else running.ids.shape[2]) - prompt
    best = running.scores[:, :1] / new**options.length_penalty
    worst = torch.where(done.ended, done.scores.amin(1, keepdim=True), NEVER)
    hope: Tensor = (best > worst).any(1, keepdim=True)
    return hope
