"""`logit_lens` of a capture and `lens_step`; the numbers of `lens_columns` are in `test_lens.py`."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import hooks, tiny_model
from workbench.analysis import lens as module
from workbench.analysis.lens import Lens, lens_columns, lens_step, logit_lens, newest_states
from workbench.cache import DynamicCache
from workbench.instrument import capture
from workbench.instrument.edit import edit

LENGTH, VOCAB = 11, 97
IDS = torch.randint(1, VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(3))


def a_model(kind="gqa", **changes):
    torch.manual_seed(0)
    model = tiny_model(kind, **changes)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


@torch.no_grad()
def run(points=("embed", "resid_post"), model=None, **options):
    model = model or a_model()
    with capture(model, *points, **options) as acts:
        logits = model(IDS).logits
    return model, acts, logits


@torch.no_grad()
def by_hand(model, ids, row=0):
    """Log-probabilities (state, pos, vocab) in float64, from nothing but the weights and the states of plain hooks."""
    states = []
    handles = [
        layer.hook_resid_pre.register_forward_hook(lambda m, a, x: states.append(x[row].double()))
        for layer in model.model.layers
    ]
    handles.append(
        model.model.layers[-1].hook_resid_post.register_forward_hook(lambda m, a, x: states.append(x[row].double()))
    )
    model(ids)
    for handle in handles:
        handle.remove()
    x = torch.stack(states)
    normed = x * (x.square().mean(-1, keepdim=True) + model.config.rms_norm_eps).rsqrt()
    return ((normed * model.model.norm.weight.double()) @ model.lm_head.weight.double().T).log_softmax(-1)


def assert_lens(lens, logprobs, ids, states=slice(None), columns=slice(None)):
    """All fields of a lens against log-probabilities of all states and positions."""
    final, part, follow = logprobs[-1, columns], logprobs[states][:, columns], [*ids[1:].tolist(), None]
    top = part.topk(lens.top_ids.shape[2])
    assert lens.top_ids.tolist() == top.indices.tolist()
    np.testing.assert_allclose(lens.top_p, top.values.exp(), rtol=1e-4)
    np.testing.assert_allclose(lens.entropy, -(part.exp() * part).sum(-1), rtol=1e-4, atol=1e-5)
    kl = F.kl_div(part, final.expand_as(part), log_target=True, reduction="none").sum(-1)
    np.testing.assert_allclose(lens.kl, kl, rtol=1e-4, atol=1e-5)
    for j, position in enumerate(lens.positions):
        if follow[position] is None:
            assert np.isnan(lens.next_p[:, j]).all()
            assert np.isnan(lens.next_rank[:, j]).all()
        else:
            own = part[:, j, follow[position]]
            np.testing.assert_allclose(lens.next_p[:, j], own.exp(), rtol=1e-4)
            np.testing.assert_array_equal(lens.next_rank[:, j], 1 + (part[:, j] > own[:, None]).sum(-1))
    for i, token in enumerate(lens.token_ids):
        own = part[:, :, token]
        np.testing.assert_allclose(lens.token_logprob[:, :, i], own, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(lens.token_p[:, :, i], own.exp(), rtol=1e-4)
        np.testing.assert_array_equal(lens.token_rank[:, :, i], 1 + (part > own[:, :, None]).sum(-1))


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
def test_every_number_is_that_of_plain_weights_in_float64(kind, row):
    model, acts, _ = run(model=a_model(kind))
    lens = logit_lens(model, acts, k=4, row=row, tokens=[5, 60])
    assert lens.layers.tolist() == [-1, 0, 1, 2]
    assert lens.positions.tolist() == list(range(LENGTH))
    logprobs = by_hand(model, IDS, row)
    assert_lens(lens, logprobs, IDS[row])
    reverse = F.kl_div(logprobs[-1].expand_as(logprobs), logprobs, log_target=True, reduction="none").sum(-1)
    assert not np.allclose(lens.kl, reverse, rtol=0.05), "the direction counts"
    assert (lens.kl[-1] == 0).all()
    assert (lens.kl[:-1] > 0).all()


@pytest.mark.parametrize("chunk", [124, 8, 1])
@pytest.mark.parametrize("window", [2048, 8])
def test_chunks_change_nothing(chunk, window, monkeypatch):
    model, acts, _ = run()
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(module, "WINDOW", window)
    assert_lens(logit_lens(model, acts, k=4, tokens=[5]), by_hand(model, IDS), IDS[0])


def test_a_large_vocabulary_makes_chunks_smaller(monkeypatch):
    model, acts, _ = run()
    monkeypatch.setattr(module, "LOGITS", 8 * VOCAB)
    starts = []
    states = torch.stack((acts["embed"][0], *(acts["resid_post", i][0] for i in range(3))))
    lens_columns(model, states, IDS[0], on_columns=lambda start, columns: starts.append(start))
    assert starts == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    ("layers", "rows"), [(["embed", 1], [0, 2]), ([2, 0], [3, 1]), ([1], [2]), (range(3), [1, 2, 3])], ids=str
)
def test_some_layers_are_compared_with_the_final_one_all_the_same(layers, rows):
    model, acts, _ = run()
    lens = logit_lens(model, acts, layers, k=4, tokens=60)
    assert lens.layers.tolist() == [row - 1 for row in rows]
    assert_lens(lens, by_hand(model, IDS), IDS[0], rows)


@pytest.mark.parametrize(
    ("positions", "columns"),
    [
        (slice(2, 5), [2, 3, 4]),
        (slice(-3, None), [8, 9, 10]),
        ([7, -1, 0], [7, 10, 0]),
        (4, [4]),
        (slice(None, None, 4), [0, 4, 8]),
    ],
    ids=str,
)
def test_some_positions_know_which_they_are_and_what_followed(positions, columns):
    model, acts, _ = run()
    lens = logit_lens(model, acts, positions=positions, k=4)
    assert lens.positions.tolist() == columns
    assert_lens(lens, by_hand(model, IDS), IDS[0], columns=columns)


def test_a_capture_of_some_positions_gives_their_lens():
    model, acts, _ = run(positions=slice(-4, None))
    lens = logit_lens(model, acts, k=4)
    assert lens.positions.tolist() == [7, 8, 9, 10]
    assert_lens(lens, by_hand(model, IDS), IDS[0], columns=[7, 8, 9, 10])
    assert logit_lens(model, acts, positions=slice(0, 9)).positions.tolist() == [7, 8]


def test_resid_pre_serves_too_but_without_the_last_state_there_is_nothing_to_compare_with():
    model, acts, _ = run(points=("resid_pre",))
    lens = logit_lens(model, acts, k=4)
    assert lens.layers.tolist() == [-1, 0, 1]
    assert np.isnan(lens.kl).all()
    whole = dataclasses.replace(lens, kl=logit_lens(model, run(model=model)[1], ["embed", 0, 1], k=4).kl)
    assert_lens(whole, by_hand(model, IDS), IDS[0], [0, 1, 2])
    model, acts, _ = run(points=("resid_pre", "layers.2.resid_post"), model=model)
    assert_lens(logit_lens(model, acts, k=4), by_hand(model, IDS), IDS[0])


@torch.no_grad()
def test_a_prompt_in_chunks_and_decode_steps_have_the_lens_of_one_pass():
    model, cache = a_model(), DynamicCache()
    with capture(model, "embed", "resid_post") as acts:
        for start, stop in ((0, 4), (4, 9), (9, 10), (10, 11)):
            model(IDS[:, start:stop], past_key_values=cache)
    assert_lens(logit_lens(model, acts, k=4), by_hand(model, IDS), IDS[0])


@torch.no_grad()
def test_a_forward_of_embeddings_knows_no_tokens_that_followed():
    model = a_model()
    with capture(model, "embed", "resid_post") as acts:
        model(inputs_embeds=torch.randn(1, 5, 32))
    lens = logit_lens(model, acts)
    assert np.isnan(lens.next_p).all()
    assert np.isfinite(lens.entropy).all()


@pytest.mark.parametrize("stop_at", [1, 2, 4])
def test_stopped_the_rest_is_not_computed(stop_at, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 8)  # two positions of four states, one block of the vocabulary
    monkeypatch.setattr(module, "WINDOW", 16)
    model, acts, _ = run()
    asked = []

    def should_stop():
        asked.append(1)
        return len(asked) >= stop_at

    lens, whole = logit_lens(model, acts, should_stop=should_stop), logit_lens(model, acts)
    assert len(asked) == stop_at
    done = (stop_at - 1) * 2
    assert lens.computed.tolist() == [True] * done + [False] * (LENGTH - done)
    np.testing.assert_array_equal(lens.entropy[:, :done], whole.entropy[:, :done])
    assert np.isnan(lens.kl[:, done:]).all()


def test_nobody_s_hooks_fire_and_none_are_left():
    model, acts, logits = run()
    fired = []
    handles = [
        part.register_forward_hook(lambda *arguments: fired.append(1)) for part in (model.model.norm, model.lm_head)
    ]
    lens = logit_lens(model, acts)
    lens_step(model, newest_states(acts))
    assert not fired
    for handle in handles:
        handle.remove()
    assert hooks(model) == 0
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, logits)
    assert lens.length == LENGTH


@torch.no_grad()
def test_the_state_after_a_layer_is_not_what_the_next_layer_was_made_to_read():
    model, expected = a_model(), run()[1]
    with edit(model, {"layers.1.resid_pre": lambda x: x * 3}), capture(model, "resid_pre", "resid_post") as acts:
        model(IDS)
    assert torch.equal(newest_states(acts)[1], expected["resid_post", 0][0, -1])


def test_what_the_table_says_of_tokens():
    class Pieces:
        def pieces(self, ids):
            return [f"<{i}>" for i in ids]

    model, acts, _ = run()
    lens = logit_lens(model, acts, [1], [4, 6], tokens=[5, 60])
    frame = lens.to_pandas(Pieces())
    assert frame["layer"].tolist() == [1, 1]
    assert frame["position"].tolist() == [4, 6]
    for i, token in enumerate((5, 60)):
        assert frame[f"p of {token}"].tolist() == lens.token_p[0, :, i].tolist()
        assert frame[f"rank of {token}"].tolist() == lens.token_rank[0, :, i].tolist()
    assert frame["kl"].tolist() == lens.kl[0].tolist()


def test_a_lens_grows_on_from_its_positions_and_keeps_everything():
    model, acts, _ = run()
    lens = logit_lens(model, acts, positions=slice(3, 6), tokens=[5])
    grown = lens.resized(5)
    assert grown.positions.tolist() == [3, 4, 5, 6, 7]
    assert grown.layers.tolist() == lens.layers.tolist()
    assert grown.token_ids.tolist() == [5]
    for name in ("kl", "token_logprob", "token_rank", "top_p"):
        np.testing.assert_array_equal(getattr(grown, name)[:, :3], getattr(lens, name))
        assert np.isnan(getattr(grown, name)[:, 3:]).all()
    assert lens.resized(2).positions.tolist() == [3, 4]
    assert Lens.empty(2, 0).resized(2).positions.tolist() == [0, 1]


class HeadProducts(TorchDispatchMode):
    """Counts the products whose result has the vocabulary's width."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if "mm" in func.__name__ or "linear" in func.__name__:
            self.count += out.shape[-1] == VOCAB
        return out


