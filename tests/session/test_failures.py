"""What a session is like after a call that was refused or failed: cursor, sampler and cache are those of its text."""

import pytest

from tests.fakes import tiny_session
from tests.generation.timelines import snapshot
from workbench.generation import Sampler
from workbench.instrument.edits import zero


def fail_after(session, calls):
    """The model's forward after `calls` others is interrupted."""
    left = iter(range(calls))

    def fail(module, args):
        if next(left, None) is None:
            raise KeyboardInterrupt

    return session.model.model.layers[1].register_forward_pre_hook(fail)


def state(session):
    run = session.current
    return (snapshot(run.timeline), run.one_sampler, session.sampler, session.cache, session.cache_config)


@pytest.mark.parametrize("follow", [True, False])
def test_the_cursor_follows_tokens_that_are_kept_after_an_interrupt(follow):
    session = tiny_session()
    session.run("Hello")
    revision, handle = session.revision, fail_after(session, 3)
    with pytest.raises(KeyboardInterrupt):
        session.generate(20, follow=follow)
    handle.remove()
    assert session.current.length == 8
    assert (session.cursor.query, session.revision) == ((7, revision + 1) if follow else (4, revision))
    assert session.step()
    assert session.cursor.query == 8


def test_the_cursor_follows_a_new_text_whose_generation_fails():
    session = tiny_session()
    session.run("A longer text", max_new_tokens=3)
    handle = fail_after(session, 2)
    with pytest.raises(KeyboardInterrupt):
        session.run("abc", max_new_tokens=5)
    handle.remove()
    assert session.current.prompt == "abc"
    assert (session.cursor.run, session.cursor.query, session.cursor.step) == (2, 3, 1)


def test_observers_of_the_cursor_may_compute_after_a_failure():
    session = tiny_session()
    session.run("Hello")
    handle = fail_after(session, 1)
    session.observe(lambda change: (handle.remove(), session.step(follow=False)), "revision")
    with pytest.raises(KeyboardInterrupt):
        session.generate(5)
    assert session.current.length == 7


def test_a_prompt_that_fills_the_cache_is_a_text_without_new_tokens():
    session = tiny_session()
    session.run("A longer text")
    run = session.run("abc", max_new_tokens=5, cache="static", cache_config={"max_cache_len": 3})
    assert (run.length, session.cursor.run, session.cursor.query) == (3, 2, 2)
    for call in (session.step, lambda: session.generate(2), session.run_until):
        with pytest.raises(ValueError, match=r"would have 4 tokens, but the static cache has room for max_cache_len=3"):
            call()
    assert session.run("ab", max_new_tokens=5).length == 3


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.use(sampler="x", cache="none"),
        lambda s: s.use(sampler="x", edits=[zero("z", heads=1)]),
        lambda s: s.use(sampler=Sampler(seed=1), cache="fast"),
        lambda s: s.use(sampler=Sampler(seed=1), edits=3),
        lambda s: s.generate(1, sampler="x"),
        lambda s: s.step(sampler="x"),
        lambda s: s.run_until(max_new_tokens=1, sampler="x"),
    ],
)
def test_what_is_refused_changes_neither_text_nor_session(call):
    session = tiny_session()
    session.run("Hello", max_new_tokens=2)
    before = state(session)
    with pytest.raises((TypeError, ValueError), match=r"sampler is a str; give a workbench.Sampler|is 'fast'|is 3"):
        call(session)
    assert state(session) == before


def test_another_sampler_and_cache_together():
    session = tiny_session()
    session.run("Hello", max_new_tokens=2)
    session.use(session.sampler, "none")
    assert session.current.one_sampler
    session.use(Sampler(seed=1), "dynamic", [zero("z", heads=1)])
    run = session.current
    assert (run.one_sampler, run.sampler, session.sampler) == (False, Sampler(seed=1), Sampler(seed=1))
    assert (run.timeline.cache_choice[0], session.cache) == ("dynamic", "dynamic")
    assert run.timeline.edits == session.edits
