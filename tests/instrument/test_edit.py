"""The block itself: functions, what they are told, who is edited, and in which order."""

import threading

import pytest
import torch
from torch import nn

from tests.conftest import tiny_model
from tests.instrument.edit_references import IDS, KINDS, assert_same, edited, hooked, put
from workbench.cache import DynamicCache
from workbench.instrument import POINTS, capture
from workbench.instrument.edit import edit
from workbench.instrument.edit_site import Site
from workbench.instrument.edits import add, knock_out, scale, zero
from workbench.instrument.points import execution_order
from workbench.model.mask import Mask, window

TENSORS = [name for name in POINTS if name != "mask"]


def double(x):
    return x * 2


def seen(model, points, ids=IDS, **inputs):
    """What a function is told of each forward: a list of sites."""
    sites: list[Site] = []
    with edit(model, {point: lambda x, site: sites.append(site) or x for point in points}):
        model(ids, **inputs)
    return sites


# --- functions


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("point", "at"),
    [
        ("resid_mid", "hook_resid_mid"),
        ("resid_post", "hook_resid_post"),
        ("attn_norm", "input_layernorm"),
        ("q", "self_attn.q_proj"),
        ("v_cached", "self_attn.v_proj"),
        ("scores", "self_attn.hook_scores"),
        ("z", "self_attn.hook_z"),
        ("mlp_out", "mlp.down_proj"),
    ],
)
@torch.no_grad()
def test_a_function_replaces_what_a_point_computed(kind, point, at):
    model = tiny_model(kind)
    plain = model(IDS).logits
    assert_same(edited(model, {point: double}), hooked(model, at, double), plain)
    assert_same(edited(model, {f"layers.1.{point}": double}), hooked(model, (1, at), double), plain)
    assert torch.equal(model(IDS).logits, plain)


@torch.no_grad()
def test_edits_of_one_point_are_applied_in_order():
    model = tiny_model()
    expected = hooked(model, "self_attn.hook_z", lambda x: (x + 1) * 2)
    plain = model(IDS).logits
    assert_same(edited(model, {"z": [lambda x: x + 1, double]}), expected, plain)
    assert_same(edited(model, {"z": (lambda x: x + 1, scale("z", 2.0))}), expected, plain)
    assert_same(edited(model, [add("z", 1.0), scale("z", 2.0)]), expected, plain)
    assert_same(edited(model, {"blocks.*.attn.hook_z": lambda x: x + 1, "z": double}), expected, plain)
    with edit(model, {"z": lambda x: x + 1}):  # an outer block's come first
        assert_same(edited(model, scale("z", 2.0)), expected, plain)


@torch.no_grad()
def test_a_ready_made_edit_under_a_name_is_made_where_both_say():
    model = tiny_model()
    expected = hooked(model, (1, "self_attn.hook_z"), put(...))
    plain = model(IDS).logits
    for edits in (
        {"layers.1.z": zero("z")},
        {"z": zero("layers.1.z")},
        {"layers.1:3.z": zero("z", layers=[0, 1])},
        {"z": [zero("z", layers=-2)]},
    ):
        assert_same(edited(model, edits), expected, plain)


class Halve(nn.Module):
    def forward(self, x):
        return x / 2


@torch.no_grad()
def test_what_may_be_a_function():
    model = tiny_model()
    expected = edited(model, scale("z", 0.5))
    for function in (Halve(), lambda x, factor=0.5: x * factor, lambda *tensors: tensors[0] / 2):
        assert_same(edited(model, {"z": function}), expected)
    assert_same(edited(model, {"z": torch.zeros_like}), edited(model, zero("z")), model(IDS).logits)
    assert torch.equal(edited(model, {"z": torch.Tensor.clone}), model(IDS).logits)


@torch.no_grad()
def test_results_that_are_not_finite_are_let_through():
    model = tiny_model()
    assert edited(model, {"layers.2.mlp_out": lambda x: x * torch.inf}).isnan().all()


