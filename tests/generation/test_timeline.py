import pytest
import torch

from tests.conftest import hooks, tiny_model
from tests.generation.timelines import IDS, KINDS, Forwards, full_logits, snapshot, stop_after, tiny_timeline
from workbench.generation import Sampler, Timeline
from workbench.generation.timeline import TOP, score_tokens
from workbench.instrument import Cancelled

DRAWN = Sampler(temperature=1.5, seed=3)


# --- stepping


@pytest.mark.parametrize("cache", KINDS)
@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
def test_every_node_has_the_numbers_of_a_full_forward_under_the_cache_s_mask(kind, cache):
    timeline = tiny_timeline(kind, cache=cache, cache_config=KINDS[cache])
    timeline.read(IDS)
    timeline.run(12)
    path = timeline.path()
    ids = [node.token for node in path]
    assert [node.source for node in path] == ["prompt"] * 20 + ["sampled"] * 12
    assert (path[0].logprob, path[0].surprisal, path[0].rank, path[0].top_ids) == (None, None, None, ())
    for node in path[1:]:
        logits = full_logits(timeline.model, ids[: node.position], cache)
        logprobs = logits.log_softmax(-1)
        assert node.logprob == pytest.approx(logprobs[node.token].item(), abs=1e-4)
        assert node.surprisal == -node.logprob
        assert node.entropy == pytest.approx(-(logprobs.exp() * logprobs).sum().item(), abs=1e-4)
        assert node.rank == 1 + int((logits > logits[node.token]).sum())
        assert len(node.top_ids) == len(node.top_logprobs) == len(node.top_logits) == TOP
        assert node.top_logits == pytest.approx(logits[list(node.top_ids)].tolist(), abs=1e-4)
        torch.testing.assert_close(timeline.logits(node.parent), logits, atol=1e-4, rtol=1e-4)


def test_greedy_steps_are_those_of_generate_and_cost_one_position_each():
    timeline = tiny_timeline()
    forwards = Forwards(timeline.model)
    read = timeline.read(IDS)
    steps = timeline.run(10)
    assert (forwards.calls, forwards.positions, timeline.positions_computed) == (11, 30, 30)
    assert [node.positions_computed for node in read] == [0] * 19 + [20]
    assert [(n.positions_computed, n.phase, n.cache) for n in steps] == [(1, "decode", "dynamic")] * 10
    assert read[-1].phase == "prefill"
    assert all(node.ms > 0 and node.cache_bytes > 0 for node in steps)
    expected = timeline.model.generate(torch.tensor([IDS]), max_new_tokens=10)[0].tolist()
    assert [node.token for node in timeline.path()] == expected


def test_without_a_cache_every_step_reads_the_whole_text_and_makes_one_node():
    timeline = tiny_timeline(cache="none")
    timeline.read(IDS)
    steps = timeline.run(3)
    assert [node.positions_computed for node in steps] == [21, 22, 23]
    assert [node.cache_bytes for node in steps] == [0, 0, 0]
    assert len(timeline.nodes) == 23
    assert timeline.positions_computed == 20 + 21 + 22 + 23


def test_a_long_prompt_is_read_in_chunks_with_the_same_numbers(monkeypatch):
    whole = tiny_timeline().read(IDS)
    monkeypatch.setattr("workbench.generation.timeline_reader.CHUNK", 6)
    told = []
    chunked = tiny_timeline().read(IDS, on_progress=lambda done, total: told.append((done, total)))
    assert [node.positions_computed for node in chunked if node.positions_computed] == [6, 6, 6, 2]
    assert told[:5] == [(0, 20), (2, 20), (4, 20), (6, 20), (8, 20)]
    assert [n.rank for n in chunked] == [n.rank for n in whole]
    assert [n.logprob for n in chunked[1:]] == pytest.approx([n.logprob for n in whole[1:]], abs=1e-5)


def test_a_text_is_read_with_special_tokens_only_at_its_beginning():
    timeline = tiny_timeline()
    asked = []
    encode = timeline.tokenizer.encode
    timeline.tokenizer.encode = lambda text, **options: asked.append(options) or encode(text)
    assert [node.token for node in timeline.read("Hello")] == encode("Hello")
    assert {node.source for node in timeline.force(" you")} == {"forced"}
    assert asked == [{}, {"add_special_tokens": False}]


# --- rewinding and branching


