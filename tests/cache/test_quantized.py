"""The quantized cache, against the formula of KIVI written out number by number, and its codes bit for bit."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cache.caches import IDS, LENGTH, assert_equal, contents, piece
from tests.conftest import tiny_config, tiny_model
from tests.strategies import splits
from workbench.cache import DynamicCache, QuantizedCache, SlidingCache, load_cache, make_cache

BITS = (8, 4, 2)


def rounded(group, bits):
    """What the numbers of one group become: asymmetric, from least to largest, scale and zero in float16."""
    low, high = group.min(), group.max()
    scale, zero = ((high - low) / (2**bits - 1)).half().float(), low.half().float()
    codes = torch.round((group - zero) / (scale if scale > 0 else 1)).clamp(0, 2**bits - 1)
    return codes * scale + zero


def by_hand(x, bits, group, per_channel):
    """Keys (`per_channel`): a group is `group` tokens of a channel. Values: `group` channels of a token."""
    out = x.clone()
    batch, heads, length, width = x.shape
    for b in range(batch):
        for h in range(heads):
            if per_channel:
                for start in range(0, length, group):
                    for c in range(width):
                        out[b, h, start : start + group, c] = rounded(x[b, h, start : start + group, c], bits)
            else:
                for t in range(length):
                    for start in range(0, width, group):
                        out[b, h, t, start : start + group] = rounded(x[b, h, t, start : start + group], bits)
    return out


def codes_of(cache):
    """Everything that is a code, a scale or a zero and in use."""
    return {name: t.clone() for name, t in cache.state()[1].items() if "last" not in name}


def assert_same_codes(found, expected, blocks=None):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name][:, :, :blocks], tensor[:, :, :blocks]), name


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group", [4, 8])
def test_codes_are_those_of_the_formula(bits, group):
    cache = QuantizedCache(bits, group, residual_length=4)
    k, v = piece(29) * 3, piece(29)
    k[:, :, :, 2] *= 20  # a large channel, as keys have
    k[:, :, :8, 3] = 1.5  # a constant group has a scale of 0
    returned = cache.update(0, k, v)
    assert all(torch.equal(a, b) for a, b in zip(returned, (k, v), strict=True)), "its own forward sees it as it came"
    done = (29 - 4) // group * group
    assert cache.quantized_length() == done
    expected = by_hand(k[:, :, :done], bits, group, True), by_hand(v[:, :, :done], bits, group, False)
    for found, quantized, whole in zip((cache.keys(0), cache.values(0)), expected, (k, v), strict=True):
        torch.testing.assert_close(found[:, :, :done], quantized, rtol=1e-6, atol=1e-6)
        assert torch.equal(found[:, :, done:], whole[:, :, done:])
    new = piece(1), piece(1)
    found = cache.update(0, *new)
    torch.testing.assert_close(found[0], torch.cat((expected[0], k[:, :, done:], new[0]), 2), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found[1], torch.cat((expected[1], v[:, :, done:], new[1]), 2), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", BITS)
def test_bytes_are_those_of_codes_scales_and_the_last_positions(bits):
    cache = QuantizedCache(bits, 8, residual_length=16)
    cache.update(0, piece(800), piece(800))
    blocks = (800 - 16) // 8
    room = blocks + 1
    codes, scales, last = room * 8 * 8 * bits // 8, room * 8 * 2 * 2, (16 + 8) * 8 * 4
    assert cache.nbytes == 2 * 2 * 2 * (codes + scales + last)
    exact = DynamicCache()
    exact.update(0, piece(800), piece(800))
    assert cache.nbytes < exact.nbytes / {8: 2, 4: 3, 2: 3.5}[bits]


@settings(max_examples=40, deadline=None)
@given(sizes=splits(LENGTH), bits=st.sampled_from(BITS), residual=st.sampled_from([0, 4, 9]), back=st.integers(0, 3))
def test_however_a_text_comes_its_codes_are_the_same(sizes, bits, residual, back):
    k, v = piece(LENGTH), piece(LENGTH)
    whole = QuantizedCache(bits, 4, residual)
    whole.update(0, k, v)
    cache, at = QuantizedCache(bits, 4, residual), 0
    for number, size in enumerate(sizes):
        cache.update(0, k[:, :, at : at + size], v[:, :, at : at + size])
        if number % 4 == back:  # taken back and given again
            cache.crop(at)
            keys, _ = cache.update(0, k[:, :, at : at + size], v[:, :, at : at + size])
            assert torch.equal(keys[:, :, at:], k[:, :, at : at + size])
        at += size
        assert at - cache.quantized_length() >= min(at, residual)
        assert at - cache.quantized_length() < residual + 4
    assert_same_codes(codes_of(cache), codes_of(whole))
    assert_equal(contents(cache), contents(whole))


@pytest.mark.parametrize("bits", BITS)
def test_no_position_is_quantized_twice(bits, tmp_path):
    cache = QuantizedCache(bits, 4, 8)
    for layer in range(2):
        cache.update(layer, piece(60), piece(60))
    first = codes_of(cache)
    assert_same_codes(codes_of(cache.clone()), first)
    copy = QuantizedCache(bits, 4, 8)
    copy.copy_from(cache)
    assert_same_codes(codes_of(copy), first)
    wide, named = QuantizedCache(bits, None, 8), QuantizedCache(bits, 8, 8)
    wide.update(0, piece(60), piece(60))
    wide.crop(33)
    named.copy_from(wide)  # 8 is what None means here
    assert named.quantized_length() == 33
    assert_same_codes(codes_of(named), codes_of(wide))
    default = QuantizedCache(bits, None, 8)  # its groups are of 8 here: other codes, made of the numbers of these
    default.copy_from(cache)
    assert default.length == 60
    cache.save(tmp_path / "cache.safetensors")
    loaded = load_cache(tmp_path / "cache.safetensors")
    assert_same_codes(codes_of(loaded), first)
    assert_equal(contents(loaded), contents(cache))
    for part in (cache, copy, loaded):
        part.reorder(torch.tensor([1, 1, 0]))
        assert_same_codes(codes_of(part), {name: t[[1, 1, 0]] for name, t in first.items()})
        part.reorder(torch.tensor([2, 0]))
        part.crop(33)  # within the ninth block: it stays as it is, one of its tokens is wanted
        assert (part.length, part.quantized_length()) == (33, 33)
        assert_same_codes({n: t[:, :, :8] for n, t in codes_of(part).items()}, first, 8)
        before = part.keys(1).clone()
        for _ in range(25):
            for layer in range(2):
                keys, _ = part.update(layer, piece(1), piece(1))
        assert torch.equal(keys[:, :, :33], before), "not changed by what followed"
        assert_same_codes(
            {n: t[:, :, :9] for n, t in codes_of(part).items()}, {n: t[:, :, :9] for n, t in first.items()}
        )
        assert part.quantized_length() == 33 + (25 - 8) // 4 * 4


def test_cropping_within_blocks_again_and_again():
    cache, k = QuantizedCache(8, 4, 0), piece(64) * 2
    cache.update(0, k, k)
    for length in (51, 50, 33, 18, 17, 2, 0):
        expected = cache.keys(0)[:, :, :length].clone()
        cache.crop(length)
        assert cache.length == length
        assert torch.equal(cache.keys(0), expected)
        assert cache.positions(0).tolist() == list(range(length))
        cache.update(0, piece(3), piece(3))
        assert torch.equal(cache.keys(0)[:, :, :length], expected)
        cache.crop(length)
    with pytest.raises(ValueError, match=r"crop\(-1\): the cache holds 0 positions only"):
        cache.crop(-1)


class Planted(Exception):
    pass


@pytest.mark.parametrize("count", [1, 6, 30])
@pytest.mark.parametrize("failing", [0, 2])
@pytest.mark.parametrize("start", [0, 17, 32])
@torch.no_grad()
def test_a_forward_that_fails_is_taken_back(start, failing, count):
    model, cache = tiny_model(), QuantizedCache(4, 4, 8)
    ids = torch.randint(1, 97, (2, 70), generator=torch.Generator().manual_seed(5))
    if start:
        model(ids[:, :start], past_key_values=cache)
    before, codes = contents(cache), codes_of(cache)
    expected = model(ids[:, start : start + 8], past_key_values=cache.clone()).logits

    def fail(module, args):
        raise Planted

    handle = model.model.layers[failing].mlp.register_forward_pre_hook(fail)
    with pytest.raises(Planted):
        model(ids[:, start : start + count], past_key_values=cache)
    handle.remove()
    if start:
        assert_equal(contents(cache), before)
        assert_same_codes(codes_of(cache), codes)
    assert torch.equal(model(ids[:, start : start + 8], past_key_values=cache).logits, expected)
    cache.crop(start)
    if start:
        assert_equal(contents(cache), before)


def test_what_is_returned_is_no_storage():
    cache = QuantizedCache(4, 4, 4)
    cache.update(0, piece(20), piece(20))
    before = cache.keys(0).clone()
    for tensor in (*cache.update(0, piece(1), piece(1)), cache.keys(0), cache.values(0)):
        tensor.zero_()
    assert torch.equal(cache.keys(0)[:, :, :20], before)
    assert cache.values(0).abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_get_their_own_dtype(dtype):
    k = piece(40).to(dtype)
    cache, single = QuantizedCache(8, 8, 8), QuantizedCache(8, 8, 8)
    cache.update(0, k, k)
    single.update(0, k.float(), k.float())
    assert cache.keys(0).dtype == cache.values(0).dtype == dtype
    assert torch.equal(cache.keys(0), single.keys(0).to(dtype))
    assert torch.equal(cache.values(0), single.values(0).to(dtype))


@pytest.mark.parametrize("bits", BITS)
@torch.no_grad()
def test_fewer_bits_are_worse_and_more_are_close(bits):
    model, cache = tiny_model(), QuantizedCache(bits, 8, 4)
    exact = model(IDS, use_cache=False).logits[:, -8:].log_softmax(-1)
    model(IDS[:, :-8], past_key_values=cache)
    found = model(IDS[:, -8:], past_key_values=cache).logits.log_softmax(-1)
    divergence = float((exact.exp() * (exact - found)).sum(-1).mean())
    low, high = {8: (0, 1e-3), 4: (1e-4, 0.2), 2: (1e-2, 3)}[bits]
    assert low < divergence < high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: QuantizedCache(3), r"bits is 3; allowed are 8, 4, 2"),
        (lambda: QuantizedCache(4, 0), r"group_size is 0; it must be a whole number of at least 1"),
        (
            lambda: QuantizedCache(4, residual_length=-1),
            r"residual_length is -1; it must be a whole number of at least 0",
        ),
        (
            lambda: QuantizedCache(4, 32).update(0, piece(1), piece(1)),
            r"group_size is 32, but groups of channels have to divide d_head=8 and fill whole bytes at 4 bits; "
            r"allowed are 2, 4, 8",
        ),
        (lambda: make_cache("quantized", tiny_config(), q_group_size=64), r"allowed are 2, 4, 8"),
        (lambda: QuantizedCache(2, 2).update(0, piece(1), piece(1)), r"at 2 bits; allowed are 4, 8"),
        (lambda: QuantizedCache().update(2, piece(1), piece(1)), r"layer 2 was given before layer 0"),
        (
            lambda: QuantizedCache().update(0, *[piece(1, requires_grad=True)] * 2),
            r"a QuantizedCache writes in place, so no gradient can be recorded through it",
        ),
    ],
    ids=["bits", "group", "residual", "d_head", "transformers", "bytes", "layer", "gradient"],
)
def test_what_it_cannot_do_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_positions_that_it_needs_are_missing_in_a_ring():
    ring, cache = SlidingCache(8), QuantizedCache(4, 4, 8)
    ring.update(0, piece(20), piece(20))
    cache.update(0, piece(5), piece(5))
    before = contents(cache)
    message = (
        r"a quantized cache of 20 positions needs 12 positions that the sliding cache no longer holds, from 0 to 11\. "
        r"Read the text again into it"
    )
    with pytest.raises(ValueError, match=message):
        cache.copy_from(ring)
    assert_equal(contents(cache), before)
