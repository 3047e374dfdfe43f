"""What of the named points a capture keeps: positions, heads, precision, place on disk, and no more than the budget."""

import gc

import pytest
import torch

from tests.conftest import tiny_model
from workbench.cache import DynamicCache, StaticCache
from workbench.instrument import POINTS, capture
from workbench.instrument.series import Series
from workbench.instrument.storage import SMALL, own

IDS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(3))
KINDS = ["mha", "gqa", "mqa"]
TENSORS = [name for name in POINTS if name != "mask"]


def captured(model, *points, split=None, mask=None, **options):
    """One pass, or the chunks that end at the numbers in `split`."""
    cache = DynamicCache() if split else None
    with torch.no_grad(), capture(model, *points, **options) as acts:
        start = 0
        for end in (*(split or ()), IDS.shape[1]):
            seen = None if mask is None else mask[:, :end]
            model(IDS[:, start:end], attention_mask=seen, past_key_values=cache, use_cache=cache is not None)
            start = end
    return acts


@pytest.mark.parametrize(
    ("positions", "kept"),
    [
        (slice(-4, None), [8, 9, 10, 11]),
        (slice(2, 9, 3), [2, 5, 8]),
        ([0, 7, -1], [0, 7, 11]),
        (5, [5]),
        (slice(None), list(range(12))),
        ([3, 99], [3]),
    ],
)
@pytest.mark.parametrize("name", [n for n in TENSORS if n not in ("k_cached", "v_cached")])
def test_positions_choose_rows_of_the_text(name, positions, kept):
    model = tiny_model()
    whole, part = captured(model, name), captured(model, name, positions=positions)
    for full in whole:
        axis = POINTS[name].position_axis
        expected = whole[full].index_select(axis, torch.tensor(kept))
        torch.testing.assert_close(part[full], expected, rtol=1e-5, atol=1e-6)
        assert part.positions(full).tolist() == kept
        assert part[full].shape[axis] == len(kept)


def test_negative_positions_count_from_the_end_of_each_forward_and_others_are_the_texts():
    model = tiny_model()
    whole = captured(model, "resid_post")
    last = captured(model, "resid_post", split=[5, 9], positions=slice(-2, None))
    assert last.positions(("resid_post", 1)).tolist() == [3, 4, 7, 8, 10, 11]
    torch.testing.assert_close(
        last["resid_post", 1], whole["resid_post", 1][:, [3, 4, 7, 8, 10, 11]], rtol=1e-4, atol=1e-5
    )
    some = captured(model, "resid_post", split=[5, 9], positions=[1, 6, 7])
    assert some.positions(("resid_post", 1)).tolist() == [1, 6, 7]
    with pytest.raises(IndexError, match="forward 2 computed none of the positions that were to be kept"):
        some.step(("resid_post", 1), 2)


def test_keys_are_kept_of_all_positions_where_queries_are_captured_too():
    model = tiny_model()
    both = captured(model, "q_rot", "k_rot", positions=slice(-3, None))
    assert both["q_rot", 0].shape[1] == 3
    assert both["k_rot", 0].shape[1] == 12
    assert both.positions(("k_rot", 0)).tolist() == list(range(12))
    alone = captured(model, "k_rot", positions=slice(-3, None))
    assert alone["k_rot", 0].shape[1] == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [n for n in TENSORS if POINTS[n].head_axis is not None])
