import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.model.attention import attention_pattern, attention_scores, mix_values, sdpa_attention
from workbench.model.mask import Mask, build_mask, causal, custom, empty_slot, padding


def oracle(q_pos, k_pos, row, *, keep=None, own=None, empties=True):
    """Every cell by itself, in plain Python: the names of the rules that forbid it."""
    cells = {}
    for i, q in enumerate(q_pos):
        for j, k in enumerate(k_pos):
            wrong = set()
            if own is None and k > q:
                wrong.add("causal")
            if own is None and empties and k < 0:
                wrong.add("empty_slot")
            if keep is not None and k >= 0 and not keep[row][k]:
                wrong.add("padding")
            if own is not None and not own[min(row, len(own) - 1)][i][j]:
                wrong.add("custom")
            cells[i, j] = wrong
    return cells


def check_against_oracle(mask, batch, expected_of_row):
    """`allowed`, the reason bits and `dense` all agree with the oracle in every cell."""
    shape = (batch, len(mask.q_pos), len(mask.k_pos))
    allowed, reasons = mask.allowed().expand(shape), mask.reasons().expand(shape)
    dense = mask.dense(torch.float32, torch.device("cpu"))
    names = [rule.name for rule in mask.rules]
    for row in range(batch):
        for (i, j), wrong in expected_of_row(row).items():
            cell = f"row {row}, query {i}, key {j}"
            assert bool(allowed[row, i, j]) == (not wrong), cell
            bits = {name for bit, name in enumerate(names) if int(reasons[row, i, j]) >> bit & 1}
            assert bits == wrong, cell
            seen = dense[min(row, len(dense) - 1), 0, i, j]
            assert bool(seen if dense.dtype == torch.bool else seen > -torch.inf) == (not wrong), cell


PADDINGS = {
    "left": [[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]],
    "right": [[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0]],
    "holes": [[1, 0, 1, 0, 1, 0, 1], [0, 1, 1, 1, 0, 1, 1]],
    "a whole row": [[0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1]],
}


@pytest.mark.parametrize(("q_pos", "k_pos"), [((0, 5), (0, 5)), ((3, 5), (0, 5)), ((4, 5), (0, 5))], ids=str)
def test_without_a_mask_only_later_positions_are_forbidden(q_pos, k_pos):
    q, k = torch.arange(*q_pos), torch.arange(*k_pos)
    mask = build_mask(None, q, k, 2, 4)
    assert [rule.name for rule in mask.rules] == ["causal"]
    check_against_oracle(mask, 2, lambda row: oracle(q.tolist(), k.tolist(), row))


@pytest.mark.parametrize("start", [0, 3, 6], ids=["prefill", "chunk", "one query"])
@pytest.mark.parametrize("keep", PADDINGS.values(), ids=PADDINGS.keys())
def test_padding_is_forbidden_by_row(keep, start):
    q, k = torch.arange(start, 7), torch.arange(7)
    mask = build_mask(torch.tensor(keep), q, k, 2, 4)
    assert [rule.name for rule in mask.rules] == ["causal", "padding"]
    check_against_oracle(mask, 2, lambda row: oracle(q.tolist(), k.tolist(), row, keep=keep))


def test_empty_slots_and_slots_in_any_order_go_by_their_position():
    q, k = torch.tensor([4, 5]), torch.tensor([4, 5, -1, 3, -1])  # a ring that has wrapped around
    keep = [[0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 1, 1]]
    check_against_oracle(build_mask(None, q, k, 2, 4), 2, lambda row: oracle(q.tolist(), k.tolist(), row))
    both = build_mask(torch.tensor(keep), q, k, 2, 4)
    # An empty slot has no token, so it is no padding either, and it stays forbidden.
    check_against_oracle(both, 2, lambda row: oracle(q.tolist(), k.tolist(), row, keep=keep))
    assert not both.allowed()[:, :, k < 0].any()


@pytest.mark.parametrize("rows", [1, 2], ids=["one for all rows", "one a row"])
def test_a_custom_boolean_mask_is_used_as_it_is(rows):
    own = torch.rand(rows, 1, 3, 5) > 0.5
    mask = build_mask(own, torch.arange(2, 5), torch.arange(5), 2, 4)
    assert [rule.name for rule in mask.rules] == ["custom"]
    check_against_oracle(mask, 2, lambda row: oracle(range(2, 5), range(5), row, own=own[:, 0].tolist()))


