import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.conftest import tiny_model
from workbench.analysis import lens as lens_module
from workbench.analysis.lens import Lens, lens_columns
from workbench.instrument import capture

LENGTH = 11
IDS = torch.randint(1, 97, (1, LENGTH), generator=torch.Generator().manual_seed(3))
FOLLOWERS = torch.cat((IDS[0, 1:], torch.tensor([-1])))
FLOATS = ("top_p", "entropy", "next_p", "next_rank")


class Pieces:
    def pieces(self, ids):
        return [f"<{i}>" for i in ids]


@torch.no_grad()
def run():
    """A model, the residual states of one text and the model's own logits."""
    torch.manual_seed(0)
    model = tiny_model()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    with capture(model, "embed", "resid_post") as acts:
        logits = model(IDS).logits[0]
    states = torch.stack((acts["embed"][0], *(acts["resid_post", i][0] for i in range(3))))
    return model, states, logits


def direct(model, states):
    """log_softmax(lm_head(norm(state))) of every cell, in the plainest way."""
    with torch.no_grad():
        return F.linear(model.model.norm(states), model.lm_head.weight).log_softmax(-1)


def assert_equal(actual, expected, columns=slice(None)):
    for name in ("top_ids", *FLOATS):
        np.testing.assert_array_equal(getattr(actual, name)[:, columns], getattr(expected, name)[:, columns], name)


@pytest.fixture(params=[124, 8, 4, 1], ids=["one chunk", "pairs", "one by one", "fewer rows than states"])
def chunked(request, monkeypatch):
    monkeypatch.setattr(lens_module, "CHUNK", request.param)


@pytest.mark.usefixtures("chunked")
def test_the_last_row_is_the_models_own_prediction():
    model, states, logits = run()
    lens = lens_columns(model, states, FOLLOWERS)
    logprobs = logits.log_softmax(-1)
    assert lens.top_ids[-1].tolist() == logits.topk(5).indices.tolist()
    np.testing.assert_allclose(lens.top_p[-1], logprobs.topk(5).values.exp(), rtol=1e-4)
    np.testing.assert_allclose(lens.entropy[-1], -(logprobs.exp() * logprobs).sum(-1), rtol=1e-4)


@pytest.mark.usefixtures("chunked")
def test_every_row_is_final_norm_and_head_of_its_state():
    model, states, _ = run()
    lens = lens_columns(model, states, FOLLOWERS, k=7)
    logprobs = direct(model, states)
    assert lens.top_ids.tolist() == logprobs.topk(7).indices.tolist()
    np.testing.assert_allclose(lens.top_p, logprobs.topk(7).values.exp(), rtol=1e-4)
    np.testing.assert_allclose(lens.entropy, -(logprobs.exp() * logprobs).sum(-1), rtol=1e-4)
    # The first row is of the embedding itself; its own tokens, not the next ones, are what it knows.
    assert not np.array_equal(lens.top_ids[0], lens.top_ids[-1])
    without_norm = F.linear(states, model.lm_head.weight).log_softmax(-1).detach()
    assert not np.allclose(lens.top_p, without_norm.topk(7).values.exp(), rtol=1e-2), "the norm counts"


@pytest.mark.usefixtures("chunked")
def test_the_next_tokens_probability_and_rank_are_of_the_token_that_followed():
    model, states, _ = run()
    lens = lens_columns(model, states, FOLLOWERS)
    logprobs = direct(model, states)
    for t in range(LENGTH - 1):
        own = logprobs[:, t, IDS[0, t + 1]]
        np.testing.assert_allclose(lens.next_p[:, t], own.exp(), rtol=1e-4)
        np.testing.assert_array_equal(lens.next_rank[:, t], 1 + (logprobs[:, t] > own[:, None]).sum(-1))
    assert np.isnan(lens.next_p[:, -1]).all()
    assert np.isnan(lens.next_rank[:, -1]).all()
    assert np.isfinite(lens.entropy[:, -1]).all(), "what is predicted there is known, only not whether it came true"


def test_an_empty_lens_claims_nothing():
    lens = Lens.empty(4, 6, k=3)
    assert lens.top_ids.shape == lens.top_p.shape == (4, 6, 3)
    assert (lens.top_ids == -1).all()
    assert all(np.isnan(getattr(lens, name)).all() for name in FLOATS)
    assert not lens.computed.any()
    assert (lens.progress, lens.missing()) == (0, range(6))
    lens.entropy[0, 0] = 1.0
    assert np.isnan(lens.next_p[0, 0]), "no two fields share their memory"
    assert np.isnan(lens.next_rank[0, 0])


@pytest.mark.parametrize("stop_after", [0, 1, 3], ids=lambda n: f"after {n} chunks")
def test_stopping_leaves_the_rest_not_computed(stop_after, monkeypatch):
    monkeypatch.setattr(lens_module, "CHUNK", 8)  # two positions of four states
    model, states, _ = run()
    whole, seen = lens_columns(model, states, FOLLOWERS), []
    part = lens_columns(
        model,
        states,
        FOLLOWERS,
        should_stop=lambda: len(seen) == stop_after,
        on_columns=lambda start, columns: seen.append(start),
    )
    assert seen == [0, 2, 4][:stop_after]
    done = 2 * stop_after
    assert part.computed.tolist() == [True] * done + [False] * (LENGTH - done)
    assert_equal(part, whole, slice(0, done))
    assert_equal(part, Lens.empty(4, LENGTH), slice(done, None))
    assert part.missing() == range(done, LENGTH)