# --- what a function is given


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("point", TENSORS)
def test_a_function_may_change_its_tensor_in_place(point, gradients):
    """Nothing else sees it: not the model's other uses, not what was captured before, not the weights."""
    model = tiny_model()
    name = f"layers.1.{point}" if POINTS[point].per_layer else point
    weights = [weight.detach().clone() for weight in model.parameters()]
    watched = {"embed", "resid_post", "v", "attn_out", point} - {"scores", "pattern"}  # these leave the fused kernel
    with torch.set_grad_enabled(gradients), capture(model, *watched) as before:
        model(IDS)
        kept = {key: before[key].clone() for key in before}
        found = edited(model, {name: lambda x: x.fill_(0.5)})
    with torch.set_grad_enabled(gradients):
        assert_same(found, edited(model, {name: lambda x: torch.full_like(x, 0.5)}))
    for key, tensor in kept.items():
        assert torch.equal(before.step(key, 0), tensor), key
    until = min(execution_order(name), execution_order("layers.1.attn_norm"))
    for key in [key for key in kept if execution_order(key) <= until]:  # the point itself, too: captured before
        assert torch.equal(before.step(key, 1), kept[key]), key
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))


@pytest.mark.parametrize("gradients", [False, True])
def test_a_change_in_place_reaches_nothing_that_shares_memory(gradients):
    model, cache = tiny_model(), DynamicCache()
    with torch.no_grad():
        model(IDS[:, :8], past_key_values=cache)
    kept = cache.keys(1).clone(), cache.values(1).clone()
    points = ["resid_pre", "q", "k_cached", "v_cached"]
    with torch.set_grad_enabled(gradients):
        plain = model(IDS[:, 8:], output_hidden_states=True, past_key_values=cache)
        cache.crop(8)
        with edit(model, {f"layers.1.{point}": lambda x: x.zero_() for point in points}):
            out = model(IDS[:, 8:], output_hidden_states=True, past_key_values=cache)
    assert torch.equal(out.hidden_states[1], plain.hidden_states[1]), "also what layer 0 gave to layer 1"
    assert torch.equal(cache.keys(1)[:, :, :8], kept[0])
    assert torch.equal(cache.values(1)[:, :, :8], kept[1])


def test_a_change_in_place_reaches_no_tensor_that_a_capture_shares_with_the_forward():
    model = tiny_model()
    tripled = edit(model, {"layers.1.resid_pre": lambda x: x.mul_(3)})
    with capture(model, "layers.0.resid_post", gradients=True) as acts, tripled:
        model(IDS).logits.sum().backward()
    with torch.no_grad(), capture(model, "layers.0.resid_post") as plain:
        model(IDS)
    assert_same(acts["resid_post", 0].detach(), plain["resid_post", 0])


@torch.no_grad()
def test_what_a_function_keeps_is_not_what_the_model_goes_on_with():
    model = tiny_model()
    own = torch.randn(2, 12, 32)
    kept = own.clone()
    plain = edited(model, {"layers.0.resid_post": lambda x: kept.clone()})
    again = edited(model, {"layers.0.resid_post": [lambda x: own, lambda x: x.add_(1), lambda x: x.sub_(1)]})
    assert torch.equal(own, kept)
    assert_same(again, plain)
    with edit(model, {"layers.0.resid_post": lambda x: own}), capture(model, "layers.0.resid_post") as acts:
        out = model(IDS, output_hidden_states=True)
    out.hidden_states[1].zero_()
    assert torch.equal(own, kept)
    assert torch.equal(acts["resid_post", 0], kept)


@torch.no_grad()
def test_a_result_with_other_strides_is_as_good():
    model = tiny_model()
    swapped = edited(model, {"z": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1)})
    assert torch.equal(swapped, model(IDS).logits)
    first = edited(model, {"z": lambda x: x[:1].expand_as(x)})
    assert_same(first, hooked(model, "self_attn.hook_z", lambda x: torch.cat((x[:1], x[:1]))), model(IDS).logits)


# --- the site


@torch.no_grad()
def test_a_function_is_told_where_it_is():
    model = tiny_model()
    sites = seen(model, ["embed", "z", "logits"])
    assert [(site.name, site.layer) for site in sites] == [
        ("embed", None), ("layers.0.z", 0), ("layers.1.z", 1), ("layers.2.z", 2), ("logits", None)
    ]  # fmt: skip
    assert all(site.positions.tolist() == list(range(12)) and site.step == 0 for site in sites)
    assert all(site.tokens.shape == (2, 12) and site.tokens.all() for site in sites)
    assert sites[0].mask is None
    sites = []
    with edit(model, {"embed": lambda x, site: sites.append(site) or x}):
        model(IDS)
        model(IDS)
    assert [(site.step, site.mask) for site in sites] == [(0, None), (1, None)]
    sites = seen(model, ["embed", "z", "logits"])
    assert all(isinstance(site.mask, Mask) and site.mask.is_causal for site in sites[1:])


