"""The rotary settings of GGUF files: what llama.cpp's converter writes is computed, everything else is refused."""

import math

import pytest
import torch

from tests.checkpoints.conftest import small_model, write_gguf
from workbench.checkpoints import CheckpointError
from workbench.checkpoints.load import load
from workbench.config import ConfigError, LlamaConfig
from workbench.model.rope import inverse_frequencies

SCALING = "llama.rope.scaling."
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def converters_divisors(factor=8.0, low=1.0, high=4.0, length=8192, theta=500000.0, d=8):
    """What llama.cpp's converter writes as `rope_freqs.weight` (`generate_extra_tensors` of its LlamaModel)."""
    divisors = []
    for i in range(0, d, 2):
        wavelength = 2 * math.pi * theta ** (i / d)
        if wavelength < length / high:
            divisors.append(1.0)
        elif wavelength > length / low:
            divisors.append(factor)
        else:
            kept = (length / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - kept) / factor + kept))
    return torch.tensor(divisors)


def written(path, divisors=None, **metadata):
    theta = {"rope_theta": 500000.0}
    extra = {} if divisors is None else {"rope_freqs.weight": divisors}
    model = small_model(rope_parameters=theta, bos_token_id=1)
    return model, write_gguf(path / "tiny.gguf", model, extra=extra, **metadata)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_the_divisors_of_llama_3_are_recognised(tmp_path, factor):
    divisors = converters_divisors(factor)
    assert divisors[0] == 1
    assert 1 < divisors[2] < factor
    assert divisors[3] == factor
    model, path = written(tmp_path, divisors)
    expected = small_model(rope_parameters={**LLAMA3, "factor": factor})
    expected.load_state_dict(model.state_dict())
    loaded = load(path).model
    assert loaded.config.rope_parameters == {**LLAMA3, "factor": factor}
    ids = torch.randint(0, 200, (1, 100))
    assert torch.equal(loaded(ids).logits, expected(ids).logits)
    assert not torch.allclose(loaded(ids).logits, model(ids).logits, rtol=1e-3)
    assert LlamaConfig.from_pretrained(path).rope_parameters == {**LLAMA3, "factor": factor}


@pytest.mark.parametrize(
    "divisors", [torch.tensor([1.0, 1.5, 2.5, 4.0]), torch.ones(4), converters_divisors(length=4096)], ids=str
)
def test_other_divisors_are_applied_as_they_are(tmp_path, divisors):
    _, path = written(tmp_path, divisors)
    config = load(path).model.config
    plain = LlamaConfig(num_attention_heads=1, head_dim=8, rope_parameters={"rope_theta": 500000.0})
    for length in (1, 100000):
        torch.testing.assert_close(inverse_frequencies(config, length=length), inverse_frequencies(plain) / divisors)
    assert load(path).model.model.rotary_emb.attention_factor == 1


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({}, {"rope_type": "default"}),
        ({"type": "none", "factor": 4.0}, {"rope_type": "default"}),
        ({"type": "linear"}, {"rope_type": "default"}),
        ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            {"type": "yarn", "factor": 4.0, "original_context_length": 64, "finetuned": True},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        ),
        (
            {"type": "yarn", "factor": 4.0, "yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0, "attn_factor": 0.5},
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
                "beta_fast": 16.0,
                "beta_slow": 2.0,
                "attention_factor": 0.5 * (0.1 * math.log(4) + 1),
            },
        ),
    ],
    ids=str,
)
def test_scaling_in_the_metadata(tmp_path, metadata, expected):
    keys = {("llama.rope." if key == "scale_linear" else SCALING) + key: value for key, value in metadata.items()}
    _, path = written(tmp_path, **keys)
    assert load(path).model.config.rope_parameters == {"rope_theta": 500000.0, **expected}


@pytest.mark.parametrize(
    ("divisors", "metadata", "error", "message"),
    [
        (
            None,
            {"type": "longrope"},
            CheckpointError,
            r"scales its rotary .* llama\.rope\.scaling\.type 'longrope', whi",
        ),
        (
            None,
            {"type": "yarn", "factor": 2.0, "yarn_ext_factor": 0.5},
            CheckpointError,
            "scaling.yarn_ext_factor, whi",
        ),
        (None, {"type": "linear", "factor": 2.0, "attn_factor": 0.5}, CheckpointError, "scaling.attn_factor, which"),
        (
            None,
            {"type": "linear", "factor": 0.5},
            ConfigError,
            r"tiny\.gguf: factor is 0\.5; for rope_type 'linear' it",
        ),
        (
            None,
            {"type": "linear", "factor": "two"},
            ConfigError,
            r"tiny\.gguf: factor is 'two'; for rope_type 'linear'",
        ),
        (None, {"type": "yarn"}, ConfigError, r"tiny\.gguf: rope_parameters of rope_type 'yarn' lack factor"),
        (
            None,
            {"type": "yarn", "factor": 2.0, "attn_factor": "x"},
            ConfigError,
            "attention_factor is 'x'; for rope_typ",
        ),
        (torch.ones(3), {}, CheckpointError, r"rope_freqs\.weight has the shape \[3\] instead of \[4\]"),
        (torch.ones(4, 32), {}, CheckpointError, r"rope_freqs\.weight has the shape \[4, 32\] instead of \[4\]"),
        (torch.tensor([1.0, 2.0, 0.0, 1.0]), {}, CheckpointError, "must hold positive, finite numbers only"),
        (torch.tensor([1.0, 2.0, math.nan, 1.0]), {}, CheckpointError, "must hold positive, finite numbers only"),
        (torch.ones(4), {"type": "linear", "factor": 2.0}, CheckpointError, "scales its rotary frequencies twice, by"),
    ],
    ids=str,
)
def test_refused(tmp_path, divisors, metadata, error, message):
    _, path = written(tmp_path, divisors, **{SCALING + key: value for key, value in metadata.items()})
    with pytest.raises(error, match=message):
        load(path)