def test_a_branch_at_500_of_512_computes_little_and_rewinding_nothing():
    timeline = tiny_timeline(model=tiny_model(max_position_embeddings=600))
    timeline.read([1 + i % 90 for i in range(512)])
    forwards = Forwards(timeline.model)
    timeline.rewind(100)
    timeline.rewind(511)
    timeline.rewind(500)
    assert (forwards.calls, timeline.positions_computed) == (0, 512)
    node = timeline.branch(500, 7)
    assert (forwards.positions, timeline.positions_computed, node.positions_computed) == (1, 513, 1)
    timeline.rewind(511)
    timeline.edit_token(500, 8)
    # The cache is on the branch above now: the twelve positions from 500 on.
    assert (forwards.positions, timeline.positions_computed) == (13, 525)
    assert len(timeline.path()) == 512


def test_rewinding_and_stepping_again_takes_the_same_token():
    timeline = tiny_timeline(sampler=DRAWN)
    timeline.read(IDS)
    first = timeline.run(8)
    timeline.rewind(IDS.index(IDS[-1]))
    again = timeline.run(8)
    assert [n.token for n in again] == [n.token for n in first]
    assert [n.index for n in again] != [n.index for n in first]
    assert len({n.token for n in first}) > 3
    other = tiny_timeline(sampler=Sampler(temperature=1.5, seed=4))
    other.read(IDS)
    assert [n.token for n in other.run(8)] != [n.token for n in first]


def test_draws_depend_on_seed_and_position_only():
    timeline = tiny_timeline(sampler=DRAWN)
    timeline.read(IDS)
    token = timeline.step().token
    other = tiny_timeline(cache="none")
    other.read(IDS[:7])
    other.force(IDS[7:])
    other.step(Sampler(temperature=1.5, seed=9))
    other.rewind(19)
    assert other.step(DRAWN).token == token
    assert other.sampler == Sampler(), "a step's sampler is of that step"


def test_the_tree_is_walked_by_path_and_children():
    timeline = tiny_timeline()
    timeline.read([1, 2, 3])
    timeline.branch(0, 9)
    timeline.force([8, 7])
    assert [node.token for node in timeline.path()] == [1, 9, 8, 7]
    assert [node.token for node in timeline.path(2)] == [1, 2, 3]
    assert [node.token for node in timeline.children(0)] == [2, 9]
    assert [node.token for node in timeline.children()] == [1]
    assert timeline.current == timeline.nodes[5]


def test_an_edited_token_is_followed_by_those_behind_it():
    timeline = tiny_timeline()
    timeline.read(IDS)
    timeline.run(4)
    before = [node.token for node in timeline.path()]
    new = timeline.edit_token(timeline.path()[18], 90)
    assert [node.token for node in timeline.path()] == [*before[:18], 90, *before[19:]]
    assert {node.source for node in new} == {"forced"}
    assert new[0].parent == 17
    torch.testing.assert_close(
        timeline.logits(), full_logits(timeline.model, [*before[:18], 90, *before[19:]]), atol=1e-4, rtol=1e-4
    )
    first = timeline.edit_token(0, 50)[0]
    assert first.parent is None
    assert len(timeline.children()) == 2


@pytest.mark.parametrize("cache", ["sliding", "sink"])
def test_where_the_cache_cannot_be_cropped_all_is_read_again_and_said_so(cache):
    timeline = tiny_timeline(cache=cache, cache_config=KINDS[cache])
    timeline.read(IDS)
    timeline.run(10)
    timeline.rewind(12)
    node = timeline.step()
    assert node.positions_computed == 14
    ids = [n.token for n in timeline.path()]
    torch.testing.assert_close(timeline.logits(), full_logits(timeline.model, ids, cache), atol=1e-4, rtol=1e-4)


# --- looking at what may come


def test_another_sampler_ranks_stored_logits_anew_and_runs_no_forward():
    timeline = tiny_timeline()
    timeline.read(IDS)
    forwards = Forwards(timeline.model)
    plain = timeline.candidates(top=97)
    logits = timeline.logits()
    for sampler in (Sampler(temperature=0.7, top_k=5), Sampler(temperature=2.0, top_p=0.8), Sampler()):
        timeline.use(sampler=sampler)
        found = timeline.candidates(top=97)
        expected = sampler.filter(logits[None])[0].softmax(-1)
        if sampler.greedy:
            expected = torch.zeros(97).scatter(0, logits.argmax()[None], 1.0)
        assert [c.probability for c in found] == pytest.approx(expected[[c.token for c in found]].tolist())
        assert [(c.token, c.logit, c.logprob) for c in found] == [(c.token, c.logit, c.logprob) for c in plain]
    assert timeline.candidates(3, top=2) == timeline.candidates(timeline.nodes[3])[:2]
    assert (forwards.calls, timeline.positions_computed) == (0, 20)


