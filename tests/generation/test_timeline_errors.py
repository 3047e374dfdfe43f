"""What a timeline refuses, in words, and that it is as it was then."""

import pytest
import torch

from tests.conftest import tiny_model
from tests.generation.timelines import IDS, Forwards, snapshot, tiny_timeline
from workbench.generation import Sampler, Timeline
from workbench.instrument.edits import zero


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda t: t.rewind(20), ValueError, "node 20 does not exist; there are nodes 0 … 19"),
        (lambda t: t.rewind(-1), ValueError, "node -1 does not exist"),
        (lambda t: t.rewind("a"), TypeError, "node is 'a'; give a Node of this timeline or its index"),
        (lambda t: t.branch(99, 1), ValueError, "node 99 does not exist; there are nodes 0 … 19"),
        (lambda t: t.branch(3, 97), ValueError, "token 97 does not exist; ids of this model lie in 0 … 96"),
        (lambda t: t.branch(3, -1), ValueError, "token -1 does not exist"),
        (lambda t: t.branch(3, 1.5), TypeError, "token is 1.5; token ids are whole numbers"),
        (lambda t: t.edit_token(20, 1), ValueError, "position 20 does not exist; .* has positions 0 … 19"),
        (lambda t: t.edit_token("x", 1), TypeError, "position is 'x'; give a position of the current text"),
        (lambda t: t.edit_token(3, 97), ValueError, "token 97 does not exist"),
        (lambda t: t.read(""), ValueError, "the text is empty; give some text, or token ids"),
        (lambda t: t.read([]), ValueError, "there is no token in it"),
        (lambda t: t.read([1, 97]), ValueError, "token 97 does not exist; .* Is this the tokenizer of another model"),
        (lambda t: t.read([1, None]), TypeError, "token is None; token ids are whole numbers"),
        (lambda t: t.read(5), TypeError, "a text or token ids are needed; got 5"),
        (lambda t: t.read(torch.ones(2, 3, dtype=torch.long)), ValueError, r"shape \(2, 3\); a timeline is one"),
        (lambda t: t.read([1] * 109), ValueError, "would have 129 tokens, but .* at most 128 positions .* Rewind, or"),
        (lambda t: t.force([1] * 200), ValueError, "would have 220 tokens"),
        (lambda t: t.read([1], source="typed"), ValueError, "source is 'typed'; allowed are prompt, sampled, forced"),
        (lambda t: t.run(-1), ValueError, "n is -1; it must be 0 or more"),
        (lambda t: t.step(sampler="greedy"), TypeError, "sampler is a str; give a workbench.Sampler"),
        (lambda t: t.logits(50), ValueError, "node 50 does not exist"),
        (lambda t: t.candidates(top=-2), ValueError, "top is -2; it must be 0 or more"),
        (lambda t: t.use(cache="fast"), ValueError, "cache is 'fast'; allowed are dynamic, static"),
        (lambda t: t.use(cache="dynamic", cache_config={"windows": 3}), ValueError, "no option 'windows'; it has"),
        (lambda t: t.use(cache="sliding", cache_config={"window": 0}), ValueError, "window is 0; it must be"),
        (lambda t: t.use(cache="dynamic", cache_config=3), TypeError, "cache_config is a int; give a dictionary"),
        (lambda t: t.use(cache_config={"window": 3}), ValueError, "dynamic cache has no option 'window'"),
        (
            lambda t: t.use(cache="static", cache_config={"max_cache_len": 10}),
            ValueError,
            "would have 20 tokens, but the static cache has room for max_cache_len=10. Use one that has",
        ),
        (lambda t: t.use(sampler=Sampler(seed=1), cache="fast"), ValueError, "cache is 'fast'"),
        (lambda t: t.use(cache="static", edits=3), TypeError, "edits is 3; give"),
        (lambda t: t.replay(cache="fast"), ValueError, "cache is 'fast'"),
        (lambda t: t.replay(cache="static", cache_config={"max_cache_len": 10}), ValueError, "has room for max_"),
        (lambda t: t.replay(node=77), ValueError, "node 77 does not exist"),
        (lambda t: t.read_again(20), ValueError, "position 20 does not exist"),
    ],
)  # fmt: skip
def test_what_is_refused_changes_nothing_and_runs_nothing(call, error, words):
    timeline = tiny_timeline()
    timeline.read(IDS)
    before, forwards = snapshot(timeline), Forwards(timeline.model)
    with pytest.raises(error, match=words):
        call(timeline)
    assert snapshot(timeline) == before
    assert forwards.calls == 0
    assert timeline.step().positions_computed == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda t: t.step(),
        lambda t: t.run(3),
        lambda t: t.force([1]),
        lambda t: t.logits(),
        lambda t: t.candidates(),
        lambda t: t.replay(),
    ],
)
def test_without_a_text_it_says_what_to_do(call):
    with pytest.raises(ValueError, match=r"there is no text yet. Read a prompt first: timeline.read"):
        call(tiny_timeline())


