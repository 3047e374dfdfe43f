"""Attention on demand where somebody changes masks: what it shows is what was applied."""

import pytest
import torch

import workbench
from tests.conftest import tiny_model
from workbench import AttentionMap, edits
from workbench.instrument import Activations

KNOCKED = edits.knock_out(queries=[7, 9, 13], keys=[0, 3, 4], layers=[1], heads=[0, 2])
EARLY = edits.knock_out(queries=[7, 9], keys=[0, 3], layers=[1], heads=[0, 2])
EDITS = {
    "some heads": [KNOCKED],
    "all heads": [edits.knock_out(edges=[(5, 5), (8, 1)], layers=[0, 2])],
    "two edits": [KNOCKED, edits.knock_out(keys=[2], layers=[1])],
}


@pytest.fixture(scope="module")
def model():
    return tiny_model("gqa").eval()


@pytest.fixture(scope="module")
def ids():
    return torch.randint(0, 90, (1, 12), generator=torch.Generator().manual_seed(0))


def assert_patterns(acts, reference):
    shown = AttentionMap(acts)
    for layer in range(3):
        for head in range(4):
            expected = torch.full((shown.length, shown.length), 0.0)
            for step, span in enumerate(reference.spans):
                rows = reference.step(("pattern", layer), step)[0, head]
                expected[span.start : span.start + span.count, : rows.shape[-1]] = rows
            found = torch.as_tensor(shown.head(layer, head))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, msg=lambda m, i=(layer, head): f"{i}: {m}")


@pytest.mark.parametrize("inside", [False, True], ids=["around the capture", "inside it"])
@pytest.mark.parametrize("which", EDITS.values(), ids=EDITS.keys())
@torch.no_grad()
def test_attention_is_that_of_the_mask_which_was_applied(which, inside, model, ids, tmp_path):
    with workbench.edit(model, which), workbench.capture(model, "pattern", derive=False) as reference:
        model.generate(ids, min_new_tokens=4, max_new_tokens=4, do_sample=False)
    blocks = [workbench.edit(model, which), workbench.capture(model, "q_rot", "k_rot")]
    first, second = reversed(blocks) if inside else blocks
    with first as a, second as b:
        model.generate(ids, min_new_tokens=4, max_new_tokens=4, do_sample=False)
    acts = a if inside else b
    assert not any(name.endswith("mask") for name in acts)
    assert_patterns(acts, reference)
    acts.save(tmp_path / "acts.safetensors")
    assert_patterns(Activations.load(tmp_path / "acts.safetensors"), reference)
    assert not model.model.layers[1].self_attn.hook_mask._forward_hooks


@torch.no_grad()
def test_an_edit_that_begins_and_ends_within_a_capture(model, ids):
    """Forwards before and after it keep their own masks."""
    with workbench.capture(model, "q_rot", "k_rot") as acts:
        cache = model(ids[:, :6], use_cache=True).past_key_values
        with workbench.edit(model, EARLY):
            model(ids[:, 6:10], past_key_values=cache)
        model(ids[:, 10:], past_key_values=cache)
    with workbench.capture(model, "pattern", derive=False) as reference:
        cache = model(ids[:, :6], use_cache=True).past_key_values
        with workbench.edit(model, EARLY):
            model(ids[:, 6:10], past_key_values=cache)
        model(ids[:, 10:], past_key_values=cache)
    assert_patterns(acts, reference)
