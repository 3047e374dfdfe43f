import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import tiny_model
from workbench.analysis.attention import ROWS, AttentionMap
from workbench.cache import DynamicCache
from workbench.instrument import Activations, capture
from workbench.model.mask import build_mask

KINDS = ["mha", "gqa", "mqa"]
LENGTH = 23
IDS = torch.randint(1, 97, (1, LENGTH), generator=torch.Generator().manual_seed(3))
EVERY = slice(None)
RUNS = {}


@torch.no_grad()
def run(kind="gqa"):
    """A map of one run and the patterns that eager attention really used: [layer][head, q, k]."""
    if kind not in RUNS:
        torch.manual_seed(0)
        model = tiny_model(kind, attn_implementation="eager")
        with capture(model, "q_rot", "k_rot") as acts:
            out = model(IDS, output_attentions=True)
        RUNS[kind] = AttentionMap(acts), [a[0].numpy() for a in out.attentions]
    return RUNS[kind]


def by_hand(heads=2, kv_heads=1, length=40, width=16):
    acts = Activations()
    acts.append("layers.0.q_rot", torch.randn(1, length, heads, width))
    acts.append("layers.0.k_rot", torch.randn(1, length, kv_heads, width))
    return AttentionMap(acts)


def pooled(x, factor, reduce):
    """Each square of `factor × factor` cells by itself, those at the edge as small as they are."""
    rows, columns = (range(0, n, factor) for n in x.shape)
    return np.array([[reduce(x[i : i + factor, j : j + factor]) for j in columns] for i in rows])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_and_heads_are_what_eager_attention_used(kind):
    attention, expected = run(kind)
    for layer in range(3):
        for head in range(4):
            np.testing.assert_allclose(attention.head(layer, head), expected[layer][head], atol=1e-5, rtol=0)
            for q in (0, 1, 11, LENGTH - 1):
                row = attention.row(layer, head, q)
                assert row.shape == (q + 1,)
                np.testing.assert_allclose(row, expected[layer][head][q, : q + 1], atol=1e-5, rtol=0)
    assert not np.allclose(expected[1][0], expected[1][1], atol=1e-2), "heads differ, so a swapped one would be seen"


@pytest.mark.parametrize("kind", KINDS)
def test_a_small_tile_is_a_slice_of_the_pattern(kind):
    attention, expected = run(kind)
    for q, k in ((EVERY, EVERY), (slice(5, 9), slice(2, 7)), (slice(-3, None), EVERY), (slice(0, 2), slice(20, 99))):
        tile = attention.tile(1, 3, q, k)
        np.testing.assert_allclose(tile.weights, expected[1][3][q, k], atol=1e-5, rtol=0)
        assert tile.factor == 1
        assert (tile.q0, tile.k0) == (q.indices(LENGTH)[0], k.indices(LENGTH)[0])


