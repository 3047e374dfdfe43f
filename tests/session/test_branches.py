"""Rewinding, branching and other caches in a session: what is looked at is always that of the current text."""

import threading

import numpy as np
import pytest
import torch

from tests.conftest import hooks
from tests.fakes import CharTokenizer, tiny_session
from tests.generation.timelines import KINDS, Forwards, full_logits, stop_after
from workbench.analysis import AttentionMap, logit_lens
from workbench.generation import Sampler
from workbench.instrument import Cancelled, EditError, capture
from workbench.instrument.edits import knock_out, zero
from workbench.model.mask import causal, sink, window
from workbench.session import BusyError

RULES = {"sliding": [causal(), window(9)], "sink": [causal(), window(8), sink(3)]}
PROMPT = "The quick brown fox"


@torch.no_grad()
def fresh(session, cache="dynamic"):
    """A capture of one forward over the current text."""
    ids = torch.tensor([session.current.token_ids])
    with capture(session.model, "embed", "resid_post", "q_rot", "k_rot") as acts:
        session.model(ids, attention_mask=RULES.get(cache), use_cache=False)
    return acts


def check(session, cache="dynamic"):
    """Attention, lens, hidden states and logits are those of a forward over the current text."""
    run, expected = session.current, fresh(session, cache)
    length = len(run.token_ids)
    assert run.length == length == len(session.to_pandas())
    for name in ("embed", "layers.2.resid_post"):
        torch.testing.assert_close(run.acts.window(name, 0, length), expected[name], atol=1e-4, rtol=1e-4)
    ours, theirs = session.attention, AttentionMap(expected)
    for layer, head in ((0, 0), (1, 3), (2, 2)):
        np.testing.assert_allclose(ours.head(layer, head), theirs.head(layer, head), atol=1e-4)
        np.testing.assert_allclose(ours.row(layer, head, length - 1), theirs.row(layer, head, length - 1), atol=1e-4)
    lens = session.lens()
    reference = logit_lens(session.model, expected)
    assert lens.length == length
    np.testing.assert_allclose(lens.next_p, reference.next_p, atol=1e-4)
    np.testing.assert_allclose(lens.entropy, reference.entropy, atol=1e-3)
    np.testing.assert_array_equal(lens.top_ids[:, :, 0], reference.top_ids[:, :, 0])
    torch.testing.assert_close(run.next_logits, full_logits(session.model, run.token_ids, cache), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("lens_between", [True, False])
@pytest.mark.parametrize("cache", KINDS)
def test_everything_stays_right_after_rewind_branch_and_switching_leaves(cache, lens_between):
    session = tiny_session()
    session.run(PROMPT, max_new_tokens=5, cache=cache, cache_config=KINDS[cache])
    first = session.current.leaf
    look = (lambda: check(session, cache)) if lens_between else (lambda: None)
    look()
    session.rewind(10)
    look()
    session.step()
    look()
    session.branch(12, 40)
    session.force("xyz")
    look()
    second = session.current.leaf
    session.edit_token(3, 50)
    look()
    session.rewind(first)
    look()
    session.rewind(second.index)
    look()
    session.rewind(0)
    look()
    session.run_until(max_new_tokens=4)
    check(session, cache)
    assert hooks(session.model) == 0


def test_rewinding_computes_nothing_and_going_back_to_another_branch_only_what_is_gone():
    session = tiny_session()
    run = session.run(PROMPT, max_new_tokens=5)
    leaf, forwards = run.leaf, Forwards(session.model)
    session.rewind(3)
    session.rewind(leaf)
    session.rewind(run.nodes[20])
    assert forwards.calls == 0
    session.branch(15, 30)
    assert forwards.positions == 1
    session.rewind(leaf)
    assert forwards.positions == 1 + 8  # positions 16 … 23
    check(session)


def test_everything_stays_right_where_longer_texts_are_rotated_otherwise():
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    rope |= {"original_max_position_embeddings": 32, "rope_theta": 1e4}
    session = tiny_session(rope_parameters=rope, max_position_embeddings=64)
    session.run(PROMPT, max_new_tokens=12)
    check(session)
    for _ in range(3):
        session.step()
        check(session)
    session.branch(15, 40)
    check(session)
    session.force("a text that is long again")
    check(session)
    session.rewind(20)
    session.step()
    check(session)


def test_another_cache_in_the_middle_of_a_text():
    session = tiny_session()
    session.run(PROMPT, max_new_tokens=3)
    session.use(cache="sliding", cache_config={"window": 9})
    session.step()
    check(session, "sliding")
    session.use(cache="none")
    node = session.step()
    assert (node.cache, node.positions_computed) == ("none", session.current.length)
    check(session)
    session.use(cache="quantized")
    session.step()
    session.use(cache="static", cache_config={"max_cache_len": 60})
    session.step()
    check(session)
    assert session.run("Another").timeline.cache_choice == ("static", {"max_cache_len": 60})
    assert session.run("Another", cache="dynamic").timeline.cache_choice == ("dynamic", {})


def test_edits_are_those_of_the_current_text_and_of_later_ones():
    session = tiny_session()
    session.run(PROMPT, max_new_tokens=3)
    edits = [zero("z", heads=1)]
    session.use(edits=edits)
    session.step()
    assert session.current.timeline.edits == edits
    assert session.run("Another").timeline.active_edits.hits == [3 * 7]
    session.use(edits=())
    session.step()
    check(session)
    with pytest.raises(EditError, match="did not take effect"):
        session.replay(edits=[zero("z", positions=[50])])


def test_what_was_looked_at_before_stays_as_it_was():
    session = tiny_session()
    session.run(PROMPT, max_new_tokens=5)
    attention, lens = session.attention, session.lens()
    weights, chances = attention.head(1, 1), lens.next_p.copy()
    session.branch(6, 44)
    session.step()
    session.lens()
    np.testing.assert_array_equal(attention.head(1, 1), weights)
    np.testing.assert_array_equal(lens.next_p, chances)


def test_the_cursor_follows_and_stays_inside():
    session = tiny_session()
    session.run("Hello", max_new_tokens=4)
    cursor, revision = session.cursor, session.revision
    assert (cursor.query, cursor.step) == (8, 4)
    session.rewind(6)
    assert (cursor.query, cursor.step, session.revision) == (6, 2, revision + 1)
    session.branch(6, 9)
    assert (cursor.query, cursor.step) == (7, 3)
    cursor.query = 5
    session.branch(6, 10)  # as long as before: the panels are told
    assert (cursor.query, session.revision) == (5, revision + 3)
    session.rewind(2)
    assert (cursor.query, cursor.step) == (2, 0)
    assert session.current.prompt_length == 3
    session.rewind(8)
    assert session.current.prompt_length == 5
    cursor.key = 4


def test_run_until_says_why_it_stopped():
    session = tiny_session()
    session.run("Hello")
    assert session.run_until(max_new_tokens=3).reason == "max_new_tokens"
    assert session.run_until(entropy_above=0.0).reason == "entropy"
    stop = session.run_until(max_new_tokens=50, should_stop=stop_after(9))
    assert (stop.reason, session.current.length) == ("stopped", 5 + 3 + 1 + len(stop.nodes))
    text = session.tokenizer.decode(session.current.token_ids)
    assert session.run_until(stop_string=text[-1] + "never", max_new_tokens=2).reason == "max_new_tokens"


def test_a_replay_is_another_run_that_can_be_shown():
    session = tiny_session()
    run = session.run(PROMPT, max_new_tokens=5)
    session.branch(20, 30)
    again = session.replay(cache="none")
    assert session.current is run
    assert again.token_ids == run.token_ids
    assert (again.prompt, again.prompt_length, again.length) == (PROMPT, 19, 22)
    session.show(again)
    check(session)
    assert session.cursor.run == 2
    drawn = session.replay(sampler=Sampler(temperature=1.5, seed=3))
    assert drawn.token_ids[:19] == run.token_ids[:19]
    with pytest.raises(TypeError, match=r"run is a str; give a Run"):
        session.show("run")
    with pytest.raises(ValueError, match=r"this run is one of another model"):
        session.show(tiny_session().run("Hi"))


@pytest.mark.parametrize("where", ["generation.timeline_engine.score_tokens", "session.captures.View"])
@pytest.mark.parametrize("back", [0, 3], ids=["at the end", "after a rewind"])
def test_an_exception_after_the_forward_leaves_what_is_looked_at(where, back, monkeypatch):
    session = tiny_session()
    run = session.run(PROMPT, max_new_tokens=5)
    session.rewind(23 - back)

    def fail(*anything):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"workbench.{where}", fail)
        with pytest.raises(KeyboardInterrupt):
            session.force([30, 31])
    assert (run.length, len(run.timeline.nodes)) == (24 - back, 24)
    check(session)
    session.force([40, 41])
    check(session)