def test_full_logits_are_held_up_to_a_budget_and_given_again_by_the_head():
    timeline = tiny_timeline(logits_budget=3 * 97 * 4)
    store = timeline._engine.store
    timeline.read(IDS)
    timeline.run(10)
    assert len(store.full) == 3
    forwards = Forwards(timeline.model)
    ids = [node.token for node in timeline.path()]
    for node in timeline.path():
        expected = full_logits(timeline.model, ids[: node.position + 1])
        forwards.calls = 0
        torch.testing.assert_close(timeline.logits(node), expected, atol=1e-4, rtol=1e-4)
        assert forwards.calls == 0
        assert len(store.full) <= 3
    assert store.nbytes == 3 * 97 * 4 + 30 * 32 * 4


def test_the_logits_that_were_looked_at_last_are_held():
    timeline = tiny_timeline(logits_budget=3 * 97 * 4)
    timeline.read(IDS)
    nodes = timeline.run(3)
    timeline.logits(nodes[0])
    timeline.step()
    assert list(timeline._engine.store.full) == [nodes[0].index, nodes[2].index, 23], (
        "the second was looked at longest ago"
    )


def test_logits_that_are_given_out_are_nobody_else_s():
    timeline = tiny_timeline()
    timeline.read(IDS)
    timeline.logits().zero_()
    assert timeline.logits().abs().sum() > 0


def test_logits_that_a_hook_has_changed_are_kept_whole():
    timeline = tiny_timeline(logits_budget=0, edits={"logits": lambda x: x * 2})
    timeline.read(IDS)
    timeline.run(3)
    assert not timeline._engine.store.full
    expected = full_logits(timeline.model, IDS) * 2
    torch.testing.assert_close(timeline.logits(19), expected, atol=1e-4, rtol=1e-4)


def test_a_prediction_is_scored_once(monkeypatch):
    timeline = tiny_timeline(sampler=DRAWN)
    scored = []
    real = score_tokens
    monkeypatch.setattr(
        "workbench.generation.timeline_engine.score_tokens",
        lambda logits, tokens: scored.append(len(logits)) or real(logits, tokens),
    )
    timeline.read(IDS)
    timeline.run(5)
    assert scored == [19, 1, 1, 1, 1, 1]


# --- other caches


def test_another_lossless_cache_takes_over_what_there_is():
    timeline = tiny_timeline()
    timeline.read(IDS)
    timeline.use(cache="static", cache_config={"max_cache_len": 50})
    assert timeline.cache_choice == ("static", {"max_cache_len": 50})
    assert timeline.step().positions_computed == 1
    timeline.use(cache="dynamic")
    node = timeline.step()
    assert (node.positions_computed, node.cache, timeline.nodes[20].cache) == (1, "dynamic", "static")


def test_a_cache_with_a_window_takes_over_only_what_it_would_have_computed():
    timeline = tiny_timeline()
    timeline.read(IDS[:8])
    timeline.use(cache="sliding", cache_config={"window": 9})
    assert timeline.step().positions_computed == 1, "eight tokens are all in the window"
    timeline.force(IDS[8:])
    timeline.use(cache="dynamic")
    ids = [node.token for node in timeline.path()]
    node = timeline.step()
    expected = full_logits(timeline.model, ids)
    assert node.token == int(expected.argmax()), "a step goes on from what the new cache gives"
    assert node.logprob == pytest.approx(expected.log_softmax(-1)[node.token].item(), abs=1e-4)
    assert timeline.positions_computed == 8 + 1 + 12 + 21 + 1


