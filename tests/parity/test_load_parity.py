"""Loaded weights and configs equal those of transformers, bit by bit."""

import pytest
import torch
import transformers

from tests.checkpoints.conftest import small_model, write_folder, write_gguf
from tests.parity.conftest import their_gguf
from workbench.checkpoints.load import load

CONFIG_FIELDS = [
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
    "hidden_act",
]


def same(ours, theirs):
    expected, actual = theirs.state_dict(), ours.state_dict()
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert torch.equal(actual[name], value), name
    for field in CONFIG_FIELDS:
        assert getattr(ours.config, field) == getattr(theirs.config, field), field
    assert ours.config.rope_parameters["rope_theta"] == theirs.config.rope_parameters["rope_theta"]


def test_default_model_bit_by_bit(default_pair):
    ours, theirs = default_pair
    same(ours.model, theirs)


@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize("stored", ["F32", "Q8_0", "Q4_0", "Q4_1"])
def test_gguf(tmp_path, kind, stored):
    path = write_gguf(tmp_path / "tiny.gguf", small_model(kind), stored)
    same(load(path, dtype="float32").model, their_gguf(path))


@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tied", [True, False])
def test_folder(tmp_path, kind, shards, tied):
    folder = write_folder(tmp_path / "tiny", small_model(kind, tie_word_embeddings=tied), shards)
    same(load(folder).model, transformers.AutoModelForCausalLM.from_pretrained(folder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_folder_that_transformers_saved(tmp_path, dtype):
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            rope_parameters={"rope_type": "default", "rope_theta": 123.0},
        )
    ).to(dtype)
    write_folder(tmp_path / "tiny", small_model())  # for its tokenizer
    theirs.save_pretrained(tmp_path / "tiny", max_shard_size="10kB")
    (tmp_path / "tiny" / "model.safetensors").unlink(missing_ok=True)
    same(load(tmp_path / "tiny").model, theirs)