@pytest.mark.parametrize("lowest", [-torch.inf, torch.finfo(torch.float32).min], ids=["-inf", "lowest number"])
def test_a_custom_additive_mask_forbids_and_is_added(lowest):
    own = torch.rand(2, 1, 3, 5) > 0.4
    soft = torch.randn(2, 1, 3, 5)
    mask = build_mask(soft.masked_fill(~own, lowest), torch.arange(2, 5), torch.arange(5), 2, 4)
    check_against_oracle(mask, 2, lambda row: oracle(range(2, 5), range(5), row, own=own[:, 0].tolist()))
    dense = mask.dense(torch.float32, torch.device("cpu"))
    assert torch.equal(dense[own], soft[own])
    assert (dense[~own] == -torch.inf).all()


def test_an_additive_mask_may_differ_by_head():
    own = torch.ones(1, 4, 3, 3, dtype=torch.bool)
    own[:, 2, 1, 0] = False
    own[:, :, 2, 1] = False
    mask = build_mask(torch.zeros(own.shape).masked_fill(~own, -torch.inf), torch.arange(3), torch.arange(3), 2, 4)
    assert torch.equal(mask.dense(torch.float32, torch.device("cpu")) == 0, own)
    # What is said of all heads is what all of them agree on.
    assert mask.allowed()[0, 1, 0]
    assert not mask.allowed()[0, 2, 1]


@pytest.mark.parametrize(
    "mask",
    [
        Mask([causal()], torch.arange(9), torch.arange(9)),
        Mask([causal(), padding(torch.tensor(PADDINGS["holes"]).bool())], torch.arange(2, 7), torch.arange(7)),
        Mask([causal(), empty_slot()], torch.arange(5, 9), torch.tensor([6, 7, 8, -1, 3, 4, 5, -1])),
        Mask([custom(torch.rand(2, 7, 8) > 0.5)], torch.arange(1, 8), torch.arange(8)),
    ],
    ids=["causal", "padding", "ring", "custom"],
)
def test_every_tile_is_a_slice_of_the_whole(mask):
    queries, keys = len(mask.q_pos), len(mask.k_pos)
    whole, reasons = mask.allowed(), mask.reasons()
    assert torch.equal(whole, reasons == 0)
    for q in (slice(0, 1), slice(2, 5), slice(queries - 1, queries), slice(None), slice(1, 1)):
        for k in (slice(0, 2), slice(3, keys), slice(None), slice(-2, None)):
            assert torch.equal(mask.allowed(q, k), whole[:, q, k]), (q, k)
            assert torch.equal(mask.reasons(q, k), reasons[:, q, k]), (q, k)


