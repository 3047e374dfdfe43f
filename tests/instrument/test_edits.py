"""Ablating, scaling and adding, against plain hooks."""

import pytest
import torch

from tests.conftest import hooks, tiny_model
from tests.instrument.edit_references import IDS, KINDS, OTHER, VECTOR, A, assert_same, edited, hooked, put
from workbench.cache import DynamicCache
from workbench.instrument import POINTS, capture
from workbench.instrument.edit import edit
from workbench.instrument.edit_apply import changed, edges_of
from workbench.instrument.edit_site import EditError, Site, rows_at
from workbench.instrument.edits import add, knock_out, mean, scale, zero
from workbench.model.mask import Mask, causal, custom, padding


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("which", "at", "change", "before"),
    [
        (zero("z", heads=1), "self_attn.o_proj", put(..., slice(8, 16)), True),
        (zero("z", heads=[0, -1], layers=1), (1, "self_attn.o_proj"), put(..., [*range(8), *range(24, 32)]), True),
        (zero("z", heads=2, positions=[3, 5]), "self_attn.o_proj", put(A, [3, 5], slice(16, 24)), True),
        (zero("layers.2.z"), (2, "self_attn.o_proj"), put(...), True),
        (zero("q", heads=3), "self_attn.q_proj", put(..., slice(24, 32)), False),
        (zero("q_rot", heads=3), "self_attn.q_proj", put(..., slice(24, 32)), False),
        (zero("k", heads=-1), "self_attn.k_proj", put(..., slice(-8, None)), False),
        (zero("k_rot", heads=0), "self_attn.k_proj", put(..., slice(0, 8)), False),
        (zero("k_cached", positions=slice(2, 4)), "self_attn.k_proj", put(A, slice(2, 4)), False),
        (zero("v", heads=0, positions=[0, 7]), "self_attn.v_proj", put(A, [0, 7], slice(0, 8)), False),
        (zero("v_cached", heads=0), "self_attn.v_proj", put(..., slice(0, 8)), False),
        (zero("act", neurons=[4, -1]), "mlp.down_proj", put(..., [4, 47]), True),
        (zero("gate", neurons=range(5)), "mlp.gate_proj", put(..., slice(0, 5)), False),
        (zero("up", neurons=7, positions=slice(9, None)), "mlp.up_proj", put(A, slice(9, None), 7), False),
        (zero("attn_out", layers=[0, -1], positions=4), "self_attn.o_proj", put(A, 4), False),
        (zero("mlp_out", positions=[0]), "mlp.down_proj", put(A, 0), False),
        (zero("attn_norm", layers=1), (1, "input_layernorm"), put(...), False),
    ],
    ids=str,
)
@torch.no_grad()
def test_zeroing_is_what_hooks_on_the_modules_do(kind, which, at, change, before):
    model = tiny_model(kind)
    plain = model(IDS).logits
    if which.points == ("attn_out",):  # two layers
        handles = [
            model.model.layers[i].self_attn.o_proj.register_forward_hook(lambda m, args, out: change(out.clone()))
            for i in (0, 2)
        ]
        expected = model(IDS).logits
        for handle in handles:
            handle.remove()
    else:
        expected = hooked(model, at, change, before)
    assert_same(edited(model, which), expected, plain)
    assert torch.equal(model(IDS).logits, plain)


@torch.no_grad()
def test_points_outside_the_layers():
    model = tiny_model()
    handle = model.model.embed_tokens.register_forward_hook(lambda m, args, out: put(A, 5)(out.clone()))
    expected = model(IDS).logits
    handle.remove()
    assert_same(edited(model, zero("embed", positions=5)), expected, model(IDS).logits)
    logits = edited(model, zero("logits", positions=[2, 3]))
    assert torch.equal(logits, put(A, [2, 3])(model(IDS).logits))
    logits = edited(model, zero("final_norm", positions=2))
    assert torch.equal(logits, put(A, 2)(model(IDS).logits)), "the head has no bias"


