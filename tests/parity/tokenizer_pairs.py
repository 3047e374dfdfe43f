"""Pairs of tokenizers, ours and that of transformers, made of the same folder; and how they are compared."""

import warnings

import numpy as np
import pytest
import torch
import transformers

from tests.tokenizer.llama2 import FOLDER, MODEL
from workbench.checkpoints.load import default_model
from workbench.tokenizer import LlamaTokenizer, TokenizerError

ASKED = {
    "return_special_tokens_mask": True,
    "return_offsets_mapping": True,
    "return_length": True,
    "return_token_type_ids": True,
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
VOCAB = [
    "<unk>",
    "<s>",
    "</s>",
    *[f"<0x{byte:02X}>" for byte in range(256)],
    "▁",
    *"abcdehlnorstuwx",
    "▁a",
    "on",
    "one",
]
VOCAB += ["▁one", "tw", "two", "▁two", "th", "▁▁"]
MERGES = [
    ("▁", "a"),
    ("o", "n"),
    ("on", "e"),
    ("▁", "one"),
    ("t", "w"),
    ("tw", "o"),
    ("▁", "two"),
    ("t", "h"),
    ("▁", "▁"),
]


def made_by_theirs(folder):
    theirs = transformers.LlamaTokenizer(
        vocab={token: index for index, token in enumerate(VOCAB)}, merges=MERGES, add_bos_token=True, **TOKENS
    )
    theirs.save_pretrained(folder)


def made_by_ours(folder):
    ids = {token: index for index, token in enumerate(VOCAB)}
    LlamaTokenizer(ids, MERGES, add_eos_token=True, legacy=True, **TOKENS).save_pretrained(folder)


def made_of_default_model(folder):
    LlamaTokenizer.from_pretrained(default_model()).save_pretrained(folder)


def llama2(folder):
    if not MODEL.is_file():
        pytest.skip("../shared/data/llama2-tokenizer is not here: the model's licence keeps it out")
    LlamaTokenizer.from_pretrained(FOLDER, pad_token="<unk>").save_pretrained(folder)


MAKERS = [made_by_theirs, made_by_ours, made_of_default_model, llama2]


@pytest.fixture(scope="module", params=MAKERS, ids=lambda f: f.__name__)
def pair(request, tmp_path_factory):
    """(ours, theirs) of one folder."""
    folder = tmp_path_factory.mktemp("tokenizer")
    request.param(folder)
    ours = LlamaTokenizer.from_pretrained(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs.padding_side == ours.padding_side == "left"
    return ours, theirs


def plain(values):
    found = {}
    for key, value in values.items():
        if isinstance(value, torch.Tensor | np.ndarray):
            value = value.tolist()
        found[key] = (
            [[tuple(entry) for entry in row] for row in value]
            if key == "offset_mapping" and value and value[0] and isinstance(value[0][0], list | tuple)
            else value
        )
    return found


def same(pair, *texts, **options):
    """Equal results, or both refuse. Returns ours."""
    ours, theirs = pair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = theirs(*texts, **options)
        except BaseException as error:  # panics inside the Rust library among them
            if isinstance(error, KeyboardInterrupt):
                raise
            expected = None
        uneven = expected and any(isinstance(v, np.ndarray) and v.dtype == object for v in expected.values())
        if expected is None or uneven:
            with pytest.raises(TokenizerError):
                ours(*texts, **options)
            return None
        actual = ours(*texts, **options)
    assert list(actual) == list(expected)
    assert plain(actual) == plain(expected)
    assert {key: type(value) for key, value in actual.items()} == {key: type(value) for key, value in expected.items()}
    if actual.encodings:
        for row in range(len(actual.encodings)):
            assert actual.tokens(row) == expected.tokens(row)
            assert actual.word_ids(row) == expected.word_ids(row)
            assert actual.sequence_ids(row) == expected.sequence_ids(row)
    return actual