@torch.no_grad()
def test_a_step_gives_the_models_logits_and_its_lens_by_one_product_with_the_head():
    model = a_model()
    cache, expected = DynamicCache(), model(IDS[:1]).logits[0]
    with capture(model, "embed", "resid_post") as acts:
        model.model(IDS[:1, :-1], past_key_values=cache)
        model.model(IDS[:1, -1:], past_key_values=cache)
    with HeadProducts() as products:
        logits, lens = lens_step(model, newest_states(acts), k=4, tokens=[60], position=LENGTH - 1)
    assert products.count == 1
    assert logits.shape == (1, VOCAB)
    torch.testing.assert_close(logits[0], expected[-1], rtol=1e-4, atol=1e-4)
    assert lens.length == 1
    assert_lens(lens, by_hand(model, IDS), IDS[0], columns=[LENGTH - 1])


def test_the_newest_states_are_of_the_last_position_of_a_row():
    _, acts, _ = run()
    expected = torch.stack((acts["embed"][1, -1], *(acts["resid_post", i][1, -1] for i in range(3))))
    assert torch.equal(newest_states(acts, row=1), expected)


@torch.no_grad()
def test_a_state_that_is_not_finite_ranks_nothing():
    model = a_model()
    with edit(model, {"layers.1.resid_post": lambda x: x * torch.inf}), capture(model, "embed", "resid_post") as acts:
        model(IDS)
    lens = logit_lens(model, acts, k=4, tokens=[5])
    for found in (lens.next_rank[:, :-1], lens.next_p[:, :-1], lens.token_rank[..., 0], lens.token_logprob[..., 0]):
        assert np.isfinite(found[:2]).all()
        assert np.isnan(found[2:]).all()
    assert not lens.missing()
    model.model.embed_tokens.weight[IDS[0, 2]] = torch.nan
    with capture(model, "embed", "resid_post") as acts:
        model(IDS)
    lens = logit_lens(model, acts)
    assert np.isnan(lens.next_rank[:, 2]).all()
    assert not lens.missing(), "that no number is known of a column is all there is to know"


