from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import tiny_config, tiny_model
from workbench.cache import DynamicCache
from workbench.generation import generate

IDS = torch.randint(1, 97, (2, 7), generator=torch.Generator().manual_seed(3))


class Counting:
    """A stand-in for a model that always continues n with n + 1, and remembers how it was called."""

    def __init__(self, **changes):
        self.config = tiny_config(**{"eos_token_id": None, "pad_token_id": None, **changes})
        self.calls = []

    def __call__(self, ids, **options):
        self.calls.append({"ids": ids, **options})
        return SimpleNamespace(logits=F.one_hot(ids[:, -1:] + 1, 97).float() * 20)


def counted(ids, model=None, **options):
    return generate(model or Counting(), torch.tensor(ids), **options).tolist()


def test_the_prompt_comes_back_with_its_continuation():
    assert counted([[4, 5], [20, 30]], max_new_tokens=3) == [[4, 5, 6, 7, 8], [20, 30, 31, 32, 33]]


@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@torch.no_grad()
def test_a_real_model_continues_with_its_own_most_likely_tokens(kind):
    model = tiny_model(kind, eos_token_id=None)
    ids = IDS
    for _ in range(8):  # without a cache, everything computed afresh
        ids = torch.cat((ids, model(ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)), 1)
    assert generate(model, IDS, max_new_tokens=8).tolist() == ids.tolist()
    assert model.generate(IDS, max_new_tokens=8).tolist() == ids.tolist()


@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
def test_a_left_padded_row_continues_as_it_does_alone(kind):
    model = tiny_model(kind, eos_token_id=None)
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    batch = generate(model, IDS, attention_mask=mask, max_new_tokens=8)
    assert batch[0, 7:].tolist() == generate(model, IDS[:1, 3:], max_new_tokens=8)[0, 4:].tolist()
    assert batch[1].tolist() == generate(model, IDS[1:], max_new_tokens=8)[0].tolist()
    assert batch[0].tolist() != generate(model, IDS[:1], max_new_tokens=8)[0].tolist(), "the mask counts"


def test_only_the_new_token_is_computed_after_the_prompt_and_only_its_logits():
    model, cache = Counting(), DynamicCache()
    mask = torch.tensor([[0, 1], [1, 1]])
    counted([[0, 5], [20, 30]], model, attention_mask=mask, max_new_tokens=3, past_key_values=cache)
    assert [call["ids"].tolist() for call in model.calls] == [[[0, 5], [20, 30]], [[6], [31]], [[7], [32]]]
    assert [call["position_ids"].tolist() for call in model.calls] == [[[0, 0], [0, 1]], [[1], [2]], [[2], [3]]]
    assert [call["attention_mask"].tolist()[0] for call in model.calls] == [[0, 1], [0, 1, 1], [0, 1, 1, 1]]
    assert all(call["past_key_values"] is cache for call in model.calls)
    assert all(call["logits_to_keep"] == 1 for call in model.calls)


def test_a_row_that_has_ended_is_filled_with_padding_until_all_have():
    out = counted([[4], [2], [6]], max_new_tokens=20, eos_token_id=[7, 90], pad_token_id=0)
    assert out == [[4, 5, 6, 7, 0, 0], [2, 3, 4, 5, 6, 7], [6, 7, 0, 0, 0, 0]]


def test_it_stops_as_soon_as_every_row_has_ended():
    model = Counting()
    counted([[5], [6]], model, max_new_tokens=20, eos_token_id=7)
    assert len(model.calls) == 2


def test_an_end_token_in_the_prompt_ends_nothing():
    assert counted([[7, 8]], max_new_tokens=3, eos_token_id=7) == [[7, 8, 9, 10, 11]]


def test_no_end_token_never_ends():
    assert counted([[4]], max_new_tokens=5) == [[4, 5, 6, 7, 8, 9]]


@pytest.mark.parametrize(
    ("config", "options", "filled_with"),
    [
        ({"eos_token_id": 7, "pad_token_id": 3}, {}, 3),
        ({"eos_token_id": 7, "pad_token_id": 3}, {"pad_token_id": 0}, 0),
        ({"eos_token_id": 7}, {}, 7),
        ({"eos_token_id": [7, 8]}, {}, 7),
        ({"eos_token_id": 50}, {"eos_token_id": (7,)}, 7),
        ({"pad_token_id": 0, "eos_token_id": 50}, {"eos_token_id": 7}, 0),
    ],
    ids=["config's", "given", "end token", "first end token", "given end token", "zero is a token"],
)
def test_what_fills_an_ended_row(config, options, filled_with):
    out = counted([[6], [4]], Counting(**config), max_new_tokens=3, **options)
    assert out == [[6, 7, filled_with, filled_with], [4, 5, 6, 7]]


