"""Edits after which every number is what it was before: which of them are errors, and what is counted."""

import pytest
import torch

from tests.conftest import tiny_model
from tests.instrument.edit_references import IDS
from workbench.cache import DynamicCache
from workbench.instrument import capture
from workbench.instrument.edit import edit
from workbench.instrument.edit_site import EditError
from workbench.instrument.edits import add, knock_out, mean, patch, scale, swap_kv, zero
from workbench.model.mask import Mask, causal


@pytest.mark.parametrize(
    ("which", "why"),
    [
        (scale("z", 1.0), "a factor of 1 leaves every number as it is"),
        (add("resid_post", 0.0), "what it adds is 0"),
        (add("resid_post", torch.zeros(32), positions=3), "what it adds is 0"),
        (add("resid_post", torch.ones(32), scale=0.0), "what it adds is 0"),
        (add("resid_post", 1e-12), "what it adds is lost in rounding to float32"),
        (scale("resid_post", 1 + 1e-12), "what it met is 0, or the difference is lost in rounding to float32"),
    ],
    ids=str,
)
@torch.no_grad()
def test_what_adds_or_scales_and_changes_no_number_is_an_error(which, why):
    model = tiny_model()
    with pytest.raises(EditError) as caught, edit(model, which):
        model(IDS)
    assert str(caught.value) == f"{which} did not take effect: it changed no number, because {why}."


@torch.no_grad()
def test_an_addition_too_small_for_the_precision_is_an_error():
    model = tiny_model().bfloat16()
    with pytest.raises(EditError, match="lost in rounding to bfloat16"), edit(model, add("z", 1e-12)):
        model(IDS)


@torch.no_grad()
def test_scaling_what_another_edit_made_zero_is_an_error():
    model = tiny_model()
    message = r"^scale\('z'.*it changed no number, because what it met is 0"
    with pytest.raises(EditError, match=message), edit(model, [zero("z", heads=0), scale("z", 3.0, heads=0)]):
        model(IDS)


@torch.no_grad()
def test_one_number_that_changes_is_enough():
    model, cache = tiny_model(), DynamicCache()
    vector = torch.zeros(32)
    vector[5] = 1.0
    with edit(model, [zero("z", positions=[0, 1], layers=0), scale("z", 2.0, layers=0)]) as active:
        model(IDS[:, :2], past_key_values=cache)
        model(IDS[:, 2:], past_key_values=cache)
    assert (active.hits, active.unchanged) == ([4, 20], [0, 4])
    with edit(model, add("resid_post", vector, layers=0)) as active:
        model(IDS)
    assert (active.hits, active.unchanged) == ([24], [0])


@torch.no_grad()
def test_what_sets_numbers_may_find_them_set():
    """A patch of a run into itself, the ablation of what is zero: the answer is that nothing depends on it."""
    model = tiny_model()
    with capture(model, "z", "resid_post") as acts:
        model(IDS)
    edits = [
        patch("resid_post", acts, layers=1),
        zero("z", positions=[3, 5]),
        zero("z", positions=[3, 5]),
        mean("v", torch.ones(8), layers=1),
        mean("v", torch.ones(8), layers=1),
        swap_kv(1, 0, 1),
    ]
    plain = model(IDS).logits
    with edit(model, edits[0]) as active:
        assert torch.equal(model(IDS).logits, plain)
    assert (active.hits, active.unchanged) == ([0], [24])
    assert repr(active) == f"ActiveEdits({edits[0]}: 0 changed, 24 so already)"
    with edit(model, edits[1:]) as active:
        model(IDS)
    assert active.hits == [12, 0, 24, 0, 24]  # the keys differ
    assert active.unchanged == [0, 12, 0, 24, 24]  # the values are alike


@torch.no_grad()
def test_functions_may_only_look():
    model = tiny_model()
    edits = {"z": [lambda x: x, lambda x: x * 2], "mask": [lambda mask: mask, lambda mask: mask.with_rules(causal())]}
    with edit(model, edits) as active:
        model(IDS)
    assert active.hits == [0, 72, 0, 36]
    assert active.unchanged == [72, 0, 36, 0]

    def biased(mask):
        return Mask(mask.rules, mask.q_pos, mask.k_pos, torch.zeros(1, 1, 12, 12))

    with edit(model, {"layers.1.mask": [biased, biased]}) as active:
        model(IDS)
    assert (active.hits, active.unchanged) == ([12, 0], [0, 12])


@pytest.mark.parametrize("heads", [None, [1], [1, 2]])
@torch.no_grad()
def test_edges_that_are_knocked_out_already(heads):
    model = tiny_model()
    by = "knocked_out" if heads is None else "what is added to the scores of these heads"
    twice = [knock_out(1, heads, edges=[(5, 2)]), knock_out(1, heads, edges=[(5, 2)])]
    with pytest.raises(EditError, match=rf"edge \(5, 2\): it is forbidden already, by {by}\.$"), edit(model, twice):
        model(IDS)
    overlapping = [knock_out(1, [0, 1], edges=[(5, 2)]), knock_out(1, [1, 2], edges=[(5, 2), (6, 2)])]
    with edit(model, overlapping) as active:
        model(IDS)
    assert active.hits == [2 * 2, 2 * 1 + 2 * 2]
    with edit(model, [knock_out(1, 0, edges=[(5, 2)]), knock_out(1, edges=[(5, 2)])]) as active:
        model(IDS)
    assert active.hits == [2, 2 * 3]