@pytest.mark.parametrize("rows", [ROWS, 5], ids=["one block", "several blocks"])
@pytest.mark.parametrize("size", [23, 12, 8, 6, 5, 3, 2, 1], ids=lambda size: f"{size} cells")
@pytest.mark.parametrize(
    ("q", "k"), [(EVERY, EVERY), (slice(4, 21), slice(1, 12)), (slice(7, 8), EVERY)], ids=["all", "part", "one row"]
)
def test_a_pooled_tile_is_the_maximum_over_each_square(q, k, size, rows, monkeypatch):
    monkeypatch.setattr("workbench.analysis.attention.ROWS", rows)
    attention, expected = run()
    tile = attention.tile(2, 1, q, k, size=size)
    whole = expected[2][1][q, k]
    assert tile.factor == -(-max(whole.shape) // size)
    assert max(tile.weights.shape) <= size
    np.testing.assert_allclose(tile.weights, pooled(whole, tile.factor, np.max), atol=1e-5, rtol=0)
    forbidden = np.triu(np.ones((LENGTH, LENGTH), bool), 1)[q, k]
    np.testing.assert_array_equal(tile.masked, pooled(forbidden, tile.factor, np.all))


def test_a_masked_cell_is_marked_and_a_weight_that_rounds_to_zero_is_not():
    acts = Activations()
    acts.append("layers.0.q_rot", torch.full((1, 3, 1, 2), 100.0))
    keys = torch.tensor([100.0, -100.0, 100.0])[None, :, None, None].expand(1, 3, 1, 2)
    acts.append("layers.0.k_rot", keys.clone())
    tile = AttentionMap(acts).tile(0, 0, EVERY, EVERY)
    assert tile.weights[1, 1] == 0.0
    assert not tile.masked[1, 1]
    assert tile.masked.tolist() == [[False, True, True], [False, False, True], [False, False, False]]


def test_a_single_strong_weight_never_disappears():
    acts = Activations()
    queries, keys = torch.zeros(1, 700, 1, 16), torch.zeros(1, 700, 1, 16)
    queries[0, 613, 0, 0] = keys[0, 401, 0, 0] = 20.0
    acts.append("layers.0.q_rot", queries)
    acts.append("layers.0.k_rot", keys)
    tile = AttentionMap(acts).tile(0, 0, EVERY, EVERY, size=50)
    assert tile.factor == 14
    assert tile.weights[613 // 14, 401 // 14] > 0.99


@torch.no_grad()
def test_a_map_of_a_run_in_chunks_is_that_of_one_pass():
    model, cache = tiny_model("gqa", attn_implementation="eager"), DynamicCache()
    expected = model(IDS, output_attentions=True).attentions
    with capture(model, "q_rot", "k_rot") as acts:
        for start, end in ((0, 9), (9, 10), (10, LENGTH)):
            model(IDS[:, start:end], past_key_values=cache)
    np.testing.assert_allclose(AttentionMap(acts).head(2, 1), expected[2][0, 1].numpy(), atol=1e-5, rtol=0)


def test_a_length_looks_at_the_first_positions_only():
    attention, expected = run()
    first = AttentionMap(attention.acts, length=10)
    np.testing.assert_allclose(first.head(0, 2), expected[0][2][:10, :10], atol=1e-5, rtol=0)
    assert first.tile(0, 2, EVERY, EVERY).weights.shape == (10, 10)


def test_the_scale_may_be_given():
    attention, _ = run()
    sharp = AttentionMap(attention.acts, scale=1.0).head(1, 0)
    q, k = attention.acts["q_rot", 1][0, :, 0], attention.acts["k_rot", 1][0, :, 0]
    scores = (q @ k.T).masked_fill(torch.ones(LENGTH, LENGTH).triu(1).bool(), -torch.inf)
    np.testing.assert_allclose(sharp, scores.softmax(-1).numpy(), atol=1e-5, rtol=0)


def test_captures_of_lower_precision_give_float32_weights():
    attention, expected = run()
    acts = Activations()
    for name in attention.acts:
        acts.append(name, attention.acts[name].bfloat16())
    head = AttentionMap(acts).head(1, 0)
    assert head.dtype == np.float32
    np.testing.assert_allclose(head, expected[1][0], atol=0.05)


@pytest.mark.parametrize("head", [-1, 4, 99])
@pytest.mark.parametrize(
    "look",
    [lambda a, h: a.row(0, h, 3), lambda a, h: a.head(0, h), lambda a, h: a.tile(0, h, EVERY, EVERY)],
    ids=["row", "head", "tile"],
)
def test_a_head_that_does_not_exist_is_refused(look, head):
    with pytest.raises(ValueError, match=rf"head {head} does not exist; this layer has query heads 0 … 3"):
        look(run("gqa")[0], head)


@pytest.mark.parametrize("q", [-1, LENGTH, 99])
def test_a_query_that_does_not_exist_is_refused(q):
    with pytest.raises(ValueError, match=rf"query {q} does not exist; this map has positions 0 … {LENGTH - 1}"):
        run()[0].row(0, 0, q)


@pytest.mark.parametrize(
    ("q", "k", "size"),
    [(slice(3, 3), EVERY, 256), (EVERY, slice(50, 60), 256), (EVERY, EVERY, 0)],
    ids=["no query", "no key", "no cell"],
)
def test_a_tile_without_a_cell_is_refused(q, k, size):
    with pytest.raises(ValueError, match=r"queries \d+ … \d+ and keys \d+ … \d+ in \d+ cells hold nothing to show"):
        run()[0].tile(0, 0, q, k, size)


def test_a_layer_that_was_not_captured_is_named():
    with pytest.raises(KeyError, match=r"layers\.7\.q_rot' was not captured; captured are layers\.0\.q_rot"):
        run()[0].head(7, 0)


class Largest(TorchDispatchMode):
    """Notes the most bytes that any operation made in one tensor."""

    def __init__(self):
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
        return out


def test_no_tensor_of_the_size_of_the_whole_pattern_is_ever_made():
    length = 4096
    attention = by_hand(length=length)
    for look in (
        lambda: attention.tile(0, 1, EVERY, EVERY),
        lambda: attention.tile(0, 1, slice(3000, 3256), slice(0, 256)),
        lambda: attention.tile(0, 1, EVERY, slice(0, 300), size=100),
        lambda: attention.row(0, 1, length - 1),
    ):
        with Largest() as seen:
            look()
        assert 0 < seen.nbytes <= ROWS * length * 4
        assert seen.nbytes < length * length * 4 / 10


def test_the_measure_of_memory_sees_a_whole_pattern():
    attention = by_hand(length=1024)
    with Largest() as seen:
        attention.head(0, 1)
    assert seen.nbytes >= 1024 * 1024 * 4


@torch.no_grad()
def test_a_padded_capture_is_refused_unless_its_mask_is_given():
    model = tiny_model()
    ids = torch.randint(1, 97, (1, 9))
    keep = torch.ones_like(ids)
    keep[0, :3] = 0
    with capture(model, "q_rot", "k_rot", "pattern") as acts:
        model(ids, attention_mask=keep)
    with pytest.raises(ValueError, match=r"not one unpadded text from position 0 \(its forwards began at 0, with an"):
        AttentionMap(acts)
    mask = build_mask(keep, torch.arange(9), torch.arange(9), 1, 4)
    for head in range(4):
        close = {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(
            torch.from_numpy(AttentionMap(acts, mask=mask).head(1, head)), acts["pattern", 1][0, head], **close
        )


@torch.no_grad()
def test_an_additive_mask_counts_too():
    model = tiny_model()
    ids = torch.randint(1, 97, (1, 7))
    bias = torch.randn(1, 4, 7, 7).masked_fill(~torch.ones(7, 7, dtype=torch.bool).tril(), -torch.inf)
    with capture(model, "q_rot", "k_rot", "pattern") as acts:
        model(ids, attention_mask=bias)
    mask = build_mask(bias, torch.arange(7), torch.arange(7), 1, 4)
    for head in range(4):
        torch.testing.assert_close(
            torch.from_numpy(AttentionMap(acts, mask=mask).head(2, head)),
            acts["pattern", 2][0, head],
            rtol=1e-5,
            atol=1e-6,
        )