@pytest.mark.parametrize("which", [zero, lambda point, **kw: scale(point, -1.0, **kw)], ids=["zero", "scale"])
@torch.no_grad()
def test_masked_scores_stay_masked(which):
    """Not 0, which would let a query see the future, nor NaN."""
    model = tiny_model()
    with edit(model, which("scores", heads=1)), capture(model, "scores", "pattern") as acts:
        model(IDS)
    future = torch.ones(12, 12, dtype=torch.bool).triu(1)
    assert (acts["scores", 1][..., future] == -torch.inf).all()
    assert acts["scores", 1][..., ~future].isfinite().all()
    if which is zero:
        uniform = torch.ones(12, 12).tril() / torch.arange(1, 13)[:, None]
        torch.testing.assert_close(acts["pattern", 1][:, 1], uniform.expand(2, 12, 12))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_zeroed_pattern_gives_a_z_of_zero(kind):
    model = tiny_model(kind)
    expected = hooked(model, "self_attn.o_proj", put(A, 4, slice(8, 16)), before=True)
    assert_same(edited(model, zero("pattern", heads=1, positions=4)), expected, model(IDS).logits)


# --- scale and add


@torch.no_grad()
def test_scaling_is_multiplying():
    model = tiny_model()

    def change(x):
        x[..., 8:16] *= -2.5
        return x

    expected = hooked(model, (1, "self_attn.o_proj"), change, before=True)
    assert_same(edited(model, scale("z", -2.5, heads=1, layers=[1])), expected, model(IDS).logits)
    assert torch.equal(edited(model, scale("act", 0.5)), hooked(model, "mlp.hook_act", lambda x: x * 0.5))


@pytest.mark.parametrize("where", ["layers.1.resid_post", "blocks.1.hook_resid_post", "layers.-2.resid_post"])
@torch.no_grad()
def test_a_steering_vector_is_added_to_the_residual_stream(where):
    model = tiny_model()
    at = (1, "hook_resid_post")
    expected = hooked(model, at, lambda x: x + 3 * VECTOR)
    assert_same(edited(model, add(where, VECTOR, 3)), expected, model(IDS).logits)
    expected = hooked(model, at, lambda x: put(A, [2, 6], value=x[:, [2, 6]] + 3 * VECTOR)(x))
    assert_same(edited(model, add(where, VECTOR, scale=3.0, positions=[6, 2])), expected, model(IDS).logits)


@pytest.mark.parametrize(
    ("which", "path", "vector"),
    [
        (add("z", VECTOR[:8], heads=[3, 0]), "self_attn.hook_z", put(..., [3, 0], A, value=VECTOR[:8])),
        (add("z", VECTOR[:16].view(2, 8), heads=[3, 0]), "self_attn.hook_z",
         put(..., [3, 0], A, value=VECTOR[:16].view(2, 8))),
        (add("z", VECTOR.view(4, 8)), "self_attn.hook_z", put(..., value=VECTOR.view(4, 8))),
        (add("act", VECTOR[:2], neurons=[9, 1]), "mlp.hook_act", put(..., [9, 1], value=VECTOR[:2])),
        (add("act", 0.5, neurons=[9, 1]), "mlp.hook_act", put(..., [9, 1], value=0.5)),
    ],
    ids=["one a head", "a head each", "all heads", "neurons", "a number"],
)  # fmt: skip
@torch.no_grad()
def test_what_is_added_has_the_shape_of_what_is_chosen(which, path, vector):
    model = tiny_model()
    expected = hooked(model, path, lambda x: x + vector(torch.zeros_like(x)))
    assert_same(edited(model, which), expected, model(IDS).logits)


@torch.no_grad()
def test_a_vector_of_another_precision_is_added_in_the_models():
    model = tiny_model().to(torch.bfloat16)
    expected = hooked(model, (1, "hook_resid_post"), lambda x: x + (VECTOR * 0.1).bfloat16())
    assert torch.equal(edited(model, add("layers.1.resid_post", VECTOR, 0.1)), expected)


def test_an_edit_keeps_its_own_copy_of_a_vector():
    vector = VECTOR.clone().requires_grad_()
    kept = add("resid_post", vector)
    with torch.no_grad():
        vector.zero_()
    assert torch.equal(kept.value(0), VECTOR)
    assert not kept.value(0).requires_grad


# --- mean


@torch.no_grad()
def test_the_mean_over_the_positions_of_the_forward():
    model = tiny_model()
    expected = hooked(model, (1, "self_attn.hook_z"), lambda x: put(A, A, 2, value=x[:, :, 2].mean(1, True))(x))
    assert_same(edited(model, mean("z", heads=2, layers=1)), expected, model(IDS).logits)
    expected = hooked(model, (1, "mlp.hook_act"), lambda x: put(A, 3, 5, value=x[:, :, 5].mean(1))(x))
    assert_same(edited(model, mean("act", neurons=5, positions=3, layers=1)), expected, model(IDS).logits)