@torch.no_grad()
def test_positions_are_absolute_and_steps_are_counted():
    model, cache, sites = tiny_model(), DynamicCache(), []
    model(IDS[:, :3], past_key_values=cache)
    with edit(
        model, {p: lambda x, site: sites.append((x, site)) or x for p in ("layers.1.scores", "layers.1.k_cached")}
    ):
        model(IDS[:, 3:7], past_key_values=cache)
        model(IDS[:, 7:8], past_key_values=cache)
    found = [(site.name[9:], site.step, site.positions.tolist()) for _, site in sites]
    assert found == [
        ("k_cached", 0, list(range(7))),
        ("scores", 0, [3, 4, 5, 6]),
        ("k_cached", 1, list(range(8))),
        ("scores", 1, [7]),
    ]
    for tensor, site in sites:
        assert tensor.shape[POINTS[site.name[9:]].position_axis] == len(site.positions)
        assert site.mask.q_pos[-1] == site.mask.k_pos[-1] == (6 if site.step == 0 else 7)


@pytest.mark.parametrize("keep", [1, 5, 0, 50, torch.tensor([2, 7]), torch.tensor([-1])], ids=str)
@torch.no_grad()
def test_logits_that_are_kept_have_their_own_positions(keep):
    model = tiny_model()
    [site] = seen(model, ["logits"], logits_to_keep=keep)
    index = slice(-keep, None) if isinstance(keep, int) else keep
    assert torch.equal(site.positions, torch.arange(12)[index])
    found = edited(model, zero("logits", positions=int(site.positions[0])), logits_to_keep=keep)
    assert (found[:, 0] == 0).all()
    assert found.shape[1] == 1 or (found[:, 1:] != 0).all()
    cache = DynamicCache()
    model(IDS[:, :4], past_key_values=cache)
    [site] = seen(model, ["logits"], IDS[:, 4:6], past_key_values=cache, logits_to_keep=1)
    assert site.positions.tolist() == [5]


@torch.no_grad()
def test_padding_is_told():
    model = tiny_model()
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :5] = 0
    for site in seen(model, ["embed", "z", "logits", "k_cached"], attention_mask=mask):
        assert torch.equal(site.tokens, mask.bool())
    [site] = seen(model, ["logits"], attention_mask=mask, logits_to_keep=8)
    assert torch.equal(site.tokens, mask[:, 4:].bool())
    [site] = seen(model, ["logits"], attention_mask=torch.ones(2, 1, 12, 12, dtype=torch.bool).tril())
    assert site.tokens.all()


@torch.no_grad()
def test_embeddings_and_arguments_in_order_are_understood():
    model = tiny_model()
    embeddings = torch.randn(2, 7, 32)
    [site] = seen(model, ["layers.0.z"], None, inputs_embeds=embeddings)
    assert len(site.positions) == 7
    sites, cache = [], DynamicCache()
    model(IDS[:, :4], past_key_values=cache)
    with edit(model, {"layers.0.z": lambda x, site: sites.append(site) or x}):
        model(IDS[:, 4:6], None, None, cache)
    assert sites[0].positions.tolist() == [4, 5]


@torch.no_grad()
def test_the_base_model_alone_can_be_edited():
    model = tiny_model().model
    with edit(model, {"resid_post": double}), capture(model, "final_norm") as acts:
        out = model(IDS).last_hidden_state
    assert torch.equal(acts["final_norm"], out)
    assert not torch.equal(out, model(IDS).last_hidden_state)


# --- the mask


@torch.no_grad()
def test_a_mask_can_be_edited_by_a_function():
    model = tiny_model()
    allowed = torch.ones(12, 12, dtype=torch.bool).tril().triu(-2)
    expected = model(IDS, attention_mask=allowed.expand(2, 1, 12, 12)).logits
    found = edited(model, {"mask": lambda mask: mask.with_rules(window(3))})
    assert_same(found, expected, model(IDS).logits)

    def in_place(mask, site):
        assert torch.equal(site.mask.q_pos, mask.q_pos)
        mask.rules.append(window(3))
        return mask

    assert_same(edited(model, {"mask": in_place}), expected)
    sites = []
    with edit(model, {"layers.1.mask": in_place, "z": lambda x, site: sites.append(site) or x}):
        model(IDS)
    assert [len(site.mask.rules) for site in sites] == [1, 2, 1], "of its own layer, as it is applied"


# --- who is edited


