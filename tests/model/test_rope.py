"""The rotation itself, and what a rotary module keeps."""

import math
from itertools import pairwise

import pytest
import torch

from tests.conftest import tiny_config, tiny_model
from workbench.cache import DynamicCache
from workbench.config import LlamaConfig
from workbench.model.rope import LlamaRotaryEmbedding, apply_rope, attention_factor, inverse_frequencies, signed

# Llama 3.1 8B, as its config.json has it.
LLAMA31 = dict(
    hidden_size=4096,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=131072,
    rope_parameters={
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
)
LISTS = {"short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [1.5, 2.0, 4.0, 7.0]}
ROPES = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {**LISTS, "original_max_position_embeddings": 16},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


def rope_config(name, **changes):
    parameters = {"rope_type": name, "rope_theta": 100.0, **ROPES[name]}
    return tiny_config(max_position_embeddings=32, rope_parameters=parameters, **changes)


def rotated(config, x, positions):
    return apply_rope(x, *signed(*LlamaRotaryEmbedding(config)(x, positions)))


@pytest.mark.parametrize("name", ROPES)
def test_scores_depend_on_the_distance_alone(name):
    """(R_m q)·(R_n k) is a function of m − n: what the rotation is for (arXiv 2104.09864, equation 11)."""
    config = rope_config(name)
    q, k = torch.randn(2, 1, 1, 1, 8).expand(2, 1, 13, 1, 8)
    near, far = torch.arange(13)[None], torch.arange(13)[None] + (0 if name in ("dynamic", "longrope") else 50)
    scores = [(rotated(config, q, p)[0, :, 0] @ rotated(config, k, p)[0, :, 0].T) for p in (near, far)]
    for offset in range(-12, 13):
        diagonal = torch.cat([score.diagonal(offset) for score in scores])
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)


def test_a_plane_is_turned_by_its_angle():
    config = tiny_config(rope_parameters={"rope_theta": 100.0})
    x = torch.zeros(1, 1, 1, 8)
    x[..., 1] = 2.0  # plane 1 of 4 is made of the elements 1 and 5
    angle = 7 * 100.0 ** (-2 * 1 / 8)
    expected = torch.zeros(8)
    expected[1], expected[5] = 2 * math.cos(angle), 2 * math.sin(angle)
    torch.testing.assert_close(rotated(config, x, torch.tensor([[7]]))[0, 0, 0], expected)


def test_linear_is_the_default_at_a_fraction_of_the_position():
    x, positions = torch.randn(1, 9, 2, 8), torch.arange(9)[None]
    stretched = rotated(rope_config("linear"), x, positions * 4)
    torch.testing.assert_close(stretched, rotated(rope_config("default"), x, positions))


@pytest.mark.parametrize("length", [1, 31, 32])
def test_dynamic_is_the_default_up_to_the_limit(length):
    assert torch.equal(
        inverse_frequencies(rope_config("dynamic"), length=length), inverse_frequencies(rope_config("default"))
    )


def test_dynamic_turns_slower_the_longer_the_text():
    lengths = [32, 33, 64, 1000]
    frequencies = [inverse_frequencies(rope_config("dynamic"), length=length) for length in lengths]
    for shorter, longer in pairwise(frequencies):
        assert longer[0] == shorter[0] == 1, "the fastest plane stays"
        assert (longer[1:] < shorter[1:]).all()


def test_dynamic_stretches_the_slowest_plane_by_the_formula():
    """θ' = θ·(factor·L/L_max − factor + 1)^(d/(d−2)) makes ω of the last plane smaller by just that base."""
    plain = inverse_frequencies(rope_config("default"))[-1]
    assert inverse_frequencies(rope_config("dynamic"), length=64)[-1].item() == pytest.approx(plain.item() / 3, 1e-5)


def test_llama31_frequencies():
    """Fast planes stay, slow ones are 8 times slower, and the bounds are the wavelengths 2,048 and 8,192."""
    config = LlamaConfig(**LLAMA31)
    plain = inverse_frequencies(LlamaConfig(**{**LLAMA31, "rope_parameters": {"rope_theta": 500000.0}}))
    ratio, wavelength = plain / inverse_frequencies(config), 2 * math.pi / plain
    assert (ratio[wavelength < 2048] == 1).all()
    assert ((ratio[wavelength > 8192] - 8).abs() < 1e-5).all()
    between = ratio[(wavelength > 2048) & (wavelength < 8192)]
    assert len(between) == 6
    assert ((between > 1) & (between < 8)).all()
    assert (between.diff() > 0).all()
    assert attention_factor(config) == 1


def test_yarn_frequencies():
    config = LlamaConfig(
        num_attention_heads=32,
        rope_parameters={"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096},
    )
    ratio = inverse_frequencies(LlamaConfig()) / inverse_frequencies(config)
    turns = 4096 * inverse_frequencies(LlamaConfig()) / (2 * math.pi)
    torch.testing.assert_close(ratio[turns > 33], torch.ones(int((turns > 33).sum())))
    torch.testing.assert_close(ratio[turns < 0.9], torch.full((int((turns < 0.9).sum()),), 16.0))
    assert (ratio.diff() >= -1e-4).all()


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"rope_type": "default"}, 1),
        ({"rope_type": "linear", "factor": 4.0}, 1),
        ({"rope_type": "yarn", "factor": 1.0}, 1),
        ({"rope_type": "yarn", "factor": 4.0}, 0.1 * math.log(4) + 1),
        ({"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 32}, 0.1 * math.log(4) + 1),
        ({"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.5}, 0.5),
        ({"rope_type": "yarn", "factor": 4.0, "attention_factor": None}, 0.1 * math.log(4) + 1),
        (
            {"rope_type": "yarn", "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.0},
            (0.0707 * math.log(40) + 1) / (0.1 * math.log(40) + 1),
        ),
        ({"rope_type": "yarn", "factor": 40.0, "mscale": 0.707, "mscale_all_dim": 0}, 0.1 * math.log(40) + 1),
        ({"rope_type": "longrope", **LISTS}, 1),
        ({"rope_type": "longrope", **LISTS, "factor": 8.0}, math.sqrt(1 + math.log(8) / math.log(128))),
        (
            {"rope_type": "longrope", **LISTS, "original_max_position_embeddings": 32},
            math.sqrt(1 + math.log(4) / math.log(32)),
        ),
        ({"rope_type": "longrope", **LISTS, "factor": 8.0, "attention_factor": 1.25}, 1.25),
    ],
    ids=str,
)
def test_attention_factor(parameters, expected):
    config = tiny_config(rope_parameters=parameters)
    assert attention_factor(config) == pytest.approx(expected, rel=1e-12)
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.tensor([[0, 3]]))
    torch.testing.assert_close(cos**2 + sin**2, torch.full((1, 2, 1, 8), float(expected) ** 2))
    assert cos[0, 0, 0, 0] == pytest.approx(expected)


@pytest.mark.parametrize(("length", "which"), [(16, "short_factor"), (17, "long_factor"), (200, "long_factor")])
def test_longrope_divides_by_the_list_for_the_length(length, which):
    plain = inverse_frequencies(rope_config("default"))
    expected = plain / torch.tensor(LISTS[which])
    torch.testing.assert_close(inverse_frequencies(rope_config("longrope"), length=length), expected)
    module = LlamaRotaryEmbedding(rope_config("longrope"))
    cos, _ = module(torch.zeros(1), torch.tensor([[1, length - 1]]))
    torch.testing.assert_close(cos[0, 0, 0, :4], expected.cos() * attention_factor(module.config))


@pytest.mark.parametrize("name", ROPES)
def test_nothing_of_a_forward_is_kept(name):
    """Bit by bit the same for a text, whatever the module has met before."""
    used, x = LlamaRotaryEmbedding(rope_config(name)), torch.zeros(1)
    assert not list(used.state_dict())
    assert not list(used.buffers())
    used(x, torch.arange(3)[None])
    before = {device: value.clone() for device, value in used._frequencies.items()}
    for length in (100, 5, 40, 33, 32, 17, 16):
        fresh = LlamaRotaryEmbedding(rope_config(name))
        for a, b in zip(used(x, torch.arange(length)[None]), fresh(x, torch.arange(length)[None]), strict=True):
            assert torch.equal(a, b)
    assert before.keys() == used._frequencies.keys()
    assert all(torch.equal(value, used._frequencies[device]) for device, value in before.items())


@pytest.mark.parametrize("name", ["default", "linear", "yarn", "longrope", "llama3"])
def test_frequencies_are_computed_once(name, monkeypatch):
    calls = []
    module = LlamaRotaryEmbedding(rope_config(name))
    constant = module._constant
    monkeypatch.setattr(module, "_constant", lambda device: calls.append(device) or constant(device))
    monkeypatch.setattr("workbench.model.rope.inverse_frequencies", counted(inverse_frequencies, calls))
    for length in (3, 40, 5):
        module(torch.zeros(1), torch.arange(length)[None])
    assert len(calls) == (3 if name == "longrope" else 2)


def counted(function, calls):
    def wrapper(*args):
        calls.append(args)
        return function(*args)

    return wrapper


@pytest.mark.parametrize("name", ROPES)
@torch.no_grad()
def test_pieces_are_one_pass_until_the_limit(name):
    model = tiny_model(max_position_embeddings=32, rope_parameters=rope_config(name).rope_parameters)
    ids = torch.randint(1, 97, (1, 16))
    whole = model(ids).logits
    cache = DynamicCache()
    parts = [model(part, past_key_values=cache).logits for part in ids.split([7, 1, 8], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "same"), [(name, name not in ("dynamic", "longrope")) for name in ROPES])
@torch.no_grad()
def test_pieces_that_cross_the_limit_are_one_pass_where_the_length_does_not_count(name, same):
    model = tiny_model(max_position_embeddings=32, rope_parameters=rope_config(name).rope_parameters)
    ids = torch.randint(1, 97, (1, 40))
    whole, cache = model(ids).logits, DynamicCache()
    parts = torch.cat([model(part, past_key_values=cache).logits for part in ids.split([10, 22, 8], 1)], 1)
    assert ((parts - whole).abs().max() < 1e-4 * whole.abs().max()) == same


@pytest.mark.parametrize("name", ROPES)
def test_gradients_reach_the_queries_and_frequencies_made_in_inference_mode_do_no_harm(name):
    module, x = LlamaRotaryEmbedding(rope_config(name)), torch.randn(1, 5, 2, 8, requires_grad=True)
    with torch.inference_mode():
        module(x, torch.arange(5)[None])
    apply_rope(x, *signed(*module(x, torch.arange(5)[None]))).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach() * attention_factor(module.config) ** 2)


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_at_the_end(name, dtype):
    module, positions = LlamaRotaryEmbedding(rope_config(name)), torch.arange(3000, 3010)[None]
    for exact, rounded in zip(
        module(torch.zeros(1), positions), module(torch.zeros(1, dtype=dtype), positions), strict=True
    ):
        assert torch.equal(exact.to(dtype), rounded)


def test_a_config_made_under_the_meta_device_has_real_frequencies():
    with torch.device("meta"):
        module = LlamaRotaryEmbedding(rope_config("llama3"))
    cos, _ = module(torch.zeros(1), torch.arange(4)[None])
    assert cos.device.type == "cpu"
    assert (cos[0, 0] == 1).all()
