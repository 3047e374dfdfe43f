"""Panels without a browser: the page's messages go in where the page would send them."""

import asyncio
import gc
import threading
import time
import warnings
import weakref

import numpy as np
import pytest

import workbench as wb
from tests.fakes import tiny_session
from workbench.panels import Attention, Lens, RunBar, TokenStrip, Workbench
from workbench.panels.link import Link

SETTINGS = {"max_new_tokens": 3, "temperature": 0.0, "top_p": 1.0, "seed": 0, "chat": False}


def act(panel, action, **params):
    """What a page sends for an action."""
    panel.widget._handle_custom_msg({"kind": "action", "id": 1, "name": action, "params": params}, [])


def content(panel):
    return panel.widget._payload[0]["content"]


def array(panel, name):
    message, buffers = panel.widget._payload
    about = next(i for i, a in enumerate(message["arrays"]) if a["name"] == name)
    meta = message["arrays"][about]
    return np.frombuffer(buffers[about], meta["dtype"]).reshape(meta["shape"])


@pytest.fixture
def workbench():
    return Workbench(tiny_session())


def test_before_a_run_every_panel_says_what_to_do(workbench):
    assert content(workbench.token_strip)["tokens"] == []
    assert content(workbench.token_strip)["empty"].startswith("Run a prompt")
    for panel in (workbench.lens, workbench.attention):
        assert content(panel)["state"] == "empty"
        assert content(panel)["state_text"].startswith("Run a prompt")
    assert workbench.run_bar.widget.status["text"] == "Ready. Type a prompt and press Run."
    assert "GQA: 4 query heads on 2 key/value heads" in workbench.run_bar.widget.model_line


def test_run_and_step_fill_every_panel(workbench):
    act(workbench.run_bar, "run", prompt="Hello", settings=SETTINGS)
    assert workbench.run_bar.widget.status["state"] == "running"
    workbench.run_bar.link.wait()
    assert workbench.run_bar.widget.status["state"] == "done"
    assert workbench.run_bar.widget.status["text"] == "5 prompt tokens, 3 generated."
    assert [t["source"] for t in content(workbench.token_strip)["tokens"]] == ["prompt"] * 5 + ["sampled"] * 3
    assert content(workbench.lens)["state"] == "ok"
    assert content(workbench.lens)["rows"] == ["2", "1", "0", "embed"]
    act(workbench.run_bar, "step", prompt="not read", settings=SETTINGS)
    workbench.run_bar.link.wait()
    session = workbench.session
    assert session.current.length == 9
    assert array(workbench.attention, "weight").shape == (9, 9)
    np.testing.assert_allclose(array(workbench.attention, "weight"), session.attention.head(0, 0))
    np.testing.assert_array_equal(array(workbench.lens, "p"), session.lens().top_p[::-1, :, 0])
    assert np.isnan(array(workbench.token_strip, "surprisal")[0])
    assert array(workbench.token_strip, "surprisal")[3] == pytest.approx(-session.current.nodes[3].logprob)


def test_a_step_without_a_text_reads_the_prompt_first(workbench):
    act(workbench.run_bar, "step", prompt="Hello", settings=SETTINGS)
    workbench.run_bar.link.wait()
    assert workbench.session.current.length == 6


def test_an_action_carries_its_own_prompt_and_settings(workbench):
    workbench.run_bar.widget.prompt = "stale"
    settings = {**SETTINGS, "temperature": 1.5, "seed": 9, "chat": True}
    act(workbench.run_bar, "run", prompt="fresh", settings=settings)
    workbench.run_bar.link.wait()
    run = workbench.session.current
    assert (run.prompt, run.chat) == ("fresh", True)
    assert (workbench.session.sampler.temperature, workbench.session.sampler.seed) == (1.5, 9)


