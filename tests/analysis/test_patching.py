import contextlib

import numpy as np
import pandas as pd
import pytest
import torch

from tests.conftest import hooks, tiny_model
from workbench.analysis import patching as module
from workbench.analysis.patching import log_probability, logit_difference, patch_heads, patch_mlp, patch_residual
from workbench.instrument import capture

LENGTH = 8
CLEAN = torch.randint(1, 97, (1, LENGTH), generator=torch.Generator().manual_seed(1))
CORRUPTED = CLEAN.clone()
CORRUPTED[0, [2, 5]] = torch.tensor([7, 9])
METRIC = logit_difference(40, 7)
TAPS = {
    "resid_pre": lambda layer: layer.hook_resid_pre,
    "z": lambda layer: layer.self_attn.hook_z,
    "mlp_out": lambda layer: layer.hook_mlp_out,
}


@torch.no_grad()
def metric_of(model, ids, metric=METRIC):
    return float(metric(model(ids).logits)[0])


@torch.no_grad()
def by_hand(model, point, layer, where, metric=METRIC, clean=CLEAN, corrupted=CORRUPTED):
    """One patched run of one text, with PyTorch's own hooks."""
    tap, kept = TAPS[point](model.model.layers[layer]), []
    handle = tap.register_forward_hook(lambda m, a, x: kept.append(x.clone()))
    model(clean)
    handle.remove()

    def replace(module, arguments, x):
        x = x.clone()
        x[where] = kept[0][where]
        return x

    handle = tap.register_forward_hook(replace)
    value = metric_of(model, corrupted, metric)
    handle.remove()
    return value


def assert_effects(frame, model, metric=METRIC):
    clean, corrupted = metric_of(model, CLEAN, metric), metric_of(model, CORRUPTED, metric)
    assert frame.attrs["clean"] == pytest.approx(clean, rel=1e-5)
    assert frame.attrs["corrupted"] == pytest.approx(corrupted, rel=1e-5)
    assert abs(clean - corrupted) > 0.1, "there is something to restore"
    np.testing.assert_allclose(frame["effect"], (frame["value"] - corrupted) / (clean - corrupted), atol=1e-4)


@pytest.mark.parametrize("batch_size", [None, 1, 3])
@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
def test_residual_patches_are_those_made_one_at_a_time(kind, batch_size):
    model = tiny_model(kind)
    frame = patch_residual(model, CLEAN, CORRUPTED, METRIC, batch_size=batch_size)
    assert list(frame.columns) == ["layer", "position", "value", "effect"]
    assert frame[["layer", "position"]].to_numpy().tolist() == [[i, p] for i in range(3) for p in range(LENGTH)]
    expected = [by_hand(model, "resid_pre", i, (0, p)) for i in range(3) for p in range(LENGTH)]
    np.testing.assert_allclose(frame["value"], expected, atol=1e-4)
    assert_effects(frame, model)
    assert np.ptp(frame["value"]) > 0.1


@pytest.mark.parametrize("batch_size", [None, 1, 3])
@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
def test_head_patches_are_those_made_one_at_a_time(kind, batch_size):
    model = tiny_model(kind)
    frame = patch_heads(model, CLEAN, CORRUPTED, METRIC, batch_size=batch_size)
    assert list(frame.columns) == ["layer", "head", "value", "effect"]
    assert frame[["layer", "head"]].to_numpy().tolist() == [[i, h] for i in range(3) for h in range(4)]
    expected = [by_hand(model, "z", i, (0, slice(None), h)) for i in range(3) for h in range(4)]
    np.testing.assert_allclose(frame["value"], expected, atol=1e-4)
    assert_effects(frame, model)
    assert len(set(np.round(frame["value"], 4))) == 12, "heads differ, so a swapped one would be seen"


def test_heads_can_be_patched_at_each_position_by_itself():
    model = tiny_model()
    frame = patch_heads(
        model, CLEAN, CORRUPTED, METRIC, layers=[-1, 0], heads=[3, 1], positions=[5, -1], per_position=True
    )
    places = [[i, h, p] for i in (2, 0) for h in (3, 1) for p in (5, LENGTH - 1)]
    assert frame[["layer", "head", "position"]].to_numpy().tolist() == places
    np.testing.assert_allclose(frame["value"], [by_hand(model, "z", i, (0, p, h)) for i, h, p in places], atol=1e-4)
    assert_effects(frame, model)