@pytest.mark.parametrize("point", ["embed", "layers.1.resid_mid"])
@torch.no_grad()
def test_the_mean_leaves_padding_out(point):
    model = tiny_model()
    padded = torch.cat((OTHER[:1, :4], IDS[:1, :8]), 1)  # no zeros, which would add nothing to a sum
    keep = (torch.arange(12) >= 4).long()[None]
    alone = edited(model, mean(point), IDS[:1, :8])
    ids, mask = torch.cat((IDS[1:], padded)), torch.cat((torch.ones_like(keep), keep))
    assert_same(edited(model, mean(point), ids, attention_mask=mask)[1, 4:], alone[0])


PADDED = torch.ones(2, 12, dtype=torch.long)
PADDED[1, :4] = 0
TRIANGLE = torch.ones(12, 12, dtype=torch.bool).tril()
SEEN = TRIANGLE & PADDED[:, None, None].bool()  # (batch, 1, q, k)
PADDINGS = {
    "rules": [causal(), padding(PADDED)],
    "booleans": SEEN,
    "additive": torch.zeros(SEEN.shape).masked_fill(~SEEN, torch.finfo(torch.float32).min),
    "Mask": Mask([causal(), custom(SEEN[:, 0])], torch.arange(12), torch.arange(12)),
}


@pytest.mark.parametrize("point", ["embed", "z", "mlp_out", "logits"])
@pytest.mark.parametrize("mask", PADDINGS.values(), ids=PADDINGS)
@torch.no_grad()
def test_padding_is_left_out_however_it_is_said(mask, point):
    model, found = tiny_model(), []
    with edit(model, {point: lambda x, site: found.append(site) or x, "mask": lambda m: m.with_rules(causal())}):
        model(IDS, attention_mask=mask)
    assert all(torch.equal(site.tokens, PADDED.bool()) for site in found)
    expected = edited(model, mean(point), attention_mask=PADDED)
    assert_same(edited(model, mean(point), attention_mask=mask)[:, 4:], expected[:, 4:])


@torch.no_grad()
def test_a_token_that_an_edit_hides_from_all_is_no_padding():
    model, found = tiny_model(), []
    hidden = edit(model, [knock_out(1, keys=[3]), knock_out(1, keys=[5], heads=[0, 1, 2, 3])])
    with hidden, edit(model, {"layers.1.z": lambda x, site: found.append(site) or x}):
        model(IDS, attention_mask=PADDINGS["booleans"])
    assert torch.equal(found[0].tokens, PADDED.bool())


@torch.no_grad()
def test_the_mean_of_a_row_without_tokens_is_zero():
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1] = 0
    model = tiny_model()
    with edit(model, mean("mlp_out", layers=0)), capture(model, "layers.0.mlp_out") as acts:
        model(IDS, attention_mask=mask)
    assert acts["mlp_out", 0][0].abs().sum() > 0
    assert (acts["mlp_out", 0][1] == 0).all()


def test_a_mean_in_half_precision_is_as_large_as_what_it_is_of():
    """The sum over the positions is not: 12 times 10⁴ is beyond float16."""
    x = torch.full((1, 12, 32), 1e4, dtype=torch.float16)
    site = Site("layers.0.mlp_out", 0, torch.arange(12), torch.ones(1, 12, dtype=torch.bool), None, 0)
    assert (changed(mean("mlp_out"), POINTS["mlp_out"], x, site, torch.arange(12)) == 1e4).all()


@torch.no_grad()
def test_a_given_mean():
    model = tiny_model()
    expected = hooked(model, (2, "hook_mlp_out"), lambda x: VECTOR.expand_as(x))
    assert_same(edited(model, mean("mlp_out", VECTOR, layers=2)), expected, model(IDS).logits)
    different = {1: VECTOR[:8], 2: VECTOR[8:16]}
    with edit(model, mean("z", different, heads=1)), capture(model, "z") as acts:
        model(IDS)
    assert torch.equal(acts["z", 1][:, :, 1], VECTOR[:8].expand(2, 12, 8))
    assert torch.equal(acts["z", 2][:, :, 1], VECTOR[8:16].expand(2, 12, 8))
    with capture(model, "z") as plain:
        model(IDS)
    assert torch.equal(acts["z", 0], plain["z", 0])


