"""What comes out of attention under rules: three implementations, one answer, alone and in a model with caches."""

import pytest
import torch
from torch.nn.attention import flex_attention as flex

from tests.conftest import tiny_model
from tests.model.test_mask_rules import CPU, EVERY_CASE, LEFT, LENGTH, PACKED, RULES, case, open_cells, own_mask, tensor
from workbench.cache import DynamicCache
from workbench.instrument.masks import mask_of_forward
from workbench.model.attention import attention_pattern, attention_scores, flex_attention, mix_values, sdpa_attention
from workbench.model.mask import build_mask, causal, document, padding, window

FLEX_AT = ("prefill", "ring")  # uncompiled, it takes a tenth of a second


def textbook(q, k, v, cells, extra, scale):
    """Softmax over the cells that are open, one query at a time; zeros where none is."""
    out = torch.zeros_like(q)
    n_rep = q.shape[1] // k.shape[1]
    for row, lines in enumerate(cells):
        for head in range(q.shape[1]):
            for i, line in enumerate(lines):
                seen = [j for j, wrong in enumerate(line) if not wrong]
                if not seen:
                    continue
                scores = k[row, head // n_rep, seen].double() @ q[row, head, i].double() * scale
                if extra is not None:
                    scores += extra[row, head % extra.shape[1], i, seen]
                out[row, head, i] = (scores.softmax(0) @ v[row, head // n_rep, seen].double()).float()
    return out


def eager(q, k, v, mask, scale):
    return mix_values(attention_pattern(attention_scores(q, k, mask, scale)), v)


def assert_kernels_agree(mask, cells, kernels=(eager, sdpa_attention, flex_attention)):
    queries, keys = len(mask.q_pos), len(mask.k_pos)
    q, k, v = torch.randn(2, 4, queries, 8), torch.randn(2, 2, keys, 8), torch.randn(2, 2, keys, 8)
    expected = textbook(q, k, v, cells, mask.extra, 0.3)
    for kernel in kernels:
        out = kernel(q, k, v, mask, 0.3)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5, msg=lambda text, k=kernel: f"{k.__name__}: {text}")


@pytest.mark.parametrize(("place", "name"), EVERY_CASE)
def test_all_kernels_attend_to_the_oracle_s_cells(place, name):
    kernels = (eager, sdpa_attention, flex_attention) if place in FLEX_AT else (eager, sdpa_attention)
    assert_kernels_agree(*case(place, name), kernels)


@pytest.mark.parametrize("place", FLEX_AT)
@pytest.mark.parametrize("form", ["boolean", "additive", "additive, a head each"])
def test_all_kernels_take_a_mask_of_the_caller_s_own(form, place):
    assert_kernels_agree(*own_mask(form, place))


def test_flex_takes_masks_of_any_kind_after_one_another():
    """Queries and keys at the same positions are one tensor, with a cache they are two."""
    keep, documents = torch.ones(2, 6), torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)
    keep[0, :2] = 0
    apart = build_mask([causal(), padding(keep)], torch.arange(6), torch.arange(6), 2, 2)
    positions = torch.arange(6)
    together = build_mask([causal(), document(documents)], positions, positions, 2, 2)
    torch._dynamo.reset()
    for mask in (apart, together, apart):
        q, k, v = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8), torch.randn(2, 2, 6, 8)
        torch.testing.assert_close(flex_attention(q, k, v, mask, 0.3), sdpa_attention(q, k, v, mask, 0.3))


