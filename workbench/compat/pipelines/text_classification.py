"""The text-classification pipeline: a label, or several, for a text or a pair of texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from workbench.compat.pipelines.base import Pipeline, Row, check_choice, check_count, check_text

FUNCTIONS = ("sigmoid", "softmax", "none")


@dataclasses.dataclass(frozen=True)
class _Settings:
    listed: bool  # whether top_k was given, which makes the result a list
    top_k: int | None
    function: str
    encode: dict[str, Any]


class TextClassificationPipeline(Pipeline):
    """Classifies texts; also called sentiment-analysis.

    pipe = pipeline("text-classification", "models/tiny-classifier")
    pipe("A good film.")                      [{'label': 'POSITIVE', 'score': 0.98}]
    pipe({"text": "A", "text_pair": "B"})     {'label': ..., 'score': ...}
    """

    needs = ("LlamaForSequenceClassification",)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """The likeliest label of each text, or several labels.

        Args:
            inputs: a text, a pair `{"text": …, "text_pair": …}`, or several in a list or iterator.
            top_k: how many labels to return, the likeliest first; `None` for all. Without it the one likeliest.
            function_to_apply: what turns logits into scores: `"sigmoid"`, `"softmax"` or `"none"`. By default none for
                regression, sigmoid for several labels a text and where there is one label, softmax otherwise.
            batch_size: texts that go through the model together.
            **options: of the tokenizer's call, such as `truncation=True, max_length=512`.

        Returns:
            `{"label": …, "score": …}` for each text, with `top_k` a list of them; for a single text in a list of one,
            as `transformers` does.

        Raises:
            ValueError, TypeError: naming the argument that cannot be used.
        """
        result = self._call(inputs, options)
        return [result] if isinstance(inputs, str) and "top_k" not in options else result

    def _settings(self, options: dict[str, Any]) -> _Settings:
        rest = dict(options)
        listed, top_k = "top_k" in rest, rest.pop("top_k", 1)
        if top_k is not None:
            check_count("top_k", top_k)
        function = rest.pop("function_to_apply", None)
        if function is not None:
            check_choice("function_to_apply", function, FUNCTIONS)
        return _Settings(listed, top_k, function or self._default_function(), rest)

    def _default_function(self) -> str:
        config: Any = self.model.config
        if config.problem_type == "regression":
            return "none"
        several = config.problem_type == "multi_label_classification"
        return "sigmoid" if several or config.num_labels == 1 else "softmax"

    def _is_one(self, inputs: Any) -> bool:
        return isinstance(inputs, str | Mapping)

    def _rows(self, item: Any, settings: _Settings) -> list[Row]:
        if isinstance(item, Mapping):
            if "text" not in item or not set(item) <= {"text", "text_pair"}:
                raise ValueError(f'inputs holds a dictionary of {", ".join(map(str, item))}; a pair is {{"text": ..., '
                                 '"text_pair": ...}.')  # fmt: skip
            texts = dict(item)
        elif isinstance(item, list) and len(item) == 1 and isinstance(item[0], list) and len(item[0]) == 2:
            texts = {"text": item[0][0], "text_pair": item[0][1]}  # the older spelling of a pair
        elif isinstance(item, list | tuple):
            raise ValueError(
                'inputs holds a list of lists. To classify a pair of texts give {"text": ..., "text_pair": ...}.'
            )
        else:
            texts = {"text": item}
        for name, text in texts.items():
            check_text(name, text)
        encoding = self.tokenizer(**texts, **settings.encode)
        return [Row(list(encoding["input_ids"]), list(encoding["attention_mask"]))]

    def _run(self, rows: list[Row], settings: _Settings) -> list[Any]:
        logits: Tensor = self.model(**self._tensors(rows), use_cache=False).logits
        return list(_scores(logits.float().cpu(), settings.function))

    def _result(self, rows: list[Row], outputs: list[Any], settings: _Settings) -> Any:
        config: Any = self.model.config
        scores = enumerate(outputs[0].tolist())
        ranked = [{"label": config.id2label[index], "score": score} for index, score in scores]
        ranked.sort(key=lambda entry: entry["score"], reverse=True)
        return ranked[: settings.top_k] if settings.listed else ranked[0]


def _scores(logits: Tensor, function: str) -> Tensor:
    if function == "sigmoid":
        return torch.sigmoid(logits)
    return logits.softmax(-1) if function == "softmax" else logits