def test_heads_choose_query_heads_and_the_keys_and_values_they_read(kind, name):
    model = tiny_model(kind)
    whole, part = captured(model, name, derive=False), captured(model, name, heads=[3, 1, -1])
    group = {"mha": {1: 1, 3: 3}, "gqa": {1: 0, 3: 1}, "mqa": {1: 0, 3: 0}}[kind]
    axis = POINTS[name].head_axis
    wanted = [1, 3] if POINTS[name].axes[axis] == "q_head" else sorted(set(group.values()))
    assert part.heads == (1, 3)
    assert part.kv_heads == tuple(sorted(set(group.values())))
    expected = whole[name, 1].index_select(axis, torch.tensor(wanted))
    torch.testing.assert_close(part[name, 1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", [None, [5], [1, 2, 3]], ids=["one pass", "chunks", "steps"])
@pytest.mark.parametrize("padded", [False, True], ids=["plain", "left padded"])
def test_everything_derived_has_the_bits_of_everything_stored(kind, split, padded):
    model = tiny_model(kind)
    mask = torch.ones_like(IDS) if not padded else (torch.arange(12) >= torch.tensor([[3], [0]])).long()
    stored = captured(model, *POINTS, split=split, mask=mask, derive=False)
    derived = captured(model, *POINTS, split=split, mask=mask)
    assert set(stored) == set(derived)
    assert derived.nbytes < 0.7 * stored.nbytes
    # z of the explicit attention that `stored` computed differs in the last digits from the fused kernel's, and so
    # does what follows from it; what is before the first layer's z has the same bits.
    first = list(stored)[: list(stored).index("layers.0.z")]
    assert len(first) == 13
    for name in first:
        if POINTS[name.rpartition(".")[2]].name not in ("scores", "pattern"):
            assert torch.equal(stored[name], derived[name]), name
    for name in stored:
        torch.testing.assert_close(derived[name], stored[name], rtol=1e-4, atol=1e-4)


FUSED = [name for name in TENSORS if name not in ("scores", "pattern")]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", [None, [5], [1, 2, 11]], ids=["one pass", "chunks", "steps"])
def test_derived_points_are_bit_for_bit_what_was_computed(kind, split):
    model = tiny_model(kind)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    stored = captured(model, *FUSED, split=split, derive=False)
    derived = captured(model, *FUSED, split=split)
    assert derived.nbytes < 0.7 * stored.nbytes
    for name in stored:
        assert torch.equal(stored[name], derived[name]), name


def test_derived_points_do_not_change_with_the_weights():
    model = tiny_model()
    acts = captured(model, *FUSED)
    before = {name: acts[name].clone() for name in acts}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(acts[name], before[name]) for name in acts)


def test_an_edit_of_one_captured_tensor_changes_no_other():
    acts = captured(tiny_model(), *FUSED)
    before = {name: acts[name].clone() for name in acts}
    for name in ("layers.1.resid_pre", "layers.0.k_cached", "layers.1.attn_norm", "layers.2.resid_mid"):
        acts[name].fill_(3.0)
    assert all(torch.equal(acts[name], before[name]) for name in acts)


@torch.no_grad()
def test_nothing_is_derived_while_somebody_edits():
    model = tiny_model()
    with capture(model, *FUSED) as plain:
        model(IDS)
    handle = model.model.layers[1].hook_attn_out.register_forward_hook(lambda module, args, out: out * 2)
    with capture(model, *FUSED) as edited:
        model(IDS)
    handle.remove()
    assert edited.nbytes > plain.nbytes * 1.4
    torch.testing.assert_close(edited["resid_mid", 1], edited["resid_pre", 1] + edited["attn_out", 1])
    assert torch.equal(edited["resid_pre", 1], plain["resid_pre", 1])
    assert not torch.allclose(edited["resid_post", 1], plain["resid_post", 1])


@torch.no_grad()
def test_an_edit_inside_the_block_is_not_seen_and_one_around_it_is():
    model = tiny_model()

    def twice(module, args, out):
        return out * 2

    point = model.model.layers[1].hook_attn_out
    for name in ("attn_out", "resid_mid"):
        with capture(model, *FUSED) as first:
            handle = point.register_forward_hook(twice)
            model(IDS)
        with capture(model, *FUSED) as second:
            model(IDS)
        handle.remove()
        seen = name != "attn_out"  # what comes after the edit sees it either way
        assert torch.equal(first[name, 1], second[name, 1]) == seen
        assert torch.equal(2 * first["attn_out", 1], second["attn_out", 1])


@torch.no_grad()
def test_patterns_keep_their_place_among_the_hooks_when_an_edit_comes_and_goes():
    model = tiny_model()
    with capture(model, "pattern", layers=[1]) as acts:
        model(IDS)
        handle = model.model.layers[1].self_attn.hook_pattern.register_forward_hook(lambda module, args, out: out * 0)
        model(IDS)
        handle.remove()
        model(IDS)
    for i in range(3):
        torch.testing.assert_close(acts.step(("pattern", 1), i), acts.step(("pattern", 1), 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["pattern", "scores", "k_cached"])
@torch.no_grad()
def test_a_capture_that_begins_in_the_middle_stores_what_it_cannot_derive(name):
    model, cache = tiny_model(), DynamicCache()
    whole = captured(model, name)
    model(IDS[:, :7], past_key_values=cache)
    with capture(model, name, "k_rot") as acts:
        model(IDS[:, 7:], past_key_values=cache)
    expected = whole[name, 1] if name == "k_cached" else whole[name, 1][:, :, 7:]
    torch.testing.assert_close(acts[name, 1], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", ["reorder", "crop and another text"])
@torch.no_grad()
def test_keys_that_are_no_longer_those_captured_are_noticed(change):
    """Beams exchange the rows of a cache between two forwards: the captured keys are then another text's."""
    model, cache = tiny_model(), DynamicCache()
    with capture(model, "pattern") as acts:
        model(IDS[:, :7], past_key_values=cache)
        if change == "reorder":
            cache.reorder(torch.tensor([1, 0]))
        else:
            cache.crop(3)
        start = cache.length
        model(IDS[:, start : start + 1], past_key_values=cache, output_attentions=False)
    keys = cache.keys(2).repeat_interleave(2, 1)
    last = acts.step(("pattern", 2), 1)
    assert last.shape == (2, 4, 1, start + 1)
    with capture(model, "q_rot", layers=[2]) as again:
        cache.crop(start)
        model(IDS[:, start : start + 1], past_key_values=cache)
    scores = again["q_rot", 2].transpose(1, 2) @ keys.transpose(2, 3) * 8**-0.5
    torch.testing.assert_close(last, scores.softmax(-1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_static_caches_and_generation_are_derived_too():
    model = tiny_model()
    whole = captured(model, *FUSED, "pattern")
    cache = StaticCache(model.config, 20)
    with capture(model, *FUSED, "pattern") as acts:
        for start, end in ((0, 6), (6, 7), (7, 12)):
            model(IDS[:, start:end], past_key_values=cache)
    for name in whole:
        torch.testing.assert_close(acts[name], whole[name], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_every_step_of_a_generation_is_captured():
    model = tiny_model()
    with capture(model, "resid_post", "pattern", "logits") as acts:
        text = model.generate(IDS, max_new_tokens=5, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert [span.count for span in acts.spans] == [12, 1, 1, 1, 1]
    assert [span.start for span in acts.spans] == [0, 12, 13, 14, 15]
    assert torch.equal(torch.cat([span.tokens for span in acts.spans], 1), text[:, :-1])
    with capture(model, "resid_post", "pattern") as whole:
        model(text[:, :-1])
    for name in whole:
        torch.testing.assert_close(acts[name], whole[name], rtol=1e-4, atol=1e-5)
    assert acts["logits"].shape == (2, 5, 97), "generate asks for the last position's logits only"
    assert acts.positions("logits").tolist() == [11, 12, 13, 14, 15]


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([2, 5])], ids=["last", "last three", "indices"])
@torch.no_grad()
def test_logits_know_which_positions_they_are_of(keep):
    model = tiny_model()
    whole = model(IDS).logits
    for positions, expected in ((None, [11] if isinstance(keep, int) and keep == 1 else None), (slice(5, None), None)):
        with capture(model, "logits", positions=positions) as acts:
            model(IDS, logits_to_keep=keep)
        at = acts.positions("logits")
        torch.testing.assert_close(acts["logits"], whole[:, at], rtol=1e-5, atol=1e-5)
        assert expected is None or at.tolist() == expected


def test_grid_addresses_step_layer_and_position():
    model = tiny_model()
    with torch.no_grad(), capture(model, "resid_post", "q_rot") as acts:
        model.generate(IDS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
    grid = acts.grid("resid_post")
    assert grid.shape == (4, 3, 15)
    whole = torch.stack([acts["resid_post", layer] for layer in range(3)])  # (layer, batch, pos, d_model)
    assert torch.equal(grid[0, 1, 7], whole[1, :, 7])
    assert torch.equal(grid[2, 1, 13], whole[1, :, 13])
    assert torch.equal(grid[-1, -1, -1], whole[2, :, 14])
    everything = grid[:, :, :]
    assert everything.shape == (4, 3, 15, 1, 32)
    computed = ~everything[..., 0, 0].isnan()
    assert computed.sum(0).eq(1).all(), "with a cache each position is computed in one step"
    assert torch.equal(everything[0, :, :12].permute(0, 2, 1, 3), whole[:, :, :12])
    for step in (1, 2, 3):
        assert torch.equal(everything[step, :, 11 + step], whole[:, :, 11 + step])
    assert grid[1, 0:2, 12].shape == (2, 1, 32)
    assert acts.grid("q_rot")[0, 0, 3:5].shape == (2, 1, 4, 8)
    with pytest.raises(IndexError, match="step 2 did not compute position 3; it was computed in step 0"):
        grid[2, 0, 3]
    with pytest.raises(IndexError, match=r"position 15 does not exist; there are 0 … 14"):
        grid[0, 0, 15]
    with pytest.raises(IndexError, match="addressed by three numbers or slices"):
        grid[0]
    with pytest.raises(ValueError, match="'z' was not captured in any layer; captured are"):
        acts.grid("z")


def test_a_generation_without_a_cache_has_every_position_in_every_step():
    model = tiny_model()
    with torch.no_grad(), capture(model, "resid_post") as acts:
        model.generate(IDS[:1], max_new_tokens=3, do_sample=False, use_cache=False, pad_token_id=0, eos_token_id=None)
    grid = acts.grid("resid_post")[:, 1, :]
    assert grid.shape[:2] == (3, 14)
    assert [int((~step[:, 0, 0].isnan()).sum()) for step in grid] == [12, 13, 14]
    torch.testing.assert_close(grid[0, :12], grid[2, :12], rtol=1e-4, atol=1e-5)


def test_spilled_tensors_are_the_same_and_not_in_memory(tmp_path):
    model = tiny_model()
    whole = captured(model, *FUSED, split=[5], derive=False)
    spilled = captured(model, *FUSED, split=[5], derive=False, spill=tmp_path / "new")
    assert spilled.nbytes == whole.nbytes
    files = sum(file.stat().st_size for file in (tmp_path / "new").iterdir())
    assert files == whole.nbytes
    assert not any(isinstance(p, torch.Tensor) for n in spilled for p in spilled.series(n).parts)
    for name in whole:
        assert torch.equal(spilled[name], whole[name]), name
        if POINTS[name.rpartition(".")[2]].name not in ("k_cached", "v_cached"):
            assert torch.equal(spilled.window(name, 4, 7), whole.window(name, 4, 7)), name
    spilled["layers.0.q"].fill_(0)
    assert torch.equal(spilled["layers.0.q"], whole["layers.0.q"]), "reading gives a copy"


@torch.no_grad()
def test_numpy_views_and_edits_of_the_output_do_not_reach_a_capture():
    model = tiny_model()
    with capture(model, "logits", "final_norm") as acts:
        out = model(IDS)
    before = acts["logits"].clone()
    out.logits.numpy()[:] = 5.0
    assert torch.equal(acts["logits"], before)
    acts["logits"].numpy()[:] = 6.0
    assert (out.logits == 5.0).all()


def test_large_tensors_are_shared_until_somebody_writes_and_of_a_slice_nothing_else_is_kept(tmp_path):
    x = torch.ones(SMALL + 1)
    kept = own(x)
    assert torch._C._is_cow_tensor(kept)
    x.zero_()
    assert kept.eq(1).all()
    assert own(torch.ones(3, SMALL + 1)[1]).untyped_storage().nbytes() == kept.nbytes
    elsewhere = torch.from_file(str(tmp_path / "numbers"), shared=True, size=SMALL + 1)  # not PyTorch's own memory
    kept = own(elsewhere)
    elsewhere.fill_(2)
    assert kept.eq(0).all()


@torch.no_grad()
def test_joining_frees_the_parts(monkeypatch):
    model, cache = tiny_model(), DynamicCache()
    with capture(model, "resid_post", layers=[0]) as acts:
        for i in range(6):
            model(IDS[:, i : i + 1], past_key_values=cache)
    assert torch.equal(acts["resid_post", 0], acts["resid_post", 0])
    assert len(acts.series("layers.0.resid_post").parts) == 1
    assert torch.equal(acts.step(("resid_post", 0), 4), acts["resid_post", 0][:, 4:5])
    gc.collect()
    assert isinstance(acts.series("layers.0.resid_post"), Series)


@torch.no_grad()
def test_forwards_of_different_batches_are_looked_at_one_by_one():
    model = tiny_model()
    with capture(model, "q", "mask") as acts:
        model(IDS[:1])
        model(IDS)
    with pytest.raises(
        ValueError, match=r"had batches of 1, 2 rows, so 'q' cannot be joined .* acts\.step\(name, index\)"
    ):
        acts["q", 0]
    assert acts.step(("q", 0), 1).shape == (2, 12, 4, 8)
    assert acts.step("layers.0.mask", -1).shape[-2:] == (12, 12)
    with pytest.raises(IndexError, match=r"there is no forward 2; captured are 0 … 1"):
        acts.step(("q", 0), 2)


@torch.no_grad()
def test_a_gain_that_is_edited_between_two_forwards_counts_from_the_second_on():
    model, cache = tiny_model(), DynamicCache()
    with capture(model, *FUSED) as acts, capture(model, *FUSED, derive=False) as stored:
        model(IDS[:, :5], past_key_values=cache)
        model.model.layers[1].input_layernorm.weight.mul_(2)
        model.model.norm.weight.mul_(3)
        model(IDS[:, 5:], past_key_values=cache)
    for name in ("layers.1.attn_norm", "final_norm"):
        for step in (0, 1):
            assert torch.equal(acts.step(name, step), stored.step(name, step)), (name, step)
