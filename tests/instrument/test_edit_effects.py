"""What a block of edits leaves behind, and what it counts."""

import pytest
import torch

from tests.conftest import hooks, tiny_model
from tests.instrument.edit_references import IDS, OTHER, edited
from workbench.cache import DynamicCache
from workbench.instrument import Cancelled, cancellable
from workbench.instrument.edit import edit
from workbench.instrument.edit_site import EditError
from workbench.instrument.edits import knock_out, swap_kv, zero


def double(x):
    return x * 2


# --- what is left behind


@torch.no_grad()
def test_fifty_edits_errors_and_cancels_leave_nothing_behind():
    model = tiny_model()
    plain, cache = model(IDS).logits, DynamicCache()
    model(IDS[:, :4], past_key_values=cache)
    stored = [cache.keys(i).clone() for i in range(3)]

    def fail(x):
        raise ArithmeticError("planted")

    good = [{"q_rot": double}, zero("z", heads=2), knock_out(edges=[(5, 1)]), {"mask": lambda m: m}]
    bad = [{"z": fail}, {"layers.1.act": lambda x: None}, {"mask": lambda x: 3}]
    for i in range(50):
        edited(model, good[i % 4])
        with pytest.raises((ArithmeticError, EditError)), edit(model, bad[i % 3]):
            model(IDS[:, 4:], past_key_values=cache)
        with pytest.raises(Cancelled), edit(model, zero("z")), cancellable(model, lambda: True):
            model(IDS[:, 4:], past_key_values=cache)
        with pytest.raises(EditError), edit(model, zero("z")):
            pass
        assert hooks(model) == 0
    assert torch.equal(model(IDS).logits, plain)
    assert cache.length == 4
    assert all(torch.equal(cache.keys(i), stored[i]) for i in range(3))


def test_an_error_in_the_block_is_not_hidden_by_an_edit_that_did_nothing():
    model = tiny_model()
    with pytest.raises(KeyboardInterrupt), edit(model, zero("z")):
        raise KeyboardInterrupt
    assert hooks(model) == 0


def test_no_hook_is_left_if_hooking_itself_fails(monkeypatch):
    model = tiny_model()

    def refuse(hook):
        raise RuntimeError("planted")

    monkeypatch.setattr(model.model.layers[2].self_attn.hook_z, "register_forward_hook", refuse)
    with pytest.raises(RuntimeError, match="planted"), edit(model, zero("z")):
        pass
    assert hooks(model) == 0


@torch.no_grad()
def test_a_point_behind_the_model_is_not_edited_before_a_forward_ran():
    model, x = tiny_model(), torch.randn(1, 5, 97)
    with edit(model, {"logits": double}) as active:
        assert torch.equal(model.hook_logits(x), x)
        model(IDS)
    assert active.hits == [24]


# --- hits


@torch.no_grad()
def test_hits_count_rows_of_each_layer_and_edges_of_each_head():
    model = tiny_model()
    edits = [
        zero("z", positions=[3, 5], layers=[0, 2]),
        knock_out(edges=[(4, 1), (5, 1), (6, 6)], heads=[0, 1]),
        knock_out(1, queries=slice(10, None)),
        swap_kv(1, 0, 1),
    ]
    with edit(model, edits) as active:
        model(IDS)
        assert active.hits == [2 * 2 * 2, 3 * 2 * 3 * 2, 2 * 4 * (11 + 12), 2 * 2 * 12]
        model(OTHER[:1])
    assert active.hits == [12, 54, 276, 72]
    assert repr(active) == (
        "ActiveEdits(zero('z', layers=[0, 2], positions=[3, 5]): 12 changed; "
        "knock_out(heads=[0, 1], edges=[(4, 1), (5, 1), (6, 6)]): 54 changed; "
        "knock_out(layers=[1], queries=slice(10, None)): 276 changed; "
        "swap_kv(layers=[1], heads=[0, 1]): 72 changed)"
    )
    with edit(model, {"z": double, "layers.1.mask": lambda mask: mask}) as active:
        model(IDS)
    assert (active.hits, active.unchanged) == ([3 * 24, 0], [0, 12])
    assert active.effects[0].what == "the edit of 'z' by double"
