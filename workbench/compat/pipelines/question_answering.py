"""The question-answering pipeline: the part of a text that answers a question."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from workbench.compat.pipelines.base import Pipeline, Row, check_choice, check_count, check_flag, check_text, no_further

MAX_SEQ_LEN = 384
MAX_STRIDE = 128
WORD = re.compile(r"\w+")
OPTIONS = (
    "top_k", "doc_stride", "max_answer_len", "max_seq_len", "max_question_len", "handle_impossible_answer",
    "align_to_words", "padding",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Settings:
    top_k: int
    max_seq_len: int
    doc_stride: int | None  # None: what suits the room
    max_answer_len: int
    max_question_len: int
    impossible: bool
    align: bool
    padding: Any


@dataclasses.dataclass(frozen=True)
class _Span:
    """What a row was cut from: the context, each token's place in it, and whether it is part of the context."""

    context: str
    offsets: list[tuple[int, int]]
    in_context: list[bool]


class QuestionAnsweringPipeline(Pipeline):
    """Finds the part of a context that answers a question.

        pipe = pipeline("question-answering", "models/tiny-reader")
        pipe(question="Where does Ada live?", context="Ada lives in London.")
        {'score': 0.93, 'start': 13, 'end': 19, 'answer': 'London'}

    A long context is read in parts of `max_seq_len` tokens (question and special tokens included) that share
    `doc_stride` tokens. Within a part, the probability that the answer begins at a token is the softmax of the start
    logits over the context's tokens, and so its end; an answer's score is the product of both. Which of question and
    context comes first follows the tokenizer's padding side, as the models were trained: the question if padding is on
    the right. "No answer" is the first token, as begin and as end; of several parts the lowest such score counts.
    """

    needs = ("LlamaForQuestionAnswering",)

    def __call__(
        self,
        inputs: Any = None,
        *,
        question: str | list[str] | None = None,
        context: str | list[str] | None = None,
        **options: Any,
    ) -> Any:
        """The best answer, or several.

        Args:
            inputs: `{"question": …, "context": …}`, or several in a list or iterator; instead of the next two.
            question, context: texts, or lists of equal length; one context may serve several questions.
            top_k: how many answers to return, 1 by default; fewer are returned if there are not as many.
            doc_stride: tokens that neighbouring parts share; by default half of max_seq_len, 128 at most, and at most
                half of what the question leaves for the context.
            max_answer_len: most tokens of an answer, default 15.
            max_seq_len: most tokens of a part, by default 384 or what the tokenizer allows.
            max_question_len: most tokens of the question, default 64; the rest is cut off.
            handle_impossible_answer: whether "no answer" (an empty text) may be the answer.
            align_to_words: widen answers to whole words, default True.
            padding: of the tokenizer, default none.
            batch_size: rows that go through the model together.

        Returns:
            For each question `{"score", "start", "end", "answer"}` with start and end in characters of the context; a
            list of them, the best first, where several were asked for and found.

        Raises:
            ValueError, TypeError: naming the argument that cannot be used.
        """
        if inputs is not None and (question is not None or context is not None):
            raise ValueError("inputs was given together with question or context; give one or the other.")
        if inputs is None:
            inputs = _paired(question, context)
        return self._call(inputs, options)

    def _settings(self, options: dict[str, Any]) -> _Settings:
        rest = {name: value for name, value in options.items() if value is not None}
        length = rest.pop("max_seq_len", min(self.tokenizer.model_max_length, MAX_SEQ_LEN))
        check_count("max_seq_len", length)
        settings = _Settings(
            top_k=rest.pop("top_k", 1),
            max_seq_len=length,
            doc_stride=rest.pop("doc_stride", None),
            max_answer_len=rest.pop("max_answer_len", 15),
            max_question_len=rest.pop("max_question_len", 64),
            impossible=rest.pop("handle_impossible_answer", False),
            align=rest.pop("align_to_words", True),
            padding=rest.pop("padding", "do_not_pad"),
        )
        no_further(rest, "question-answering", OPTIONS)
        for name in ("top_k", "max_answer_len", "max_question_len"):
            check_count(name, getattr(settings, name))
        if settings.doc_stride is not None:
            check_count("doc_stride", settings.doc_stride, least=0)
        check_flag("handle_impossible_answer", settings.impossible)
        check_flag("align_to_words", settings.align)
        if not isinstance(settings.padding, bool):
            check_choice("padding", settings.padding, ["do_not_pad", "longest", "max_length"])
        return settings

    # Rows -----------------------------------------------------------------------------------------------------------

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, Mapping | str)  # a text is refused, not read letter by letter

    def _rows(self, item: Any, settings: _Settings) -> list[Row]:
        if not isinstance(item, Mapping) or set(item) != {"question", "context"}:
            shown = f"the keys {', '.join(map(str, item))}" if isinstance(item, Mapping) else f"{item!r:.60}"
            raise ValueError(f'inputs holds {shown}; each is {{"question": ..., "context": ...}}.')
        question, context = item["question"], item["context"]
        for name, text in (("question", question), ("context", context)):
            check_text(name, text)
            if not text.strip():
                raise ValueError(f"{name} is empty; a text is needed.")
        return self._spans(self._cut(question, settings.max_question_len), context, settings)

    def _cut(self, question: str, limit: int) -> str:
        encoding = self.tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)
        offsets = encoding["offset_mapping"]
        return question if len(offsets) <= limit else question[: int(offsets[limit - 1][1])]

    def _spans(self, question: str, context: str, settings: _Settings) -> list[Row]:
        """The question with each part of the context."""
        side = 1 if self.tokenizer.padding_side == "right" else 0  # which of the two texts the context is
        stride = self._stride(question, settings)
        encoding = self.tokenizer(
            [question if side else context],
            [context if side else question],
            padding=settings.padding,
            truncation="only_second" if side else "only_first",
            max_length=settings.max_seq_len,
            stride=stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        rows = []
        for index, ids in enumerate(encoding["input_ids"]):
            offsets = [(int(start), int(end)) for start, end in encoding["offset_mapping"][index]]
            mask = list(encoding["attention_mask"][index])
            from_context = [sequence == side for sequence in encoding.sequence_ids(index)]
            rows.append(Row(list(ids), mask, _Span(context, offsets, from_context)))
        return rows

    def _stride(self, question: str, settings: _Settings) -> int:
        taken: int = len(self.tokenizer(question, add_special_tokens=False)["input_ids"])
        taken += self.tokenizer.num_special_tokens_to_add(pair=True)
        room = settings.max_seq_len - taken
        if room < 1 or (settings.doc_stride or 0) >= room:
            stride = "doc_stride" if settings.doc_stride is None else f"doc_stride, which is {settings.doc_stride},"
            raise ValueError(
                f"max_seq_len is {settings.max_seq_len}, of which question and special tokens take {taken}. That "
                f"leaves {max(room, 0)} tokens for the context, and {stride} must be less. Raise max_seq_len, or lower "
                "max_question_len or doc_stride."
            )
        if settings.doc_stride is not None:
            return settings.doc_stride
        return min(settings.max_seq_len // 2, MAX_STRIDE, room // 2)

    # Model and result -----------------------------------------------------------------------------------------------

    def _run(self, rows: list[Row], settings: _Settings) -> list[Any]:
        output: Any = self.model(**self._tensors(rows), use_cache=False)
        logits = torch.stack((output.start_logits, output.end_logits), dim=-1).float().cpu()
        return [self._unpadded(one, row) for one, row in zip(logits, rows, strict=True)]

    def _result(self, rows: list[Row], outputs: list[Any], settings: _Settings) -> Any:
        answers: dict[str, dict[str, Any]] = {}
        impossible = 1.0
        for row, logits in zip(rows, outputs, strict=True):
            span: _Span = row.about
            allowed = torch.tensor(span.in_context)
            begin, end = _probabilities(logits, allowed, settings.impossible)
            impossible = min(impossible, float(begin[0] * end[0]))
            if settings.impossible:
                allowed[0] = False
            for first, last, score in best_spans(begin, end, allowed, settings):
                _add(answers, span, (span.offsets[first][0], span.offsets[last][1]), score, settings.align)
        found = list(answers.values())
        if settings.impossible:
            found.append({"score": impossible, "start": 0, "end": 0, "answer": ""})
        found.sort(key=lambda answer: float(answer["score"]), reverse=True)
        best = found[: settings.top_k]
        return best[0] if len(best) == 1 else best


def best_spans(
    begin: Float[Tensor, " pos"], end: Float[Tensor, " pos"], allowed: Tensor, settings: Any
) -> list[tuple[int, int, float]]:
    """(first token, last token, score) of the likeliest spans, the best first.

    More than `top_k`, since those that are the same text are added up later.

    Args:
        begin, end: probability that the answer begins and ends at a token.
        allowed: bool (pos,), the tokens an answer may hold.
    """
    scores = (begin[:, None] * end[None]).triu().tril(settings.max_answer_len - 1)
    scores = scores * (allowed[:, None] & allowed[None])
    count = min(2 * settings.top_k + 10 if settings.align else settings.top_k, scores.numel())
    values, places = scores.flatten().topk(count)
    width = len(end)
    spans = zip(values.tolist(), places.tolist(), strict=True)
    return [(place // width, place % width, score) for score, place in spans if score > 0]


def _probabilities(logits: Float[Tensor, "pos 2"], in_context: Tensor, with_null: bool) -> tuple[Tensor, Tensor]:
    """Softmax over the context's tokens, and over the first token too where it stands for "no answer"."""
    allowed = in_context.clone()
    if with_null:
        allowed[0] = True
    chances = logits.double().masked_fill(~allowed[:, None], -torch.inf).softmax(0)
    return chances[:, 0], chances[:, 1]


def _add(answers: dict[str, dict[str, Any]], span: _Span, place: tuple[int, int], score: float, align: bool) -> None:
    start, end = _aligned(span.context, *place) if align else place
    text = span.context[start:end]
    if text.lower() in answers:
        answers[text.lower()]["score"] += score
    elif text:
        answers[text.lower()] = {"score": score, "start": start, "end": end, "answer": text}


def _aligned(context: str, start: int, end: int) -> tuple[int, int]:
    """The place without spaces around it, widened to whole words."""
    while start < end and context[start].isspace():
        start += 1
    while end > start and context[end - 1].isspace():
        end -= 1
    for word in WORD.finditer(context):
        if word.start() < start < word.end():
            start = word.start()
        if word.start() < end < word.end():
            end = word.end()
    return start, end


def _paired(question: Any, context: Any) -> Any:
    """The dictionaries that questions and contexts make."""
    for name, value in (("question", question), ("context", context)):
        if value is None:
            raise ValueError(f"{name} is missing; give question and context.")
    if isinstance(question, str):
        if not isinstance(context, str):
            raise TypeError(f"context is a {type(context).__name__}; one question needs one context, a str.")
        return {"question": question, "context": context}
    if not isinstance(question, Iterable):
        raise TypeError(f"question is a {type(question).__name__}; a text or a list of texts is needed.")
    questions = list(question)
    contexts = [context] * len(questions) if isinstance(context, str) else list(context)
    if len(questions) != len(contexts):
        raise ValueError(f"There are {len(questions)} texts in question and {len(contexts)} in context; give as many.")
    return [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]