def test_mlp_patches_are_those_made_one_at_a_time():
    model = tiny_model()
    frame = patch_mlp(model, CLEAN, CORRUPTED, METRIC, positions=[2, 3, 5, 7])
    places = [[i, p] for i in range(3) for p in (2, 3, 5, 7)]
    assert frame[["layer", "position"]].to_numpy().tolist() == places
    np.testing.assert_allclose(frame["value"], [by_hand(model, "mlp_out", i, (0, p)) for i, p in places], atol=1e-4)
    assert_effects(frame, model)
    whole = patch_mlp(model, CLEAN, CORRUPTED, METRIC, per_position=False)
    assert list(whole.columns) == ["layer", "value", "effect"]
    np.testing.assert_allclose(whole["value"], [by_hand(model, "mlp_out", i, (0,)) for i in range(3)], atol=1e-4)


def test_one_differing_token_is_all_there_is_before_the_first_layer():
    model, corrupted = tiny_model(), CLEAN.clone()
    corrupted[0, 3] = 11
    frame = patch_residual(model, CLEAN, corrupted, METRIC).pivot(index="layer", columns="position", values="effect")
    assert frame.loc[0, 3] == pytest.approx(1.0, abs=1e-5)
    assert (frame.loc[0].drop(3) == 0).all()
    assert (frame.loc[:, :2] == 0).all(axis=None), "nothing before the difference can carry it"


def test_all_is_at_the_last_position_when_nothing_but_the_head_follows():
    # One layer whose attention adds nothing: the last token's own state is all that the last logits depend on.
    model = tiny_model(num_hidden_layers=2)
    with torch.no_grad():
        model.model.layers[1].self_attn.o_proj.weight.zero_()
    frame = patch_residual(model, CLEAN, CORRUPTED, METRIC, layers=[1])
    assert frame["effect"].iloc[-1] == pytest.approx(1.0, abs=1e-5)
    np.testing.assert_allclose(frame["effect"][:-1], 0.0, atol=1e-5)


@pytest.mark.parametrize("sweep", [patch_residual, patch_heads, patch_mlp])
def test_a_text_patched_from_itself_changes_nothing_and_takes_no_forward(sweep):
    model = tiny_model()
    with capture(model, "embed") as acts:
        frame = sweep(model, CLEAN, CLEAN, METRIC)
    assert len(acts.spans) == 2  # the clean and the corrupted run
    assert frame["value"].tolist() == [frame.attrs["corrupted"]] * len(frame)
    assert frame.attrs["corrupted"] == pytest.approx(metric_of(model, CLEAN), rel=1e-5)
    assert frame["effect"].isna().all()


@pytest.mark.parametrize(
    "metric",
    [
        log_probability(40),
        log_probability(40, position=4),
        logit_difference(40, 7, position=-2),
        lambda logits: logits[:, 3:].logsumexp(-1).mean(-1),
    ],
    ids=["log p", "log p at 4", "difference at -2", "own"],
)
def test_metrics(metric):
    model = tiny_model()
    frame = patch_residual(model, CLEAN, CORRUPTED, metric, layers=[1], positions=[2, 4, 5, 7])
    expected = [by_hand(model, "resid_pre", 1, (0, p), metric) for p in (2, 4, 5, 7)]
    np.testing.assert_allclose(frame["value"], expected, atol=1e-4)
    if metric is not None and getattr(metric, "token", None) == 40:
        with torch.no_grad():
            position = metric.position
            plain = model(CLEAN).logits[0, position].double()
        assert frame.attrs["clean"] == pytest.approx(float((plain[40].exp() / plain.exp().sum()).log()), rel=1e-5)


