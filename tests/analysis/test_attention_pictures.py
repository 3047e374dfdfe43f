import itertools

import numpy as np
import pytest
import torch

from tests.analysis.attention_cases import CASES, LENGTH, case, eager, pooled, texts
from tests.memory import Largest
from workbench.analysis.attention import AttentionMap
from workbench.analysis.attention_blocks import CELLS
from workbench.instrument import Activations, capture

EVERY = slice(None)
RANGES = [(EVERY, EVERY), (slice(4, 16), slice(1, 12)), (slice(7, 8), EVERY), (slice(0, 5), slice(9, 17))]


def by_hand(heads=2, kv_heads=1, length=40, width=16, layers=1):
    acts = Activations()
    for layer in range(layers):
        acts.append(f"layers.{layer}.q_rot", torch.randn(1, length, heads, width))
        acts.append(f"layers.{layer}.k_rot", torch.randn(1, length, kv_heads, width))
    return AttentionMap(acts)


@pytest.mark.parametrize("cells", [CELLS, 5 * LENGTH], ids=["one block", "several blocks"])
@pytest.mark.parametrize("reduce", ["max", "mean"])
@pytest.mark.parametrize("name", CASES)
def test_a_pooled_tile_is_the_maximum_or_mean_over_each_square(name, reduce, cells, monkeypatch):
    monkeypatch.setattr("workbench.analysis.attention_blocks.CELLS", cells)
    expected = case(name)
    row = len(expected.ids) - 1
    attention, pattern = AttentionMap(expected.acts, row=row), expected.patterns[2, row, 1]
    for (q, k), size in itertools.product(RANGES, (17, 8, 6, 5, 2, 1)):
        tile = attention.tile(2, 1, q, k, size, reduce)
        whole = pattern[q, k]
        assert tile.factor == -(-max(whole.shape) // size)
        assert max(tile.weights.shape) <= size
        assert (tile.q0, tile.k0, tile.reduce) == (q.indices(LENGTH)[0], k.indices(LENGTH)[0], reduce)
        np.testing.assert_allclose(
            tile.weights, pooled(whole, tile.factor, np.max if reduce == "max" else np.mean), atol=1e-5, rtol=0
        )
        np.testing.assert_array_equal(tile.masked, pooled(whole == 0, tile.factor, np.all))


def test_a_mean_keeps_the_attention_that_was_paid():
    tile = AttentionMap(case("gqa").acts).tile(0, 0, EVERY, EVERY, 5, "mean")
    rows = np.array([4, 4, 4, 4, 1])
    assert (tile.weights * rows[:, None] * rows).sum() == pytest.approx(LENGTH, abs=1e-4)


def test_a_large_picture_is_put_together_from_bands(monkeypatch):
    monkeypatch.setattr("workbench.analysis.attention.BANDED", 1)
    torch.set_num_threads(2)
    for name, (q, k), size in itertools.product(("gqa", "padding", "ring cache"), RANGES, (17, 6, 2)):
        attention, pattern = AttentionMap(case(name).acts), case(name).patterns[1, 0, 2]
        tile = attention.tile(1, 2, q, k, size)
        np.testing.assert_allclose(tile.weights, pooled(pattern[q, k], tile.factor, np.max), atol=1e-5, rtol=0)
        np.testing.assert_array_equal(tile.masked, pooled(pattern[q, k] == 0, tile.factor, np.all))


def test_another_reduction_is_refused():
    with pytest.raises(ValueError, match=r"reduce is 'sum'; allowed are 'max' and 'mean'"):
        AttentionMap(case("gqa").acts).tile(0, 0, EVERY, EVERY, reduce="sum")


def test_a_masked_cell_is_marked_and_a_weight_that_rounds_to_zero_is_not():
    acts = Activations()
    acts.append("layers.0.q_rot", torch.full((1, 3, 1, 2), 100.0))
    keys = torch.tensor([100.0, -100.0, 100.0])[None, :, None, None].expand(1, 3, 1, 2)
    acts.append("layers.0.k_rot", keys.clone())
    tile = AttentionMap(acts).tile(0, 0, EVERY, EVERY)
    assert tile.weights[1, 1] == 0.0
    assert not tile.masked[1, 1]
    assert tile.masked.tolist() == [[False, True, True], [False, False, True], [False, False, False]]


def test_a_single_strong_weight_never_disappears():
    acts = Activations()
    queries, keys = torch.zeros(1, 700, 1, 16), torch.zeros(1, 700, 1, 16)
    queries[0, 613, 0, 0] = keys[0, 401, 0, 0] = 20.0
    acts.append("layers.0.q_rot", queries)
    acts.append("layers.0.k_rot", keys)
    tile = AttentionMap(acts).tile(0, 0, EVERY, EVERY, size=50)
    assert tile.factor == 14
    assert tile.weights[613 // 14, 401 // 14] > 0.99


def test_slices_with_a_step_are_refused():
    with pytest.raises(ValueError, match=r"leave cells out; give slices without a step"):
        AttentionMap(case("gqa").acts).tile(0, 0, slice(0, 17, 2), EVERY)


@pytest.mark.parametrize(
    ("q", "k", "size"),
    [(slice(3, 3), EVERY, 256), (EVERY, slice(50, 60), 256), (EVERY, EVERY, 0)],
    ids=["no query", "no key", "no cell"],
)
def test_a_tile_without_a_cell_is_refused(q, k, size):
    with pytest.raises(ValueError, match=r"queries \d+ … \d+ and keys \d+ … \d+ in \d+ cells hold nothing to show"):
        AttentionMap(case("gqa").acts).tile(0, 0, q, k, size)


# --- values ----------------------------------------------------------------------------------------------------------


def values_of(expected, layer, row, kv):
    """Norm of the value of each (query, key): of a cache that alters values, those that the query's forward used."""
    acts = expected.acts
    if ("v_cached", layer) not in acts:
        return np.broadcast_to(acts["v", layer][row, :, kv].norm(dim=-1).numpy(), (LENGTH, LENGTH))
    norms = np.zeros((LENGTH, LENGTH), np.float32)
    for step, span in enumerate(acts.spans):
        held = acts.step(("v_cached", layer), step)[row, :, kv].norm(dim=-1)
        for slot, position in enumerate(span.mask.k_pos.tolist()):
            if position >= 0:
                norms[span.start : span.start + span.count, position] = held[slot]
    return norms


@pytest.mark.parametrize(
    "name", ["mha", "gqa", "padding", "ring cache", "ring cache, keys as used", "rounding cache", "only cached keys"]
)
def test_value_weighted_is_each_weight_times_the_norm_of_its_value(name):
    expected = case(name)
    for row, layer, head in ((0, 0, 0), (0, 2, 3), (len(expected.ids) - 1, 1, 2)):
        kv = 0 if name == "only cached keys" else head // (4 // expected.acts["k_rot", 0].shape[2])
        weighted = expected.patterns[layer, row, head] * values_of(expected, layer, row, kv)
        attention = AttentionMap(expected.acts, row=row)
        tile = attention.value_weighted(layer, head)
        np.testing.assert_allclose(tile.weights, weighted, atol=1e-5, rtol=1e-5)
        np.testing.assert_array_equal(tile.masked, expected.patterns[layer, row, head] == 0)
        for (q, k), (reduce, how) in itertools.product(RANGES, (("max", np.max), ("mean", np.mean))):
            part = attention.value_weighted(layer, head, q, k, 6, reduce)
            np.testing.assert_allclose(part.weights, pooled(weighted[q, k], part.factor, how), atol=1e-5, rtol=1e-5)


def test_values_that_a_cache_rounds_are_the_rounded_ones():
    assert abs(values_of(case("rounding cache"), 0, 0, 0) - values_of(case("batch"), 0, 0, 0)).max() > 0.05


@torch.no_grad()
def test_behind_the_output_projection_the_norm_is_of_what_reaches_the_residual_stream():
    model, expected = eager(), case("gqa")
    weight = model.model.layers[1].self_attn.o_proj.weight
    tile = AttentionMap(expected.acts).value_weighted(1, 2, o_proj=weight)
    values, z = expected.acts["v", 1][0, :, 1], torch.zeros(LENGTH, 4, 8)
    z[:, 2] = values  # what attention brings if a query looked at this key alone
    brought = (z.flatten(1) @ weight.T).norm(dim=-1).numpy()
    np.testing.assert_allclose(tile.weights, expected.patterns[1, 0, 2] * brought, atol=1e-5, rtol=1e-5)


def test_values_that_were_not_captured_are_asked_for():
    with pytest.raises(
        KeyError, match=r"the values of layer 0 were not captured\. Capture 'v' with 'q_rot' and 'k_rot'"
    ):
        by_hand().value_weighted(0, 0)
    with pytest.raises(
        ValueError, match=r"o_proj has shape \(32, 30\); .* with d_head = 8 and more than 2 heads is needed"
    ):
        AttentionMap(case("gqa").acts).value_weighted(0, 2, o_proj=torch.zeros(32, 30))
    model = eager()
    with torch.no_grad(), capture(model, *("q_rot", "k_rot", "v"), positions=slice(-3, None)) as acts:
        model(texts())
    with pytest.raises(
        ValueError, match=r"'v' of positions 0 … 13 was not captured in layer 0, .* Capture 'v_cached' too"
    ):
        AttentionMap(acts).value_weighted(0, 0, slice(15, 16))


# --- thumbnails ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduce", ["max", "mean"])
@pytest.mark.parametrize("name", CASES)
def test_thumbnails_are_the_pooled_patterns_of_every_head(name, reduce):
    expected = case(name)
    row = len(expected.ids) - 1
    found = list(AttentionMap(expected.acts, row=row).thumbnails(size=5, reduce=reduce))
    assert [sheet.layer for sheet in found] == [0, 1, 2]
    for sheet in found:
        assert sheet.heads == (0, 1, 2, 3)
        assert sheet.factor == 4
        for head, picture in enumerate(sheet.weights):
            whole = expected.patterns[sheet.layer, row, head]
            how = np.max if reduce == "max" else np.mean
            np.testing.assert_allclose(picture, pooled(whole, 4, how), atol=1e-5, rtol=0)


def test_thumbnails_of_some_heads_and_layers():
    [sheet] = AttentionMap(case("gqa").acts).thumbnails(layers=[1], heads=[3, 0])
    assert (sheet.layer, sheet.heads) == (1, (0, 3))
    np.testing.assert_allclose(sheet.weights, case("gqa").patterns[1, 0, [0, 3]], atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"head 4 does not exist"):
        list(AttentionMap(case("gqa").acts).thumbnails(heads=[4]))


def test_thumbnails_stop_when_asked_and_are_made_as_they_are_taken():
    attention, calls = by_hand(length=600, layers=4), []

    def stop():
        calls.append(1)
        return len(calls) > per_layer + 1

    per_layer = 10**9
    next(attention.thumbnails(should_stop=stop))
    per_layer = len(calls)
    assert per_layer >= 2, "several blocks"
    calls.clear()
    assert [sheet.layer for sheet in attention.thumbnails(should_stop=stop)] == [0]


# --- memory ----------------------------------------------------------------------------------------------------------


def test_no_tensor_of_the_size_of_the_whole_pattern_is_ever_made():
    length = 4096
    attention = by_hand(length=length)
    for look in (
        lambda: attention.tile(0, 1, EVERY, EVERY),
        lambda: attention.tile(0, 1, slice(3000, 3256), slice(0, 256)),
        lambda: attention.tile(0, 1, EVERY, slice(0, 300), size=100),
        lambda: attention.row(0, 1, length - 1),
        lambda: attention.scores(0, 1, slice(3000, 3256), slice(0, 256)),
        lambda: list(attention.thumbnails()),
        lambda: attention.rollout_row(length - 1),
    ):
        with Largest() as seen:
            look()
        assert 0 < seen.nbytes <= CELLS * 4
        assert seen.nbytes < length * length * 4 / 20


def test_the_measure_of_memory_sees_a_whole_pattern():
    attention = by_hand(length=512)
    with Largest() as seen:
        attention.rollout()
    assert seen.nbytes >= 512 * 512 * 4