def test_columns_are_told_as_they_are_done_and_make_up_the_whole(monkeypatch):
    monkeypatch.setattr(lens_module, "CHUNK", 12)
    model, states, _ = run()
    kept, progress = Lens.empty(4, LENGTH), []

    def on_columns(start, columns):
        kept.write(0, start, columns)
        progress.append(kept.progress)

    whole = lens_columns(model, states, FOLLOWERS, on_columns=on_columns)
    assert_equal(kept, whole)
    # Three columns a time, each known and with a next token, but for the last one's.
    assert progress == [6, 12, 18, 21]


def test_write_puts_columns_at_base_plus_start_and_nowhere_else():
    model, states, _ = run()
    whole = lens_columns(model, states, FOLLOWERS)
    kept = Lens.empty(4, LENGTH)
    kept.write(3, 2, lens_columns(model, states[:, 5:8], FOLLOWERS[5:8]))
    assert kept.computed.nonzero()[0].tolist() == [5, 6, 7]
    for name in ("top_ids", *FLOATS):
        np.testing.assert_allclose(getattr(kept, name)[:, 5:8], getattr(whole, name)[:, 5:8], rtol=1e-4)
    assert_equal(kept, Lens.empty(4, LENGTH), slice(0, 5))
    assert_equal(kept, Lens.empty(4, LENGTH), slice(8, None))


def test_missing_covers_every_column_that_is_not_complete():
    model, states, _ = run()
    whole = lens_columns(model, states, FOLLOWERS)
    assert whole.missing() == range(0), "the last column has no next token and is complete without"
    lens = whole.resized(LENGTH)
    for column in (4, 7):
        lens.top_ids[:, column] = -1
    assert lens.missing() == range(4, 8)
    assert Lens.empty(4, 0).missing() == range(0)


def test_a_column_says_last_that_it_is_there():
    model, states, _ = run()
    columns, order = lens_columns(model, states[:, :2], FOLLOWERS[:2]), []

    class Watched:
        def __getattr__(self, name):
            order.append(name)
            return getattr(columns, name)

    Lens.empty(4, LENGTH).write(3, 1, Watched())
    assert order[-1] == "top_ids"
    assert {*FLOATS, "kl"} <= set(order[:-1])


def test_growing_makes_the_last_column_incomplete_because_its_next_token_is_known_now():
    model, states, _ = run()
    whole = lens_columns(model, states, FOLLOWERS)
    first = lens_columns(model, states[:, :6], torch.cat((IDS[0, 1:6], torch.tensor([-1]))))
    lens = first.resized(LENGTH)
    assert lens.progress == first.progress == 11
    assert lens.missing() == range(5, LENGTH)
    lens.write(5, 0, lens_columns(model, states[:, 5:], FOLLOWERS[5:]))
    assert lens.missing() == range(0)
    assert lens.progress == 2 * LENGTH - 1 == whole.progress
    np.testing.assert_array_equal(lens.next_rank, whole.next_rank)


@pytest.mark.parametrize("positions", [0, 4, LENGTH, LENGTH + 5])
def test_resizing_keeps_the_columns_there_are_and_shares_no_memory(positions):
    model, states, _ = run()
    whole = lens_columns(model, states, FOLLOWERS, k=3)
    lens = whole.resized(positions)
    kept = min(positions, LENGTH)
    assert lens.top_ids.shape == (4, positions, 3)
    assert_equal(lens, whole, slice(0, kept))
    assert_equal(lens, Lens.empty(4, positions, 3), slice(kept, None))
    before = whole.entropy.copy()
    lens.entropy[:] = 0
    np.testing.assert_array_equal(whole.entropy, before)


def test_states_of_lower_precision_are_read():
    model, states, _ = run()
    lens = lens_columns(model, states.bfloat16(), FOLLOWERS)
    np.testing.assert_allclose(lens.entropy, lens_columns(model, states, FOLLOWERS).entropy, atol=0.2)
    assert lens.top_p.dtype == lens.entropy.dtype == np.float32


def test_a_model_of_lower_precision_is_read():
    model, states, _ = run()
    expected = lens_columns(model, states, FOLLOWERS).entropy
    lens = lens_columns(model.to(torch.bfloat16), states, FOLLOWERS)
    np.testing.assert_allclose(lens.entropy, expected, atol=0.2)


def test_the_table_has_one_row_a_computed_cell():
    model, states, _ = run()
    lens = lens_columns(model, states[:, :2], FOLLOWERS[:2]).resized(LENGTH)
    lens.write(0, 10, lens_columns(model, states[:, 10:], FOLLOWERS[10:]))
    frame = lens.to_pandas(Pieces())
    assert list(frame.columns) == ["layer", "position", "top", "p", "entropy", "next_p", "next_rank", "kl"]
    assert frame["layer"].tolist() == [-1] * 3 + [0] * 3 + [1] * 3 + [2] * 3
    assert frame["position"].tolist() == [0, 1, 10] * 4
    cell = frame[(frame["layer"] == 1) & (frame["position"] == 1)].iloc[0]
    assert cell["top"] == f"<{lens.top_ids[2, 1, 0]}>"
    assert cell["p"] == lens.top_p[2, 1, 0]
    assert (cell["entropy"], cell["next_p"], cell["next_rank"]) == (
        lens.entropy[2, 1],
        lens.next_p[2, 1],
        lens.next_rank[2, 1],
    )
    assert frame[frame["position"] == 10]["next_p"].isna().all()
    assert len(Lens.empty(4, 3).to_pandas(Pieces())) == 0