@torch.no_grad()
def test_forwards_of_other_threads_are_not_edited():
    model = tiny_model()
    plain, found = model(IDS).logits, {}

    def other():
        with torch.no_grad():
            found["other"] = model(IDS).logits

    with edit(model, [zero("z"), knock_out(edges=[(5, 1)]), zero("logits", positions=0)]) as active:
        worker = threading.Thread(target=other)
        worker.start()
        worker.join()
        assert active.hits == [0, 0, 0]
        found["own"] = model(IDS).logits
    assert torch.equal(found["other"], plain)
    assert not torch.equal(found["own"], plain)


@torch.no_grad()
def test_a_forward_of_another_thread_in_the_middle_of_an_edited_one():
    model = tiny_model()
    plain, expected, found, sites = model(IDS[:1, :5]).logits, edited(model, scale("z", 2.0)), [], []

    def other():
        with torch.no_grad():
            found.append(model(IDS[:1, :5], logits_to_keep=2).logits)

    def change(x, site):
        assert threading.current_thread() is threading.main_thread(), "the other thread's forward is edited"
        sites.append(site)
        worker = threading.Thread(target=other)
        worker.start()
        worker.join()
        return x * 2

    with edit(model, {"z": change, "logits": lambda x, site: sites.append(site) or x}) as active:
        assert_same(model(IDS).logits, expected)
    assert len(found) == 3
    assert all(torch.equal(logits, plain[:, 3:]) for logits in found)
    assert [(site.name, len(site.positions), site.step) for site in sites] == [
        ("layers.0.z", 12, 0), ("layers.1.z", 12, 0), ("layers.2.z", 12, 0), ("logits", 12, 0)
    ]  # fmt: skip
    assert all(site.mask.is_causal and len(site.mask.q_pos) == 12 for site in sites)
    assert (active.hits, active.unchanged) == ([72, 0], [0, 24])


@torch.no_grad()
def test_a_norm_that_is_called_outside_a_forward_is_not_edited():
    model = tiny_model()
    x = torch.randn(1, 5, 32)
    expected = model.model.norm(x)
    with edit(model, {"final_norm": double}) as active:
        assert torch.equal(model.model.norm(x), expected)
        model(IDS)
        assert torch.equal(model.model.norm(x), expected)
        with pytest.raises(ValueError, match="attention_mask has shape"):
            model(IDS, attention_mask=torch.ones(1, 1))
        assert torch.equal(model.model.norm(x), expected)
    assert active.hits == [24]


# --- with capture


@torch.no_grad()
def test_a_capture_sees_what_was_edited_outside_of_it():
    model = tiny_model()
    outside, inside = capture(model, "layers.1.z"), capture(model, "layers.1.z", "layers.1.attn_out")
    with outside as outer, edit(model, {"layers.1.z": double}), inside as inner:
        model(IDS)
    assert torch.equal(inner["z", 1], 2 * outer["z", 1])
    with capture(model, "layers.1.z") as plain:
        model(IDS)
    assert torch.equal(outer["z", 1], plain["z", 1])
    expected = model.model.layers[1].self_attn.o_proj(inner["z", 1].flatten(2))
    assert_same(inner["attn_out", 1], expected)


@torch.no_grad()
def test_captured_points_downstream_are_the_edited_ones():
    """Even those that a capture would compute from others: they no longer follow from them."""
    model = tiny_model()
    changes = {f"layers.1.{name}": double for name in ("resid_pre", "q", "k_rot", "act", "resid_mid", "mlp_norm")}
    with edit(model, changes), capture(model, *TENSORS) as acts:
        logits = model(IDS).logits
    assert_same(acts["resid_pre", 1], 2 * acts["resid_post", 0])
    assert_same(acts["resid_mid", 1], 2 * (acts["resid_pre", 1] + acts["attn_out", 1]))
    assert_same(acts["mlp_norm", 1], 2 * model.model.layers[1].post_attention_layernorm(acts["resid_mid", 1]))
    assert_same(acts["k_cached", 1], acts["k_rot", 1])
    mlp = model.model.layers[1].mlp
    assert_same(acts["act", 1], 2 * mlp.act_fn(acts["gate", 1]) * acts["up", 1])
    scores = torch.einsum("bqhd,bkhd->bhqk", acts["q_rot", 1], acts["k_cached", 1].repeat_interleave(2, 2)) / 8**0.5
    lower = torch.ones(12, 12, dtype=torch.bool).tril()
    assert_same(acts["scores", 1][..., lower], scores[..., lower])
    assert torch.equal(acts["logits"], logits)