def test_the_ready_made_metrics_are_what_they_say():
    logits = torch.randn(3, 5, 97)
    assert torch.equal(logit_difference(4, 9)(logits), logits[:, -1, 4] - logits[:, -1, 9])
    assert torch.equal(logit_difference(4, 9, 2)(logits), logits[:, 2, 4] - logits[:, 2, 9])
    torch.testing.assert_close(log_probability(4, 1)(logits), logits[:, 1].softmax(-1)[:, 4].log())


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_progress_counts_patches_up_to_all_of_them(batch_size):
    model, told = tiny_model(), []
    with capture(model, "embed") as acts:
        patch_residual(
            model, CLEAN, CORRUPTED, METRIC, batch_size=batch_size, progress=lambda *numbers: told.append(numbers)
        )
    # Known without a forward: position 0 and 1 of all layers, and all but 2 and 5 of the first.
    assert told[0] == (10, 24)
    assert told[-1] == (24, 24)
    assert told == sorted(told)
    batches = {1: 14, 4: 1 + 2 + 2, 100: 3}[batch_size]
    assert len(acts.spans) == 2 + batches
    assert max(span.tokens.shape[0] for span in acts.spans) <= batch_size


@pytest.mark.parametrize("asked", [1, 4, 5, 9])
def test_stopped_the_rest_is_not_known_and_what_is_done_is_kept(asked):
    model, calls = tiny_model(), []

    def should_stop():
        calls.append(1)
        return len(calls) >= asked

    whole = patch_residual(model, CLEAN, CORRUPTED, METRIC, batch_size=2)
    frame = patch_residual(model, CLEAN, CORRUPTED, METRIC, batch_size=2, should_stop=should_stop)
    assert len(calls) == asked
    forwards = (asked - 1) // 3  # asked before each of three layers
    known = [
        i
        for i, (layer, p) in enumerate(whole[["layer", "position"]].to_numpy())
        if p < 2 or (layer == 0 and p not in (2, 5))
    ]
    waiting = [i for i in range(24) if i not in known]
    done = sorted(known + waiting[: 2 * forwards])
    assert frame.index[frame["value"].notna()].tolist() == done
    np.testing.assert_array_equal(frame["value"][done], whole["value"][done])
    assert frame["effect"].isna().sum() == 24 - len(done)
    assert hooks(model) == 0


def test_neither_success_nor_an_error_nor_a_stop_leaves_a_hook_or_another_result():
    model = tiny_model()
    with torch.no_grad():
        before = model(CLEAN).logits
    patch_heads(model, CLEAN, CORRUPTED, METRIC)
    calls = []

    def failing(logits):
        calls.append(1)
        if len(calls) == 3:
            raise ArithmeticError("own metric")
        return logits[:, -1, 0]

    with pytest.raises(ArithmeticError, match="own metric"):
        patch_mlp(model, CLEAN, CORRUPTED, failing)
    patch_residual(model, CLEAN, CORRUPTED, METRIC, should_stop=lambda: True)
    assert hooks(model) == 0
    with torch.no_grad():
        assert torch.equal(model(CLEAN).logits, before)


def test_rows_of_a_batch_are_as_many_as_fit(monkeypatch):
    model = tiny_model()
    per_row = 4 * (97 + LENGTH * (8 * 32 + 3 * 48))
    monkeypatch.setattr(module, "MEMORY", 3 * per_row + 1)
    with capture(model, "embed") as acts:
        patch_residual(model, CLEAN, CORRUPTED, METRIC)
    assert max(span.tokens.shape[0] for span in acts.spans) == 3
    with capture(model, "logits") as acts:
        patch_residual(model, CLEAN, CORRUPTED, METRIC, layers=[1])
    assert acts.step("logits", -1).shape[1] == 1, "only the logits that the metric looks at"
    with capture(model, "logits") as acts:  # with logits of every position fewer rows fit
        patch_residual(model, CLEAN, CORRUPTED, log_probability(3, 0), layers=[1])
    assert acts.step("logits", -1).shape[1] == LENGTH
    assert max(acts.step("logits", i).shape[0] for i in range(len(acts.spans))) == 2


def test_lists_and_one_dimension_are_texts_too():
    model = tiny_model()
    expected = patch_mlp(model, CLEAN, CORRUPTED, METRIC)
    assert patch_mlp(model, CLEAN[0].tolist(), CORRUPTED[0], METRIC).equals(expected)


