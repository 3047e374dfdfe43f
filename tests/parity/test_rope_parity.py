"""Every RoPE type turns positions into the angles of transformers: alone, in whole models, and while a cache grows."""

import copy
import itertools
import math

import pytest
import torch
import transformers
from transformers import modeling_rope_utils
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding as TheirRotary

from tests.conftest import tiny_config
from tests.parity.test_model_parity import close, pair
from workbench.cache import DynamicCache
from workbench.config import ConfigError, LlamaConfig
from workbench.model.rope import LlamaRotaryEmbedding, attention_factor, inverse_frequencies

LIMIT = 24  # max_position_embeddings, and 12 the original length: texts of 17 and 40 tokens lie on both sides
SHORT, LONG = [1.0, 1.1, 1.3, 1.6], [1.5, 2.0, 4.0, 7.0]  # one number for each pair of the head_dim 8
ROPES = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.5},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 12},
    "yarn with all": {
        "factor": 4.0,
        "original_max_position_embeddings": 12,
        "beta_fast": 2.0,
        "beta_slow": 0.25,
        "mscale": 1.5,
        "mscale_all_dim": 0.5,
        "truncate": False,
    },
    "yarn with attention_factor": {"factor": 4.0, "attention_factor": 0.8, "original_max_position_embeddings": 12},
    "longrope": {"short_factor": SHORT, "long_factor": LONG, "original_max_position_embeddings": 20},
    "longrope with attention_factor": {
        "short_factor": SHORT,
        "long_factor": LONG,
        "original_max_position_embeddings": 20,
        "attention_factor": 1.2,
    },
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 12,
    },
}
KINDS = ["mha", "gqa", "mqa"]


def parameters(name, theta=100.0):
    return {"rope_type": name.split()[0], "rope_theta": theta, **copy.deepcopy(ROPES[name])}


def rope_pair(kind, name, **changes):
    return pair(kind, rope_parameters=parameters(name), max_position_embeddings=LIMIT, **changes)


@pytest.mark.parametrize("length", [17, 40], ids=["short", "long"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ROPES)
@torch.no_grad()
def test_logits_hidden_states_and_attentions(name, kind, length):
    ours, theirs = rope_pair(kind, name)
    ids = torch.randint(1, 97, (2, length))
    mine = ours(ids, output_hidden_states=True, output_attentions=True)
    reference = theirs(ids, output_hidden_states=True, output_attentions=True)
    close(mine.logits, reference.logits, "logits")
    for i, (a, b) in enumerate(zip(mine.hidden_states, reference.hidden_states, strict=True)):
        close(a, b, f"hidden_states[{i}]")
    for i, (a, b) in enumerate(zip(mine.attentions, reference.attentions, strict=True)):
        close(a, b, f"attentions[{i}]")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ROPES)
@torch.no_grad()
def test_cached_chunks_across_the_limit(name, kind):
    """Chunk by chunk as theirs. Crossing the limit with a cache is not one pass: rotated keys stay as they are."""
    ours, theirs = rope_pair(kind, name)
    ids = torch.randint(1, 97, (2, 40))
    mine, reference, start = DynamicCache(), transformers.DynamicCache(), 0
    for size in (5, 1, 11, 1, 1, 1, 1, 1, 1, 1, 1, 1, 9, 1, 4):
        part = ids[:, start : start + size]
        a = ours(part, past_key_values=mine, output_hidden_states=True)
        b = theirs(part, past_key_values=reference, output_hidden_states=True)
        close(a.logits, b.logits, f"logits of {start}+{size}")
        close(a.hidden_states[2], b.hidden_states[2], f"hidden_states[2] of {start}+{size}")
        start += size
    assert start == 40


@pytest.mark.filterwarnings("ignore:the text has reached 25 tokens")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ROPES)
def test_greedy_generation_across_the_limit(name, kind):
    ours, theirs = rope_pair(kind, name)
    ids = torch.randint(1, 97, (2, 15))
    options = dict(max_new_tokens=20, pad_token_id=0)
    expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **options)
    assert ours.generate(ids, **options).tolist() == expected.tolist()


@pytest.mark.parametrize("name", ROPES)
@torch.no_grad()
def test_the_length_is_that_of_the_longest_row(name):
    ours, theirs = rope_pair("gqa", name)
    ids = torch.randint(1, 97, (2, 18))
    positions = torch.stack((torch.arange(18), torch.arange(18) + 14))
    close(ours(ids, position_ids=positions).logits, theirs(ids, position_ids=positions).logits, "logits")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ROPES)
