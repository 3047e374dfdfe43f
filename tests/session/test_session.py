import threading
import time

import numpy as np
import pytest
import torch
import traitlets

from tests.conftest import hooks
from tests.fakes import CharTokenizer, tiny_session
from workbench.generation import Sampler
from workbench.instrument import Cancelled, capture
from workbench.session import BusyError, Run, Session


def stop_after(calls):
    """A should_stop that is true from its `calls`-th question on."""
    asked = iter(range(10**6))
    return lambda: next(asked) >= calls


def snapshot(session):
    run = session.current
    return (run, run.length, run.cache.length, run.acts.length, run.token_ids, run.next_logits.tolist())


def test_a_run_records_what_the_model_thought_of_every_token():
    session = tiny_session()
    run = session.run("Hello there", max_new_tokens=5)
    ids = torch.tensor([run.token_ids])
    with torch.no_grad():
        logprobs = session.model(ids).logits[0].log_softmax(-1)
    assert run.length == 16 == run.cache.length == run.acts.length
    assert [node.source for node in run.nodes] == ["prompt"] * 11 + ["sampled"] * 5
    assert run.nodes[0].logprob is None
    for position, node in enumerate(run.nodes[1:], start=1):
        assert node.logprob == pytest.approx(float(logprobs[position - 1, node.token]), abs=1e-4)
        assert node.top_ids[0] == int(logprobs[position - 1].argmax())
        assert node.rank == int((logprobs[position - 1] > logprobs[position - 1, node.token]).sum()) + 1
    greedy = session.model.generate(ids[:, :11], max_new_tokens=5)
    assert run.token_ids == greedy[0].tolist()
    assert session.to_pandas().surprisal[3] == pytest.approx(-run.nodes[3].logprob)


def test_a_long_prompt_is_read_in_chunks_with_the_same_numbers(monkeypatch):
    whole = tiny_session().run("The quick brown fox jumps over the lazy dog").nodes
    monkeypatch.setattr("workbench.generation.timeline_reader.CHUNK", 7)
    session = tiny_session()
    chunked = session.run("The quick brown fox jumps over the lazy dog").nodes
    assert [node.positions_computed for node in chunked if node.positions_computed] == [7] * 6 + [1]
    for a, b in zip(whole[1:], chunked[1:], strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
        assert a.rank == b.rank


def test_steps_continue_and_sampling_repeats_with_its_seed():
    session = tiny_session()
    sampler = Sampler(temperature=1.5, seed=3)
    first = session.run("abc", max_new_tokens=6, sampler=sampler).token_ids
    session.run("abc", sampler=sampler)
    for _ in range(6):
        session.step()
    assert session.current.token_ids == first
    assert session.run("abc", max_new_tokens=6, sampler=Sampler(temperature=1.5, seed=4)).token_ids != first


def test_an_end_token_ends_a_run_but_not_a_step():
    session = tiny_session()
    second = session.run("abc", max_new_tokens=2).token_ids[4]
    session.model.config.eos_token_id = second
    first_end = session.run("abc", max_new_tokens=30).token_ids.index(second, 3)
    assert session.current.length == first_end + 1
    assert session.step().positions_computed == 1
    session.model.config.eos_token_id = None


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "The prompt is empty. Type some text, then run."),
        (" \n\t", "The prompt is empty."),
        ("x" * 129, r"The prompt has 129 tokens, but the model was .* at most 128 positions .* Shorten it by 1 "),
    ],
)
def test_a_refused_prompt_leaves_everything_as_it_was(prompt, words):
    session = tiny_session()
    session.run("fine", max_new_tokens=2)
    before = snapshot(session)
    with pytest.raises(ValueError, match=words):
        session.run(prompt)
    assert snapshot(session) == before
    assert session.step()


def test_the_model_s_length_ends_a_generation_and_then_refuses_a_step():
    session = tiny_session(max_position_embeddings=16)
    assert session.run("abcdefghij", max_new_tokens=100).length == 16
    with pytest.raises(ValueError, match=r"fills all 16 positions of the model .* Run a shorter prompt"):
        session.step()


def test_without_a_text_looking_and_stepping_say_what_to_do():
    session = tiny_session()
    for call in (session.step, session.to_pandas, session.lens, lambda: session.attention):
        with pytest.raises(ValueError, match=r"There is no text yet. Run a prompt first: session.run"):
            call()


def test_stopping_while_reading_a_prompt_keeps_the_text_before(monkeypatch):
    monkeypatch.setattr("workbench.generation.timeline_reader.CHUNK", 4)
    session = tiny_session()
    session.run("before", max_new_tokens=1)
    before = snapshot(session)
    for calls in range(9):  # three layers a chunk, three chunks: stops at each of them
        with pytest.raises(Cancelled):
            session.run("another one", should_stop=stop_after(calls))
        assert snapshot(session) == before
    assert hooks(session.model) == 0