@pytest.mark.parametrize(
    ("prompt", "settings", "words"),
    [
        ("", SETTINGS, "The prompt is empty. Type some text, then run."),
        ("x" * 200, SETTINGS, "The prompt has 200 tokens, but the model was trained for at most 128 positions"),
    ],
)
def test_a_refused_prompt_is_explained_in_the_status_line(workbench, prompt, settings, words):
    act(workbench.run_bar, "run", prompt=prompt, settings=settings)
    workbench.run_bar.link.wait()
    assert workbench.run_bar.widget.status["state"] == "error"
    assert workbench.run_bar.widget.status["text"].startswith(words)
    act(workbench.run_bar, "run", prompt="fine", settings=SETTINGS)
    workbench.run_bar.link.wait()
    assert workbench.run_bar.widget.status["state"] == "done"


def test_a_bad_setting_and_an_unknown_action_are_errors_of_the_widget(workbench):
    act(workbench.run_bar, "run", prompt="fine", settings={**SETTINGS, "top_p": 0})
    assert "top_p is 0.0; it must lie in (0, 1]" in workbench.run_bar.widget.error["text"]
    act(workbench.token_strip, "explode")
    assert "TokenStrip has no action 'explode'" in workbench.token_strip.widget.error["text"]
    assert workbench.session.current is None


def test_clicks_move_the_shared_cursor_and_every_panel_is_told(workbench):
    act(workbench.run_bar, "run", prompt="Hello", settings=SETTINGS)
    workbench.run_bar.link.wait()
    act(workbench.token_strip, "cursor", query=2)
    act(workbench.lens, "cursor", layer=2, query=4)
    act(workbench.attention, "cursor", query=6, key=1)
    cursor = workbench.session.cursor
    assert (cursor.layer, cursor.query, cursor.key) == (2, 6, 1)
    for panel in (workbench.token_strip, workbench.lens, workbench.attention):
        assert panel.widget.cursor == {"query": 6, "key": 1, "layer": 2, "head": 0}
    act(workbench.attention, "set", name="head", value=3)
    assert content(workbench.attention)["subtitle"] == "layer 2, head 3 (key/value head 1)"
    np.testing.assert_allclose(array(workbench.attention, "weight"), workbench.session.attention.head(2, 3))


