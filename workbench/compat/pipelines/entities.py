"""From labelled tokens to groups of them: the aggregation strategies of token classification, as plain functions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

STRATEGIES = ("none", "simple", "first", "average", "max")
Entity = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Token:
    """One token with the probability of each label.

    Attributes:
        word: its spelling in the vocabulary.
        scores: probabilities by label index.
        start, end: its place in the text, in characters.
        index: its position in the sequence.
        begins_word: whether a word of the text begins with it.
    """

    word: str
    scores: list[float]
    start: int
    end: int
    index: int
    begins_word: bool


def entities_of(
    tokens: Sequence[Token], strategy: str, labels: Mapping[int, str], join: Callable[[list[str]], str]
) -> list[Entity]:
    """Entities as the pipeline returns them.

    Args:
        tokens: in the order of the text, without special tokens.
        strategy: one of `STRATEGIES`.
        labels: names of the labels.
        join: the text of some tokens' spellings.
    """
    if strategy in ("none", "simple"):
        found = [_entity(token, labels) for token in tokens]
    else:
        found = [_word(group, strategy, labels, join) for group in _words(tokens)]
    return found if strategy == "none" else [_group(group, join) for group in _neighbours(found)]


def without_overlaps(entities: Sequence[Entity]) -> list[Entity]:
    """Of entities that overlap the longest, and of equally long ones that with the higher score."""
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda one: int(one["start"])):
        if kept and kept[-1]["start"] <= entity["start"] < kept[-1]["end"]:
            if _weight(entity) > _weight(kept[-1]):
                kept[-1] = entity
        else:
            kept.append(entity)
    return kept


def _weight(entity: Entity) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]


def _best(scores: Sequence[float]) -> tuple[int, float]:
    index = max(range(len(scores)), key=scores.__getitem__)
    return index, scores[index]


def _entity(token: Token, labels: Mapping[int, str]) -> Entity:
    index, score = _best(token.scores)
    return {
        "entity": labels[index],
        "score": score,
        "index": token.index,
        "word": token.word,
        "start": token.start,
        "end": token.end,
    }


def _words(tokens: Sequence[Token]) -> list[list[Token]]:
    words: list[list[Token]] = []
    for token in tokens:
        if words and not token.begins_word:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _word(
    tokens: Sequence[Token], strategy: str, labels: Mapping[int, str], join: Callable[[list[str]], str]
) -> Entity:
    """The tokens of a word with one label for all."""
    if strategy == "first":
        scores = tokens[0].scores
    elif strategy == "max":
        scores = max(tokens, key=lambda token: max(token.scores)).scores
    else:
        scores = [sum(column) / len(tokens) for column in zip(*(token.scores for token in tokens), strict=True)]
    index, score = _best(scores)
    word = join([token.word for token in tokens])
    return {"entity": labels[index], "score": score, "word": word, "start": tokens[0].start, "end": tokens[-1].end}


def _tag(label: str) -> tuple[bool, str]:
    """Whether a label begins a group, and its name without `B-` or `I-`."""
    return label.startswith("B-"), label[2:] if label[:2] in ("B-", "I-") else label


def _neighbours(entities: Sequence[Entity]) -> list[list[Entity]]:
    """Runs of one label; a `B-` begins a run."""
    runs = [[entities[0]]] if entities else []
    for last, entity in pairwise(entities):
        begins, tag = _tag(entity["entity"])
        if begins or tag != _tag(last["entity"])[1]:
            runs.append([entity])
        else:
            runs[-1].append(entity)
    return runs


def _group(entities: Sequence[Entity], join: Callable[[list[str]], str]) -> Entity:
    return {
        "entity_group": entities[0]["entity"].split("-", 1)[-1],
        "score": sum(entity["score"] for entity in entities) / len(entities),
        "word": join([entity["word"] for entity in entities]),
        "start": entities[0]["start"],
        "end": entities[-1]["end"],
    }
