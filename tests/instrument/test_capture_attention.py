"""Scores and patterns that are computed when they are looked at: which heads, rows and masks they are of."""

import pytest
import torch

from tests.conftest import tiny_model
from workbench.cache import DynamicCache
from workbench.instrument import capture

IDS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(3))
POINTS = ("scores", "pattern")
FUTURE = torch.ones(12, 12, dtype=torch.bool).triu(1)


@torch.no_grad()
def captured(model, mask=None, **options):
    with capture(model, *POINTS, **options) as acts:
        model(IDS, attention_mask=mask)
    return acts


@pytest.mark.parametrize("options", [{}, {"heads": [0, 2, 3], "positions": [3, 4, 9]}], ids=["all", "some"])
@pytest.mark.parametrize("heads", [1, 4], ids=["for all heads", "of each head"])
def test_an_additive_mask_is_in_what_is_computed(heads, options):
    model = tiny_model()
    bias = torch.randn(2, heads, 12, 12).masked_fill(FUTURE, -torch.inf)
    stored, computed = captured(model, bias, derive=False), captured(model, bias, **options)
    rows, kept = options.get("positions", range(12)), options.get("heads", range(4))
    for name in computed:
        assert computed.series(name).nbytes == 0
        torch.testing.assert_close(computed[name], stored[name][:, list(kept)][:, :, list(rows)], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("heads", [[0, 2, 3], [0, 1, 2], [1], [2, 3]], ids=str)
def test_each_query_head_reads_its_own_keys_also_where_groups_are_kept_in_part(heads):
    model = tiny_model("gqa")
    stored, computed = captured(model, derive=False), captured(model, heads=heads)
    for name in computed:
        torch.testing.assert_close(computed[name], stored[name][:, heads], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_forwards_of_which_all_rows_are_kept_are_not_chosen_from():
    model, cache = tiny_model(), DynamicCache()
    with capture(model, "pattern", positions=slice(3, None)) as acts:
        model(IDS[:, :5], past_key_values=cache)
        model(IDS[:, 5:], past_key_values=cache)
    assert [part.rows for part in acts.series(("pattern", 0)).parts] == [(3, 4), None]


def test_what_they_are_computed_from_is_held_but_not_among_what_was_captured():
    acts = captured(tiny_model(), layers=[1])
    assert acts.hidden == {"layers.1.q_rot", "layers.1.k_rot"}
    assert ("q_rot", 1) not in acts
    assert "layers.1.k_rot" not in acts
    assert ("pattern", 1) in acts


@pytest.mark.parametrize("options", [{}, {"derive": False}], ids=["computed", "stored"])
@pytest.mark.parametrize("positions", [slice(6, 8), [1, 7]], ids=str)
@torch.no_grad()
def test_forwards_of_which_no_row_is_kept_have_no_pattern(positions, options):
    model, cache = tiny_model(), DynamicCache()
    with capture(model, *POINTS, positions=positions, **options) as acts:
        for start, end in ((0, 4), (4, 6), (6, 8), (8, 12)):
            model(IDS[:, start:end], past_key_values=cache)
    kept = [6, 7] if isinstance(positions, slice) else positions
    whole = captured(model, derive=False)
    assert set(acts) == set(whole)
    for name in acts:
        assert acts.positions(name).tolist() == kept
        torch.testing.assert_close(acts[name], whole[name][:, :, kept, :8], rtol=1e-4, atol=1e-5)
    with pytest.raises(IndexError, match="forward 1 computed none of the positions that were to be kept"):
        acts.step(("pattern", 0), 1)


@torch.no_grad()
def test_patterns_of_the_prompt_alone_in_a_generation():
    model = tiny_model()
    with capture(model, "pattern", positions=slice(0, 5)) as acts:
        model.generate(IDS[:1], max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert acts["pattern", 0].shape == (1, 4, 5, 12)
    assert len(acts.spans) == 4


@torch.no_grad()
def test_positions_that_no_forward_has():
    model = tiny_model()
    with capture(model, "pattern", positions=[500]) as acts:
        model(IDS)
    assert list(acts) == []
    with pytest.raises(KeyError, match=r"'layers\.0\.pattern' was not captured; captured are no points"):
        acts["pattern", 0]


@pytest.mark.parametrize("model", [tiny_model(), tiny_model(attn_implementation="eager")], ids=["fused", "eager"])
@pytest.mark.parametrize("options", [{}, {"derive": False}], ids=["computed", "stored"])
@torch.no_grad()
def test_a_forwards_pattern_is_of_the_keys_it_saw_whatever_was_looked_at_before(options, model):
    cache = DynamicCache()
    with capture(model, *POINTS, **options) as acts:
        for start, end in ((0, 5), (5, 8), (8, 12)):
            model(IDS[:, start:end], past_key_values=cache)
    for name in acts:
        before, window = [acts.step(name, i) for i in range(3)], acts.window(name, 2, 7)
        assert [tuple(part.shape[2:]) for part in before] == [(5, 5), (3, 8), (4, 12)]
        assert window.shape[-1] == 8
        assert acts[name].shape[2:] == (12, 12)
        assert all(torch.equal(acts.step(name, i), part) for i, part in enumerate(before))
        assert torch.equal(acts.window(name, 2, 7), window)