@pytest.mark.parametrize("sweep", [patch_residual, patch_heads, patch_mlp])
def test_only_the_layers_that_are_patched_are_captured(sweep, monkeypatch):
    model, captured = tiny_model(), []

    @contextlib.contextmanager
    def watched(*arguments, **options):
        with capture(*arguments, **options) as acts:
            yield acts
        captured.append(acts.layers)

    monkeypatch.setattr(module, "capture", watched)
    frame = sweep(model, CLEAN, CORRUPTED, METRIC, layers=[2, -3])
    assert captured == [[0, 2]] * 2
    whole = sweep(model, CLEAN, CORRUPTED, METRIC)
    expected = pd.concat([whole[whole["layer"] == i] for i in (2, 0)], ignore_index=True)
    assert frame.equals(expected), "bit for bit"
    assert len(sweep(model, CLEAN, CORRUPTED, METRIC, layers=[])) == 0


@pytest.mark.parametrize("kind", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_layers_heads_and_positions_are_any_whole_numbers(kind):
    model, chosen = tiny_model(), kind([1, 2])
    options = dict(layers=chosen, heads=chosen, positions=kind([2, -1]), per_position=True)
    frame = patch_heads(model, CLEAN, CORRUPTED, METRIC, **options)
    places = [[i, h, p] for i in (1, 2) for h in (1, 2) for p in (2, LENGTH - 1)]
    assert frame[["layer", "head", "position"]].to_numpy().tolist() == places
    assert {type(value) for value in frame["position"].tolist()} == {int}
    assert frame["layer"].dtype == frame["position"].dtype == np.int64
    one = patch_residual(model, CLEAN, CORRUPTED, METRIC, layers=kind(1), positions=kind(5))
    assert one[["layer", "position"]].to_numpy().tolist() == [[1, 5]]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(layers=[1.0]), TypeError, r"layer is 1\.0; a whole number is needed"),
        (dict(positions=[None]), TypeError, r"position is None; a whole number is needed"),
        (dict(batch_size=2.0), TypeError, r"batch_size is 2\.0; a whole number is needed"),
        (dict(metric=logit_difference(3, 4.0)), TypeError, r"token is 4\.0; a whole number is needed"),
        (
            dict(clean_ids=CLEAN[:, :6]),
            ValueError,
            r"clean_ids has 6 tokens and corrupted_ids 8.*both texts need the same",
        ),
        (dict(corrupted_ids=CLEAN.expand(2, -1)), ValueError, r"corrupted_ids has shape \(2, 8\); one text is needed"),
        (dict(clean_ids=[]), ValueError, r"clean_ids has shape \(1, 0\); one text is needed"),
        (dict(clean_ids=CLEAN.float()), TypeError, r"clean_ids holds torch.float32; token ids, whole numbers"),
        (dict(clean_ids=CLEAN + 90), ValueError, r"token \d+ does not exist; ids lie in 0 … 96"),
        (dict(metric=logit_difference(97, 3)), ValueError, r"token 97 does not exist"),
        (dict(metric=log_probability(-1)), ValueError, r"token -1 does not exist"),
        (dict(metric=log_probability(3, 8)), ValueError, r"position 8 does not exist; there are positions 0 … 7"),
        (dict(metric=lambda x: x[:, -1]), ValueError, r"returned a tensor of shape \(1, 97\); one number for each row"),
        (dict(metric=lambda x: 3.0), ValueError, r"metric returned a float; one number for each row"),
        (dict(layers=[3]), ValueError, r"layer 3 does not exist; there are layers 0 … 2"),
        (dict(positions=[-9]), ValueError, r"position -9 does not exist; there are positions 0 … 7"),
        (dict(batch_size=0), ValueError, r"batch_size is 0; 1 or more patches in a forward are needed"),
    ],
)
def test_bad_input_is_refused(arguments, error, words):
    given = dict(clean_ids=CLEAN, corrupted_ids=CORRUPTED, metric=METRIC) | arguments
    with pytest.raises(error, match=words):
        patch_residual(tiny_model(), **given)


@pytest.mark.parametrize("sweep", [patch_heads, patch_mlp])
def test_positions_need_to_be_patched_by_themselves(sweep):
    with pytest.raises(ValueError, match=r"positions is given, but all are patched at once. Set per_position=True"):
        sweep(tiny_model(), CLEAN, CORRUPTED, METRIC, positions=[3], per_position=False)
    with pytest.raises(ValueError, match=r"head 4 does not exist; there are heads 0 … 3"):
        patch_heads(tiny_model(), CLEAN, CORRUPTED, METRIC, heads=[4])
