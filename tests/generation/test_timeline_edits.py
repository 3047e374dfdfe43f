"""Edits of a timeline: every forward sees some positions, and an edit without an effect is never silent."""

import functools
import gc
import weakref

import pytest
import torch

from tests.conftest import hooks
from tests.generation.timelines import IDS, snapshot, tiny_timeline
from workbench.instrument import EditError, edit
from workbench.instrument.edits import add, knock_out, scale, swap_kv, zero

EDITS = {
    "everywhere": [zero("z", heads=1)],
    "early": [scale("resid_post", 2.0, layers=0, positions=[2, 3])],
    "late": [add("resid_post", torch.full((32,), 0.5), layers=1, positions=slice(22, None))],
    "edge": [knock_out(edges=[(10, 2), (24, 1)])],
    "key": [knock_out(layers=1, keys=[5])],
    "swapped": [swap_kv(None, 0, 1)],
    "logits": [scale("logits", 0.5)],
    "early logits": [scale("logits", 0.5, positions=[3])],
    "function": {"layers.1.mlp_out": lambda x: x * 0.3},
}


@torch.no_grad()
def edited(model, edits, ids):
    with edit(model, edits):
        return model(torch.tensor([ids])).logits[0, -1]


@pytest.mark.parametrize("cache", ["dynamic", "static", "none"])
@pytest.mark.parametrize("name", EDITS)
def test_chunks_and_steps_give_what_one_edited_forward_gives(name, cache, monkeypatch):
    monkeypatch.setattr("workbench.generation.timeline_reader.CHUNK", 6)
    timeline = tiny_timeline(cache=cache, edits=EDITS[name])
    timeline.read(IDS)
    timeline.run(6)
    ids = [node.token for node in timeline.path()]
    torch.testing.assert_close(timeline.logits(), edited(timeline.model, EDITS[name], ids), atol=1e-4, rtol=1e-4)
    assert timeline.active_edits.hits[0] > 0
    assert hooks(timeline.model) == 0


@pytest.mark.parametrize("name", EDITS)
def test_edits_that_come_later_count_for_the_whole_text(name):
    timeline = tiny_timeline()
    timeline.read(IDS)
    timeline.run(6)
    numbers = list(timeline.nodes)
    timeline.use(edits=EDITS[name])
    ids = [node.token for node in timeline.path()]
    node = timeline.step()
    expected = edited(timeline.model, EDITS[name], ids)
    assert node.token == int(expected.argmax())
    assert node.logprob == pytest.approx(expected.log_softmax(-1)[node.token].item(), abs=1e-4)
    assert timeline.nodes[:-1] == numbers
    timeline.use(edits=())
    plain = timeline.step()
    ids.append(node.token)
    with torch.no_grad():
        expected = timeline.model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
    assert plain.logprob == pytest.approx(expected[plain.token].item(), abs=1e-4)


def test_an_edit_of_positions_to_come_waits_for_them():
    timeline = tiny_timeline(edits=[zero("z", positions=[25])])
    timeline.read(IDS)
    timeline.run(5)
    assert timeline.active_edits.hits == [0]
    timeline.step()
    assert timeline.active_edits.hits == [4 * 0 + 3]


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        ([knock_out(edges=[(12, 2)])], r"edge \(12, 2\): its key is in no slot of the cache"),
        ([knock_out(queries=[15], keys=[1])], r"query 15: it could not see any of the keys"),
        ([knock_out(keys=[2], queries=[14, 15])], r"key 2: none of the queries that were read could see it"),
    ],
)
def test_an_edit_without_an_effect_is_an_error_of_the_step_that_read_its_positions(edits, words):
    timeline = tiny_timeline(cache="sliding", cache_config={"window": 9})
    timeline.read(IDS[:10])
    before = snapshot(timeline)
    timeline.use(edits=edits)
    timeline.force(IDS[10:12])  # not there yet
    kept = snapshot(timeline)
    with pytest.raises(EditError, match=rf"did not take effect. .*{words}.* Take it back with use\(edits=\(\)\)"):
        timeline.force(IDS[12:16])
    assert snapshot(timeline) == kept
    assert hooks(timeline.model) == 0
    timeline.use(edits=())
    timeline.force(IDS[12:16])
    assert before[0] == timeline.nodes[:10]


def test_the_first_read_is_refused_too_and_leaves_nothing():
    timeline = tiny_timeline(cache="sliding", cache_config={"window": 9}, edits=[knock_out(edges=[(12, 2)])])
    with pytest.raises(EditError, match=r"edge \(12, 2\)"):
        timeline.read(IDS)
    assert (timeline.nodes, timeline.current, timeline.positions_computed) == ([], None, 0)


def test_a_replay_says_of_an_edit_that_never_had_an_effect():
    timeline = tiny_timeline()
    timeline.read(IDS)
    timeline.run(3)
    with pytest.raises(EditError, match=r"position 40: not read in this block, whose forwards read positions 0 … 22"):
        timeline.replay(edits=[zero("z", positions=[3, 40])])
    other = timeline.replay(edits=[zero("z", positions=[3])])
    assert [node.token for node in other.path()] == [node.token for node in timeline.path()]
    assert other.path()[-1].logprob != timeline.path()[-1].logprob
    same = other.replay()
    assert same.path()[-1].logprob == other.path()[-1].logprob


def test_an_edit_that_fails_or_is_wrong_leaves_the_timeline_as_it_was():
    timeline = tiny_timeline()
    timeline.read(IDS)
    before = snapshot(timeline)
    with pytest.raises(ValueError, match="head"):
        timeline.use(edits=[zero("z", heads=77)])
    assert snapshot(timeline) == before
    timeline.use(edits={"z": lambda x: None})
    with pytest.raises(EditError, match="returned None"):
        timeline.step()
    timeline.use(edits=())
    assert snapshot(timeline) == before
    assert timeline.step().positions_computed >= 1


def test_a_stopped_forward_counts_for_no_edit():
    timeline = tiny_timeline(edits=[zero("layers.2.z", positions=[20])])
    timeline.read(IDS)
    handle = timeline.model.model.layers[1].register_forward_hook(lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        timeline.step()
    handle.remove()
    timeline.branch(3, 9)  # position 20 is not read here; the stopped forward began to
    timeline.rewind(19)
    assert timeline.step().position == 20


def test_edits_that_are_taken_back_are_not_held():
    timeline = tiny_timeline()
    timeline.read(IDS)
    held = []
    for factor in range(3):
        change = functools.partial(torch.mul, other=torch.tensor(float(factor)))
        held.append(weakref.ref(change))
        timeline.use(edits={"z": change})
        timeline.step()
    del change
    gc.collect()
    assert [one() is None for one in held] == [True, True, False]
    timeline.use(edits=())
    gc.collect()
    assert held[2]() is None
    plain = timeline.step()
    timeline.use(edits=EDITS["everywhere"])
    timeline.use(edits=())
    timeline.rewind(plain)
    assert timeline.logits().equal(timeline.logits(plain))
    assert timeline.step().positions_computed == len(timeline.path())
