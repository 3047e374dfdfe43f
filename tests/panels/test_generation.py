"""The generation panel without a browser: the page's messages go in where the page would send them."""

import numpy as np
import pandas as pd
import pytest

import workbench as wb
from tests.fakes import tiny_session
from tests.panels.test_panels import SETTINGS, act, array, content
from workbench.panels import Generation, Workbench


@pytest.fixture
def session():
    session = tiny_session()
    session.run("Hello", max_new_tokens=3)
    return session


@pytest.fixture
def panel(session):
    return Generation(session)


def take(panel, rank):
    """Takes the candidate of a rank, from 0, as a click does; its id."""
    shown = content(panel)
    token = shown["tokens"][rank]["id"]
    act(panel, "take", run=shown["run"], node=shown["node"], token=token)
    panel.link.wait()
    return token


def positions_computed(session):
    return session.current.timeline.positions_computed


def test_before_a_run_it_says_what_to_do():
    panel = Generation(tiny_session())
    assert content(panel)["state"] == "empty"
    assert content(panel)["state_text"].startswith("Run a prompt")
    assert panel.state()["node"] is None
    with pytest.raises(ValueError, match="There is no text yet"):
        _ = panel.data


def test_it_shows_what_comes_after_the_cursor_and_computes_nothing(session, panel):
    before = positions_computed(session)
    for query in (7, 0, 4):
        session.cursor.query = query
        shown = content(panel)
        node = session.current.nodes[query]
        assert (shown["state"], shown["node"], shown["after"]["position"]) == ("ok", node.index, query)
        logits = session.current.timeline.logits(node)
        best = logits.topk(20)
        assert [token["id"] for token in shown["tokens"]] == best.indices.tolist()
        np.testing.assert_allclose(array(panel, "p"), logits.softmax(-1)[best.indices], rtol=1e-5)
        np.testing.assert_allclose(array(panel, "logit"), best.values, rtol=1e-6)
        assert array(panel, "share").tolist() == [1.0] + [0.0] * 19
    assert [branch["on_path"] for branch in content(panel)["branches"]] == [True]
    assert positions_computed(session) == before


def test_a_click_branches_and_the_cursor_follows(session, panel):
    session.cursor.query = 4
    before = session.current.token_ids
    token = take(panel, 5)
    assert session.current.token_ids == [*before[:5], token]
    assert session.current.leaf.source == "forced"
    assert session.cursor.query == 5
    assert content(panel)["after"]["id"] == token
    session.cursor.query = 4
    assert [branch["on_path"] for branch in content(panel)["branches"]] == [False, True]
    assert [branch["more"] for branch in content(panel)["branches"]] == [2, 0]

    old = content(panel)["branches"][0]
    act(panel, "go", run=content(panel)["run"], node=old["node"])
    panel.link.wait()
    assert session.current.token_ids == before
    assert session.cursor.query == 4
    assert [branch["on_path"] for branch in content(panel)["branches"]] == [True, False]


def test_a_token_that_was_taken_before_is_not_read_again(session, panel):
    session.cursor.query = 4
    before, count = session.current.token_ids, len(session.current.timeline.nodes)
    assert take(panel, [t["id"] for t in content(panel)["tokens"]].index(before[5])) == before[5]
    assert (session.current.token_ids, session.cursor.query) == (before, 5)
    session.cursor.query = 4
    token = take(panel, 3)
    session.cursor.query = 4
    take(panel, [t["id"] for t in content(panel)["tokens"]].index(before[5]))
    assert (session.current.token_ids, session.cursor.query) == (before, 5)
    session.cursor.query = 4
    assert take(panel, 3) == token
    assert len(session.current.timeline.nodes) == count + 1


def test_a_sampler_is_only_shown_until_it_is_used(session):
    page = Workbench(session)
    panel, before = page.generation, positions_computed(session)
    act(panel, "sampler", temperature=0.8, top_k=2, top_p=1.0)
    sampler = wb.Sampler(0.8, 2)
    assert session.sampler == wb.Sampler()
    assert (content(panel)["in_use"], content(panel)["sampler"]["top_k"]) == (False, 2)
    expected = session.current.timeline.candidates(sampler=sampler)
    np.testing.assert_allclose(array(panel, "share"), [c.probability for c in expected], rtol=1e-6)
    assert np.count_nonzero(array(panel, "share")) == 2
    assert positions_computed(session) == before
    act(panel, "use", temperature=0.8, top_k=2, top_p=1.0)
    assert session.sampler == session.current.sampler == sampler
    assert content(panel)["in_use"]
    settings = page.run_bar.widget.settings
    assert (settings["temperature"], settings["top_k"], settings["top_p"]) == (0.8, 2, 1.0)
    act(page.run_bar, "step", prompt="", settings=settings)
    page.run_bar.link.wait()
    assert session.sampler == sampler


