"""Forwards that begin while another one runs, and copies of the model: what a block edits, and what it leaves alone."""

import copy

import pytest
import torch

from tests.conftest import hooks, tiny_model
from tests.instrument.edit_references import IDS, OTHER, assert_same, edited
from workbench.cache import DynamicCache
from workbench.instrument import capture
from workbench.instrument.edit import edit
from workbench.instrument.edits import scale, zero


def double(x):
    return x * 2


# --- a forward inside another one


@torch.no_grad()
def test_a_forward_that_a_function_runs_is_not_edited_by_its_block():
    model, found = tiny_model(), []
    plain = model(OTHER[:1, :5]).logits

    def resample(x):
        found.append(model(OTHER[:1, :5]).logits)
        return x * 2

    sites = []
    edits = {"layers.0.z": resample, "layers.2.z": [double, lambda x, site: sites.append(site) or x]}
    with edit(model, edits) as active:
        outer = model(IDS).logits
    assert torch.equal(found[0], plain)
    assert_same(outer, edited(model, {"layers.0.z": double, "layers.2.z": double}))
    assert active.hits[:2] == [24, 24]
    assert [(len(site.positions), len(site.mask.q_pos), site.step) for site in sites] == [(12, 12, 0)]


@torch.no_grad()
def test_a_function_may_continue_a_text_of_its_own():
    model, cache = tiny_model(), DynamicCache()
    model(OTHER[:, :4], past_key_values=cache)
    with edit(model, {"z": lambda x: x + 0 * model(OTHER[:, 4:5], past_key_values=cache).logits.sum()}) as active:
        model(IDS[:, :3])
    assert cache.length == 7
    assert active.effects[0].missed([(0, 3)]) is None


@torch.no_grad()
def test_another_block_edits_both_forwards():
    """The outer block's function runs a forward; the inner block's edits are of every forward in it."""
    model, found, sites = tiny_model(), [], []
    expected = edited(model, scale("z", 2.0), OTHER[:1, :5])

    def run(x):
        if not found:
            found.append(model(OTHER[:1, :5], logits_to_keep=2).logits)
        return x

    with edit(model, {"layers.1.resid_pre": run}):
        block = edit(model, {"z": double, "logits": lambda x, site: sites.append(site) or x})
        with block as active:
            outer = model(IDS).logits
    assert_same(found[0], expected[:, 3:])
    assert_same(outer, edited(model, scale("z", 2.0)))
    assert active.hits[0] == 3 * 24 + 3 * 5
    assert [(site.positions.tolist(), site.step) for site in sites] == [([3, 4], 1), (list(range(12)), 0)]


@torch.no_grad()
def test_a_forward_that_fails_inside_another_one_leaves_that_one_as_it_was():
    model = tiny_model()

    def run(module, args, x):
        with pytest.raises(ValueError, match="attention_mask has shape"):
            model(IDS, attention_mask=torch.ones(1, 1))

    handle = model.model.layers[1].hook_resid_pre.register_forward_hook(run)
    with edit(model, {"layers.2.z": double}) as active:
        model(IDS)
    handle.remove()
    assert active.hits == [24]


@torch.no_grad()
def test_a_function_that_fails_does_not_end_the_editing():
    model, fail = tiny_model(), [True]

    def maybe(x):
        if fail.pop() if fail else False:
            raise ArithmeticError("planted")
        return x * 2

    with edit(model, {"layers.1.z": maybe}) as active:
        with pytest.raises(ArithmeticError):
            model(IDS)
        model(IDS)
    assert active.hits == [24]


# --- copies


@torch.no_grad()
def test_a_copy_made_in_a_block_is_not_edited():
    model = tiny_model()
    plain = model(IDS).logits
    edits = [zero("z"), zero("logits"), {"scores": double, "mask": lambda mask: mask}]
    for one in edits:
        with edit(model, one):
            twin = copy.deepcopy(model)
            assert_same(twin(IDS).logits, plain)  # a hook on scores leaves the fused kernel
            model(IDS)
        assert hooks(twin) == 0, "they went with the first forward"
        assert torch.equal(twin(IDS).logits, plain)
        assert hooks(model) == 0


@torch.no_grad()
def test_a_copy_used_after_the_block_is_an_ordinary_model():
    model = tiny_model()
    plain = model(IDS).logits
    with edit(model, {"layers.1.resid_post": lambda x: x * 0}) as active:
        model(IDS)
        twin = copy.deepcopy(model)
    assert torch.equal(twin(IDS).logits, plain)
    assert active.hits == [24]
    with edit(twin, zero("z", layers=1)), capture(twin, "z") as acts:
        twin(IDS)
    assert (acts["z", 1] == 0).all()
    assert hooks(twin) == 0
