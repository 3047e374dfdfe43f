"""The token-classification pipeline: a label for each token, or for each group of tokens."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from torch import Tensor

from workbench.compat.pipelines import entities
from workbench.compat.pipelines.base import Pipeline, Row, check_choice, check_count, check_flag, check_text, no_further

OPTIONS = ("aggregation_strategy", "ignore_labels", "stride", "is_split_into_words", "delimiter")


@dataclasses.dataclass(frozen=True)
class _Settings:
    strategy: str
    ignored: tuple[str, ...]
    stride: int | None
    delimiter: str | None  # None for plain texts, else what joins the words of a text


@dataclasses.dataclass(frozen=True)
class _Part:
    """What a row was cut from: the text, each token's place in it, and which tokens are special."""

    text: str
    offsets: list[tuple[int, int]]
    special: list[int]


class TokenClassificationPipeline(Pipeline):
    """Labels tokens, for example names; also called ner.

    pipe = pipeline("token-classification", "models/tiny-tagger", aggregation_strategy="simple")
    pipe("Ada lives in London")
    [{'entity_group': 'PER', 'score': 0.99, 'word': 'Ada', 'start': 0, 'end': 3}, …]
    """

    needs = ("LlamaForTokenClassification",)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """The labelled tokens or groups of each text.

        Args:
            inputs: a text, or several in a list or iterator; with `is_split_into_words`, a list of words, or several.
            aggregation_strategy: `"none"` for every token; `"simple"` joins neighbours of one label (a `B-` begins a
                new group); `"first"`, `"average"` and `"max"` first give the tokens of a word one label: that of the
                first, of the mean score, or of the highest. Words are what spaces part.
            ignore_labels: labels that are left out, default `["O"]`.
            stride: for texts longer than `tokenizer.model_max_length`: they are cut into parts of that length which
                share so many tokens; of groups that overlap the longer one stays. Without it the rest is cut off.
            is_split_into_words, delimiter: the texts are lists of words, joined by the delimiter (a space) for
                `start`, `end` and display.
            batch_size: rows that go through the model together.

        Returns:
            A list of dictionaries for each text: `entity` (`entity_group` when aggregated), `score`, `word`, `start`,
            `end` in characters, and without aggregation `index`, the token's position.

        Raises:
            ValueError, TypeError: naming the argument that cannot be used.
        """
        return self._call(inputs, options)

    def _settings(self, options: dict[str, Any]) -> _Settings:
        rest = dict(options)
        strategy = rest.pop("aggregation_strategy", None) or "none"
        if isinstance(strategy, str):
            strategy = strategy.lower()
        check_choice("aggregation_strategy", strategy, entities.STRATEGIES)
        ignored = rest.pop("ignore_labels", None)
        if ignored is not None and (isinstance(ignored, str) or not all(isinstance(label, str) for label in ignored)):
            raise TypeError(f"ignore_labels is {ignored!r:.60}; a list of labels is needed.")
        stride = rest.pop("stride", None)
        if stride is not None:
            self._check_stride(stride, strategy)
        split = rest.pop("is_split_into_words", False)
        check_flag("is_split_into_words", split)
        delimiter = rest.pop("delimiter", None)
        if delimiter is not None:
            check_text("delimiter", delimiter)
        no_further(rest, "token-classification", OPTIONS)
        joint = (" " if delimiter is None else delimiter) if split else None
        return _Settings(strategy, ("O",) if ignored is None else tuple(ignored), stride, joint)

    def _check_stride(self, stride: Any, strategy: str) -> None:
        check_count("stride", stride, least=0)
        if strategy == "none":
            raise ValueError(
                "stride needs an aggregation_strategy other than 'none': parts that overlap label tokens twice."
            )
        limit = self.tokenizer.model_max_length
        if stride >= limit:
            raise ValueError(f"stride is {stride}; it must be less than tokenizer.model_max_length, which is {limit}.")

    # Rows -----------------------------------------------------------------------------------------------------------

    def _grouped(self, inputs: Any, settings: _Settings) -> Any:
        """A list of words is the list of one text."""
        if settings.delimiter is None or not isinstance(inputs, list | tuple) or not inputs:
            return inputs
        return inputs if all(isinstance(item, list | tuple) for item in inputs) else [inputs]

    def _rows(self, item: Any, settings: _Settings) -> list[Row]:
        words = None
        if settings.delimiter is None:
            check_text("inputs", item)
            text = item
        elif isinstance(item, list | tuple) and all(isinstance(word, str) for word in item):
            words, text = list(item), settings.delimiter.join(item)
        else:
            raise TypeError(
                f"inputs holds a {type(item).__name__} ({item!r:.60}); with is_split_into_words=True each text is a "
                "list of its words."
            )
        options: dict[str, Any] = {"truncation": True} if _is_limited(self.tokenizer) else {}
        if settings.stride is not None:
            options |= {"return_overflowing_tokens": True, "stride": settings.stride}
        if words is not None:
            options["is_split_into_words"] = True
        encoding = self.tokenizer(
            [item if words is None else words], return_special_tokens_mask=True, return_offsets_mapping=True, **options
        )
        rows = []
        for index, ids in enumerate(encoding["input_ids"]):
            offsets = [(int(start), int(end)) for start, end in encoding["offset_mapping"][index]]
            if words is not None:
                offsets = _moved(offsets, encoding.word_ids(index), words, len(settings.delimiter or ""))
            part = _Part(text, offsets, list(encoding["special_tokens_mask"][index]))
            rows.append(Row(list(ids), list(encoding["attention_mask"][index]), part))
        return rows

    # Model and result -----------------------------------------------------------------------------------------------

    def _run(self, rows: list[Row], settings: _Settings) -> list[Any]:
        logits: Tensor = self.model(**self._tensors(rows), use_cache=False).logits
        scores = logits.float().softmax(-1).cpu()
        return [self._unpadded(one, row) for one, row in zip(scores, rows, strict=True)]

    def _result(self, rows: list[Row], outputs: list[Any], settings: _Settings) -> list[entities.Entity]:
        config: Any = self.model.config
        join = self.tokenizer.convert_tokens_to_string
        found = []
        for row, scores in zip(rows, outputs, strict=True):
            tokens = self._tokens(row, scores)
            found += entities.entities_of(tokens, settings.strategy, config.id2label, join)
        kept = [one for one in found if one.get("entity", one.get("entity_group")) not in settings.ignored]
        return entities.without_overlaps(kept) if len(rows) > 1 else kept

    def _tokens(self, row: Row, scores: Tensor) -> list[entities.Token]:
        part: _Part = row.about
        tokens = []
        for index, token_id in enumerate(row.input_ids):
            if part.special[index]:
                continue
            start, end = part.offsets[index]
            # A Llama vocabulary does not say where words end; spaces of the text do.
            begins = start == 0 or " " in part.text[start - 1 : start + 1]
            word = self.tokenizer.convert_ids_to_tokens(token_id)
            if token_id == self.tokenizer.unk_token_id:
                word, begins = part.text[start:end], True
            tokens.append(entities.Token(word, scores[index].tolist(), start, end, index, begins))
        return tokens


def _is_limited(tokenizer: Any) -> bool:
    """Whether the tokenizer knows the model's length."""
    limit = tokenizer.model_max_length
    return bool(limit) and math.isfinite(limit) and limit < 1 << 31


def _moved(
    offsets: list[tuple[int, int]], word_ids: list[int | None], words: list[str], joint: int
) -> list[tuple[int, int]]:
    """Places within words → places within the text that the words make together."""
    begins, place = [], 0
    for word in words:
        begins.append(place)
        place += len(word) + joint
    shifts = [0 if index is None else begins[index] for index in word_ids]
    return [(start + shift, end + shift) for (start, end), shift in zip(offsets, shifts, strict=True)]
