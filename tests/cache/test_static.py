import pytest
import torch

from tests.conftest import tiny_config, tiny_model
from workbench.cache import DynamicCache, StaticCache, load_cache, make_cache

IDS = torch.randint(1, 97, (2, 12), generator=torch.Generator().manual_seed(3))


def piece(length, batch=2, heads=2, width=8, **options):
    return torch.randn(batch, heads, length, width, **options)


def filled(length=10, size=32, **options):
    """A cache and what was put into it: [(keys, values) of each layer]."""
    cache, put = StaticCache(tiny_config(), size, **options), []
    for layer in range(3):
        put.append((piece(length), piece(length)))
        cache.update(layer, *put[-1])
    return cache, put


def test_it_returns_what_is_filled_and_never_moves():
    cache, put = filled(10)
    pointers = [cache.keys(i).data_ptr() for i in range(3)]
    size = cache.nbytes
    assert size == 2 * 3 * 2 * 2 * 32 * 8 * 4
    for step in range(22):
        for layer in range(3):
            k, v = piece(1), piece(1)
            put[layer] = (torch.cat((put[layer][0], k), 2), torch.cat((put[layer][1], v), 2))
            keys, values = cache.update(layer, k, v)
            assert torch.equal(keys, put[layer][0])
            assert torch.equal(values, put[layer][1])
        assert cache.length == cache.get_seq_length() == 11 + step
    assert [cache.keys(i).data_ptr() for i in range(3)] == pointers
    assert cache.nbytes == size
    assert cache.positions(1).tolist() == list(range(32))
    assert (cache.max_cache_len, cache.get_max_cache_shape()) == (32, 32)


