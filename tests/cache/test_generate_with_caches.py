"""`generate` with every cache: names and options, room, and a caller's cache after an error."""

import pytest
import torch

from tests.cache.caches import IDS, MAKE, assert_equal, contents
from tests.conftest import tiny_model
from workbench.cache import QuantizedCache, SinkCache, SlidingCache
from workbench.generation import GenerationConfig

pytestmark = pytest.mark.filterwarnings("ignore:an offloaded cache")
PROMPT = IDS[:, :12]


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}], ids=str)
@pytest.mark.parametrize("start", [0, 9], ids=["empty", "used"])
def test_a_cache_is_as_it_was_after_an_error(kind, options, start):
    model, cache = tiny_model(eos_token_id=None), MAKE[kind]()
    with torch.no_grad():
        if start:
            model(PROMPT[:, :start], past_key_values=cache)
    before, calls = contents(cache), []

    def fail(ids, scores):
        calls.append(ids.shape[1])
        if len(calls) == 20:
            raise RuntimeError("planted")
        return scores

    with pytest.raises(RuntimeError, match="planted"):
        model.generate(PROMPT, past_key_values=cache, max_new_tokens=30, logits_processor=[fail], **options)
    assert cache.length == start
    if start:
        assert_equal(contents(cache), before)
    expected = model.generate(PROMPT, past_key_values=_again(kind, model, start), max_new_tokens=6)
    assert model.generate(PROMPT, past_key_values=cache, max_new_tokens=6).tolist() == expected.tolist()


@torch.no_grad()
def _again(kind, model, start):
    cache = MAKE[kind]()
    if start:
        model(PROMPT[:, :start], past_key_values=cache)
    return cache


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("dynamic", None),
        ("static", None),
        ("none", None),
        ("offloaded", None),
        ("offloaded_static", {}),
        ("sliding", {"window": 64}),
        ("sliding_window", {"window": 64}),
        ("sink", {"window": 60, "sinks": 4}),
        ("quantized", {"residual_length": 64}),
        ("quantized", {"nbits": 4, "backend": "quanto", "q_group_size": 8, "residual_length": 128}),
    ],
    ids=str,
)
def test_every_cache_that_reaches_far_enough_gives_the_same_text(name, config):
    model = tiny_model(eos_token_id=None)
    plain = model.generate(PROMPT, max_new_tokens=20)
    assert model.generate(PROMPT, max_new_tokens=20, cache_implementation=name, cache_config=config).equal(plain)
    options = GenerationConfig(max_new_tokens=20, cache_implementation=name, cache_config=config)
    assert model.generate(PROMPT, options).equal(plain)


def test_few_bits_change_the_text_and_the_result_has_the_cache():
    model = tiny_model(eos_token_id=None)
    config = {"nbits": 2, "residual_length": 0, "q_group_size": 4}
    out = model.generate(
        IDS, max_new_tokens=20, cache_implementation="quantized", cache_config=config, return_dict_in_generate=True
    )
    assert out.sequences.tolist() != model.generate(IDS, max_new_tokens=20).tolist()
    assert isinstance(out.past_key_values, QuantizedCache)
    assert (out.past_key_values.bits, out.past_key_values.length) == (2, 59)


def test_compiling_gives_the_same_text_over_a_static_cache():
    model = tiny_model(eos_token_id=None, num_hidden_layers=1)
    plain = model.generate(PROMPT, max_new_tokens=6)
    out = model.generate(PROMPT, max_new_tokens=6, compile=True, return_dict_in_generate=True)
    assert out.sequences.equal(plain)
    assert out.past_key_values.name == "static"
    assert model.generate(PROMPT, max_new_tokens=6, compile=True, disable_compile=True).equal(plain)
    with pytest.raises(ValueError, match=r"compile is True with cache_implementation='sink'; it needs a static cache"):
        model.generate(PROMPT, compile=True, cache_implementation="sink")


def test_a_compiled_forward_reads_the_single_tokens(monkeypatch):
    compiled = []

    def compile_(model, dynamic):
        return lambda **given: compiled.append(given["input_ids"].shape) or model(**given)

    monkeypatch.setattr(torch, "compile", compile_)
    tiny_model(eos_token_id=None).generate(PROMPT, max_new_tokens=4, compile=True)
    assert compiled == [(2, 1)] * 3


def test_embeddings_are_remembered_whatever_is_asked_for():
    model = tiny_model(eos_token_id=None)
    embeds = model.model.embed_tokens(PROMPT).detach()
    expected = model.generate(inputs_embeds=embeds, max_new_tokens=5)
    assert model.generate(inputs_embeds=embeds, max_new_tokens=5, cache_implementation="none").equal(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_config": 5}, r"cache_config is 5; it must be a dict of the cache's options by name"),
        ({"cache_config": {3: 4}}, r"cache_config is \{3: 4\}; it must be a dict"),
        ({"cache_config": {"bits": 4}}, r"a dynamic cache has no option 'bits'; it has dtype"),
        ({"cache_implementation": "sink", "cache_config": {"sinks": 0}}, r"sinks is 0; it must be a whole number"),
        ({"cache_implementation": "sliding", "cache_config": {"size": 4}}, r"a sliding cache has no option 'size'"),
        ({"cache_implementation": "quantized", "cache_config": {"nbits": 3}}, r"bits is 3; allowed are 8, 4, 2"),
        ({"cache_implementation": "quantized", "cache_config": {"q_group_size": 64}}, r"allowed are 2, 4, 8"),
        ({"cache_implementation": "hybrid"}, r"cache_implementation is 'hybrid'; it must be one of dynamic, static"),
        (
            {"past_key_values": SlidingCache(4), "cache_config": {}},
            r"past_key_values and cache_config=\{\} are both given; give one of them",
        ),
    ],
    ids=str,
)
def test_what_is_no_option_is_refused_before_anything_runs(options, message):
    model = tiny_model()
    model.model.register_forward_pre_hook(lambda *args: pytest.fail("a forward began"))
    with pytest.raises(ValueError, match=message):
        model.generate(PROMPT, max_new_tokens=3, **options)


def test_options_go_through_a_file(tmp_path):
    config = GenerationConfig(cache_implementation="sink", cache_config={"window": 12, "sinks": 2})
    config.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).cache_config == {"window": 12, "sinks": 2}
    model = tiny_model()
    out = model.generate(PROMPT, config, max_new_tokens=3, return_dict_in_generate=True)
    assert isinstance(out.past_key_values, SinkCache)
    assert (out.past_key_values.window, out.past_key_values.sinks) == (12, 2)


def test_a_windowed_cache_goes_on_with_the_whole_text():
    model = tiny_model(eos_token_id=None)
    cache = SinkCache(6, 2)
    first = model.generate(PROMPT, past_key_values=cache, max_new_tokens=8)
    second = model.generate(first, past_key_values=cache, max_new_tokens=8)
    at_once = model.generate(
        PROMPT, max_new_tokens=16, cache_implementation="sink", cache_config={"window": 6, "sinks": 2}
    )
    assert second.equal(at_once)
