"""The feature-extraction pipeline: the vectors that a model makes of a text."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from workbench.compat.pipelines.base import Pipeline, Row, check_flag, check_text, no_further

OPTIONS = ("truncation", "tokenize_kwargs", "return_tensors")


@dataclasses.dataclass(frozen=True)
class _Settings:
    tensors: bool
    encode: dict[str, Any]


class FeatureExtractionPipeline(Pipeline):
    """The last hidden state, after the final norm, of each token of a text.

        pipe = pipeline("feature-extraction", "models/tiny-llama")
        pipe("This is a simple test.", return_tensors=True).shape     torch.Size([1, 6, 32])

    Padding of a batch is no part of the result, so a text's vectors do not depend on its neighbours.
    """

    needs = ("LlamaModel",)

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """The vectors of one or several texts.

        Args:
            inputs: a text, or several in a list or iterator.
            return_tensors: True for a tensor (1, pos, d_model); otherwise lists, nested as deep.
            truncation: of the tokenizer; tokenize_kwargs: its further options, as a dictionary.
            batch_size: texts that go through the model together.

        Raises:
            ValueError, TypeError: naming the argument that cannot be used.
        """
        return self._call(inputs, options)

    def _settings(self, options: dict[str, Any]) -> _Settings:
        rest = dict(options)
        encode = rest.pop("tokenize_kwargs", None) or {}
        if not isinstance(encode, dict):
            raise TypeError(f"tokenize_kwargs is a {type(encode).__name__}; a dictionary is needed.")
        truncation = rest.pop("truncation", None)
        if truncation is not None and "truncation" in encode:
            raise ValueError("truncation is given twice: as an argument and in tokenize_kwargs. Give it once.")
        tensors = rest.pop("return_tensors", None) or False
        check_flag("return_tensors", tensors)
        no_further(rest, "feature-extraction", OPTIONS)
        return _Settings(tensors, encode if truncation is None else {**encode, "truncation": truncation})

    def _rows(self, item: Any, settings: _Settings) -> list[Row]:
        check_text("inputs", item)
        encoding = self.tokenizer(item, **settings.encode)
        return [Row(list(encoding["input_ids"]), list(encoding["attention_mask"]))]

    def _run(self, rows: list[Row], settings: _Settings) -> list[Any]:
        states: Tensor = self.model(**self._tensors(rows), use_cache=False).last_hidden_state
        return [self._unpadded(state, row).cpu() for state, row in zip(states, rows, strict=True)]

    def _result(self, rows: list[Row], outputs: list[Any], settings: _Settings) -> Any:
        features: Tensor = outputs[0][None]
        return features if settings.tensors else features.tolist()