@pytest.mark.parametrize("token", [5, np.int64(5), np.array(5), torch.tensor(5), torch.tensor([5])], ids=repr)
def test_one_token_is_any_whole_number(token):
    model, acts, _ = run()
    lens = logit_lens(model, acts, [np.int64(1)], torch.tensor([3, 4]), tokens=token, k=np.int64(2))
    assert lens.token_ids.tolist() == [5]
    expected = logit_lens(model, acts, [1], [3, 4], tokens=[5], k=2)
    np.testing.assert_array_equal(lens.token_rank, expected.token_rank)


@pytest.mark.parametrize("k", [0, -1])
def test_no_token_is_too_few(k):
    model, acts, _ = run()
    states = newest_states(acts)
    for look in (
        lambda: logit_lens(model, acts, k=k),
        lambda: lens_step(model, states, k=k),
        lambda: lens_columns(model, states[:, None], torch.tensor([-1]), k=k),
    ):
        with pytest.raises(ValueError, match=rf"k is {k}; 1 or more of the most likely tokens are needed"):
            look()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(tokens=[5.0]), TypeError, r"token is 5\.0; a whole number is needed"),
        (dict(k=2.5), TypeError, r"k is 2\.5; a whole number is needed"),
        (dict(layers=[3]), KeyError, r"state after layer 3 was not captured; there are those after embed, 0, 1, 2"),
        (dict(layers=[-1]), ValueError, r"layers has -1; write numbers from 0, or 'embed'"),
        (dict(layers=["last"]), ValueError, r"layers has 'last'; write numbers from 0, or 'embed'"),
        (dict(layers=[]), ValueError, r"layers is empty"),
        (dict(positions=[3, 11]), ValueError, r"position 11 was not captured; captured are 0 … 10"),
        (dict(positions=-12), ValueError, r"position -12 was not captured"),
        (dict(positions=slice(5, 5)), ValueError, r"no captured position is left: positions is slice\(5, 5, None\)"),
        (dict(tokens=97), ValueError, r"token 97 does not exist; ids lie in 0 … 96"),
        (dict(tokens=[5, -1]), ValueError, r"token -1 does not exist"),
        (dict(row=2), ValueError, r"row 2 does not exist; this capture has rows 0 … 1 of a batch"),
    ],
    ids=str,
)
def test_what_does_not_exist_is_refused(arguments, error, words):
    model, acts, _ = run()
    with pytest.raises(error, match=words):
        logit_lens(model, acts, **arguments)


def test_a_capture_without_states_or_of_two_texts_is_refused():
    model, acts, _ = run(points=("z",))
    with pytest.raises(KeyError, match=r"no residual states. Capture 'embed' and 'resid_post'.*captured are layers\.0"):
        logit_lens(model, acts)
    with torch.no_grad(), capture(model, "embed") as acts:
        model(IDS)
        model(IDS)
    with pytest.raises(ValueError, match=r"holds several texts: position 0 was computed more than once"):
        logit_lens(model, acts)
