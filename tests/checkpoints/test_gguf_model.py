"""GGUF files as models: weights come back exactly, and what cannot be computed is refused."""

import gguf
import pytest
import torch

from tests.checkpoints.conftest import permute, sentencepiece_metadata, small_model, vocabulary_size, write_gguf
from workbench.checkpoints import CheckpointError
from workbench.checkpoints.gguf import GGUFFile
from workbench.checkpoints.gguf_model import open_gguf, unpermute
from workbench.checkpoints.load import load
from workbench.config import ConfigError


def same_weights(ours, theirs):
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize("tied", [True, False])
def test_float32_file_gives_the_model_back(tmp_path, kind, tied):
    model = small_model(kind, tie_word_embeddings=tied)
    loaded = load(write_gguf(tmp_path / "tiny.gguf", model))
    same_weights(loaded.model, model)
    # A GGUF file does not say how the weights were initialised.
    expected = {**model.config.to_dict(), "dtype": "float32", "initializer_range": 0.02}
    assert loaded.model.config.to_dict() == expected
    assert (loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight) == tied
    ids = torch.tensor([loaded.tokenizer.encode("hello world")])
    assert torch.equal(loaded.model(ids).logits, model(ids).logits)


def test_biases_are_read_and_permuted(tmp_path):
    model = small_model(attention_bias=True, mlp_bias=True)
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(value)
    loaded = load(write_gguf(tmp_path / "tiny.gguf", model))
    assert loaded.model.config.attention_bias
    assert loaded.model.config.mlp_bias
    same_weights(loaded.model, model)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_quantized_file_gives_the_rounded_weights(tmp_path, kind):
    model = small_model(tie_word_embeddings=True)
    loaded = load(write_gguf(tmp_path / "tiny.gguf", model, kind))
    quantization = gguf.GGMLQuantizationType[kind]
    for name, value in model.state_dict().items():
        expected = value.numpy()
        if value.dim() == 2:
            expected = gguf.quants.dequantize(gguf.quants.quantize(expected, quantization), quantization)
            assert not torch.equal(torch.from_numpy(expected), value)
        assert torch.equal(loaded.model.state_dict()[name], torch.from_numpy(expected)), name
    assert loaded.model.dtype == torch.float32


@pytest.mark.parametrize(("kind", "dtype"), [("F16", torch.float16), ("BF16", torch.bfloat16)])
def test_half_files_keep_their_type(tmp_path, kind, dtype):
    model = small_model(tie_word_embeddings=True)
    loaded = load(write_gguf(tmp_path / "tiny.gguf", model, kind)).model
    assert {value.dtype for value in loaded.state_dict().values()} == {dtype}
    assert loaded.config.dtype == str(dtype).removeprefix("torch.")
    same_weights(loaded, model.to(dtype))


def test_unpermute_is_the_inverse():
    weight = torch.arange(48 * 5, dtype=torch.uint8).view(48, 5)
    assert torch.equal(torch.from_numpy(unpermute(permute(weight, 6).numpy(), 6)), weight)
    assert not torch.equal(permute(weight, 6), weight)
    assert not torch.equal(torch.from_numpy(unpermute(permute(weight, 6).numpy(), 3)), weight)


def test_sentencepiece_vocabulary_in_a_file(tmp_path):
    vocabulary = sentencepiece_metadata()
    model = small_model(vocab_size=vocabulary_size(vocabulary))
    loaded = load(write_gguf(tmp_path / "tiny.gguf", model, vocabulary=vocabulary))
    assert loaded.tokenizer.encode("hello") == vocabulary_ids(vocabulary, "<s>", "▁hello")


def vocabulary_ids(vocabulary, *tokens):
    return [vocabulary["tokenizer.ggml.tokens"].index(token) for token in tokens]


def opened(path, **changes):
    return open_gguf(GGUFFile(write_gguf(path / "tiny.gguf", small_model(), **changes)))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"architecture": "qwen2"}, CheckpointError, "of the architecture 'qwen2'; only 'llama' can be loaded"),
        ({"llama.expert_count": 8}, CheckpointError, "a mixture of 8 experts"),
        ({"llama.block_count": None}, CheckpointError, "has no llama.block_count in its metadata"),
        (
            {"llama.rope.dimension_count": 4},
            CheckpointError,
            "rope.dimension_count is 4, but must be 8, the head width",
        ),
        ({"llama.attention.value_length": 4}, CheckpointError, "value_length is 4, but must be 8"),
        ({"llama.attention.head_count": 3}, ConfigError, "32 cannot be divided into num_attention_heads 3"),
        (
            {"llama.attention.head_count": [4, 4]},
            ConfigError,
            r"num_attention_heads is array\('i', \[4, 4\]\); it must be a whole number",
        ),
        ({"llama.attention.layer_norm_rms_epsilon": "small"}, ConfigError, "tiny.gguf"),
    ],
)
def test_refused(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        opened(tmp_path, **changes)


def test_head_width_from_the_metadata(tmp_path):
    model = small_model(head_dim=16)
    path = write_gguf(tmp_path / "tiny.gguf", model, **{"llama.attention.key_length": 16})
    same_weights(load(path).model, model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"extra": {"blk.9.attn_q.weight": torch.ones(32, 32)}},
            "1 unexpected: model.layers.9.self_attn.q_proj.weight",
        ),
        ({"extra": {"blk.00.attn_q.weight": torch.ones(32, 32)}}, "1 unexpected: blk.00.attn_q.weight"),
        ({"extra": {"something.else": torch.ones(3)}}, "1 unexpected: something.else"),
        ({"llama.block_count": 3}, "9 missing: model.layers.2.self_attn.q_proj.weight, .* and 6 more"),
        (
            {"llama.feed_forward_length": 96},
            r"6 of another shape: .*gate_proj.weight is \[64, 32\] instead of \[96, 32\]",
        ),
    ],
)
def test_tensors_that_do_not_fit(tmp_path, changes, message):
    path = write_gguf(tmp_path / "tiny.gguf", small_model(), **changes)
    with pytest.raises(CheckpointError, match=message):
        load(path)