def test_stopping_a_generation_keeps_finished_tokens_and_continues_exactly():
    reference = tiny_session().run("Hello", max_new_tokens=12).token_ids
    for calls in range(2, 40, 5):  # in the middle of a token's layers, too
        session = tiny_session()
        session.run("Hello")
        nodes = session.generate(12, should_stop=stop_after(calls))
        run = session.current
        assert run.length == run.cache.length == run.acts.length == 5 + len(nodes) < 17
        session.generate(17 - run.length)
        assert run.token_ids == reference
        assert hooks(session.model) == 0


def test_an_exception_inside_a_forward_leaves_the_session_usable():
    session = tiny_session()
    session.run("Hello", max_new_tokens=2)
    before = snapshot(session)
    layer = session.model.model.layers[1]

    def fail(module, args):
        raise RuntimeError("planted")

    handle = layer.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match=r"planted"):
        session.step()
    handle.remove()
    assert snapshot(session) == before
    assert hooks(session.model) == 0
    session.step()
    assert session.current.token_ids == tiny_session().run("Hello", max_new_tokens=3).token_ids


def test_a_second_job_is_refused_while_one_runs():
    session = tiny_session()
    session.run("Hello")
    inside, leave = threading.Event(), threading.Event()

    def wait():
        inside.set()
        leave.wait(10)
        return True

    thread = threading.Thread(target=lambda: session.generate(1, should_stop=wait))
    thread.start()
    inside.wait(10)
    with pytest.raises(BusyError, match=r"The model is busy with another job. Stop it or wait"):
        session.step()
    leave.set()
    thread.join()
    assert session.step()


def test_the_cursor_follows_new_tokens_unless_it_was_moved():
    session = tiny_session()
    session.run("Hello", max_new_tokens=2)
    cursor = session.cursor
    assert (cursor.run, cursor.query, cursor.step) == (1, 6, 2)
    session.step()
    assert (cursor.query, cursor.step) == (7, 3)
    cursor.query = 2
    session.step()
    assert (cursor.query, cursor.step) == (2, 0)
    cursor.step = 4
    assert cursor.query == 8
    session.run("Hi")
    assert (cursor.run, cursor.query, cursor.step) == (2, 1, 0)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("layer", 3, "cursor.layer is 3; there are layers 0 … 2"),
        ("head", 4, "cursor.head is 4; there are query heads 0 … 3"),
        ("query", 5, "cursor.query is 5; there are positions 0 … 4"),
        ("key", -1, "cursor.key is -1; there are positions 0 … 4"),
    ],
)
def test_the_cursor_stays_inside(name, value, words):
    session = tiny_session()
    session.run("Hello")
    with pytest.raises(traitlets.TraitError, match=words):
        setattr(session.cursor, name, value)
    with pytest.raises(traitlets.TraitError, match=words):
        session.cursor.move(**{name: value})
    assert 0 <= getattr(session.cursor, name) < 5


def test_moving_several_traits_at_once_is_all_or_nothing():
    session = tiny_session()
    session.run("Hello")
    with pytest.raises(traitlets.TraitError):
        session.cursor.move(layer=1, query=99)
    assert (session.cursor.layer, session.cursor.query) == (0, 4)
    with pytest.raises(ValueError, match=r"the cursor has no row; it has"):
        session.cursor.move(row=1)


def test_the_lens_grows_with_the_text_and_computes_only_what_is_missing(monkeypatch):
    session = tiny_session()
    session.run("Hello there", max_new_tokens=1)
    full = session.lens()
    assert full.computed.all()
    assert np.isnan(full.next_rank[:, -1]).all()
    session.step()
    columns = []
    from workbench.session import captures as module

    real = module.lens_columns
    monkeypatch.setattr(
        module, "lens_columns", lambda m, states, *a, **k: columns.append(states.shape[1]) or real(m, states, *a, **k)
    )
    grown = session.lens()
    assert columns == [2]  # the new token, and the one before it, whose next token is known now
    assert np.isfinite(grown.next_rank[:, :-1]).all()
    assert session.lens() is grown
    assert columns == [2]
    fresh = tiny_session()
    fresh.run("Hello there", max_new_tokens=2)
    np.testing.assert_allclose(grown.next_p, fresh.lens().next_p, rtol=1e-4, atol=1e-6)


def test_chat_puts_the_prompt_into_the_template():
    session = tiny_session()
    run = session.run("Hi", chat=True)
    assert "".join(session.tokenizer.pieces(run.token_ids)) == "<user>Hi"


def test_a_bare_model_needs_a_tokenizer():
    with pytest.raises(TypeError, match=r"needs the tokenizer too"):
        Session(tiny_session().model)
    assert Session(tiny_session().model, CharTokenizer()).name == "Llama"