@pytest.mark.parametrize("name", ["causal", "window", "sink of each row", "everything"])
def test_a_compiler_can_follow_the_rules(name):
    torch._dynamo.reset()
    mask, cells = case("ring", name)
    q, k, v = torch.randn(2, 4, 3, 16), torch.randn(2, 2, 8, 16), torch.randn(2, 2, 8, 16)
    blocks = flex.create_block_mask(mask.mask_mod(CPU), 2, None, 3, 8, device="cpu")
    compiled = torch.compile(flex.flex_attention, dynamic=False, fullgraph=True, backend="eager")
    out = compiled(q, k, v, block_mask=blocks, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(out, textbook(q, k, v, cells, None, 0.3), rtol=0, atol=1e-5)


IDS = torch.randint(1, 97, (2, LENGTH), generator=torch.Generator().manual_seed(5))


class ShuffledCache(DynamicCache):
    """Hands its slots out in another order at every length, with an empty one among them that holds rubbish."""

    def __init__(self):
        super().__init__()
        self.empty = True

    def order(self, length):
        return torch.randperm(length, generator=torch.Generator().manual_seed(length))

    def positions(self, layer, new=0):
        order = self.order(len(super().positions(layer, new)))
        return torch.cat((order[:2], torch.tensor([-1]), order[2:]))

    def update(self, layer, k, v):
        return tuple(self._shuffled(x) for x in super().update(layer, k, v))

    def _shuffled(self, x):
        order = self.order(x.shape[2])
        rubbish = torch.full_like(x[:, :, :1], 40.0)
        return torch.cat((x[:, :, order[:2]], rubbish, x[:, :, order[2:]]), dim=2)


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "gqa") for name in RULES), ("everything", "mha"), ("causal", "mqa")]
)
@torch.no_grad()
def test_a_model_gives_the_same_logits_by_every_implementation(name, kind):
    rules = RULES[name][0]
    cells = open_cells(case("prefill", name)[1])
    weights = tiny_model(kind, num_hidden_layers=2).state_dict()
    expected = None
    for implementation in ("eager", "sdpa", "flex_attention"):
        model = tiny_model(kind, num_hidden_layers=2, attn_implementation=implementation)
        model.load_state_dict(weights)
        logits = model(IDS, attention_mask=rules).logits
        expected = model(IDS, attention_mask=cells[:, None]).logits if expected is None else expected
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    if name != "causal":
        assert not torch.allclose(model(IDS).logits, expected, atol=1e-2)


@pytest.mark.parametrize("make", [DynamicCache, ShuffledCache])
@pytest.mark.parametrize("name", [name for name in RULES if RULES[name][1].get("causal", True)])
@torch.no_grad()
def test_one_list_of_rules_serves_chunks_and_decode_steps(name, make):
    model, rules, cache = tiny_model(), RULES[name][0], make()
    expected = model(IDS, attention_mask=rules).logits
    parts = [
        model(IDS[:, a:b], attention_mask=rules, past_key_values=cache).logits for a, b in ((0, 4), (4, 8), (8, 9))
    ]
    real = torch.tensor(RULES[name][1].get("keep", [[1] * LENGTH] * 2)).bool()  # rows without a key differ in nothing
    logits = torch.cat(parts, 1)
    torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_rules_say_the_same_as_the_2d_mask_and_as_packed_positions():
    model = tiny_model()
    keep = tensor(LEFT)
    by_rules = model(IDS, attention_mask=[causal(), padding(keep)]).logits
    assert torch.equal(by_rules, model(IDS, attention_mask=keep).logits)
    position_ids = tensor([[0, 1, 2, 3, 0, 1, 0, 1, 2]] * 2)
    packed = model(IDS, position_ids=position_ids, use_cache=False).logits
    numbers = tensor([PACKED[0]] * 2)
    assert torch.equal(
        model(IDS, position_ids=position_ids, attention_mask=[causal(), document(numbers)]).logits, packed
    )


@torch.no_grad()
def test_a_mask_that_was_seen_can_be_given_again():
    model = tiny_model()
    given = torch.randn(2, 4, LENGTH, LENGTH)
    mask = build_mask(given, torch.arange(LENGTH), torch.arange(LENGTH), 2, 4)
    assert torch.equal(model(IDS, attention_mask=mask).logits, model(IDS, attention_mask=given).logits)
    assert repr(mask_of_forward(model, IDS, [causal(), window(3)]).rules) == "[causal(), window(n=3)]"
    with pytest.raises(
        ValueError, match=r"attention_mask is a Mask\(custom.* for other positions than this forward's 5"
    ):
        model(IDS[:, :5], attention_mask=mask)
    with pytest.raises(ValueError, match=r"2 queries .* for other positions than this forward's 9"):
        model(IDS, attention_mask=mask.of_queries(slice(2)))
    with pytest.raises(ValueError, match=r"for 2 batch rows and 4 heads; this forward has 3 and 4\."):
        model(IDS[:1].repeat(3, 1), attention_mask=mask)