def test_cosines_and_sines_are_the_same_bits(name, dtype):
    config = tiny_config(rope_parameters=parameters(name), max_position_embeddings=LIMIT)
    for length in (3, 12, 20, 21, LIMIT, LIMIT + 1, 300):
        theirs = TheirRotary(their_config(config))
        x, positions = torch.zeros(1, length, 32, dtype=dtype), torch.arange(length)[None]
        for a, b in zip(LlamaRotaryEmbedding(config)(x, positions), theirs(x, positions), strict=True):
            assert a.dtype == b.dtype == dtype
            assert torch.equal(a[:, :, 0], b), length


def their_config(config):
    values = config.to_dict()
    return transformers.LlamaConfig(**{k: v for k, v in values.items() if k not in ("architectures", "model_type")})


# --- what is remembered ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ROPES if not name.startswith("dynamic")])
@torch.no_grad()
def test_forwards_in_any_order_are_as_theirs(name):
    ours, theirs = rope_pair("gqa", name)
    for length in (40, 10, 30, LIMIT, 21, 20, 12):
        ids = torch.randint(1, 97, (1, length))
        close(ours(ids).logits, theirs(ids).logits, f"{length} tokens")


@torch.no_grad()
def test_dynamic_forwards_are_as_those_of_a_fresh_model_of_theirs():
    """Theirs remembers the longest text; after one of 40 tokens those of 24 to 39 are rotated as if they had 40."""
    ours, used = rope_pair("gqa", "dynamic")
    fresh = copy.deepcopy(used)
    for length, remembered in ((40, False), (30, True), (LIMIT, True), (10, False), (LIMIT, False), (30, False)):
        ids = torch.randint(1, 97, (1, length))
        mine, reference = ours(ids).logits, used(ids).logits
        close(mine, copy.deepcopy(fresh)(ids).logits, f"{length} tokens, fresh")
        if remembered:
            assert (mine - reference).abs().max() > 1e-3 * reference.abs().max()
        else:
            close(mine, reference, f"{length} tokens, used")


# --- frequencies over many parameters ----------------------------------------------------------------------------