@torch.no_grad()
def test_the_mean_of_a_capture_over_batch_and_positions_without_padding():
    model = tiny_model()
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :5] = 0
    with capture(model, "z", "act", "embed") as acts:
        model(OTHER, attention_mask=mask)
    which = mean("z", acts, heads=[2, 0], layers=[1])
    tokens = torch.cat((acts["z", 1][0], acts["z", 1][1, 5:]))
    torch.testing.assert_close(which.value(1), tokens[:, [2, 0]].mean(0))
    assert which.layers == (1,)
    tokens = torch.cat((acts["act", 2][0], acts["act", 2][1, 5:]))
    torch.testing.assert_close(mean("act", acts, neurons=[-1]).value(2), tokens[:, [47]].mean(0))
    assert mean("act", acts).layers == (0, 1, 2)
    tokens = torch.cat((acts["embed"][0], acts["embed"][1, 5:]))
    torch.testing.assert_close(mean("embed", acts).value(None), tokens.mean(0))
    assert_same(edited(model, which), edited(model, mean("z", {1: which.value(1)}, heads=[2, 0])), model(IDS).logits)


@torch.no_grad()
def test_the_mean_of_a_capture_in_chunks_and_of_half_precision():
    model, cache = tiny_model(), DynamicCache()
    with capture(model, "v", dtype=torch.bfloat16) as acts:
        model(IDS[:, :7], past_key_values=cache)
        model(IDS[:, 7:], past_key_values=cache)
    expected = acts["v", 1].float().mean((0, 1))
    found = mean("v", acts).value(1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_a_mean_is_as_precise_as_what_it_is_of():
    x = torch.randn(1, 12, 32, dtype=torch.float64) + 1e6
    site = Site("layers.0.mlp_out", 0, torch.arange(12), torch.ones(1, 12, dtype=torch.bool), None, 0)
    found = changed(mean("mlp_out"), POINTS["mlp_out"], x, site, torch.arange(12))
    torch.testing.assert_close(found[:, 0], x.mean(1), rtol=1e-14, atol=0)


@torch.no_grad()
def test_a_mean_of_some_positions_of_a_text_read_in_chunks_is_refused():
    message = (
        r"mean\('mlp_out', layers=\[1\], positions=\[2\]\) took the mean over the positions of one forward, and at "
        r"'layers.1.mlp_out' another one goes on with positions 4 … 7,.*Give the mean: a tensor, or a capture"
    )
    model, cache = tiny_model(), DynamicCache()
    with edit(model, mean("mlp_out", layers=1, positions=[2])):
        model(IDS[:, :4], past_key_values=cache)
        with pytest.raises(EditError, match=message):
            model(IDS[:, 4:8], past_key_values=cache)
    with edit(model, mean("mlp_out", layers=1, positions=[2])) as active:
        model(IDS[:, :4])
        model(OTHER[:, :8])  # another text
    assert active.hits == [4]


@torch.no_grad()
def test_a_mean_that_the_texts_split_would_decide_is_refused():
    model, cache = tiny_model(), DynamicCache()
    with edit(model, mean("z", heads=1, positions=[0, 3])):
        model(IDS[:, :6], past_key_values=cache)
        model(IDS[:, 6:7], past_key_values=cache)  # changes no position that is in it
    message = (
        r"mean\('z', heads=\[1\]\) takes the mean over the positions of a forward, and at 'layers.0.z' it would be "
    )
    alone = message + r"over position 7 alone.*Give the mean: a tensor, or a capture"
    with pytest.raises(EditError, match=alone), edit(model, mean("z", heads=1)):
        model(IDS[:, 7:8], past_key_values=cache)
    first = message + r"over position 0 alone"
    with pytest.raises(EditError, match=first), edit(model, mean("z", heads=1)):
        model(IDS[:, :1])
    with pytest.raises(EditError, match=message + r"over positions 7 … 11 only"), edit(model, mean("z", heads=1)):
        model(IDS[:, 7:], past_key_values=cache)
    assert cache.length == 7
    assert hooks(model) == 0


def test_an_empty_slot_of_a_cache_is_no_position():
    slots = torch.tensor([4, -1, 2, 7])
    assert rows_at(None, slots).tolist() == [0, 2, 3]
    assert rows_at(slice(4, None), slots).tolist() == [0, 3]
    assert rows_at((2, 7, 9), slots).tolist() == [2, 3]


def test_an_empty_slot_of_a_cache_is_no_key():
    mask = Mask([causal()], torch.tensor([7]), torch.tensor([4, -1, 7]))
    assert edges_of(knock_out(queries=7), mask).tolist() == [[True, False, True]]
    assert edges_of(knock_out(edges=[(7, 4)]), mask).tolist() == [[True, False, False]]