@pytest.mark.parametrize(
    "where",
    [
        "generation.timeline_engine.score_tokens",
        "generation.timeline_engine.Node",
        "generation.timeline_engine.LogitsStore.put",
        "session.captures.Activations.extend",
        "session.captures.View",
    ],
)
def test_an_exception_after_the_forward_takes_everything_back(where, monkeypatch):
    session = tiny_session()
    session.run("Hello", max_new_tokens=2)
    before = snapshot(session)

    def fail(*arguments, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"workbench.{where}", fail)
        with pytest.raises(KeyboardInterrupt):
            session.step()
    assert snapshot(session) == before
    assert len(session.current.timeline.nodes) == 7
    session.generate(3)
    assert session.current.token_ids == tiny_session().run("Hello", max_new_tokens=5).token_ids


def test_a_stopped_token_does_not_use_up_random_numbers():
    sampler = Sampler(temperature=1.5, seed=5)
    reference = tiny_session().run("Hello", max_new_tokens=10, sampler=sampler).token_ids
    session = tiny_session()
    session.run("Hello", max_new_tokens=4, sampler=sampler)
    for calls in (2, 3, 4):  # asked once before the token and then before each layer
        assert session.generate(1, should_stop=stop_after(calls - 1)) == []
    session.generate(6)
    assert session.current.token_ids == reference


def test_a_cell_s_forwards_beside_a_run_change_neither():
    session = tiny_session()
    reference = tiny_session().run("Hello", max_new_tokens=60).token_ids
    thread = threading.Thread(target=lambda: session.run("Hello", max_new_tokens=60, follow=False))
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad(), capture(session.model, "resid_post", layers=[1]) as acts:
        thread.start()
        forwards = 0
        while thread.is_alive() or not forwards:
            session.model(ids)
            forwards += 1
        thread.join()
    assert acts["resid_post", 1].shape[1] == 3 * forwards
    run = session.current
    assert run.token_ids == reference
    assert run.acts.length == run.cache.length == run.length == 65


def test_the_lens_fires_nobody_s_hooks_and_stays_with_its_text():
    session = tiny_session()
    session.run("Hello there")
    said = pytest.warns(UserWarning, match="nothing was captured: no forward of this model ran in the block")
    with said, capture(session.model, "final_norm", "logits") as acts:
        session.lens()
    assert len(acts) == 0
    session.run("Another text, and a longer one")
    other = tiny_session().run("Short")

    def replace():
        session.current = other
        return False

    lens = session.lens(should_stop=replace)
    assert not lens.computed.any()


def test_a_token_that_comes_while_a_lens_begins_is_left_for_the_next(monkeypatch):
    session = tiny_session()
    session.run("Hello")
    read = Run.token_ids.fget

    def read_and_grow(run):
        tokens = read(run)
        monkeypatch.setattr(Run, "token_ids", property(read))
        session.generate(1, follow=False)
        return tokens

    monkeypatch.setattr(Run, "token_ids", property(read_and_grow))
    lens = session.lens()
    assert lens.length == 5
    assert lens.computed.all()
    assert session.current.length == 6
    assert session.lens().length == 6


def test_the_lens_may_run_beside_a_generation():
    session = tiny_session()
    session.run("Hello")
    thread = threading.Thread(target=lambda: session.generate(80, follow=False))
    thread.start()
    while thread.is_alive():
        session.lens()
        time.sleep(0.005)  # tiny tensors: without a pause the two threads mostly wait for each other's lock
    thread.join()
    fresh = tiny_session()
    fresh.run("Hello", max_new_tokens=80)
    np.testing.assert_allclose(session.lens().next_p, fresh.lens().next_p, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda s: s.run(123), TypeError, "prompt is a int; give the text itself, as a str"),
        (lambda s: s.run("x", max_new_tokens=2.5), TypeError, "max_new_tokens is 2.5; it must be a whole number"),
        (lambda s: s.generate(-5), ValueError, "max_new_tokens is -5; it must be 0 or more"),
        (lambda s: setattr(s.cursor, "step", 99), traitlets.TraitError, "cursor.step is 99; there are steps 0 … 2"),
        (lambda s: setattr(s.cursor, "step", -3), traitlets.TraitError, "cursor.step is -3"),
        (lambda s: setattr(s.cursor, "run", 7), traitlets.TraitError, "cursor.run is 7; it is 1, the number of the"),
    ],
)
def test_wrong_values_are_refused_and_change_nothing(call, error, words):
    session = tiny_session()
    session.run("Hello", max_new_tokens=2)
    before, at = snapshot(session), session.cursor.trait_values()
    with pytest.raises(error, match=words):
        call(session)
    assert snapshot(session) == before
    assert session.cursor.trait_values() == at


def test_a_session_needs_a_llama():
    with pytest.raises(TypeError, match=r"needs a LlamaForCausalLM or what workbench.load\(\) returned; got object"):
        Session(object())
