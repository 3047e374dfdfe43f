"""Knocking out attention edges and swapping key/value heads, against plain hooks."""

import pytest
import torch

from tests.conftest import tiny_model
from tests.instrument.edit_references import IDS, KINDS, KV, A, assert_same, edited, forbid, put
from workbench.instrument import capture
from workbench.instrument.edit import edit
from workbench.instrument.edits import knock_out, swap_kv


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
@torch.no_grad()
def test_knocked_out_edges_are_minus_infinity_before_the_softmax(kind, implementation):
    model = tiny_model(kind, attn_implementation=implementation)
    plain = model(IDS).logits
    edges = [(9, 0), (9, 9), (4, 2), (11, 10)]
    assert_same(edited(model, knock_out(edges=edges)), forbid(model, edges), plain)
    which = knock_out([1, -1], heads=[0, -1], edges=edges)
    assert_same(edited(model, which), forbid(model, edges, [1, 2], [0, 3]), plain)
    cells = [(q, k) for q in (6, 7) for k in (1, 2, 3)]
    assert_same(edited(model, knock_out(0, queries=[6, 7], keys=slice(1, 4))), forbid(model, cells, [0]), plain)
    cells = [(q, 0) for q in range(12)]
    assert_same(edited(model, knock_out(1, 2, keys=0)), forbid(model, cells, [1], [2]), plain)
    cells = [(q, k) for q in range(8, 12) for k in range(12)]
    assert_same(edited(model, knock_out(1, 2, queries=slice(8, None))), forbid(model, cells, [1], [2]), plain)


@pytest.mark.parametrize("heads", [None, [1]], ids=["all heads", "one head"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager", "flex_attention"])
@torch.no_grad()
def test_a_query_that_loses_all_keys_gets_zeros(heads, implementation):
    model = tiny_model(attn_implementation=implementation)
    with edit(model, knock_out(heads=heads, queries=5)), capture(model, "z", "pattern", "logits") as acts:
        model(IDS)
    chosen = slice(None) if heads is None else heads
    assert (acts["z", 1][:, 5, chosen] == 0).all()
    assert (acts["pattern", 1][:, chosen, 5] == 0).all()
    assert acts["logits"].isfinite().all()


@pytest.mark.parametrize("heads", [None, [1, 2]], ids=["all heads", "two heads"])
@torch.no_grad()
def test_captured_masks_and_patterns_are_the_executed_ones(heads):
    model = tiny_model()
    edges = [(9, 0), (4, 2)]
    with edit(model, knock_out(1, heads, edges=edges)), capture(model, "pattern", "scores", "mask") as acts:
        watched = model(IDS).logits
    assert_same(watched, forbid(model, edges, [1], heads or range(4)))
    gone = torch.zeros(4, 12, 12, dtype=torch.bool)
    for query, key in edges:
        gone[slice(None) if heads is None else heads, query, key] = True
    future = torch.ones(12, 12, dtype=torch.bool).triu(1)
    assert torch.equal(acts["scores", 1] == -torch.inf, (gone | future).expand(2, 4, 12, 12))
    assert torch.equal(acts["pattern", 1] == 0, (gone | future).expand(2, 4, 12, 12))
    assert torch.equal(acts["scores", 0] == -torch.inf, future.expand(2, 4, 12, 12))
    mask = acts.mask(1)
    names = [rule.name for rule in mask.rules]
    assert names == (["causal", "knocked_out"] if heads is None else ["causal"])
    assert torch.equal(mask.bias(torch.float32)[0] == -torch.inf, (gone | future)[: 4 if heads else 1])


@torch.no_grad()
def test_several_knock_outs_add_up_and_share_one_rule():
    model = tiny_model()
    edges = [(q, 0) for q in range(1, 11)]
    with edit(model, [knock_out(edges=[edge]) for edge in edges]), capture(model, "mask") as acts:
        found = model(IDS).logits
    assert_same(found, forbid(model, edges), model(IDS).logits)
    assert [(rule.name, rule.letter) for rule in acts.mask(2).rules] == [("causal", "C"), ("knocked_out", "K")]
    both = [knock_out(1, 0, edges=[(9, 0)]), knock_out(1, 2, edges=[(8, 1)]), knock_out(1, edges=[(7, 2)])]
    handle = model.model.layers[1].self_attn.hook_scores.register_forward_hook(
        lambda m, args, s: put(A, A, 7, 2, value=-torch.inf)(
            put(A, 2, 8, 1, value=-torch.inf)(put(A, 0, 9, 0, value=-torch.inf)(s.clone()))
        )
    )
    expected = model(IDS).logits
    handle.remove()
    assert_same(edited(model, both), expected, model(IDS).logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heads", [None, [3]], ids=["all heads", "one head"])
@torch.no_grad()
def test_edges_count_absolute_positions_under_padding(kind, heads):
    model = tiny_model(kind)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :5] = 0
    edges = [(9, 6), (11, 8), (7, 2)]  # (7, 2) is padding in the second row
    with edit(model, knock_out(1, heads, edges=edges)) as active:
        found = model(IDS, attention_mask=mask).logits
    plain = model(IDS, attention_mask=mask).logits
    assert_same(found, forbid(model, edges, [1], heads or range(4), attention_mask=mask), plain)
    assert active.hits == [5 * (4 if heads is None else 1)]


@torch.no_grad()
def test_a_custom_additive_mask_of_each_head_is_kept():
    model = tiny_model()
    bias = torch.randn(2, 4, 12, 12).masked_fill(torch.ones(12, 12, dtype=torch.bool).triu(1), -torch.inf)
    bias[:, 2, 5, 1] = -torch.inf
    for heads in (None, [1]):
        found = edited(model, knock_out(1, heads, edges=[(9, 0)]), attention_mask=bias)
        expected = forbid(model, [(9, 0)], [1], heads or range(4), attention_mask=bias)
        assert_same(found, expected, model(IDS, attention_mask=bias).logits)


@pytest.mark.parametrize(("kind", "pair"), [("mha", (0, 3)), ("mha", (2, -3)), ("gqa", (0, 1)), ("gqa", (1, -2))])
@torch.no_grad()
def test_swapping_two_key_value_heads(kind, pair):
    model = tiny_model(kind)
    one, other = (head % KV[kind] for head in pair)
    order = list(range(KV[kind]))
    order[one], order[other] = other, one
    columns = [8 * head + i for head in order for i in range(8)]
    attention = model.model.layers[1].self_attn
    handles = [
        linear.register_forward_hook(lambda m, args, out: out[..., columns])
        for linear in (attention.k_proj, attention.v_proj)
    ]
    expected = model(IDS).logits
    for handle in handles:
        handle.remove()
    assert_same(edited(model, swap_kv(1, *pair)), expected, model(IDS).logits)


def test_a_model_with_one_key_value_head_has_nothing_to_swap():
    message = (
        r"swap_kv\(heads=\[0, 1\]\) needs two key/value heads; this model has one \(MQA\), which every query head "
    )
    with pytest.raises(ValueError, match=message), edit(tiny_model("mqa"), swap_kv(None, 0, 1)):
        pass
    for pair in ((0, 0), (0, -2)):
        with pytest.raises(ValueError, match=r"twice"), edit(tiny_model("gqa"), swap_kv(None, *pair)):
            pass
    message = r"head 2 does not exist; this model has key/value heads 0 … 1\."
    with pytest.raises(ValueError, match=message), edit(tiny_model("gqa"), swap_kv(None, 0, 2)):
        pass
