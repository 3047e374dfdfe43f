import pytest
import torch

from tests.conftest import tiny_model
from workbench.cache import DynamicCache

IDS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(3))


def piece(length, batch=2, heads=2, width=8, **options):
    return torch.randn(batch, heads, length, width, **options)


def filled(length=10, layers=2):
    """A cache and what was put into it: [(keys, values) of each layer]."""
    cache, put = DynamicCache(), []
    for layer in range(layers):
        put.append((piece(length), piece(length)))
        cache.update(layer, *put[-1])
    return cache, put


def test_an_empty_cache_holds_nothing():
    cache = DynamicCache()
    assert (cache.length, cache.nbytes) == (0, 0)
    assert cache.positions(0).tolist() == []
    assert cache.positions(0, new=3).tolist() == [0, 1, 2]
    cache.crop(0)
    cache.reset()
    assert cache.length == 0


def test_it_returns_everything_seen_in_order():
    cache, seen = DynamicCache(), []
    for length in (5, 1, 1, 90, 1, 3):  # 90: past the spare room, so that it has to grow in between
        k, v = piece(length), piece(length)
        seen.append((k, v))
        for layer in range(2):
            keys, values = cache.update(layer, k + layer, v - layer)
            assert torch.equal(keys, torch.cat([k for k, _ in seen], 2) + layer)
            assert torch.equal(values, torch.cat([v for _, v in seen], 2) - layer)
            assert torch.equal(cache.keys(layer), keys)
            assert torch.equal(cache.values(layer), values)
    assert cache.length == 101
    assert cache.positions(1).tolist() == list(range(101))
    assert cache.positions(1, new=2).tolist() == list(range(103))


def test_steps_within_the_spare_room_write_in_place():
    cache, _ = filled(10)
    pointers = [(cache.keys(i).data_ptr(), cache.values(i).data_ptr()) for i in range(2)]
    size = cache.nbytes
    for _ in range(64):
        for layer in range(2):
            cache.update(layer, piece(1), piece(1))
    assert [(cache.keys(i).data_ptr(), cache.values(i).data_ptr()) for i in range(2)] == pointers
    assert cache.nbytes == size
    cache.update(0, piece(1), piece(1))
    assert cache.keys(0).data_ptr() != pointers[0][0], "the room was used up: now it grows"


def test_few_copies_are_made_over_a_long_generation():
    cache, moves, last = DynamicCache(), 0, None
    for _ in range(2000):
        cache.update(0, piece(1, 1, 1, 2), piece(1, 1, 1, 2))
        moves += cache.keys(0).data_ptr() != last
        last = cache.keys(0).data_ptr()
    assert moves < 20


def test_nbytes_counts_the_spare_room_and_the_data_type():
    cache = DynamicCache()
    cache.update(0, piece(10), piece(10))
    assert cache.nbytes == 2 * 2 * 2 * (10 + 64) * 8 * 4
    half = DynamicCache()
    half.update(0, piece(1000).bfloat16(), piece(1000).bfloat16())
    assert half.nbytes == 2 * 2 * 2 * (1000 + 250) * 8 * 2


@pytest.mark.parametrize("length", [0, 1, 7, 10, 50])
def test_crop_keeps_the_first_positions_and_what_follows_overwrites_the_rest(length):
    cache, put = filled(10)
    cache.crop(length)
    kept = min(length, 10)
    assert cache.length == kept
    assert cache.positions(1).tolist() == list(range(kept))
    for layer, (k, v) in enumerate(put):
        assert torch.equal(cache.keys(layer), k[:, :, :kept])
        assert torch.equal(cache.values(layer), v[:, :, :kept])
    new_k, new_v = piece(2), piece(2)
    keys, values = cache.update(0, new_k, new_v)
    assert torch.equal(keys, torch.cat((put[0][0][:, :, :kept], new_k), 2))
    assert torch.equal(values, torch.cat((put[0][1][:, :, :kept], new_v), 2))


def test_a_negative_length_to_keep_counts_from_the_end():
    cache, _ = filled(10)
    with pytest.raises(ValueError, match=r"crop\(-11\): the cache holds 10 positions only"):
        cache.crop(-11)
    assert cache.length == 10
    cache.crop(-3)
    assert cache.length == 7


@pytest.mark.parametrize("rows", [[1, 0], [1, 1], [0], [0, 1, 0]], ids=str)
def test_reorder_picks_rows(rows):
    cache, put = filled(10)
    cache.reorder(torch.tensor(rows))
    for layer, (k, v) in enumerate(put):
        assert torch.equal(cache.keys(layer), k[rows])
        assert torch.equal(cache.values(layer), v[rows])
    assert cache.length == 10
    cache.update(0, piece(1, len(rows)), piece(1, len(rows)))


def test_reset_forgets_everything_and_takes_another_batch():
    cache, _ = filled(10)
    cache.reset()
    assert (cache.length, cache.nbytes) == (0, 0)
    cache.update(0, piece(3, batch=5), piece(3, batch=5))
    assert cache.length == 3


