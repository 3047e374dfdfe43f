"""Activation patching, against plain hooks."""

import pytest
import torch

from tests.conftest import tiny_model
from tests.instrument.edit_references import IDS, KINDS, KV, OTHER, VECTOR, A, assert_same, edited, hooked, put
from workbench.instrument import capture
from workbench.instrument.edit import edit
from workbench.instrument.edit_site import EditError
from workbench.instrument.edits import mean, patch


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_patching_puts_in_what_was_in_another_forward(kind):
    model = tiny_model(kind)
    plain = model(IDS).logits
    with capture(model, "resid_post", "z", "v", "act", "embed") as acts:
        other = model(OTHER).logits
    whole = edited(model, patch("layers.1.resid_post", acts))
    assert_same(whole, other, plain)
    assert_same(edited(model, patch("embed", acts)), other, plain)
    value = acts["z", 1]
    expected = hooked(model, (1, "self_attn.hook_z"), put(A, [3, 5], 2, value=value[:, [3, 5], 2]))
    assert_same(edited(model, patch("z", acts, layers=1, heads=2, positions=[3, 5])), expected, plain)
    expected = hooked(model, (1, "self_attn.hook_z"), put(A, [5, 3], 2, value=value[:, [3, 5], 2]))
    which = patch("z", acts, layers=1, heads=2, positions=[5, 3], source_positions=[3, 5])
    assert_same(edited(model, which), expected, plain)
    expected = hooked(model, (2, "mlp.hook_act"), put(A, A, [8, 1], value=acts["act", 2][:, :, [8, 1]]))
    assert_same(edited(model, patch("layers.2.act", acts, neurons=[8, 1])), expected, plain)
    last = KV[kind] - 1
    expected = hooked(model, (0, "self_attn.hook_v"), put(A, A, last, value=acts["v", 0][:, :, last]))
    assert_same(edited(model, patch("layers.0.v", acts, heads=-1)), expected, plain)


@torch.no_grad()
def test_all_captured_layers_are_patched_each_with_its_own():
    model = tiny_model()
    with capture(model, "mlp_out", layers=[0, 2]) as source:
        model(OTHER)
    with edit(model, patch("mlp_out", source)), capture(model, "mlp_out") as acts:
        model(IDS)
    assert torch.equal(acts["mlp_out", 0], source["mlp_out", 0])
    assert torch.equal(acts["mlp_out", 2], source["mlp_out", 2])
    assert not torch.equal(acts["mlp_out", 1], source["mlp_out", 0])


@torch.no_grad()
def test_patching_from_a_tensor():
    model = tiny_model()
    rows = torch.randn(2, 3, 32)
    at = (1, "hook_resid_post")
    expected = hooked(model, at, put(A, [4, 9, 6], value=rows))
    assert_same(edited(model, patch("layers.1.resid_post", rows, positions=[4, 9, 6])), expected)
    expected = hooked(model, at, put(A, [0, 1, 2], value=rows))
    assert_same(edited(model, patch("resid_post", rows, layers=1)), expected)
    assert_same(edited(model, patch("resid_post", {1: rows})), expected)
    expected = hooked(model, at, put(A, [5, 6, 7], value=rows))
    assert_same(edited(model, patch("layers.1.resid_post", rows, positions=slice(5, None))), expected)
    expected = hooked(model, at, put(A, [5], value=rows[:, 2:]))
    assert_same(edited(model, patch("layers.1.resid_post", rows, positions=5, source_positions=2)), expected)
    expected = hooked(model, at, put(A, [5, 6, 7], value=rows[:1]))
    which = patch("layers.1.resid_post", rows[:1], positions=[5, 6, 7])
    assert_same(edited(model, which), expected)
    rows.zero_()
    assert_same(edited(model, which), expected)


