import itertools

import numpy as np
import pytest
import torch

from tests.analysis.attention_cases import CASES, case, eager, texts
from tests.conftest import tiny_model
from workbench.analysis.attention import AttentionMap
from workbench.cache import DynamicCache
from workbench.instrument import Activations, capture
from workbench.instrument.activations import Span
from workbench.instrument.edit import edit
from workbench.instrument.edits import knock_out
from workbench.model.mask import Mask, build_mask, causal, window

KINDS = ["mha", "gqa", "mqa"]
LENGTH = 23
IDS = torch.randint(1, 97, (1, LENGTH), generator=torch.Generator().manual_seed(3))
EVERY = slice(None)
RUNS = {}


@torch.no_grad()
def run(kind="gqa"):
    """A map of one run and the patterns that eager attention really used: [layer][head, q, k]."""
    if kind not in RUNS:
        torch.manual_seed(0)
        model = tiny_model(kind, attn_implementation="eager")
        with capture(model, "q_rot", "k_rot") as acts:
            out = model(IDS, output_attentions=True)
        RUNS[kind] = AttentionMap(acts), [a[0].numpy() for a in out.attentions]
    return RUNS[kind]


def by_hand(heads=2, kv_heads=1, length=40, width=16):
    acts = Activations()
    acts.append("layers.0.q_rot", torch.randn(1, length, heads, width))
    acts.append("layers.0.k_rot", torch.randn(1, length, kv_heads, width))
    return AttentionMap(acts)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_heads_are_what_eager_attention_used(kind):
    attention, expected = run(kind)
    for layer in range(3):
        for head in range(4):
            np.testing.assert_allclose(attention.head(layer, head), expected[layer][head], atol=1e-5, rtol=0)
            for q in (0, 1, 11, LENGTH - 1):
                row = attention.row(layer, head, q)
                assert row.shape == (q + 1,)
                np.testing.assert_allclose(row, expected[layer][head][q, : q + 1], atol=1e-5, rtol=0)
    assert not np.allclose(expected[1][0], expected[1][1], atol=1e-2), "heads differ, so a swapped one would be seen"


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_tile_is_a_slice_of_the_pattern(kind):
    attention, expected = run(kind)
    for q, k in ((EVERY, EVERY), (slice(5, 9), slice(2, 7)), (slice(-3, None), EVERY), (slice(0, 2), slice(20, 99))):
        tile = attention.tile(1, 3, q, k)
        np.testing.assert_allclose(tile.weights, expected[1][3][q, k], atol=1e-5, rtol=0)
        assert tile.factor == 1
        assert (tile.q0, tile.k0) == (q.indices(LENGTH)[0], k.indices(LENGTH)[0])


@torch.no_grad()
def test_a_map_of_a_run_in_chunks_is_that_of_one_pass():
    model, cache = tiny_model("gqa", attn_implementation="eager"), DynamicCache()
    expected = model(IDS, output_attentions=True).attentions
    with capture(model, "q_rot", "k_rot") as acts:
        for start, end in ((0, 9), (9, 10), (10, LENGTH)):
            model(IDS[:, start:end], past_key_values=cache)
    np.testing.assert_allclose(AttentionMap(acts).head(2, 1), expected[2][0, 1].numpy(), atol=1e-5, rtol=0)


def test_a_length_looks_at_the_first_positions_only():
    attention, expected = run()
    first = AttentionMap(attention.acts, length=10)
    np.testing.assert_allclose(first.head(0, 2), expected[0][2][:10, :10], atol=1e-5, rtol=0)
    assert first.tile(0, 2, EVERY, EVERY).weights.shape == (10, 10)


def test_the_scale_may_be_given():
    attention, _ = run()
    sharp = AttentionMap(attention.acts, scale=1.0).head(1, 0)
    q, k = attention.acts["q_rot", 1][0, :, 0], attention.acts["k_rot", 1][0, :, 0]
    scores = (q @ k.T).masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -torch.inf)
    np.testing.assert_allclose(sharp, scores.softmax(-1).numpy(), atol=1e-5, rtol=0)


def test_captures_of_lower_precision_give_float32_weights():
    attention, expected = run()
    acts = Activations()
    for name in attention.acts:
        acts.append(name, attention.acts[name].bfloat16())
    head = AttentionMap(acts).head(1, 0)
    assert head.dtype == np.float32
    np.testing.assert_allclose(head, expected[1][0], atol=0.05)