def test_it_follows_the_session_s_sampler_and_says_what_is_stale(session, panel):
    session.use(wb.Sampler(temperature=2.0))
    assert content(panel)["sampler"]["temperature"] == 2.0
    session.use(edits=[wb.edits.zero("z", layers=0, heads=0)])
    assert content(panel)["state"] == "stale"
    session.step()
    assert content(panel)["state"] == "ok"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"temperature": -1, "top_k": 0, "top_p": 1}, "temperature is -1.0"),
        ({"temperature": 1, "top_k": 1.5, "top_p": 1}, "top_k is 1.5"),
        ({"temperature": 1, "top_k": 0, "top_p": 0}, "top_p is 0.0"),
    ],
)
def test_a_bad_sampler_is_explained(panel, values, words):
    act(panel, "sampler", **values)
    assert words in panel.widget.error["text"]
    assert content(panel)["in_use"]


def test_while_a_job_runs_it_keeps_what_was_there_and_refuses_clicks(session, panel):
    shown = content(panel)
    states = []

    def look(module, args):
        states.append(content(panel)["state"])

    handle = session.model.model.layers[0].register_forward_pre_hook(look)
    panel.link.step("", SETTINGS)
    act(panel, "take", run=shown["run"], node=shown["node"], token=shown["tokens"][3]["id"])
    assert panel.widget.error["text"].startswith("A step is still going on.")
    assert content(panel)["state"] == "running"
    assert content(panel)["tokens"] == shown["tokens"]
    panel.link.wait()
    handle.remove()
    assert states == ["running"]
    assert content(panel)["state"] == "ok"
    assert content(panel)["after"]["position"] == 8


def test_a_job_that_fails_says_so_and_the_text_stays(session, panel):
    def fail(module, args):
        raise RuntimeError("planted")

    before = session.current.token_ids
    handle = session.model.model.layers[0].register_forward_pre_hook(fail)
    take(panel, 2)
    handle.remove()
    assert panel.widget.error["text"] == "RuntimeError: planted"
    assert session.current.token_ids == before
    take(panel, 2)
    assert panel.widget.error == {}
    assert session.current.length == len(before) + 1


def test_a_picture_that_fails_shows_no_old_numbers(session, panel, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("planted")

    monkeypatch.setattr(type(session.current.timeline), "candidates", fail)
    session.cursor.query = 2
    assert (content(panel)["state"], content(panel)["tokens"]) == ("error", [])
    assert "planted" in panel.widget.error["text"]


def test_a_stopped_branch_leaves_everything_as_it_was(session, panel):
    session.cursor.query = 4
    before, shown = session.current.token_ids, content(panel)
    stopper = session.model.model.layers[0].register_forward_pre_hook(lambda module, args: panel.link.stop())
    take(panel, 5)
    stopper.remove()
    assert panel.link.status["text"] == "Stopped before the token was complete. The text before it is kept."
    assert (session.current.token_ids, session.cursor.query) == (before, 4)
    assert content(panel) == shown


def test_a_click_on_a_text_that_is_gone_does_nothing(session, panel):
    shown = content(panel)
    session.run("Another")
    act(panel, "take", run=shown["run"], node=shown["node"], token=5)
    assert panel.widget.error["text"].startswith("Another text has taken the place")
    act(panel, "go", run=content(panel)["run"], node=99)
    assert "node 99 does not exist; there are nodes 0 … 6" in panel.widget.error["text"]
    assert panel.link.job is None


def test_it_can_be_read_back(session, panel):
    session.cursor.query = 3
    panel.sampler = wb.Sampler(temperature=0.7, top_p=0.9)
    assert eval(panel.code(), {"session": session, "wb": wb, "pd": pd}).equals(panel.data)
    assert panel.data.shape == (20, 5)
    assert panel.state()["sampler"] == {"temperature": 0.7, "top_k": 0, "top_p": 0.9}
    assert panel.state()["node"] == session.current.nodes[3].index


def test_the_timeline_s_entropy_is_that_of_the_prediction(session):
    timeline = session.current.timeline
    parent, child = session.current.nodes[5:7]
    assert timeline.entropy(parent) == pytest.approx(child.entropy, rel=1e-5)
    assert timeline.is_fresh(parent)
    timeline.use(edits=[wb.edits.zero("z", layers=0, heads=0)])
    assert not timeline.is_fresh(parent)