@torch.no_grad()
def test_a_patch_from_a_capture_of_some_positions_and_heads():
    model = tiny_model()
    with capture(model, "z", "v", positions=[3, 8], heads=[1, 2]) as some:
        model(OTHER)
    with capture(model, "z", "v") as acts:
        model(OTHER)
    with edit(model, patch("z", some, layers=1)), capture(model, "z") as found:
        model(IDS)
    with capture(model, "z") as plain:
        model(IDS)
    expected = plain["z", 1].clone()
    for position in (3, 8):
        expected[:, position, 1:3] = acts["z", 1][:, position, 1:3]
    assert torch.equal(found["z", 1], expected)
    only = patch("z", some, layers=1, heads=2, positions=8)
    assert torch.equal(only.value(1)[:, 0, 0], acts["z", 1][:, 8, 2])
    assert patch("v", some, layers=1).heads == (0, 1)
    with pytest.raises(ValueError, match=r"head 3 was not captured; captured are 1, 2\."):
        patch("z", some, heads=3)
    with pytest.raises(ValueError, match=r"patch: layers.0.z has no position 4; it has 3, 8\."):
        patch("z", some, positions=[3, 4])


@torch.no_grad()
def test_a_pattern_can_be_patched():
    model = tiny_model()
    with capture(model, "pattern", "v") as acts:
        model(OTHER)
    with edit(model, [patch("pattern", acts, layers=1), patch("v", acts, layers=1)]), capture(model, "z") as found:
        model(IDS)
    with capture(model, "z") as source:
        model(OTHER)
    torch.testing.assert_close(found["z", 1], source["z", 1], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_patch_of_another_batch_is_refused_by_the_forward():
    model = tiny_model()
    which = patch("layers.1.z", torch.zeros(3, 1, 4, 8), positions=[2])
    message = (
        r"patch\('layers.1.z', positions=\[2\], values=<float32 \(3, 1, 4, 8\)>\) has values of shape \(3, 1, 4, 8\) "
        r"for 'layers.1.z', where this forward has \(2, 1, 4, 8\) \(batch, pos, q_head, d_head\)\. Patch from a "
        r"forward of the same batch, or of one row\."
    )
    with pytest.raises(EditError, match=message):
        edited(model, which)


def test_what_a_patch_cannot_be_made_from():
    model = tiny_model()
    with capture(model, "z", layers=[1]) as acts, torch.no_grad():
        model(IDS)
    with pytest.raises(KeyError, match=r"'v' was not captured; captured are layers\.1\.z"):
        patch("v", acts)
    with pytest.raises(KeyError, match=r"'layers\.2\.z' was not captured"):
        patch("z", acts, layers=2)
    with pytest.raises(ValueError, match=r"layers holds -1; layers of a capture count from 0\."):
        patch("z", acts, layers=-1)
    with pytest.raises(ValueError, match=r"patch: layers.1.z has no position 12; it has 0 … 11\."):
        patch("z", acts, positions=12)
    with pytest.raises(ValueError, match=r"patch: 1 positions are taken from layers.1.z, but 2 are to be put\."):
        patch("z", acts, positions=[1, 2], source_positions=3)
    with pytest.raises(ValueError, match=r"patch: 3 positions are taken from the tensor, but 2 are to be put\."):
        patch("z", torch.zeros(1, 3, 4, 8), positions=[1, 2])
    with pytest.raises(
        ValueError, match=r"the tensor has shape \(3, 8\); the axes of 'z' are \(batch, pos, q_head, d_"
    ):
        patch("z", torch.zeros(3, 8))
    with pytest.raises(ValueError, match=r"'zz' is no name of the table of hook points; did you mean "):
        patch("zz", acts)
    with pytest.raises(
        ValueError, match=r"layers is \[0\], but the source has values of layers \[1\]\. Leave layers o"
    ):
        patch("z", {1: torch.zeros(1, 3, 4, 8)}, layers=0)
    with pytest.raises(TypeError, match=r"the source is list; a tensor, one a layer \(\{3: tensor\}\) or a capture is"):
        patch("z", [1.0])
    with pytest.raises(ValueError, match=r"the source has layer -1; layers of a source count from 0\."):
        mean("z", {-1: VECTOR})
    with capture(model, "z", layers=[1]) as twice, torch.no_grad():
        model(IDS)
        model(OTHER)
    with pytest.raises(
        ValueError, match=r"layers.1.z holds several texts: position 0 is there more than once\. Capture"
    ):
        patch("z", twice)