@pytest.mark.parametrize("head", [-1, 4, 99])
@pytest.mark.parametrize(
    "look",
    [lambda a, h: a.row(0, h, 3), lambda a, h: a.head(0, h), lambda a, h: a.tile(0, h, EVERY, EVERY)],
    ids=["row", "head", "tile"],
)
def test_a_head_that_does_not_exist_is_refused(look, head):
    with pytest.raises(ValueError, match=rf"head {head} does not exist; this layer has query heads 0 … 3"):
        look(run("gqa")[0], head)


@pytest.mark.parametrize("q", [-1, LENGTH, 99])
def test_a_query_that_does_not_exist_is_refused(q):
    with pytest.raises(ValueError, match=rf"query {q} does not exist; this map has positions 0 … {LENGTH - 1}"):
        run()[0].row(0, 0, q)


def test_a_layer_that_was_not_captured_is_named():
    with pytest.raises(KeyError, match=r"layers\.7\.q_rot' was not captured; captured are layers\.0\.q_rot"):
        run()[0].head(7, 0)


@pytest.mark.parametrize("name", CASES)
def test_every_way_of_reading_a_text_gives_what_eager_attention_used(name):
    expected = case(name)
    rows, length = expected.ids.shape
    for row in range(rows):
        attention = AttentionMap(expected.acts, row=row)
        assert attention.length == length
        for layer, head in itertools.product(range(3), range(4)):
            pattern = expected.patterns[layer, row, head]
            np.testing.assert_allclose(attention.head(layer, head), pattern, atol=1e-5, rtol=0)
            for q in (0, 6, length - 1):
                weights = attention.row(layer, head, q)
                assert len(weights) == max(q, *pattern[q].nonzero()[0], 0) + 1
                np.testing.assert_allclose(weights, pattern[q, : len(weights)], atol=1e-5, rtol=0)


def test_the_cases_differ_so_that_a_mask_that_is_not_applied_would_be_seen():
    causal = case("gqa").patterns
    for name in ("window", "window and sink", "documents", "both ways"):
        assert abs(case(name).patterns - causal).max() > 0.1, name
    for name in ("ring cache", "rounding cache"):
        assert abs(case(name).patterns - case("batch").patterns).max() > 0.1, name
    for name in ("padding", "boolean 4-D", "additive 4-D"):
        assert abs(case(name).patterns[:, 0] - case(name).patterns[:, 1]).max() > 0.1, name
    each = case("masks of each layer").patterns
    assert each[0, 0, 0, 16, 10] > 0
    assert each[1, 0, 0, 16, 10] == 0