@given(
    start=st.integers(0, 4),
    queries=st.integers(1, 4),
    change=st.sampled_from(["none", "swap", "empty", "padding", "custom", "missing key", "query order"]),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_shortcuts_are_taken_only_where_they_say_the_same_as_the_cells(start, queries, change):
    q, k = torch.arange(start, start + queries), torch.arange(start + queries)
    if change == "swap":
        k = k.flip(0)
    elif change == "empty":
        k = torch.cat((k, torch.tensor([-1])))
    elif change == "missing key":
        k = k[1:] if len(k) > 1 else k
    elif change == "query order":
        q = torch.cat((q[:1], q[1:].flip(0)))
    given_mask = None
    if change == "padding":
        given_mask = torch.ones(1, int(q[-1]) + 1, dtype=torch.long)
        given_mask[0, 0] = 0
    elif change == "custom":
        given_mask = torch.zeros(1, 1, len(q), len(k))
    mask = build_mask(given_mask, q, k, 1, 4)
    cells = mask.allowed()[0]
    if mask.allows_all:
        assert cells.all()
    if mask.is_causal:  # what F.scaled_dot_product_attention means by it: the lower triangle from the top left
        assert torch.equal(cells, torch.ones(len(q), len(k), dtype=torch.bool).tril())
    if change == "none":
        assert mask.is_causal == (start == 0 and queries > 1)
        assert mask.allows_all == (queries == 1)


def test_repeated_query_positions_are_not_taken_for_a_run():
    assert not Mask([causal()], torch.tensor([0, 0, 0]), torch.arange(3)).is_causal


def test_a_padding_mask_of_ones_costs_nothing():
    mask = build_mask(torch.ones(2, 5, dtype=torch.long), torch.arange(5), torch.arange(5), 2, 4)
    assert mask.is_causal


@pytest.mark.parametrize(
    ("given_mask", "message"),
    [
        (
            torch.ones(2, 4),
            r"attention_mask has shape \(2, 4\); expected \(batch, positions\) \(2, 6\), counting cached positions",
        ),
        (torch.ones(3, 6), r"attention_mask has shape \(3, 6\); expected \(batch, positions\) \(2, 6\)"),
        (torch.ones(6), r"attention_mask has shape \(6,\); expected .* or a 4-D mask"),
        (torch.ones(2, 3, 6), r"attention_mask has shape \(2, 3, 6\); expected"),
        (torch.full((2, 6), 0.5), r"holds other values than 0 \(padding\) and 1 \(token\)"),
        (torch.full((2, 6), -1), r"holds other values than 0 \(padding\) and 1 \(token\)"),
        (
            torch.ones(2, 1, 6, 6).bool(),
            r"4-D attention_mask has shape \(2, 1, 6, 6\); expected \(2 or 1, 1 or 4, 3, 6\)",
        ),
        (torch.ones(3, 1, 3, 6).bool(), r"4-D attention_mask has shape \(3, 1, 3, 6\); expected \(2 or 1"),
        (torch.ones(2, 4, 3, 6).bool(), r"boolean 4-D attention_mask has 4 heads; give one for all heads"),
        (
            torch.zeros(2, 3, 3, 6),
            r"an additive 4-D attention_mask has 3 heads; give one for all heads, or one for each of the model's 4\.",
        ),
        (torch.zeros(2, 0, 3, 6), r"an additive 4-D attention_mask has 0 heads; give one for all heads"),
        (
            torch.ones(2, 1, 3, 6).long(),
            r"4-D attention_mask of torch\.int64 is ambiguous: give booleans or an additive float mask",
        ),
    ],
    ids=[
        "too short",
        "batch",
        "1-D",
        "3-D",
        "fractions",
        "negative",
        "4-D size",
        "4-D batch",
        "4-D heads",
        "additive 4-D heads",
        "additive 4-D without heads",
        "4-D int",
    ],
)
def test_masks_that_do_not_fit_are_refused(given_mask, message):
    with pytest.raises(ValueError, match=message):
        build_mask(given_mask, torch.arange(3, 6), torch.arange(6), 2, 4)


@pytest.mark.parametrize("kv_heads", [4, 2, 1], ids=["mha", "gqa", "mqa"])
@pytest.mark.parametrize("form", ["padding", "boolean", "additive"])
def test_a_query_that_may_attend_to_nothing_gets_zeros_from_both_implementations(form, kv_heads):
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, kv_heads, 5, 8), torch.randn(2, kv_heads, 5, 8)
    own = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
    own[0, :, :3] = False
    given_mask = {
        "padding": torch.tensor([[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]),
        "boolean": own,
        "additive": torch.zeros(own.shape).masked_fill(~own, -torch.inf),
    }[form]
    mask = build_mask(given_mask, torch.arange(5), torch.arange(5), 2, 4)
    eager = mix_values(attention_pattern(attention_scores(q, k, mask, 0.3)), v)
    fused = sdpa_attention(q, k, v, mask, 0.3)
    for out in (eager, fused):
        assert torch.equal(out[0, :, :3], torch.zeros(4, 3, 8))
        assert out.isfinite().all()
        assert (out[1].abs().amax(-1) > 0).all(), "the other row attends"
    torch.testing.assert_close(eager, fused, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("form", ["boolean", "additive"])
def test_a_fully_masked_row_has_no_nan_gradient(form, implementation):
    q, k, v = (torch.randn(1, 2, 4, 8, requires_grad=True) for _ in range(3))
    own = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    own[:, :, 2] = False
    given_mask = own if form == "boolean" else torch.zeros(own.shape).masked_fill(~own, -torch.inf)
    mask = build_mask(given_mask, torch.arange(4), torch.arange(4), 1, 4)
    if implementation == "eager":
        out = mix_values(attention_pattern(attention_scores(q, k, mask, 0.3)), v)
    else:
        out = sdpa_attention(q, k, v, mask, 0.3)
    out.square().sum().backward()
    for tensor in (q, k, v):
        assert tensor.grad.isfinite().all()
    assert (q.grad[:, :, 2] == 0).all()
    assert q.grad[:, :, 3].abs().sum() > 0
