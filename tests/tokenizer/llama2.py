"""The SentencePiece model of Llama 2, which is not part of the project."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "shared/data/llama2-tokenizer"
MODEL = FOLDER / "tokenizer.model"
needs_llama2 = pytest.mark.skipif(
    not MODEL.is_file(), reason="../shared/data/llama2-tokenizer is not here: the model's licence keeps it out"
)
