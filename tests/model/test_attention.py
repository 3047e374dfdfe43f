import pytest
import torch

from workbench.model.attention import attention_pattern, attention_scores, mix_values, sdpa_attention
from workbench.model.mask import build_mask

KINDS = {"mha": 4, "gqa": 2, "mqa": 1}
SHAPES = {"prefill": (7, 7), "chunk": (3, 7), "single query": (1, 7), "single token": (1, 1)}


def tensors(kv_heads, queries, keys, dtype=torch.float32):
    q = torch.randn(2, 4, queries, 8, dtype=dtype)
    return q, torch.randn(2, kv_heads, keys, 8, dtype=dtype), torch.randn(2, kv_heads, keys, 8, dtype=dtype)


def mask_of(form, queries, keys):
    q_pos, k_pos = torch.arange(keys - queries, keys), torch.arange(keys)
    padded = torch.ones(2, keys, dtype=torch.long)
    padded[0, : keys // 3] = 0
    forms = {
        "causal": None,
        "padded": padded,
        "custom": torch.rand(2, 1, queries, keys) > 0.3,
        "bias by head": torch.randn(2, 4, queries, keys),
    }
    return build_mask(forms[form], q_pos, k_pos, 2, 4)


def eager(q, k, v, mask, scale):
    return mix_values(attention_pattern(attention_scores(q, k, mask, scale)), v)


@pytest.mark.parametrize("form", ["causal", "padded", "custom", "bias by head"])
@pytest.mark.parametrize(("queries", "keys"), SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("kv_heads", KINDS.values(), ids=KINDS.keys())
def test_eager_and_sdpa_agree(kv_heads, queries, keys, form):
    q, k, v = tensors(kv_heads, queries, keys)
    mask = mask_of(form, queries, keys)
    torch.testing.assert_close(eager(q, k, v, mask, 0.35), sdpa_attention(q, k, v, mask, 0.35), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("run", [eager, sdpa_attention], ids=["eager", "sdpa"])
@pytest.mark.parametrize(("queries", "keys"), SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("kv_heads", KINDS.values(), ids=KINDS.keys())
def test_grouping_is_the_textbook_formula_over_repeated_keys_and_values(kv_heads, queries, keys, run):
    q, k, v = tensors(kv_heads, queries, keys)
    # Query head h reads key/value head h // n_rep: each is repeated n_rep times in a row.
    many_k, many_v = (x.repeat_interleave(4 // kv_heads, dim=1) for x in (k, v))
    allowed = torch.arange(keys) <= torch.arange(keys - queries, keys)[:, None]
    scores = torch.einsum("bhqd,bhkd->bhqk", q, many_k) * 0.35
    expected = scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ many_v
    actual = run(q, k, v, mask_of("causal", queries, keys), 0.35)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    if kv_heads == 2:  # the other order of repeating, as a check that this test can fail
        wrong_k, wrong_v = (x.repeat(1, 2, 1, 1) for x in (k, v))
        wrong = (torch.einsum("bhqd,bhkd->bhqk", q, wrong_k) * 0.35).masked_fill(~allowed, -torch.inf).softmax(-1)
        assert not torch.allclose(actual, wrong @ wrong_v, atol=1e-2)


def test_scores_are_minus_infinity_exactly_where_the_mask_forbids():
    q, k, _ = tensors(2, 5, 5)
    scores = attention_scores(q, k, mask_of("causal", 5, 5), 0.35)
    forbidden = torch.ones(5, 5, dtype=torch.bool).triu(1)
    assert (scores[..., forbidden] == -torch.inf).all()
    assert scores[..., ~forbidden].isfinite().all()


def test_the_pattern_is_computed_in_float32_and_returned_in_the_scores_dtype():
    scores = (torch.randn(1, 1, 4, 300) * 3).bfloat16()
    pattern = attention_pattern(scores)
    assert pattern.dtype == torch.bfloat16
    assert torch.equal(pattern, scores.float().softmax(-1).bfloat16())


def test_a_nan_score_is_not_hidden():
    scores = torch.randn(1, 1, 2, 3)
    scores[..., 1, 2] = torch.nan
    assert attention_pattern(scores)[0, 0, 1].isnan().all()
    assert attention_pattern(scores)[0, 0, 0].isfinite().all()


@pytest.mark.parametrize("kv_heads", KINDS.values(), ids=KINDS.keys())
def test_dropout_leaves_some_weights_out_and_is_off_by_default(kv_heads):
    q, k, v = tensors(kv_heads, 6, 6)
    mask = mask_of("causal", 6, 6)
    assert torch.equal(sdpa_attention(q, k, v, mask, 0.35), sdpa_attention(q, k, v, mask, 0.35))
    assert not torch.allclose(sdpa_attention(q, k, v, mask, 0.35, dropout=0.5), sdpa_attention(q, k, v, mask, 0.35))