def code_of(session):
    from workbench.panels.run_bar import RunBar

    return RunBar(session).code()


def test_the_run_bar_s_code_makes_the_current_text_whatever_way_it_came_about():
    import workbench as wb

    def typed(session):
        session.step()
        session.force([40, 41])
        session.generate(2)

    ways = (
        typed,
        lambda s: s.rewind(4),
        lambda s: s.branch(4, 50),
        lambda s: (s.edit_token(7, 50), s.step()),
        lambda s: (s.edit_token(0, 50), s.step()),
        lambda s: (s.edit_token(0, 50), s.rewind(s.current.nodes[0]), s.step()),
    )
    for way in ways:
        session = tiny_session()
        session.run(PROMPT, cache="static", cache_config={"max_cache_len": 60})
        way(session)
        other = tiny_session()
        exec(code_of(session), {"session": other, "wb": wb})
        assert other.current.token_ids == session.current.token_ids
        assert other.current.timeline.cache_choice == session.current.timeline.cache_choice


CALLS = {
    "step": lambda s, **o: s.step(**o),
    "run_until": lambda s, **o: s.run_until(max_new_tokens=2, **o),
    "rewind": lambda s, **o: s.rewind(23, **o),
    "branch": lambda s, **o: s.branch(4, 9, **o),
    "force": lambda s, **o: s.force("abc", **o),
    "edit_token": lambda s, **o: s.edit_token(4, 9, **o),
    "replay": lambda s, **o: s.replay(**o),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_stop_or_an_error_in_a_forward_changes_nothing(name):
    session = tiny_session()
    run = session.run(PROMPT, max_new_tokens=5)
    session.branch(15, 30)
    before = (run.leaf, list(run.timeline.nodes), run.length, run.next_logits.tolist())
    for layer in range(3):
        if name == "run_until":
            assert session.run_until(max_new_tokens=2, should_stop=stop_after(layer + 1)).nodes == []
        else:
            with pytest.raises(Cancelled):
                CALLS[name](session, should_stop=stop_after(layer))
        assert (run.leaf, list(run.timeline.nodes), run.length, run.next_logits.tolist()) == before

        def fail(*anything):
            raise KeyboardInterrupt

        handle = session.model.model.layers[layer].register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            CALLS[name](session)
        handle.remove()
        assert (run.leaf, list(run.timeline.nodes), run.length, run.next_logits.tolist()) == before
        assert hooks(session.model) == 0
        check(session)


@pytest.mark.parametrize("name", [*CALLS, "use", "show"])
def test_every_call_is_refused_while_another_runs(name):
    session = tiny_session()
    run = session.run(PROMPT, max_new_tokens=5)
    call = {**CALLS, "use": lambda s: s.use(cache="none"), "show": lambda s: s.show(run)}[name]
    inside, leave = threading.Event(), threading.Event()

    def wait():
        inside.set()
        leave.wait(10)
        return True

    thread = threading.Thread(target=lambda: session.generate(1, should_stop=wait))
    thread.start()
    inside.wait(10)
    with pytest.raises(BusyError, match=r"The model is busy with another job"):
        call(session)
    leave.set()
    thread.join()
    call(session)


@pytest.mark.parametrize("name", CALLS)
def test_without_a_text_every_call_says_what_to_do(name):
    with pytest.raises(ValueError, match=r"There is no text yet. Run a prompt first: session.run"):
        CALLS[name](tiny_session())


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s: s.run("x", cache="fast"), ValueError, "cache is 'fast'; allowed are"),
        (
            lambda s: s.run("xyz", cache="static", cache_config={"max_cache_len": 2}),
            ValueError,
            "has room for max_cache",
        ),
        (lambda s: s.use(cache="fast"), ValueError, "cache is 'fast'"),
        (lambda s: s.use(cache="sliding", cache_config={"size": 3}), ValueError, "no option 'size'"),
        (lambda s: s.rewind(99), ValueError, "node 99 does not exist"),
        (lambda s: s.branch(2, 97), ValueError, "token 97 does not exist"),
        (lambda s: s.force(""), ValueError, "the text is empty"),
        (lambda s: s.edit_token(99, 1), ValueError, "position 99 does not exist"),
        (lambda s: s.run_until(entropy_above=-1), ValueError, "entropy_above is -1"),
    ],
)
def test_wrong_values_change_nothing(call, error, words):
    session = tiny_session()
    run = session.run("Hello", max_new_tokens=3)
    before = (run.leaf, list(run.timeline.nodes), session.cache, session.cache_config, session.sampler, session.edits)
    with pytest.raises(error, match=words):
        call(session)
    assert session.current is run
    now = (run.leaf, list(run.timeline.nodes), session.cache, session.cache_config, session.sampler, session.edits)
    assert now == before
    assert session.step().positions_computed == 1


def test_without_a_text_wrong_choices_are_refused_too():
    session = tiny_session()
    with pytest.raises(ValueError, match="cache is 'fast'"):
        session.use(cache="fast")
    session.use(cache="none", edits=[knock_out(edges=[(2, 1)])], sampler=Sampler(seed=3))
    run = session.run("Hello", max_new_tokens=1)
    assert (run.timeline.cache_choice, run.sampler) == (("none", {}), Sampler(seed=3))
    assert run.timeline.active_edits.hits[0] > 0


def test_the_text_of_a_session_is_read_by_its_tokenizer():
    session = tiny_session()
    session.run("Hello")
    assert [node.token for node in session.force("you")] == CharTokenizer().encode("you")