def test_a_token_cannot_be_edited_where_there_is_none():
    with pytest.raises(ValueError, match=r"there is no text yet"):
        tiny_timeline().edit_token(0, 1)
    with pytest.raises(ValueError, match=r"node 0 does not exist; there are no nodes yet"):
        tiny_timeline().rewind(0)


def test_a_node_of_another_branch_or_timeline_is_not_edited():
    timeline = tiny_timeline()
    timeline.read(IDS)
    timeline.branch(3, 90)
    with pytest.raises(ValueError, match=r"node 9 is not on the current text; rewind to a node of its branch first"):
        timeline.edit_token(timeline.nodes[9], 1)
    other = tiny_timeline()
    other.read([50, 51, 52])
    with pytest.raises(ValueError, match=r"node 2 is one of another timeline"):
        timeline.rewind(other.nodes[2])


def test_a_text_needs_a_tokenizer():
    timeline = Timeline(tiny_model())
    with pytest.raises(ValueError, match=r"a text needs the tokenizer, and this timeline has none. Give token ids"):
        timeline.read("Hello")
    assert timeline.read(torch.tensor([[5, 6]]))[1].token == 6


def test_a_full_model_or_cache_refuses_a_step():
    timeline = tiny_timeline()
    timeline.read([1] * 128)
    with pytest.raises(ValueError, match=r"would have 129 tokens, but the model was trained for at most 128 positions"):
        timeline.step()
    with pytest.raises(ValueError, match=r"would have 129 tokens"):
        timeline.run(1)
    small = tiny_timeline(cache="static", cache_config={"max_cache_len": 12})
    forwards = Forwards(small.model)
    with pytest.raises(ValueError, match=r"would have 20 tokens, but the static cache has room for max_cache_len=12"):
        small.read(IDS)
    assert (forwards.calls, small.nodes) == (0, [])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"cache": None}, ValueError, "cache is None; allowed are dynamic, static"),
        ({"cache": "none", "cache_config": {"window": 3}}, ValueError, "has no options; got window"),
        ({"cache": "static", "cache_config": {"max_cache_len": 0}}, ValueError, "max_cache_len is 0; it must be"),
        ({"sampler": {"seed": 1}}, TypeError, "sampler is a dict"),
        ({"edits": {"nowhere": abs}}, ValueError, "nowhere"),
        ({"logits_budget": -1}, ValueError, "logits_budget is -1; it must be 0 or more"),
    ],
)
def test_a_timeline_is_not_made_of_wrong_things(options, error, words):
    with pytest.raises(error, match=words):
        Timeline(tiny_model(), **options)


def test_a_timeline_needs_a_llama():
    with pytest.raises(TypeError, match=r"Timeline needs a LlamaForCausalLM; got object. See workbench.load"):
        Timeline(object())


def test_a_cache_that_takes_nothing_over_changes_neither_sampler_nor_edits(monkeypatch):
    def fail(cache, other):
        raise RuntimeError("planted")

    timeline = tiny_timeline()
    timeline.read(IDS)
    before = snapshot(timeline)
    monkeypatch.setattr("workbench.cache.StaticCache.copy_from", fail)
    with pytest.raises(RuntimeError, match="planted"):
        timeline.use(Sampler(seed=1), "static", [zero("z", heads=1)])
    assert snapshot(timeline) == before
    assert timeline.step().positions_computed == 1
