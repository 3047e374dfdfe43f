"""Two sets of rotary factors, one for short texts and one for long ones: numbers do not depend on how a text came."""

import pytest
import torch

from tests.conftest import tiny_model
from tests.generation.timelines import Forwards, full_logits, stop_after, tiny_timeline
from workbench.generation import Timeline
from workbench.instrument import Cancelled

LIMIT = 32


def long_timeline(limit=LIMIT, most=64, **options):
    rope = dict(
        rope_type="longrope",
        short_factor=[1.0] * 4,
        long_factor=[4.0] * 4,
        original_max_position_embeddings=limit,
        rope_theta=1e4,
    )
    model = tiny_model(eos_token_id=None, rope_parameters=rope, max_position_embeddings=most)
    return tiny_timeline(model=model, **options)


def ids(count):
    return [1 + i * 7 % 90 for i in range(count)]


def check(timeline):
    """What comes after the current text is what one forward over it gives."""
    text = [node.token for node in timeline.path()]
    torch.testing.assert_close(timeline.logits(), full_logits(timeline.model, text), atol=1e-4, rtol=1e-4)


def check_step(timeline):
    """So is what a step takes its token from, and what comes after that."""
    expected = full_logits(timeline.model, [node.token for node in timeline.path()])
    assert timeline.step().token == int(expected.argmax())
    check(timeline)


@pytest.mark.parametrize("cache", ["dynamic", "static", "offloaded", "none"])
def test_a_prompt_that_crosses_the_limit_is_read_at_once(cache, monkeypatch):
    monkeypatch.setattr("workbench.generation.timeline_reader.CHUNK", 8)
    timeline = long_timeline(cache=cache)
    timeline.read(ids(50))
    check(timeline)
    reference = timeline.model.generate(torch.tensor([ids(50)]), max_new_tokens=6)[0].tolist()
    timeline.run(6)
    assert [node.token for node in timeline.path()] == reference
    short, forwards = Timeline(timeline.model), Forwards(timeline.model)
    short.read(ids(LIMIT))
    assert forwards.calls == 4
    timeline.force(ids(4))
    assert timeline.path()[-1].positions_computed == (60 if cache == "none" else 4)


@pytest.mark.parametrize("cache", ["dynamic", "static", "none"])
def test_going_back_below_the_limit_reads_the_text_again(cache):
    timeline = long_timeline(cache=cache)
    timeline.read(ids(60))
    node = timeline.branch(19, 5)
    assert node.positions_computed == 21
    check(timeline)
    assert timeline.step().positions_computed == (22 if cache == "none" else 1)
    timeline.rewind(10)
    check_step(timeline)
    timeline.rewind(59)
    check_step(timeline)
    timeline.edit_token(20, 3)
    check_step(timeline)


def test_steps_over_the_limit_and_back():
    timeline = long_timeline()
    timeline.read(ids(30))
    computed = []
    for _ in range(5):
        check_step(timeline)
        computed.append(timeline.current.positions_computed)
    assert computed == [1, 1, 33, 1, 1]
    timeline.rewind(31)
    check_step(timeline)
    timeline.rewind(25)
    check_step(timeline)
    timeline.rewind(28)
    timeline.force([3, 4, 5, 6, 7, 8])
    check(timeline)
    timeline.rewind(timeline.path()[30])
    check_step(timeline)
    again = timeline.replay()
    torch.testing.assert_close(again.logits(), timeline.logits(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("calls", range(3))
def test_a_stop_between_the_two_leaves_no_keys_of_the_other_kind(calls):
    timeline = long_timeline()
    timeline.read(ids(60))
    with pytest.raises(Cancelled):
        timeline.edit_token(20, 3, should_stop=stop_after(calls))
    timeline.rewind(19)
    check_step(timeline)
    timeline.rewind(59)
    check_step(timeline)


def test_another_cache_takes_over_only_what_is_of_its_kind():
    timeline = long_timeline()
    timeline.read(ids(40))
    timeline.use(cache="static", cache_config={"max_cache_len": 64})
    check_step(timeline)
    assert timeline.current.positions_computed == 1
    timeline.rewind(20)
    timeline.use(cache="dynamic")
    check_step(timeline)
    timeline.rewind(39)
    check_step(timeline)


def test_it_is_as_fresh_after_it_was_in_a_file(tmp_path):
    timeline = long_timeline()
    timeline.read(ids(40))
    timeline.save(tmp_path / "one")
    opened = Timeline.load(tmp_path / "one", timeline.model)
    opened.rewind(20)
    check_step(opened)
