"""A damaged file either loads or is refused in words: no other exception, whatever bytes are changed."""

import contextlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.checkpoints.conftest import sentencepiece_metadata, small_model, vocabulary_size, write_folder, write_gguf
from workbench.checkpoints import CheckpointError
from workbench.checkpoints.load import load
from workbench.config import ConfigError
from workbench.tokenizer import TokenizerError

REFUSED = (CheckpointError, ConfigError, TokenizerError)
BYTES = st.integers(0, 255)


def damaged(data, positions, values):
    changed = bytearray(data)
    for position, value in zip(positions, values, strict=False):
        changed[position % len(changed)] = value
    return bytes(changed)


def load_or_refuse(path):
    with contextlib.suppress(*REFUSED):
        assert not any(value.is_meta for value in load(path).model.parameters())


@pytest.fixture(scope="module", params=["bytes", "sentencepiece"])
def gguf_bytes(request, tmp_path_factory):
    vocabulary = sentencepiece_metadata() if request.param == "sentencepiece" else None
    size = vocabulary_size(vocabulary)
    path = tmp_path_factory.mktemp("damage") / "tiny.gguf"
    write_gguf(path, small_model(num_hidden_layers=1, vocab_size=size), vocabulary=vocabulary)
    return path.read_bytes()


@given(st.lists(st.integers(0, 1300), min_size=1, max_size=3), st.lists(BYTES, min_size=3, max_size=3), st.booleans())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_gguf(gguf_bytes, tmp_path, positions, values, at_the_end):
    header = len(gguf_bytes) - 20_000  # the vocabulary's end and the tensor table are before the weights
    places = [header - position if at_the_end else position for position in positions]
    (tmp_path / "damaged.gguf").write_bytes(damaged(gguf_bytes, places, values))
    load_or_refuse(tmp_path / "damaged.gguf")


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json"])
@given(st.lists(st.integers(0, 2000), min_size=1, max_size=3), st.lists(BYTES, min_size=3, max_size=3))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_folder(tmp_path, name, positions, values):
    torch.manual_seed(0)
    folder = tmp_path / "tiny"
    if not folder.is_dir():
        write_folder(folder, small_model(num_hidden_layers=1), shards=2)
        (folder / name).rename(folder / "original")
    (folder / name).write_bytes(damaged((folder / "original").read_bytes(), positions, values))
    load_or_refuse(folder)