def grid():
    """Parameters of every type, as (type, parameters, head_dim, max_position_embeddings)."""
    widths, thetas, factors = (4, 8, 64, 128), (500.0, 10000.0, 500000.0), (1.0, 2, 7.3, 32.0)
    for d, theta, factor, limit in itertools.product(widths, thetas, factors, (512, 131072)):
        for kind in ("linear", "dynamic"):
            yield kind, {"rope_theta": theta, "factor": factor}, d, limit
        base = {"rope_theta": theta, "factor": factor, "original_max_position_embeddings": 512}
        yield "llama3", {**base, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, d, limit
        yield "llama3", {**base, "low_freq_factor": 0.5, "high_freq_factor": 32}, d, limit
        for extra in (
            {},
            {"factor": None},
            {"attention_factor": 1.7},
            {"beta_fast": 64, "beta_slow": 3.5},
            {"beta_fast": 1.0, "beta_slow": 1.0},
            {"mscale": 0.7, "mscale_all_dim": 1.3},
            {"mscale": 0.7},
            {"truncate": False},
            {"truncate": False, "beta_fast": 5.5, "beta_slow": 1.5},
        ):
            yield "yarn", {**base, **extra}, d, limit
        lists = {"short_factor": [1 + i / d for i in range(d // 2)], "long_factor": [2 + i for i in range(d // 2)]}
        base = {"rope_theta": theta, **lists, "original_max_position_embeddings": 512}
        for extra in ({}, {"factor": factor}, {"attention_factor": 1.05}):
            yield "longrope", {**base, **extra}, d, limit


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "longrope", "llama3"])
def test_inverse_frequencies_and_attention_factors(kind):
    compared = 0
    for _, given, d, limit in (case for case in grid() if case[0] == kind):
        given = {"rope_type": kind, **given}
        sizes = dict(hidden_size=4 * d, num_attention_heads=4, max_position_embeddings=limit, head_dim=d)
        config = LlamaConfig(rope_parameters=copy.deepcopy(given), **sizes)
        theirs = transformers.LlamaConfig(rope_parameters=copy.deepcopy(given), **sizes)
        assert config.rope_parameters == theirs.rope_parameters
        for length in (None, 1, 512, 513, 4 * limit):
            frequencies, factor = modeling_rope_utils.ROPE_INIT_FUNCTIONS[kind](theirs, seq_len=length)
            mine = inverse_frequencies(config, length=length)
            assert (mine / frequencies - 1).abs().max() < 1e-5, (given, d, limit, length)
            assert math.isclose(attention_factor(config), factor, rel_tol=1e-12), (given, d, limit)
            compared += 1
    assert compared >= 480


def test_default_frequencies():
    for d, theta in itertools.product((2, 8, 64, 128), (0.5, 1.0, 500.0, 10000.0, 5e5, 1e9)):
        config = LlamaConfig(num_attention_heads=1, head_dim=d, rope_parameters={"rope_theta": theta})
        theirs, factor = TheirRotary.compute_default_rope_parameters(their_config(config))
        assert torch.equal(inverse_frequencies(config), theirs)
        assert attention_factor(config) == factor == 1.0


# --- what is refused ---------------------------------------------------------------------------------------------

YARN = {"rope_type": "yarn", "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONGROPE = {"rope_type": "longrope", "short_factor": SHORT, "long_factor": LONG}
REFUSED_BY_BOTH = [
    {"rope_type": "linear"},
    {"rope_type": "dynamic"},
    {"rope_type": "yarn"},
    {key: value for key, value in LLAMA3.items() if key != "factor"},
    {key: value for key, value in LLAMA3.items() if key != "low_freq_factor"},
    {key: value for key, value in LLAMA3.items() if key != "high_freq_factor"},
    {key: value for key, value in LONGROPE.items() if key != "short_factor"},
    {key: value for key, value in LONGROPE.items() if key != "long_factor"},
]
WARNED_ABOUT_BY_THEIRS = [
    {"rope_type": "linear", "factor": 0.5},
    {"rope_type": "dynamic", "factor": 0.99},
    {"rope_type": "yarn", "factor": 0.5},
    {**YARN, "attention_factor": -1.0},
    {**YARN, "beta_fast": 0.5},
    {**LONGROPE, "short_factor": SHORT[:3]},
    {**LONGROPE, "long_factor": [*LONG, 9.0]},
    {**LONGROPE, "long_factor": ["1", 2.0, 3.0, 4.0]},
    {**LONGROPE, "attention_factor": -0.5},
    {**LONGROPE, "factor": 0.5},
    {**LLAMA3, "factor": 0.5},
    {**LLAMA3, "high_freq_factor": 1.0},
    {**LLAMA3, "facter": 2.0},
    {"rope_type": "default", "factor": 2.0},
    {"rope_type": "su"},
]


def in_words(values):
    return ", ".join(f"{key} {value}" for key, value in values.items() if key != "rope_type") or str(values)


@pytest.mark.parametrize("values", REFUSED_BY_BOTH, ids=str)
def test_a_missing_parameter_is_refused_by_both(values):
    with pytest.raises(KeyError, match="Missing required keys"):
        transformers.LlamaConfig(hidden_size=32, num_attention_heads=4, rope_parameters=copy.deepcopy(values))
    with pytest.raises(ConfigError, match=r"rope_parameters of rope_type '\w+' lack \w+"):
        tiny_config(rope_parameters=values)


@pytest.mark.parametrize("values", [{**YARN, "beta_fast": "32"}, {**YARN, "beta_slow": [1]}], ids=in_words)
def test_a_value_of_another_type_is_refused_by_both(values):
    with pytest.raises(Exception, match="not supported between instances"):
        transformers.LlamaConfig(hidden_size=32, num_attention_heads=4, rope_parameters=copy.deepcopy(values))
    with pytest.raises(ConfigError, match=r"^beta_\w+ is .*; for rope_type 'yarn' it must be a number from"):
        tiny_config(rope_parameters=values)


@pytest.mark.parametrize("values", WARNED_ABOUT_BY_THEIRS, ids=in_words)
def test_what_theirs_only_warns_about_is_refused(values, monkeypatch):
    """A warning is lost in a notebook, and the numbers behind it are wrong."""
    said = []
    monkeypatch.setattr(modeling_rope_utils.logger, "warning", lambda text, *_: said.append(text))
    transformers.LlamaConfig(hidden_size=32, num_attention_heads=4, rope_parameters=copy.deepcopy(values))
    assert said
    with pytest.raises(ConfigError):
        tiny_config(rope_parameters=values)


@pytest.mark.parametrize("name", ["linear", "yarn with all", "longrope", "llama3", "dynamic"])
@torch.no_grad()
def test_the_comparison_notices_a_planted_bug(name, monkeypatch):
    ids = torch.randint(1, 97, (1, 40))
    ours, theirs = rope_pair("gqa", name)
    monkeypatch.setattr(ours.model.rotary_emb, "rope_type", "default")
    monkeypatch.setattr(ours.model.rotary_emb, "attention_factor", 1.0)
    plain = LlamaRotaryEmbedding(tiny_config(rope_parameters={"rope_theta": 100.0}))
    monkeypatch.setattr(ours.model.rotary_emb, "_constant", plain._constant)
    with pytest.raises(AssertionError, match="relative"):
        close(ours(ids).logits, theirs(ids).logits, name)