@pytest.mark.parametrize("name", ["gqa", "padding", "additive 4-D, decode", "ring cache", "documents"])
def test_scores_are_products_of_queries_and_keys_and_minus_infinity_where_masked(name):
    expected = case(name)
    queries, keys = expected.acts["q_rot", 1][0, :, 3], expected.acts["k_rot", 1][0]
    products = (queries @ keys[:, 3 // (4 // keys.shape[1])].T).numpy() / 8**0.5
    attention = AttentionMap(expected.acts)
    for q, k in ((EVERY, EVERY), (slice(3, 12), slice(2, 9)), (slice(0, 4), slice(9, 17))):
        scores = attention.scores(1, 3, q, k)
        allowed = expected.patterns[1, 0, 3][q, k] > 0
        np.testing.assert_array_equal(np.isfinite(scores), allowed)
        if "additive" not in name:
            np.testing.assert_allclose(scores[allowed], products[q, k][allowed], atol=1e-5, rtol=0)
    if "additive" in name:  # the caller's bias is in the scores
        for q, stats in ((q, attention.stats(1, 3, q)) for q in range(17)):
            row = attention.scores(1, 3, slice(q, q + 1), EVERY)[0]
            weights = np.exp(row - stats.logsumexp) if np.isfinite(stats.logsumexp) else np.zeros(17)
            np.testing.assert_allclose(weights, expected.patterns[1, 0, 3, q], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["gqa", "padding", "additive 4-D", "rounding cache"])
def test_stats_turn_scores_into_weights(name):
    expected = case(name)
    attention = AttentionMap(expected.acts)
    for q in range(17):
        stats = attention.stats(2, 0, q)
        pattern = expected.patterns[2, 0, 0, q]
        if not pattern.any():
            assert (stats.top, stats.logsumexp) == (-np.inf, -np.inf)
            continue
        assert np.exp(stats.top - stats.logsumexp) == pytest.approx(pattern.max(), abs=1e-5)
        row = attention.scores(2, 0, slice(q, q + 1), EVERY)[0]
        assert stats.top == pytest.approx(row.max(), abs=1e-5)
        assert stats.logsumexp == pytest.approx(np.log(np.exp(row.astype(np.float64)).sum()), abs=1e-5)


def test_a_query_that_may_attend_to_nothing_weighs_nothing():
    attention = AttentionMap(case("padding").acts, row=0)
    assert not attention.head(0, 0)[:5].any()
    assert attention.tile(0, 0, EVERY, EVERY).masked[:5].all()
    assert attention.stats(0, 0, 3).top == -np.inf


@pytest.mark.parametrize("name", CASES)
def test_a_capture_that_was_saved_and_loaded_gives_the_same(name, tmp_path):
    expected = case(name)
    expected.acts.save(tmp_path / "capture.safetensors")
    attention = AttentionMap(Activations.load(tmp_path / "capture.safetensors"))
    for layer in range(3):
        np.testing.assert_allclose(attention.head(layer, 2), expected.patterns[layer, 0, 2], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("where", [{}, {"layers": 1}, {"layers": 1, "heads": 2}], ids=["all", "a layer", "a head"])
def test_edges_that_were_knocked_out_have_no_weight(where):
    model = eager()
    edges = knock_out(edges=[(9, 0), (12, 3)], **where)
    with edit(model, [edges]), capture(model, "q_rot", "k_rot", "mask", "pattern") as acts:
        model(texts())
    attention = AttentionMap(acts)
    assert attention.head(1, 2)[9, 0] == 0
    for layer, head in itertools.product(range(3), range(4)):
        expected = acts["pattern", layer][0, head].numpy()
        np.testing.assert_allclose(attention.head(layer, head), expected, atol=1e-5, rtol=0)
        assert (expected[9, 0] == 0) == (where.get("layers", layer) == layer and where.get("heads", head) == head)


# --- captures of a part ----------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("positions", "kept"),
    [(slice(-6, None), range(11, 17)), ([2, 3, 9], [2, 3, 9]), (slice(1, None, 5), [1, 6, 11, 16])],
)
def test_a_capture_of_some_positions_gives_the_rows_of_these_queries(positions, kept):
    model = eager()
    with capture(model, "q_rot", "k_rot", positions=positions) as acts:
        model(texts())
    attention, expected = AttentionMap(acts), case("gqa").patterns[1, 0, 2]
    assert attention.length == 17
    for q in range(17):
        if q in kept:
            np.testing.assert_allclose(attention.row(1, 2, q), expected[q, : q + 1], atol=1e-5, rtol=0)
            part = attention.tile(1, 2, slice(q, q + 1), EVERY)
            np.testing.assert_allclose(part.weights[0], expected[q], atol=1e-5, rtol=0)
        else:
            with pytest.raises(
                ValueError, match=rf"the queries of positions {q} were not captured in layer 1; captured"
            ):
                attention.row(1, 2, q)


@torch.no_grad()
def test_queries_that_were_not_captured_are_named():
    model = eager()
    with capture(model, "q_rot", "k_rot", positions=[2, 3, 9]) as acts:
        model(texts())
    with pytest.raises(ValueError, match=r"positions 0 … 1, 4 … 8, 10 … 16 were not .* layer 2; captured are 2 … 3, 9"):
        AttentionMap(acts).head(2, 0)
    with pytest.raises(ValueError, match=r"positions 4 … 5 were not captured in layer 0; captured are 2 … 3, 9\."):
        AttentionMap(acts).tile(0, 0, slice(2, 6), EVERY)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "heads"), [("gqa", [3]), ("gqa", [0, 2, 3]), ("mha", [1, 3]), ("mqa", [2])])
def test_a_capture_of_some_heads_gives_these(kind, heads):
    model = eager(kind)
    with capture(model, "q_rot", "k_rot", heads=heads) as acts:
        model(texts())
    attention = AttentionMap(acts)
    for head in range(4):
        if head in heads:
            np.testing.assert_allclose(attention.head(2, head), case(kind).patterns[2, 0, head], atol=1e-5, rtol=0)
        else:
            with pytest.raises(ValueError, match=rf"head {head} was not captured; captured are query heads {heads[0]}"):
                attention.head(2, head)


@torch.no_grad()
def test_which_keys_some_heads_read_must_be_known():
    acts = Activations()
    acts.append("layers.0.q_rot", torch.randn(1, 5, 3, 4))
    acts.append("layers.0.k_rot", torch.randn(1, 5, 2, 4))
    acts.heads, acts.kv_heads = (0, 4, 5), (0, 1)  # with 4 heads a group, 4 and 5 read 1; with 5, only 5 does
    with pytest.raises(ValueError, match=r"which of the key/value heads 0 … 1 each of the query heads 0, 4 … 5 reads"):
        AttentionMap(acts).head(0, 4)
    acts.heads = (0, 1, 2)
    acts.kv_heads = (0,)
    assert AttentionMap(acts).source.read_by(0) == {0: 0, 1: 0, 2: 0}