def test_attention_names_the_cache_s_window_and_its_rounding(workbench):
    workbench.session.run("Hello you", cache="sliding", cache_config={"window": 4})
    mask = array(workbench.attention, "mask")
    distance = np.arange(len(mask))[:, None] - np.arange(len(mask))
    assert (mask == np.where(distance < 0, 1, np.where(distance >= 4, 2, 0))).all()
    letters = [reason["letter"] for reason in content(workbench.attention)["mask_reasons"]]
    assert letters == ["C", "W"]
    options = {"bits": 4, "residual_length": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        workbench.session.run("Hello you", max_new_tokens=1, cache="quantized", cache_config=options)
    note = " · of the keys as they were computed; the cache rounds them"
    assert content(workbench.attention)["subtitle"] == "layer 0, head 0 (key/value head 0)" + note
    assert [reason["letter"] for reason in content(workbench.attention)["mask_reasons"]] == ["C"]


def test_a_click_outside_the_text_is_refused_in_words(workbench):
    act(workbench.run_bar, "run", prompt="Hello", settings=SETTINGS)
    workbench.run_bar.link.wait()
    act(workbench.token_strip, "cursor", query=50)
    assert "cursor.query is 50; there are positions 0 … 7" in workbench.token_strip.widget.error["text"]


def test_python_moves_the_panels(workbench):
    workbench.session.run("Hello", max_new_tokens=2)
    workbench.run_bar.link.wait()
    assert len(content(workbench.token_strip)["tokens"]) == 7
    assert content(workbench.lens)["state"] == "ok"
    workbench.session.cursor.layer = 1
    assert content(workbench.attention)["subtitle"].startswith("layer 1,")
    workbench.session.cursor.query = 0
    workbench.session.step()  # the cursor stays where it is, and the panels are told all the same
    assert len(content(workbench.token_strip)["tokens"]) == 8


def test_stop_keeps_what_is_there_and_a_second_run_is_refused_meanwhile(workbench):
    def dawdle(module, args):
        time.sleep(0.02)

    handle = workbench.session.model.model.layers[0].register_forward_pre_hook(dawdle)
    act(workbench.run_bar, "run", prompt="Hello", settings={**SETTINGS, "max_new_tokens": 100})
    end = time.monotonic() + 20
    while workbench.session.current is None or workbench.session.current.length < 8:
        assert time.monotonic() < end
        time.sleep(0.005)
    act(workbench.run_bar, "run", prompt="again", settings=SETTINGS)
    assert "A run is still going on. Press Stop first" in workbench.run_bar.widget.error["text"]
    act(workbench.run_bar, "stop")
    workbench.run_bar.link.wait()
    handle.remove()
    status = workbench.run_bar.widget.status
    assert status["state"] == "stopped"
    assert status["text"].endswith("Everything so far is kept.")
    assert 8 <= workbench.session.current.length < 105
    act(workbench.run_bar, "step", prompt="", settings=SETTINGS)
    workbench.run_bar.link.wait()
    assert workbench.run_bar.widget.status["state"] == "done"


def test_panels_stand_alone_and_share_one_session():
    session = tiny_session()
    run_bar, strip, other = RunBar(session, "Hi"), TokenStrip(session), TokenStrip(session)
    assert run_bar.link is strip.link is Link.of(session)
    assert Link.of(tiny_session()) is not run_bar.link
    act(run_bar, "run", prompt="Hi", settings=SETTINGS)
    run_bar.link.wait()
    assert content(strip)["tokens"] == content(other)["tokens"] != []
    assert session.current.lens is None  # nobody shows it, nobody computes it
    lens = Lens(session)
    lens.link.wait()
    assert content(lens)["state"] == "ok"


def test_each_panel_can_be_read_back(workbench):
    session = workbench.session
    session.run("Hello", max_new_tokens=2)
    workbench.run_bar.link.wait()
    session.cursor.move(layer=1, head=2)
    scope = {"session": session, "wb": wb}
    for panel in (workbench.token_strip, workbench.lens):
        assert eval(panel.code(), scope).equals(panel.data)
    np.testing.assert_array_equal(eval(workbench.attention.code(), scope), workbench.attention.data.to_numpy())
    before = session.current.token_ids
    exec(workbench.run_bar.code(), scope)
    assert session.current.token_ids == before
    assert workbench.attention.state() == {"run": 2, "step": 2, "query": 6, "key": 0, "layer": 1, "head": 2}


def test_a_long_text_is_pooled_and_says_so(monkeypatch):
    monkeypatch.setattr("workbench.panels.attention.SIZE", 8)
    session = tiny_session()
    panel = Attention(session)
    session.run("abcdefghijklmnopqrst")
    assert content(panel)["pooled"] == {"factor": 3, "how": "max"}
    full = session.attention.head(0, 0)
    assert array(panel, "weight").shape == (7, 7)
    assert array(panel, "weight")[2, 1] == full[6:9, 3:6].max()
    assert content(panel)["row_index"] == [0, 3, 6, 9, 12, 15, 18]


def test_an_action_that_arrives_on_another_thread_is_handled_on_the_page_s_own():
    """ipykernel delivers some messages on a subshell's thread; traits are set on one thread only."""

    async def page():
        workbench = Workbench(tiny_session())
        home, seen = threading.get_ident(), []
        workbench.session.cursor.observe(lambda change: seen.append(threading.get_ident()))
        workbench.session.observe(lambda change: seen.append(threading.get_ident()), "revision")
        for name in ("run", "step", "step"):
            params = {"prompt": "Hello", "settings": SETTINGS}
            thread = threading.Thread(target=lambda: act(workbench.run_bar, name, **params))  # noqa: B023
            thread.start()
            thread.join()
            for _ in range(400):
                await asyncio.sleep(0.01)
                if not workbench.run_bar.link.job and not workbench.run_bar.link.background:
                    break
        assert workbench.session.cursor.query == workbench.session.current.length - 1 == 9
        assert set(seen) == {home}

    asyncio.run(page())


def test_a_text_from_python_brings_status_prompt_and_a_stopped_lens_up_to_date(workbench):
    act(workbench.run_bar, "run", prompt="Hello", settings=SETTINGS)
    workbench.run_bar.link.wait()
    act(workbench.run_bar, "stop")
    workbench.run_bar.link._start_lens()
    assert workbench.run_bar.link.lens_stopped
    workbench.session.run("From a cell", max_new_tokens=1)
    assert workbench.run_bar.widget.status["text"] == "11 prompt tokens, 1 generated."
    assert workbench.run_bar.widget.prompt == "From a cell"
    workbench.run_bar.link.wait()
    assert content(workbench.lens)["state"] == "ok"


def test_a_stopped_lens_says_so(workbench):
    session, link = workbench.session, workbench.run_bar.link
    session.run("Hello there")
    link.wait()  # its first columns are there
    link.stop()
    link.wait()
    session.current.lens = session.current.lens.resized(4).resized(11)  # as if stopped after four columns
    link.notify()
    assert content(workbench.lens)["state"] == "stale"
    assert content(workbench.lens)["state_text"] == "stopped at 4 of 11 tokens"


def test_a_panel_that_fails_says_so_and_the_others_go_on(workbench, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("planted")

    monkeypatch.setattr("workbench.panels.token_strip.token_strip", fail)
    workbench.session.run("Hello")
    assert "planted" in workbench.token_strip.widget.error["text"]
    assert array(workbench.attention, "weight").shape == (5, 5)


def test_a_token_the_tokenizer_does_not_have_is_shown_all_the_same(workbench, monkeypatch):
    monkeypatch.setattr(type(workbench.session.tokenizer), "__len__", lambda self: 50)
    workbench.session.run("Hello")
    assert [token["bytes"] for token in content(workbench.token_strip)["tokens"]] == ["48", "", "", "", ""]


def test_closed_panels_let_go_of_the_session():
    session = tiny_session()
    workbench = Workbench(session)
    session.run("Hello")
    workbench.run_bar.link.wait()
    workbench.close()
    assert workbench.run_bar.link._listeners == []
    gone = weakref.ref(session)
    del session, workbench
    gc.collect()
    assert gone() is None


def test_tokens_that_stream_in_do_not_redraw_an_unchanged_lens(workbench):
    session = workbench.session
    session.run("Hello")
    workbench.run_bar.link.wait()
    drawn = workbench.lens.widget._rev
    workbench.run_bar.link.job = object()  # as while a run goes on: the lens waits
    session.generate(3, follow=False)
    workbench.run_bar.link.notify()
    assert len(content(workbench.token_strip)["tokens"]) == 8
    assert workbench.lens.widget._rev == drawn


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("run", "Stopped while reading the prompt. The text before it is kept."),
        ("step", "Stopped before the token was complete. The text before it is kept."),
    ],
)
def test_a_job_stopped_before_it_gave_anything_says_what_is_kept(workbench, action, words):
    workbench.session.run("Hello")
    before = workbench.session.current.token_ids
    stopper = workbench.session.model.model.layers[0].register_forward_pre_hook(
        lambda module, args: workbench.run_bar.link.job.stopped.set()
    )
    act(workbench.run_bar, action, prompt="Another", settings=SETTINGS)
    workbench.run_bar.link.wait()
    stopper.remove()
    assert workbench.run_bar.widget.status["text"] == words
    assert workbench.session.current.token_ids == before