@pytest.mark.parametrize("sampler", [Sampler(), DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("cache", ["dynamic", "static", "none"])
def test_a_replay_under_another_lossless_cache_gives_the_same(cache, sampler):
    timeline = tiny_timeline(sampler=sampler)
    timeline.read(IDS)
    timeline.run(10)
    timeline.edit_token(22, 4)
    timeline.run(3)
    same = timeline.replay(cache=cache)
    assert [(n.token, n.source) for n in same.path()] == [(n.token, n.source) for n in timeline.path()]
    assert [n.logprob for n in same.path()[1:]] == pytest.approx([n.logprob for n in timeline.path()[1:]], abs=1e-4)
    assert same.cache_choice[0] == cache
    anew = timeline.replay(cache=cache, sampler=sampler)
    assert [n.token for n in anew.path()] == [n.token for n in timeline.path()]
    assert len(timeline.nodes) == 20 + 10 + 8 + 3


def test_a_replay_with_another_sampler_takes_the_sampled_tokens_anew():
    timeline = tiny_timeline()
    timeline.read(IDS)
    timeline.run(4)
    timeline.force([9])
    timeline.run(4)
    other = timeline.replay(sampler=DRAWN)
    assert [n.source for n in other.path()] == [n.source for n in timeline.path()]
    assert [n.token for n in other.path()[:20]] == IDS
    assert other.path()[24].token == 9
    assert [n.token for n in other.path()] != [n.token for n in timeline.path()]
    assert [n.token for n in timeline.replay(node=5).path()] == IDS[:6]


# --- interrupts


@pytest.mark.parametrize("cache", KINDS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, ArithmeticError])
def test_an_exception_in_layer_2_takes_back_that_step_only(error, cache):
    timeline = tiny_timeline(cache=cache, cache_config=KINDS[cache], sampler=DRAWN)
    timeline.read(IDS)
    timeline.run(2)
    before = snapshot(timeline)
    for place in ("resid_pre", "mlp_out"):
        module = getattr(timeline.model.model.layers[2], f"hook_{place}")

        def fail(*anything):
            raise error("planted")

        handle = module.register_forward_hook(fail)
        for call in (timeline.step, lambda: timeline.branch(3, 5), lambda: timeline.edit_token(4, 9)):
            with pytest.raises(error, match="planted"):
                call()
            assert snapshot(timeline) == before
        handle.remove()
    assert hooks(timeline.model) == 0
    fresh = tiny_timeline(cache=cache, cache_config=KINDS[cache], sampler=DRAWN)
    fresh.read(IDS)
    timeline.run(3)
    assert [n.token for n in timeline.path()] == [n.token for n in fresh.path()] + [n.token for n in fresh.run(5)]


@pytest.mark.parametrize("cache", KINDS)
def test_a_stop_keeps_finished_steps_and_goes_on_exactly(cache):
    options = {"cache": cache, "cache_config": KINDS[cache], "sampler": DRAWN}
    fresh = tiny_timeline(**options)
    fresh.read(IDS)
    expected = [node.token for node in fresh.run(10)]
    for calls in range(1, 30, 4):
        timeline = tiny_timeline(**options)
        timeline.read(IDS)
        found = timeline.run_until(max_new_tokens=10, should_stop=stop_after(calls))
        assert found.reason == "stopped"
        assert len(found.nodes) == len(timeline.nodes) - 20 < 10
        timeline.run(10 - len(found.nodes))
        assert [node.token for node in timeline.path()[20:]] == expected
    assert hooks(timeline.model) == 0


def test_a_stopped_read_reads_nothing(monkeypatch):
    monkeypatch.setattr("workbench.generation.timeline_reader.CHUNK", 6)
    timeline = tiny_timeline()
    timeline.read(IDS[:3])
    before = snapshot(timeline)
    for calls in range(12):
        with pytest.raises(Cancelled):
            timeline.read(IDS, should_stop=stop_after(calls))
        assert snapshot(timeline) == before
    timeline.read(IDS)
    expected = full_logits(timeline.model, [*IDS[:3], *IDS])
    torch.testing.assert_close(timeline.logits(), expected, atol=1e-4, rtol=1e-4)


# --- a table


def test_the_table_has_a_row_a_node():
    timeline = tiny_timeline()
    timeline.read("abc")
    timeline.branch(0, 40)
    frame = timeline.to_pandas()
    assert frame.text.tolist() == ["a", "b", "c", "G"]
    assert frame.current.tolist() == [True, False, False, True]
    assert frame.parent.tolist()[1:] == [0, 1, 0]
    assert frame.surprisal[1] == -timeline.nodes[1].logprob
    assert Timeline(timeline.model).to_pandas().empty