@torch.no_grad()
def test_a_capture_of_some_layers_has_these():
    model = eager()
    with capture(model, "q_rot", "k_rot", layers=[2]) as acts:
        model(texts())
    attention = AttentionMap(acts)
    assert attention.layers == [2]
    np.testing.assert_allclose(attention.head(2, 1), case("gqa").patterns[2, 0, 1], atol=1e-5, rtol=0)
    with pytest.raises(KeyError, match=r"layers\.0\.q_rot' was not captured; captured are layers\.2\.q_rot"):
        attention.row(0, 1, 4)


@torch.no_grad()
def test_a_capture_that_begins_in_the_middle_needs_the_cached_keys():
    model, ids = eager(), texts()
    for points, complete in ((("q_rot", "k_rot"), False), (("q_rot", "k_cached"), True)):
        cache = DynamicCache()
        model(ids[:, :9], past_key_values=cache)
        with capture(model, *points) as acts:
            model(ids[:, 9:], past_key_values=cache)
        attention = AttentionMap(acts)
        assert attention.length == 17
        if complete:
            np.testing.assert_allclose(attention.row(1, 0, 13), case("gqa").patterns[1, 0, 0, 13, :14], atol=1e-5)
            with pytest.raises(ValueError, match=r"positions 4 were not captured in layer 1; captured are 9 … 16"):
                attention.row(1, 0, 4)
        else:
            with pytest.raises(
                ValueError, match=r"'k_rot' of positions 0 … 8 was not captured in layer 1, .* 'k_cached'"
            ):
                attention.row(1, 0, 13)


# --- what is refused -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_two_texts_in_one_capture_are_refused():
    model = eager()
    with capture(model, "q_rot", "k_rot") as acts:
        model(texts())
        model(texts())
    with pytest.raises(
        ValueError, match=r"this capture is not one text: its forwards began at positions 0, 0, and do not"
    ):
        AttentionMap(acts)


def test_a_capture_whose_masks_are_not_known_is_refused_unless_one_is_given():
    acts = Activations()
    acts.extend(case("padding").acts)
    acts.spans = [Span(0, 17, masked=True)]
    with pytest.raises(ValueError, match=r"not one unpadded text from position 0 \(its forwards began at 0, with an"):
        AttentionMap(acts)
    acts.spans = [Span(4, 13, masked=False)]
    with pytest.raises(
        ValueError, match=r"not one unpadded text from position 0 \(its forwards began at 4, without an"
    ):
        AttentionMap(acts)
    keep = torch.from_numpy(case("padding").real)
    mask = build_mask(keep.long(), torch.arange(17), torch.arange(17), 3, 4)
    for row, head in itertools.product(range(3), range(4)):
        expected = case("padding").patterns[1, row, head]
        np.testing.assert_allclose(AttentionMap(acts, mask=mask, row=row).head(1, head), expected, atol=1e-5, rtol=0)


def test_a_mask_that_is_given_counts_instead_of_the_captured_one():
    mask = Mask([causal(), window(5)], torch.arange(17), torch.arange(17))
    for name in ("gqa", "decode"):
        given = AttentionMap(case(name).acts, mask=mask)
        scores = AttentionMap(case(name).acts).scores(0, 3, EVERY, EVERY)
        scores[np.tril_indices(17, -5)] = -np.inf
        weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        np.testing.assert_allclose(given.head(0, 3), weights, atol=1e-5, rtol=0)
    bias = torch.randn(1, 4, 17, 17)
    given = AttentionMap(case("gqa").acts, mask=Mask([causal()], torch.arange(17), torch.arange(17), bias))
    scores = AttentionMap(case("gqa").acts).scores(0, 3, EVERY, EVERY) + bias[0, 3].numpy()
    weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    np.testing.assert_allclose(given.head(0, 3), weights, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"mask has queries at 0, 2; they must be consecutive positions"):
        AttentionMap(case("gqa").acts, mask=Mask([causal()], torch.tensor([0, 2]), torch.arange(3)))


@pytest.mark.parametrize("length", [-1, 18])
def test_a_length_that_was_not_captured_is_refused(length):
    with pytest.raises(
        ValueError, match=rf"length is {length}, but this capture ends before position 17: give 0 to 17"
    ):
        AttentionMap(case("gqa").acts, length)


def test_a_row_of_the_batch_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"row 2 does not exist; this capture has rows 0 … 1 of a batch"):
        AttentionMap(case("batch").acts, row=2).row(0, 0, 1)