def test_the_last_token_may_reach_the_models_length():
    assert len(counted([[1] * 5], Counting(max_position_embeddings=8), max_new_tokens=3)[0]) == 8


def test_seeds_repeat_and_differ():
    model = tiny_model(eos_token_id=None)
    options = dict(max_new_tokens=12, do_sample=True, temperature=2.0)
    first = generate(model, IDS, seed=1, **options).tolist()
    assert generate(model, IDS, seed=1, **options).tolist() == first
    assert generate(model, IDS, seed=2, **options).tolist() != first


def test_without_a_seed_the_global_generator_is_drawn_from():
    model = tiny_model(eos_token_id=None)
    options = dict(max_new_tokens=12, do_sample=True, temperature=2.0)
    torch.manual_seed(1)
    first = generate(model, IDS, **options).tolist()
    assert generate(model, IDS, **options).tolist() != first
    torch.manual_seed(1)
    assert generate(model, IDS, **options).tolist() == first


def test_sampling_options_count_only_when_sampling():
    model = tiny_model(eos_token_id=None)
    greedy = generate(model, IDS, max_new_tokens=6).tolist()
    assert generate(model, IDS, max_new_tokens=6, temperature=5.0, top_p=0.1).tolist() == greedy
    assert generate(model, IDS, max_new_tokens=6, do_sample=True, top_k=1, seed=0).tolist() == greedy


def test_nothing_is_recorded_for_gradients():
    model = tiny_model()
    cache = DynamicCache()
    generate(model, IDS, max_new_tokens=3, past_key_values=cache)
    assert not cache.keys(0).requires_grad


def test_the_cache_given_is_the_one_filled():
    cache = DynamicCache()
    out = generate(tiny_model(eos_token_id=None), IDS, max_new_tokens=4, past_key_values=cache)
    assert cache.length == out.shape[1] - 1, "the last token has not been read"


def used_cache():
    cache = DynamicCache()
    tiny_model()(IDS, past_key_values=cache)
    return cache


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_ids": IDS[:, :0]}, r"input_ids has shape \(2, 0\); expected \(batch, positions\), one at least"),
        ({"input_ids": IDS[0]}, r"input_ids has shape \(7,\); expected \(batch, positions\)"),
        ({"max_new_tokens": 0}, r"max_new_tokens is 0; it must be at least 1"),
        ({"max_new_tokens": -3}, r"max_new_tokens is -3; it must be at least 1"),
        (
            {"attention_mask": torch.ones(2, 6)},
            r"attention_mask has shape \(2, 6\), input_ids \(2, 7\); they must agree",
        ),
        (
            {"attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2])},
            r"a row ends in padding: pad on the left, so that every row's last position is a real token",
        ),
        (
            {"max_new_tokens": 122},
            r"7 prompt tokens and 122 new ones make 129, but the model was trained for 128 positions "
            r"\(max_position_embeddings\)\. Shorten the prompt or lower max_new_tokens",
        ),
        ({"past_key_values": used_cache}, r"past_key_values already holds 7 positions; give an empty cache"),
        (
            {"do_sample": True, "temperature": 0.0},
            r"temperature is 0 with do_sample=True; leave do_sample out for the most likely token",
        ),
        ({"do_sample": True, "temperature": -1.0}, r"temperature is -1\.0; it must be 0"),
        ({"top_k": -1}, r"top_k is -1; it must be 0"),
        ({"top_p": 2.0}, r"top_p is 2\.0; it must lie in"),
        ({"input_ids": IDS + 97}, r"input_ids holds \d+; token ids of this model lie in 0 … 96"),
    ],
    ids=[
        "empty prompt",
        "1-D prompt",
        "no new tokens",
        "negative new tokens",
        "mask of another size",
        "right padding",
        "past the model's length",
        "used cache",
        "sampling at temperature 0",
        "negative temperature",
        "top_k",
        "top_p",
        "unknown token",
    ],
)
def test_what_cannot_be_generated_is_refused(options, message):
    options = {"input_ids": IDS, **options}
    if callable(options.get("past_key_values")):
        options["past_key_values"] = options["past_key_values"]()
    with pytest.raises(ValueError, match=message):
        generate(tiny_model(), **options)