@pytest.mark.parametrize(
    "wrong",
    [piece(1, batch=3), piece(1, heads=4), piece(1, width=4), piece(1).bfloat16()],
    ids=["batch", "heads", "width", "dtype"],
)
def test_what_does_not_continue_the_cache_is_refused(wrong):
    cache, put = filled(10)
    message = (
        r"do not continue a cache of \(batch, kv_head, ·, d_head\) = \(2, 2, 8\).*Use a new cache for another batch"
    )
    with pytest.raises(ValueError, match=message):
        cache.update(0, wrong, wrong)
    with pytest.raises(ValueError, match=message):
        cache.update(0, piece(1), wrong)  # good keys with bad values: neither may be kept
    assert cache.length == 10
    assert torch.equal(cache.keys(0), put[0][0])


def test_layers_are_filled_in_order():
    with pytest.raises(ValueError, match="layer 2 was given before layer 0; layers are filled in order"):
        DynamicCache().update(2, piece(1), piece(1))


def test_another_batch_in_a_forward_is_refused(model):
    with torch.no_grad():
        cache = model(IDS).past_key_values
        with pytest.raises(ValueError, match=r"Use a new cache for another batch or model"):
            model(IDS[:1, :1], past_key_values=cache)
    assert cache.length == 12


def test_gradients_flow_through_chunks_as_through_one_pass(model):
    model(IDS).logits.square().mean().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    cache = DynamicCache()
    parts = [model(IDS[:, a:b], past_key_values=cache).logits for a, b in ((0, 5), (5, 6), (6, 12))]
    torch.cat(parts, 1).square().mean().backward()
    for name, parameter in model.named_parameters():
        scale = expected[name].abs().max()
        assert (parameter.grad - expected[name]).abs().max() <= 1e-4 * scale, name


def test_a_cache_filled_with_gradients_goes_on_without_them(model):
    whole = model(IDS).logits
    cache = model(IDS[:, :5]).past_key_values
    with torch.no_grad():
        rest = model(IDS[:, 5:], past_key_values=cache).logits
    torch.testing.assert_close(rest, whole[:, 5:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("failing", [0, 1, 2, "norm"], ids=lambda where: f"in {where}")
@pytest.mark.parametrize("start", [0, 5], ids=["first forward", "later forward"])
@torch.no_grad()
def test_an_exception_inside_a_forward_leaves_the_cache_as_it_was(start, failing, error):
    model = tiny_model()
    whole = model(IDS).logits
    cache = DynamicCache()
    if start:
        model(IDS[:, :start], past_key_values=cache)

    def fail(module, args):
        raise error("planted")

    # In the MLP: this layer's keys are stored already, those of later layers are not.
    where = model.model.norm if failing == "norm" else model.model.layers[failing].mlp
    handle = where.register_forward_pre_hook(fail)
    with pytest.raises(error, match="planted"):
        model(IDS[:, start:], past_key_values=cache)
    handle.remove()
    assert cache.length == start
    assert {cache.keys(i).shape[2] for i in range(3) if start or i == 0} == {start}
    again = model(IDS[:, start:], past_key_values=cache).logits
    torch.testing.assert_close(again, whole[:, start:], rtol=1e-4, atol=1e-5)
    assert [cache.keys(i).shape[2] for i in range(3)] == [12, 12, 12]


@pytest.mark.parametrize("length", [1, 7, 100], ids=lambda n: f"{n} more")  # 100: past the spare room
@pytest.mark.parametrize("gradients", [False, True], ids=["without gradients", "with gradients"])
def test_a_cache_filled_in_inference_mode_goes_on_outside_of_it(model, length, gradients):
    ids = torch.randint(1, 97, (2, 12 + length), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        whole = model(ids).logits
    with torch.inference_mode():
        cache = model(ids[:, :11]).past_key_values
        cache = model(ids[:, 11:12], past_key_values=cache).past_key_values
    with torch.set_grad_enabled(gradients):
        rest = model(ids[:, 12:], past_key_values=cache).logits
    torch.testing.assert_close(rest, whole[:, 12:], rtol=1e-4, atol=1e-4)
    assert rest.requires_grad == gradients
    assert cache.length == 12 + length


def test_a_cache_filled_in_inference_mode_is_copied_once_outside_of_it():
    with torch.inference_mode():
        cache, put = filled(10, layers=1)
        inside = cache.keys(0).data_ptr()
        cache.update(0, piece(1), piece(1))
        assert cache.keys(0).data_ptr() == inside
    cache.update(0, piece(1), piece(1))
    outside = cache.keys(0).data_ptr()
    assert outside != inside
    cache.update(0, piece(1), piece(1))
    assert cache.keys(0).data_ptr() == outside
    assert torch.equal(cache.keys(0)[:, :, :10], put[0][0])
