"""Attention on demand where queries may see later positions or a rule is not what its name says, and parts of it."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from tests.analysis.attention_cases import CASES, LENGTH, POINTS, case, eager, read, texts
from tests.analysis.test_attention_rollout import rolled
from workbench.analysis.attention import AttentionMap
from workbench.analysis.heads import find_heads, head_metrics
from workbench.cache import DynamicCache
from workbench.instrument import Activations, capture
from workbench.instrument.series import Series
from workbench.model.mask import Mask, Rule, causal, sink

EVERY = slice(None)
SMALL = 5 * LENGTH  # cells of a block of five queries
RULES = {
    "prefix": [causal(), Rule("prefix", "F", lambda q, k, n: k < n, {"n": 9}, excepts="causal")],
    "sink over causal": [causal(), dataclasses.replace(sink(5), excepts="causal")],
    "own rule called causal": [Rule("causal", "C", lambda q, k: k <= q + 3)],
    "causal by another name": [dataclasses.replace(causal(), name="order", letter="O")],
    "excepted from by another name": [
        dataclasses.replace(causal(), name="order"),
        Rule("prefix", "F", lambda q, k: k < 9, excepts="order"),
    ],
    "an exception only": [Rule("window", "W", lambda q, k: k > q - 4), dataclasses.replace(causal(), excepts="window")],
}


def biased(number):
    """An additive mask that pushes query 8 from all of its keys, from some of them harder."""
    bias = torch.zeros(1, 1, LENGTH, LENGTH).masked_fill(~torch.ones(LENGTH, LENGTH).tril().bool(), -torch.inf)
    bias[0, 0, 8, :9] = number
    bias[0, 0, 8, 4:9] = 1.01 * number
    return bias


def matches(attention, patterns, length=LENGTH):
    for layer, head in itertools.product(range(3), range(4)):
        pattern = patterns[layer, head][:length, :length]
        np.testing.assert_allclose(attention.head(layer, head), pattern, atol=1e-5, rtol=0)
        np.testing.assert_array_equal(np.isfinite(attention.scores(layer, head, EVERY, EVERY)), pattern > 0)
        for q in (0, 3, length - 1):
            row = attention.row(layer, head, q)
            np.testing.assert_allclose(row, pattern[q, : len(row)], atol=1e-5, rtol=0)
            assert not pattern[q, len(row) :].any()


# --- rules are what they do, not what they are called ----------------------------------------------------------------


@pytest.mark.parametrize("cells", [1 << 19, SMALL], ids=["one block", "several blocks"])
@pytest.mark.parametrize("name", RULES)
def test_what_a_query_may_see_is_decided_by_what_rules_do(name, cells, monkeypatch):
    monkeypatch.setattr("workbench.analysis.attention_blocks.CELLS", cells)
    expected = read(eager(), texts(), masks=lambda start, stop: RULES[name])
    assert (np.triu(expected.patterns, 1) > 0).any() == (name != "causal by another name")
    matches(AttentionMap(expected.acts), expected.patterns[:, 0])


def test_a_long_prefix_is_seen_by_every_query():
    rules = [causal(), Rule("prefix", "F", lambda q, k, n: k < n, {"n": 1000}, excepts="causal")]
    model, ids = eager(), torch.randint(1, 97, (1, 1500))
    with torch.no_grad(), capture(model, "q_rot", "k_rot") as acts:
        expected = model(ids, attention_mask=rules, output_attentions=True).attentions[1][0, 1].numpy()
    np.testing.assert_allclose(AttentionMap(acts).head(1, 1), expected, atol=1e-5, rtol=0)


def test_a_row_has_every_key_that_its_query_may_see():
    expected = case("both ways")
    attention = AttentionMap(expected.acts)
    for q in (0, 4, 16):
        pattern, row = expected.patterns[1, 0, 2, q], attention.row(1, 2, q)
        assert len(row) == max(q, pattern.nonzero()[0].max()) + 1
        np.testing.assert_allclose(row, pattern[: len(row)], atol=1e-5, rtol=0)
        short = AttentionMap(expected.acts, length=6)
        assert len(short.row(1, 2, 4)) == 6
    assert len(AttentionMap(case("gqa").acts).row(1, 2, 4)) == 5


# --- additive masks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [-1e4, -1e30, -1e31, -1.6e38])
def test_a_finite_bias_forbids_nothing_however_low(number):
    expected = read(eager(), texts(), masks=lambda start, stop: biased(number))
    attention, pattern = AttentionMap(expected.acts), expected.patterns[1, 0, 2]
    assert pattern[8].sum() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(attention.head(1, 2), pattern, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(np.isfinite(attention.scores(1, 2, EVERY, EVERY)), np.tri(LENGTH, dtype=bool))
    assert attention.stats(1, 2, 8).top == pytest.approx(number, rel=1e-4, abs=10)
    metrics = head_metrics(expected.acts)
    assert np.isfinite(metrics[["entropy", "distance", "first_token"]]).all(axis=None)


# --- the first positions of a text -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_first_positions_have_the_weights_that_were_executed(name):
    expected = case(name)
    for row in range(len(expected.ids)):
        attention = AttentionMap(expected.acts, length=6, row=row)
        matches(attention, expected.patterns[:, row], 6) if "additive" not in name else None
        cut = expected.patterns[:, row, :, :6, :6]
        np.testing.assert_allclose(attention.tile(1, 2, EVERY, EVERY).weights, cut[1, 2], atol=1e-5, rtol=0)
        for sheet in attention.thumbnails():
            np.testing.assert_allclose(sheet.weights, cut[sheet.layer], atol=1e-5, rtol=0)
        whole = rolled(expected.patterns[:, row])[:6, :6]
        np.testing.assert_allclose(attention.rollout(), whole, atol=1e-5, rtol=0)
        np.testing.assert_allclose(attention.rollout_row(4), whole[4], atol=1e-5, rtol=0)


def test_what_heads_do_at_the_first_positions_counts_what_they_see_of_later_ones():
    expected = case("both ways")
    attention, patterns = AttentionMap(expected.acts, length=6), expected.patterns[:, 0, :, :6].astype(np.float64)
    frame = head_metrics(attention, torch.ones(6, dtype=torch.long))
    away = np.arange(6)[:, None] - np.arange(LENGTH)
    np.testing.assert_allclose(frame["distance"], (patterns * away).sum(-1).mean(-1).ravel(), atol=1e-4)
    found = find_heads(attention, np.ones((6, 6)))
    for _, line in found.iterrows():
        seen = patterns[int(line["layer"]), int(line["head"])][:, :6]
        cosine = seen.sum() / np.sqrt((seen**2).sum() * (patterns[0, 0, :, :6] > 0).sum())
        assert line["similarity"] == pytest.approx(cosine, abs=1e-5)


def test_norms_of_values_reach_as_far_as_the_weights():
    expected = case("both ways")
    tile = AttentionMap(expected.acts, length=6).value_weighted(1, 2)
    norms = np.linalg.norm(expected.acts["v", 1][0, :6, 1].numpy(), axis=-1)
    np.testing.assert_allclose(tile.weights, expected.patterns[1, 0, 2, :6, :6] * norms, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["gqa", "padding", "boolean 4-D", "boolean 4-D, decode", "additive 4-D", "window"])
def test_a_capture_that_was_cropped_shows_what_is_left(name):
    expected = CASES[name]()
    expected.acts.crop(9)
    attention = AttentionMap(expected.acts)
    assert attention.length == 9
    np.testing.assert_allclose(attention.head(1, 2), expected.patterns[1, 0, 2, :9, :9], atol=1e-5, rtol=0)


@pytest.mark.parametrize("points", [POINTS, ("q_rot", "k_cached", "v_cached")], ids=["k_rot", "k_cached"])
def test_keys_that_were_cropped_away_are_missed_where_they_were_seen(points):
    ids, everything = texts(), torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool)
    expected = read(eager(), ids, cache=DynamicCache(), masks=lambda start, stop: everything, points=points)
    expected.acts.crop(9)
    with pytest.raises(
        ValueError, match=r"positions 9 … 16 .* in layer 1, and the queries up to 8 may see them\. Look at the capture "
    ):
        AttentionMap(expected.acts).head(1, 2)


# --- a mask that is given --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "look",
    [
        lambda a: a.head(0, 0),
        lambda a: a.row(0, 0, 3),
        lambda a: a.rollout(),
        lambda a: a.tile(0, 0, slice(3, 9), EVERY),
        lambda a: list(a.thumbnails()),
        head_metrics,
    ],
    ids=["head", "row", "rollout", "tile", "thumbnails", "metrics"],
)
def test_queries_that_a_given_mask_does_not_have_are_refused(look):
    attention = AttentionMap(case("gqa").acts, mask=Mask([causal()], torch.arange(5, 12), torch.arange(12)))
    with pytest.raises(
        ValueError, match=r"mask has queries 5 … 11, and [\d …]+ are asked for\. Look at those it has, or"
    ):
        look(attention)
    expected = case("gqa").patterns[0, 0, 0]
    np.testing.assert_allclose(attention.row(0, 0, 7), expected[7, :8], atol=1e-5, rtol=0)
    tile = attention.tile(0, 0, slice(5, 12), EVERY)
    np.testing.assert_allclose(tile.weights, expected[5:12, :12], atol=1e-5, rtol=0)


# --- which heads read which ------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@pytest.mark.parametrize("heads", [[0, 1, 2, 3], [3], [0, 2, 3], [0, 1]], ids=str)
def test_of_a_capture_of_some_heads_that_was_loaded_the_keys_are_known(heads, kind, tmp_path):
    model = eager(kind)
    with capture(model, "q_rot", "k_rot", heads=heads) as acts:
        model(texts())
    acts.save(tmp_path / "acts.safetensors")
    attention = AttentionMap(Activations.load(tmp_path / "acts.safetensors"))
    for head in heads:
        np.testing.assert_allclose(attention.head(2, head), case(kind).patterns[2, 0, head], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("loaded", [False, True])
def test_rollout_takes_a_capture_of_all_heads_that_names_them(loaded, tmp_path):
    model = eager()
    with capture(model, "q_rot", "k_rot", heads=range(4)) as acts:
        model(texts())
    if loaded:
        acts.save(tmp_path / "acts.safetensors")
        acts = Activations.load(tmp_path / "acts.safetensors")
    np.testing.assert_allclose(AttentionMap(acts).rollout(), rolled(case("gqa").patterns[:, 0]), atol=1e-5)


# --- what it takes ---------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("points", [("q", "k", "q_rot", "k_rot"), ("q_rot", "k_rot")], ids=["derived", "stored"])
def test_a_row_joins_no_forwards_but_those_of_its_keys(points, monkeypatch):
    model, cache, joined = eager(), DynamicCache(), []
    model.config.attn_implementation = "sdpa"
    with capture(model, *points) as acts:
        for position in range(LENGTH):
            model(texts()[:, position : position + 1], past_key_values=cache)
    whole, window = Series.whole, Series.window
    monkeypatch.setattr(Series, "whole", lambda self: joined.append(self.total) or whole(self))
    monkeypatch.setattr(
        Series,
        "window",
        lambda self, start, stop: joined.append((self.point.name, stop - start)) or window(self, start, stop),
    )
    row = AttentionMap(acts).row(1, 2, 6)
    read_of = [found for found in joined if isinstance(found, int) or found[0] in ("q_rot", "k_rot")]
    assert read_of == [("q_rot", 1), ("k_rot", 7)]
    np.testing.assert_allclose(row, case("gqa").patterns[1, 0, 2, 6, :7], atol=1e-5, rtol=0)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_no_positions_have_no_weights():
    attention = AttentionMap(case("gqa").acts, length=0)
    assert attention.head(0, 0).shape == attention.rollout().shape == (0, 0)
    with pytest.raises(ValueError, match=r"query 0 does not exist; this map has no positions"):
        attention.row(0, 0, 0)
    with pytest.raises(ValueError, match=r"hold nothing to show; this map has 0 positions"):
        list(attention.thumbnails())


@pytest.mark.parametrize(
    ("look", "error", "words"),
    [
        (lambda a: a.tile(0, 0, 3, EVERY), TypeError, r"q is 3; a slice of positions is needed, such as slice\(3, 4\)"),
        (lambda a: a.tile(0, 0, EVERY, 3), TypeError, r"k is 3; a slice of positions is needed, such as slice\(3, 4\)"),
        (lambda a: a.scores(0, 0, [1, 2], EVERY), TypeError, r"q is \[1, 2\]; a slice of positions is needed"),
        (lambda a: list(a.thumbnails(heads=[])), ValueError, r"heads is empty; name some, or leave it out for all"),
    ],
)
def test_ranges_that_are_none_are_refused(look, error, words):
    with pytest.raises(error, match=words):
        look(AttentionMap(case("gqa").acts))


def test_rows_of_the_batch_count_from_the_end_too():
    for row in (0, 1):
        one, other = (AttentionMap(case("padding").acts, row=r) for r in (row, row - 3))
        np.testing.assert_array_equal(one.head(1, 2), other.head(1, 2))
        np.testing.assert_array_equal(head_metrics(one).to_numpy(np.float64), head_metrics(other).to_numpy(np.float64))
    for row in (3, -4):
        with pytest.raises(ValueError, match=rf"row {row} does not exist; this capture has rows 0 … 2 of a batch"):
            AttentionMap(case("padding").acts, row=row)
    with pytest.raises(TypeError, match=r"row is None; a whole number is needed"):
        AttentionMap(case("padding").acts, row=None)