@pytest.mark.parametrize("kind", ["mha", "gqa", "mqa"])
@torch.no_grad()
def test_chunks_give_the_numbers_of_one_pass(kind):
    model = tiny_model(kind)
    whole = model(IDS).logits
    cache = StaticCache(model.config, max_cache_len=20)
    parts = [model(IDS[:, a:b], past_key_values=cache).logits for a, b in ((0, 5), (5, 6), (6, 11), (11, 12))]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)
    cache.crop(6)
    again = model(IDS[:, 6:], past_key_values=cache).logits
    torch.testing.assert_close(again, whole[:, 6:], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_full_one_says_what_to_do_and_stays_as_it_was():
    model = tiny_model()
    cache = StaticCache(model.config, max_cache_len=12)
    model(IDS[:, :10], past_key_values=cache)
    message = (
        r"the StaticCache is full: it has room for max_cache_len=12 positions, 10 are taken and 4 more came\. "
        r"Make it with max_cache_len=14 at least, shorten the text, or use a DynamicCache, which grows"
    )
    with pytest.raises(ValueError, match=message):
        model(IDS[:, 8:], past_key_values=cache)
    with pytest.raises(ValueError, match=r"10 are taken and 3 more came"):
        model(IDS[:, 9:], past_key_values=cache)
    assert cache.length == 10
    out = model(IDS[:, 10:], past_key_values=cache).logits
    torch.testing.assert_close(out, model(IDS).logits[:, 10:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("start", [0, 5], ids=["first forward", "later forward"])
@torch.no_grad()
def test_an_exception_inside_a_forward_leaves_it_as_it_was(start, error):
    model = tiny_model()
    cache = StaticCache(model.config, max_cache_len=12)
    if start:
        model(IDS[:, :start], past_key_values=cache)

    def fail(module, args):
        raise error("planted")

    handle = model.model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(error, match="planted"):
        model(IDS[:, start:], past_key_values=cache)
    handle.remove()
    assert cache.length == start
    out = model(IDS[:, start:], past_key_values=cache).logits
    torch.testing.assert_close(out, model(IDS).logits[:, start:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [[1, 0], [1, 1], [0], [0, 0, 1, 1]], ids=str)
@pytest.mark.parametrize("options", [{}, {"max_batch_size": 4}], ids=["as many as come", "four rows"])
def test_reorder_picks_rows(rows, options):
    cache, put = filled(10, **options)
    cache.reorder(torch.tensor(rows))
    for layer, (k, v) in enumerate(put):
        assert torch.equal(cache.keys(layer), k[rows])
        assert torch.equal(cache.values(layer), v[rows])
    assert (cache.length, cache.batch_size) == (10, len(rows))
    cache.update(0, piece(1, len(rows)), piece(1, len(rows)))


def test_reorder_in_place_where_there_is_room():
    cache, _ = filled(10, max_batch_size=4)
    pointer = cache.keys(0).data_ptr()
    cache.reorder(torch.tensor([1, 1, 0, 0]))
    assert cache.keys(0).data_ptr() == pointer
    with pytest.raises(ValueError, match=r"5 rows do not fit a StaticCache of max_batch_size=4\. Beams and"):
        cache.reorder(torch.arange(5) % 2)
    assert cache.batch_size == 4


@pytest.mark.parametrize("make", [lambda: filled(10), lambda: (DynamicCache(), None)], ids=["static", "dynamic"])
def test_the_names_of_transformers(make):
    cache, _ = make()
    if cache.length == 0:
        for layer in range(3):
            cache.update(layer, piece(10), piece(10))
    keys = cache.keys(2).clone()
    assert (cache.get_seq_length(), cache.get_seq_length(2), cache.batch_size) == (10, 10, 2)
    assert cache.get_max_cache_shape() == (32 if isinstance(cache, StaticCache) else -1)
    cache.batch_repeat_interleave(3)
    assert torch.equal(cache.keys(2), keys.repeat_interleave(3, 0))
    cache.reorder_cache(torch.tensor([5, 0]))
    assert torch.equal(cache.keys(2), keys[[1, 0]])
    cache.batch_select_indices(torch.tensor([1]))
    assert torch.equal(cache.keys(2), keys[:1])


def test_reset_keeps_the_storage_and_takes_another_batch():
    cache, _ = filled(10)
    size = cache.nbytes
    cache.reset()
    assert (cache.length, cache.batch_size, cache.nbytes) == (0, 0, size)
    keys, _ = cache.update(0, piece(3, batch=1), piece(3, batch=1))
    assert keys.shape == (1, 2, 3, 8)
    cache.reset()
    assert cache.update(0, piece(3, batch=5), piece(3, batch=5))[0].shape == (5, 2, 3, 8)


def test_storage_made_at_once():
    cache = StaticCache(tiny_config(), 16, max_batch_size=4, dtype=torch.bfloat16)
    assert (cache.nbytes, cache.batch_size) == (2 * 3 * 4 * 2 * 16 * 8 * 2, 0)
    keys, _ = cache.update(0, piece(3).bfloat16(), piece(3).bfloat16())
    assert keys.shape == (2, 2, 3, 8)
    with pytest.raises(ValueError, match=r"5 rows do not fit a StaticCache of max_batch_size=4"):
        StaticCache(tiny_config(), 16, max_batch_size=4).update(0, piece(1, 5), piece(1, 5))
    assert StaticCache(tiny_config(dtype="bfloat16"), 16, 1).update(0, *[piece(1, 1).bfloat16()] * 2)[0].shape[2] == 1


@torch.no_grad()
def test_storage_made_at_once_becomes_what_the_first_keys_are(tmp_path):
    model = tiny_model().bfloat16()
    cache, plain = StaticCache(model.config, 16, max_batch_size=4), StaticCache(model.config, 16)
    assert cache.nbytes == 2 * 3 * 4 * 2 * 16 * 8 * 4, "float32: the config says nothing"
    for a, b in ((0, 7), (7, 8)):
        found = model(IDS[:, a:b], past_key_values=cache).logits
        assert torch.equal(found, model(IDS[:, a:b], past_key_values=plain).logits)
    assert cache.nbytes == 2 * 3 * 4 * 2 * 16 * 8 * 2, "still for four rows"
    cache.save(tmp_path / "cache")
    assert load_cache(tmp_path / "cache").keys(0).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"keys or values of shape .* do not continue a cache of"):
        tiny_model()(IDS[:, 8:], past_key_values=cache)
    cache.reset()
    tiny_model()(IDS, past_key_values=cache)
    assert cache.keys(0).dtype == torch.float32
    stored = StaticCache(model.config, 16, max_batch_size=4, dtype=torch.float32)
    pointer = stored._keys[0].data_ptr()
    model(IDS, past_key_values=stored)
    assert stored._keys[0].data_ptr() == pointer, "a data type that was given stays"


def test_storage_on_another_device_than_the_keys():
    cache = StaticCache(tiny_config(), 16, max_batch_size=4, device="meta")
    message = (
        r"keys or values on cpu do not fit this StaticCache: it was allocated as torch\.float32 on meta\. Give "
        r"device='cpu', or leave device out"
    )
    with pytest.raises(ValueError, match=message):
        cache.update(0, piece(1), piece(1))
    cache = StaticCache(tiny_config(), 16, max_batch_size=4, dtype=torch.bfloat16)
    cache.update(0, piece(1, device="meta"), piece(1, device="meta"))
    assert (cache.keys(0).device.type, cache.keys(0).dtype) == ("meta", torch.float32), "no device was given"


@pytest.mark.parametrize("gradients", [False, True], ids=["without gradients", "with gradients"])
@torch.no_grad()
def test_filled_in_inference_mode_it_goes_on_outside_of_it(gradients):
    model = tiny_model()
    whole = model(IDS).logits
    with torch.inference_mode():
        cache = StaticCache(model.config, max_cache_len=14)
        model(IDS[:, :8], past_key_values=cache)
    rest = model(IDS[:, 8:], past_key_values=cache).logits
    torch.testing.assert_close(rest, whole[:, 8:], rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        cache = StaticCache(model.config, max_cache_len=14)
        model(IDS[:, :8], past_key_values=cache)
    cache.reorder(torch.tensor([1, 0]))
    torch.testing.assert_close(model(IDS[[1, 0], 8:], past_key_values=cache).logits, whole[[1, 0], 8:])


def test_no_gradient_is_lost_silently():
    model = tiny_model()
    cache = StaticCache(model.config, max_cache_len=14)
    with pytest.raises(
        ValueError, match=r"writes in place, so no gradient can be recorded through it\. Use torch\.no_grad"
    ):
        model(IDS, past_key_values=cache)
    assert cache.length == 0


@pytest.mark.parametrize(
    "wrong", [piece(1, batch=3), piece(1).bfloat16()], ids=["batch", "dtype"]
)  # fmt: skip
def test_what_does_not_continue_it_is_refused(wrong):
    cache, put = filled(10)
    for k, v in ((wrong, wrong), (piece(1), wrong)):
        with pytest.raises(ValueError, match=r"do not continue a cache of \(batch, kv_head, ·, d_head\) = \(2, 2, 8\)"):
            cache.update(0, k, v)
    assert cache.length == 10
    assert torch.equal(cache.keys(0), put[0][0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: StaticCache(None, 5), r"config is a NoneType; a LlamaConfig is needed"),
        (lambda: StaticCache(tiny_config(), 0), r"max_cache_len is 0; it must be a whole number of at least 1"),
        (lambda: StaticCache(tiny_config(), "9"), r"max_cache_len is '9'; it must be a whole number"),
        (lambda: StaticCache(tiny_config(), 9, 0), r"max_batch_size is 0; it must be a whole number of at least 1"),
        (lambda: StaticCache(tiny_config(), 9, device="cpu"), r"device is given without max_batch_size"),
        (lambda: filled()[0].update(3, piece(1), piece(1)), r"layer is 3; this cache was made for a model of 3 layers"),
        (
            lambda: filled()[0].update(0, piece(1, heads=4), piece(1, heads=4)),
            r"keys of shape \(2, 4, 1, 8\) .* do not fit a StaticCache of 2 key/value heads of width 8",
        ),
        (lambda: filled()[0].crop(-99), r"crop\(-99\): the cache holds 10 positions only"),
        (
            lambda: make_cache("quantum", tiny_config()),
            r"cache_implementation is 'quantum'; allowed are dynamic, static",
        ),
        (lambda: make_cache("static", tiny_config()), r"a static cache needs max_cache_len"),
    ],
    ids=["config", "length", "text", "rows", "device", "layer", "heads", "crop", "name", "name without length"],
)
def test_what_is_no_cache_is_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_caches_by_name():
    assert isinstance(make_cache(None, tiny_config()), DynamicCache)
    assert isinstance(make_cache("dynamic", tiny_config()), DynamicCache)
    cache = make_cache("static", tiny_config(), 9)
    assert isinstance(cache, StaticCache)
    assert cache.max_cache_len == 9
