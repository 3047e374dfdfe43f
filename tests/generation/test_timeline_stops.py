"""What ends `run_until`."""

import math

import pytest
import torch

from tests.generation.timelines import IDS, full_logits, tiny_timeline
from workbench.generation import GenerationConfig, Sampler

DRAWN = Sampler(temperature=1.5, seed=3)


def read(**options):
    timeline = tiny_timeline(sampler=DRAWN, **options)
    timeline.read(IDS)
    return timeline


def reference(n=20):
    return read().run(n)


def test_the_number_of_tokens():
    timeline = read()
    reason, nodes = timeline.run_until(max_new_tokens=5)
    assert (reason, len(nodes)) == ("max_new_tokens", 5)
    assert nodes == timeline.path()[20:]
    assert timeline.run_until(max_new_tokens=0) == ("max_new_tokens", [])
    assert timeline.run(0) == []


def test_an_end_token_or_not():
    timeline = read()
    ids = [node.token for node in reference()]
    timeline.model.config.eos_token_id = ids[6]
    first = ids.index(ids[6])
    stop = timeline.run_until(max_new_tokens=20)
    assert (stop.reason, len(stop.nodes)) == ("eos", first + 1)
    timeline.rewind(19)
    assert timeline.run_until(eos=False, max_new_tokens=20).reason == "max_new_tokens"
    timeline.rewind(19)
    assert len(timeline.run(20)) == first + 1
    assert timeline.step(), "a step goes on after an end token"


def test_the_end_tokens_of_the_model_s_own_generation_config():
    ids = [node.token for node in reference()]
    timeline = read()
    timeline.model.config.eos_token_id = ids[0]
    timeline.model.stored_generation_config = GenerationConfig(eos_token_id=[96, ids[6]])
    ended = ids.index(ids[6])
    stop = timeline.run_until(max_new_tokens=20)
    assert (stop.reason, len(stop.nodes)) == ("eos", ended + 1)
    timeline.rewind(19)
    timeline.model.stored_generation_config = GenerationConfig()
    assert timeline.run_until(max_new_tokens=20).reason == "max_new_tokens"
    timeline.rewind(19)
    timeline.model.stored_generation_config = None
    assert timeline.run_until(max_new_tokens=20).nodes[-1].token == ids[0]
    assert timeline.model.stored_generation_config is None


@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_text_that_begins_in_an_earlier_token_or_in_the_prompt(before):
    """The stop string ends with the first new token but `before`, and begins two tokens earlier."""
    timeline = read()
    path = [*IDS, *(node.token for node in reference())]
    end = 20 + before
    text = timeline.tokenizer.decode(path[end - 2 : end + 1])
    stop = timeline.run_until(stop_string=text, max_new_tokens=20)
    assert (stop.reason, len(stop.nodes)) == ("stop_string", before + 1)


def test_a_text_that_a_token_holds_in_its_middle():
    timeline = read()
    timeline.tokenizer.decode = lambda ids, skip_special_tokens=False: "".join(f"<{i}>" for i in ids)
    third = reference()[2].token
    stop = timeline.run_until(stop_string=["nowhere", f"<{third}"], max_new_tokens=20)
    assert stop.reason == "stop_string"
    assert stop.nodes[-1].token == third


def test_a_text_before_the_new_tokens_ends_nothing():
    timeline = read()
    text = timeline.tokenizer.decode(IDS[3:6])
    assert timeline.run_until(stop_string=text, max_new_tokens=4).reason == "max_new_tokens"


def test_an_undecided_prediction():
    entropies = [node.entropy for node in reference()]
    limit = sorted(entropies)[14]
    first = next(i for i, value in enumerate(entropies) if value > limit)
    stop = read().run_until(entropy_above=limit, max_new_tokens=20)
    assert (stop.reason, len(stop.nodes)) == ("entropy", first + 1)
    assert stop.nodes[-1].entropy > limit


def test_an_unlikely_token():
    chances = [math.exp(node.logprob) for node in reference()]
    limit = sorted(chances)[5]
    first = next(i for i, value in enumerate(chances) if value < limit)
    stop = read().run_until(probability_below=limit, max_new_tokens=20)
    assert (stop.reason, len(stop.nodes)) == ("probability", first + 1)


@pytest.mark.parametrize("token", [3, 50, 96])
def test_a_token_that_has_become_unlikely(token):
    timeline = read()
    ids = [*IDS, *(node.token for node in reference())]
    chances = [float(full_logits(timeline.model, ids[:n]).softmax(-1)[token]) for n in range(20, 40)]
    limit = sorted(chances)[4] * 1.0001
    first = next(i for i, value in enumerate(chances) if value < limit)
    stop = timeline.run_until(probability_below=(token, limit), max_new_tokens=20)
    assert (stop.reason, len(stop.nodes)) == ("probability", first + 1)


def test_the_model_s_and_the_cache_s_length():
    timeline = read(cache="static", cache_config={"max_cache_len": 24})
    stop = timeline.run_until(max_new_tokens=20)
    assert (stop.reason, len(stop.nodes)) == ("length", 4)
    timeline.use(cache="dynamic")
    stop = timeline.run_until()
    assert (stop.reason, len(timeline.path())) == ("length", 128)
    assert len(stop.nodes) == 104


def test_nodes_are_told_as_they_come():
    told = []
    timeline = read()
    stop = timeline.run_until(max_new_tokens=4, on_node=lambda node: told.append((node, len(timeline.nodes))))
    assert told == [(node, 21 + i) for i, node in enumerate(stop.nodes)]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"stop_string": ""}, ValueError, "stop_strings is ''; it must be a text that is not empty"),
        ({"stop_string": 3}, TypeError, "stop_string is 3; give a text, or several in a list"),
        ({"eos": 1}, TypeError, "eos is 1; it must be True or False"),
        ({"entropy_above": -1}, ValueError, "entropy_above is -1; it must be a number of nats, 0 or more"),
        ({"entropy_above": "much"}, TypeError, "entropy_above is 'much'; it must be a number of nats"),
        ({"entropy_above": math.nan}, ValueError, "entropy_above is nan"),
        ({"probability_below": 1.5}, ValueError, "probability_below is 1.5; it must be a probability between 0 and 1"),
        ({"probability_below": (97, 0.5)}, ValueError, "token 97 does not exist; ids of this model lie in 0 … 96"),
        ({"probability_below": (1, 2, 3)}, ValueError, r"give a probability, or \(token id, probability\)"),
        ({"max_new_tokens": -1}, ValueError, "max_new_tokens is -1; it must be 0 or more"),
        ({"max_new_tokens": 2.0}, TypeError, "max_new_tokens is 2.0; it must be a whole number"),
        ({"sampler": 0.7}, TypeError, "sampler is a float; give a workbench.Sampler"),
    ],
)
def test_wrong_breakpoints_are_refused_before_a_step(options, error, words):
    timeline = read()
    with pytest.raises(error, match=words):
        timeline.run_until(**options)
    assert len(timeline.nodes) == 20


def test_a_stop_string_needs_a_tokenizer():
    timeline = read()
    timeline.tokenizer = None
    with pytest.raises(ValueError, match=r"stop_string needs the tokenizer, and this timeline has none. Make it with"):
        timeline.run_until(stop_string="a")
    torch.testing.assert_close(timeline.logits(), full_logits(timeline.model, IDS), atol=1e-4, rtol=1e-4)
